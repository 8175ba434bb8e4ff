#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# A rank that is stopped: for a moment nobody minds, for good it is named and the job ends with 75.
. "$(dirname "$0")/train_setup.sh"
make_data
make_config c.yaml 100000
options="checkpoint.every=0 eval.every=0 guard.watchdog=3"

start() { # RUN OPTION…: in the background; $front
    run=$1
    shift
    "$floe" train c.yaml -o "$run" $options "$@" >"$run.out" 2>"$run.err" &
    front=$!
    wait_for 60 grep -q '^step .* 3/100000' "$run.out"
}

process_of() { # RANK
    mpirun=$(pgrep -P $front mpirun) || fail "no mpirun below the front end"
    for pid in $(pgrep -P "$mpirun"); do
        tr '\0' '\n' <"/proc/$pid/environ" | grep -qx "OMPI_COMM_WORLD_RANK=$1" && echo "$pid"
    done
}

newest() { # RUN: its last step so far
    grep -E '^step ' "$1.out" | tail -1 | sed -E 's/^step +([0-9]+).*/\1/'
}

# ---- stopped for a second: nothing is said, training goes on
start a -n 2
rank=$(process_of 1)
kill -STOP "$rank"
sleep 1
kill -CONT "$rank"
step=$(newest a)
wait_for 20 grep -q "^step .* $((step + 5))/100000" a.out
grep -q '^\[rank' a.err && { cat a.err >&2; fail "something was said about a rank that was stopped for a second"; }
[ ! -e a/ctl/hung ] || fail "a/ctl/hung after a second"

# ---- every rank stopped for longer than the limit: that time counts for none of them
ranks="$(process_of 0) $(process_of 1)"
kill -STOP $ranks
sleep 5
kill -CONT $ranks
step=$(newest a)
wait_for 20 grep -q "^step .* $((step + 5))/100000" a.out
grep -q '^\[rank' a.err && { cat a.err >&2; fail "something was said about a job that was stopped as a whole"; }

# ---- for ever: the other one names it
kill -STOP "$(process_of 1)"
begun=$(date +%s)
wait $front
code=$?
[ $code = 75 ] || { cat a.err >&2; fail "exit code $code for a rank that hangs"; }
[ $(($(date +%s) - begun)) -le 20 ] || fail "it took $(($(date +%s) - begun)) s to end"
says a.err '^\[rank 0\] waits [3-9] s in .* for rank 1$'
says a.err '^\[rank 0\] error: no progress for [3-9] s \(guard.watchdog = 3\).*a/log/stack-rank-.*; none from rank 1$'
says a/log.txt 'waits [3-9] s in .* for rank 1$'
says a/log/stack-rank-0.txt '^waits in: '
says a/log/stack-rank-0.txt '^not arrived: rank 1$'
says a/log/stack-rank-0.txt 'stack of the main thread'
says a/log/stack-rank-0.txt 'floe.*\(train_step|libmpi|libopen-pal'
[ -z "$(ls a/ckpt)" ] || fail "something was saved: $(ls a/ckpt)"

# ---- without a watchdog a job waits
start b -n 2 guard.watchdog=0
kill -STOP "$(process_of 1)"
sleep 5
kill -0 $front || fail "the job ended without a watchdog"
kill -INT $front
sleep 0.5
kill -INT $front
wait $front

# ---- of three ranks, two name the third
start c -n 3 parallel.ep=1 batch.sequences=6
kill -STOP "$(process_of 2)"
wait $front
code=$?
[ $code = 75 ] || { cat c.err >&2; fail "exit code $code with three ranks"; }
says c.err '^\[rank [01]\] error: no progress .* c/log/stack-rank-\*\.txt; none from rank 2$'
# A sender that is stopped in the middle of a message keeps those of others from being seen, too.
says c.err '^\[rank 0\] waits [1-9] s in .* for (rank|ranks 1,) 2$'
says c.err '^\[rank 1\] waits [1-9] s in .* for (rank|ranks 0,) 2$'
exit 0
