#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# --restarts: a job whose rank was killed or hangs is started again and ends as one that nothing happened to.
. "$(dirname "$0")/train_setup.sh"
make_data
make_config c.yaml 240

start() { # RUN OPTION…: in the background; $front
    run=$1
    shift
    rm -f "$run.out" # of a start before
    "$floe" train c.yaml -o "$run" "$@" >"$run.out" 2>"$run.err" &
    front=$!
}

process_of() { # RANK
    mpirun=$(pgrep -P $front mpirun) || fail "no mpirun below the front end"
    for pid in $(pgrep -P "$mpirun"); do
        tr '\0' '\n' <"/proc/$pid/environ" | grep -qx "OMPI_COMM_WORLD_RANK=$1" && echo "$pid"
    done
}

ends_with() { # CODE
    wait $front
    got=$?
    [ $got = "$1" ] || { cat "$run.err" >&2; fail "exit code $got instead of $1"; }
}

expect 0 "$floe" train c.yaml -n 2 -o whole -q
losses whole >whole.txt
hashes whole >whole_hashes.txt

# ---- each rank killed once, the second time before the first checkpoint of the restarted job
start a -n 2 --restarts 3 checkpoint.keep=0
wait_for 60 test -d "$(checkpoint a 60)"
kill -9 "$(process_of 1)"
wait_for 60 grep -q '^recovery ' a.out
kill -9 "$(process_of 0)"
ends_with 0
says a.err '^warning: signal 9 \(Killed\) has ended the job; restart 1 of 3 in 1 s$'
says a.err '^warning: signal 9 \(Killed\) has ended the job; restart 2 of 3 in 2 s$'
says a.out '^recovery +[0-9.]+ s from the last step before the failure to the end of step [0-9]+$'
losses a >a.txt
hashes a >a_hashes.txt
same "losses of a run with two restarts" whole.txt a.txt
same "stream hashes of a run with two restarts" whole_hashes.txt a_hashes.txt
expect 0 "$floe" ckpt diff "$(checkpoint whole 240)" "$(checkpoint a 240)"
[ "$(grep -c '"restart": [12]' a/meta.json)" = 2 ] || { cat a/meta.json >&2; fail "meta.json does not count the restarts"; }
grep -q '"event":"recovered".*"seconds":' a/metrics.jsonl || fail "no event of the recovery"

# ---- one that hangs; one rank alone, which then has a front end too
start b -n 2 --restarts 1 guard.watchdog=3 -q
wait_for 60 test -d "$(checkpoint b 40)"
kill -STOP "$(process_of 1)"
ends_with 0
says b.err '^warning: the watchdog has ended the job; restart 1 of 1 in 1 s$'
losses b >b.txt
same "losses of a run that hung" whole.txt b.txt

start c -n 1 --restarts 1 parallel.ep=1 -q
wait_for 60 test -d "$(checkpoint c 40)"
kill -9 "$(process_of 0)"
ends_with 0
expect 0 "$floe" train c.yaml -n 1 -o one parallel.ep=1 -q
losses one >one.txt
losses c >c.txt
same "losses of a restarted single rank" one.txt c.txt

# ---- --resume STEP is where the first start begins, not the restarted one
start a -n 2 --restarts 1 --resume 100 checkpoint.keep=0
wait_for 60 grep -Eq '^save +120/240' a.out
kill -9 "$(process_of 1)"
ends_with 0
says a.out '^resume +a/ckpt/step-000000120: '
losses a >a.txt
same "losses after --resume and a restart" whole.txt a.txt

# ---- what a user asks for, and what a restart would only meet again, ends the command
start d -n 2 --restarts 3 train.steps=100000 checkpoint.every=0 eval.every=0
wait_for 60 grep -q '^step .* 3/100000' d.out
kill -TERM $front
ends_with 75
says d.out '^stop '
start d -n 2 --restarts 3 train.steps=100000 checkpoint.every=0 eval.every=0
wait_for 60 grep -q '^resume ' d.out
kill -INT $front
sleep 0.5
kill -INT $front
wait $front
got=$?
[ $got = 130 ] || [ $got = 75 ] || fail "exit code $got after two INT"
expect 2 "$floe" train c.yaml -n 2 -o e --restarts 3 train.steps=0
expect 5 "$floe" train c.yaml -n 2 -o e --restarts 3 optim.lr=1e30 optim.clip=0 optim.warmup=0
grep -q 'restart' d.err err.txt && fail "a restart that nobody wants"

# ---- none are left; a signal during the pause
start f -n 2 --restarts 1
wait_for 60 test -d "$(checkpoint f 20)"
kill -9 "$(process_of 0)"
wait_for 60 grep -q '^recovery ' f.out
kill -9 "$(process_of 1)"
ends_with 137
says f.err '^error: signal 9 \(Killed\) has ended the job; all 1 restarts are used up$'
start f -n 2 --restarts 2
wait_for 60 grep -q '^step ' f.out
kill -9 "$(process_of 0)"
wait_for 60 grep -q 'restart 1 of 2' f.err
kill -TERM $front
ends_with 75
exit 0
