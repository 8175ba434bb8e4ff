#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Pieces of the exchange, waves and micro-batches change the order of sums, nothing else: losses of 20 steps stay within
# 1e-6. (Sums of a few hundred float32 terms differ by about 1e-7 of themselves; Adam carries that on for 20 steps.)
. "$(dirname "$0")/train_setup.sh"
make_data
make_config c.yaml 20

run() { # NAME KEY=VALUE…
    name=$1
    shift
    expect 0 "$floe" train c.yaml -n 2 -q -o "$name" checkpoint.every=0 eval.every=0 "$@"
}
run plain
for change in parallel.chunks=1 parallel.chunks=4 parallel.expert_rows=0.4 batch.micro=1 batch.micro=4 parallel.ep=1; do
    run "$change" "$change"
    close_losses 1e-6 plain "$change"
done
cmp -s close_a.txt close_b.txt && fail "the last pair of runs has equal bits: it compares nothing"
exit 0
