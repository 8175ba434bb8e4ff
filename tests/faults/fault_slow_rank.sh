#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# A rank that loses time in one phase from step 10 on (preload_nan_flip.c) is named within 50 steps, with that phase, in
# the log and in the records. It failed when the phase was that of rank 0, and when a rank had to be slow in 60 steps.
. "$(dirname "$0")/../train_setup.sh"
. "$(dirname "$0")/processes.sh"
export ASAN_OPTIONS=${ASAN_OPTIONS:+$ASAN_OPTIONS:}verify_asan_link_order=0
make_data
make_config c.yaml 60
if [ "$2" = full ]; then layouts="2.1.0 2.1.2 2.2.1 2.2.2 4.1.1 4.2.2" times=2; else layouts=2.2.2 times=1; fi

tried=0
slow() { # LAYOUT PHASE
    local n ep zero run=slow-$1-$2
    IFS=. read -r n ep zero <<<"$1"
    between 0 $((n - 1))
    LD_PRELOAD=$preload/preload_nan_flip.so FLOE_FAULT=slow-$2:$number:10 expect 0 "$floe" train c.yaml -o "$run" -n "$n" -q \
        "parallel.ep=$ep" "parallel.zero=$zero" checkpoint.every=0 eval.every=0
    says err.txt "^warning: rank $number on [^ ]+ is slow: [0-9.]+ times .* it loses [0-9.]+ m?s a step in: $2\$"
    says "$run/metrics.jsonl" "\"event\":\"straggler\",\"step\":[1-5][0-9],.*\"rank\":$number,\"host\":\"[^\"]+\",\"phase\":\"$2\""
    tried=$((tried + 1))
    rm -rf "$run"
}

preload=$3
for layout in $layouts; do
    for ((i = 0; i < times; i++)); do
        for phase in attention experts optimizer; do slow $layout $phase; done
    done
done
echo "result: a rank that lags in one phase | $tried | 0 | 0 | 5 ms a call in attention, experts or optimizer; named with its phase within 50 steps; 2 and 4 ranks, ep 1 and 2, ZeRO 0 to 2"
