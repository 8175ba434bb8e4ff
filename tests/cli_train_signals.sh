#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Signals, control files, the time limit and the lock.
. "$(dirname "$0")/train_setup.sh"
make_data
make_config c.yaml 100000
options="-n 2 checkpoint.every=0 eval.every=0"

start() { # RUN: in the background; $front
    "$floe" train c.yaml -o "$1" $options >"$1.out" 2>"$1.err" &
    front=$!
    wait_for 30 grep -q '^step .* 3/100000' "$1.out"
}

ends_with() { # CODE
    wait $front
    got=$?
    [ $got = "$1" ] || { cat ./*.err >&2; fail "exit code $got instead of $1"; }
}

stopped_at() { # RUN: the step that its newest checkpoint has
    ls "$1/ckpt" | sed -nE 's/^step-0*([0-9]+)$/\1/p' | tail -1
}

# ---- USR1 saves and goes on, TERM saves and stops
start a
kill -USR1 $front
wait_for 10 grep -q '^save ' a.out
first=$(stopped_at a)
wait_for 10 grep -q "^step .* $((first + 2))/100000" a.out
kill -TERM $front
ends_with 75
says a.out '^stop .*floe train a/config.yaml -o a'
last=$(stopped_at a)
[ "$last" -gt "$first" ] || fail "no later checkpoint after TERM"
grep -q '"event":"signal".*"action":"stop"' a/metrics.jsonl || fail "the signal is not recorded"

# ---- what it says to type goes on where it was; the control file stops it
"$floe" train a/config.yaml -o a -n 2 >a.out 2>a.err &
front=$!
wait_for 30 grep -q "^step .* $((last + 1))/100000" a.out
says a.out "^resume +a/ckpt/.*: step $last, "

# ---- meanwhile a second start waits, then names the holder
begun=$(date +%s)
expect 1 "$floe" train c.yaml -o a $options
[ $(($(date +%s) - begun)) -ge 9 ] || fail "the second start did not wait"
says err.txt "a is in use by process $front on "
touch a/ctl/save
wait_for 10 grep -q '^save ' a.out
touch a/ctl/stop
ends_with 75
[ ! -e a/ctl/stop ] && [ ! -e a/ctl/save ] || fail "control files stay"

# ---- two signals: gone within 2 s (and a bit for a busy machine)
start b
kill -INT $front
kill -INT $front
begun=$(date +%s)
wait $front
code=$?
[ $(($(date +%s) - begun)) -le 4 ] || fail "the second signal took too long"
[ $code = 130 ] || [ $code = 75 ] || fail "exit code $code after two INT"

# ---- the time limit
expect 75 "$floe" train c.yaml -o c $options --max-time 1s
says out.txt '^stop .*--max-time'
[ -n "$(stopped_at c)" ] || fail "nothing saved at the time limit"
# ---- without a front end: mpirun passes USR1 and USR2 on; a signal to one rank is for all
bare() { # RUN: $mpirun
    "$(dirname "$0")/mpirun.sh" 2 "$floe" train c.yaml -o "$1" checkpoint.every=0 eval.every=0 >"$1.out" 2>"$1.err" &
    mpirun=$!
    front=$mpirun
    wait_for 30 grep -q '^step .* 3/100000' "$1.out"
}
bare d
kill -USR1 $mpirun
wait_for 10 grep -q '^save ' d.out
first=$(stopped_at d)
wait_for 10 grep -q "^step .* $((first + 2))/100000" d.out
kill -USR2 $mpirun
ends_with 75
says d.out '^stop .*SIGUSR2'
[ "$(stopped_at d)" -gt "$first" ] || fail "no checkpoint at USR2 through mpirun"
for signal in TERM USR2; do
    bare "d-$signal"
    kill -$signal "$(pgrep -P $mpirun | tail -1)"
    ends_with 75
    says "d-$signal.out" "^stop .*SIG$signal"
done
exit 0
