#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# A rank that is stopped again and again for a moment is named as slow, in the log and in the records.
. "$(dirname "$0")/train_setup.sh"
make_data
make_config c.yaml 100000
options="-n 2 checkpoint.every=0 eval.every=0 batch.sequences=32"

"$floe" train c.yaml -o a $options >a.out 2>a.err &
front=$!
wait_for 60 grep -q '^step .* 3/100000' a.out
mpirun=$(pgrep -P $front mpirun) || fail "no mpirun below the front end"
for pid in $(pgrep -P "$mpirun"); do
    tr '\0' '\n' <"/proc/$pid/environ" | grep -qx OMPI_COMM_WORLD_RANK=1 && slow=$pid
done
tries=1000
until grep -q 'rank 1 on .* is slow' a.err || [ $tries = 0 ]; do
    kill -STOP "$slow"
    sleep 0.06
    kill -CONT "$slow"
    sleep 0.01
    tries=$((tries - 1))
done
kill -TERM $front
wait $front
says a.err '^warning: rank 1 on [^ ]+ is slow: [0-9.]+ times the median .* in [2-5][0-9] of the last 50 steps; it loses .* a step in: [a-z]'
says a/metrics.jsonl '"event":"straggler".*"rank":1,"host":"[^"]+","phase":"[^"]+","ratio":'
exit 0
