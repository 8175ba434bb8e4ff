#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Resume on another number of ranks, ep and ZeRO stage: the same samples, losses within 1e-5 relative in fp32 (sums run
# in another order).
. "$(dirname "$0")/train_setup.sh"
make_data
make_config c.yaml 60
# 12 sequences and experts can be shared out to 1, 2, 3 and 4 ranks.
sed -i -e 's/experts: 4/experts: 12/' -e 's/sequences: 8, seq_len: 64, micro: 2/sequences: 12, seq_len: 64, micro: 1/' c.yaml

expect 0 "$floe" train c.yaml -n 2 -o base -q
hashes base >base_hashes.txt
expect 0 "$floe" train c.yaml -n 2 -o start -q
i=0
for layout in "1 1 0" "4 1 1" "4 4 2" "4 2 0" "2 2 1" "3 1 1" "3 3 2"; do
    set -- $layout
    i=$((i + 1))
    rm -rf "run$i"
    cp -r start "run$i"
    expect 0 "$floe" train c.yaml -n "$1" -o "run$i" -q --resume 40 "parallel.ep=$2" "parallel.zero=$3"
    hashes "run$i" >hashes.txt
    same "stream hashes on $1 ranks" base_hashes.txt hashes.txt
    close_losses 1e-5 base "run$i"
done
# and back again
expect 0 "$floe" train c.yaml -n 2 -o run2 -q --resume 40
close_losses 1e-5 base run2
# held-out losses do not depend on the layout either: 60 = the last step
for n in 1 2; do
    expect 0 "$floe" eval base -n $n --json
    sed -nE 's/^  "loss": ([0-9.]+).*/\1/p' out.txt >"eval$n.txt"
done
paste -d ' ' eval1.txt eval2.txt | awk '{ d = $1 - $2; exit !(NF == 2 && d < 1e-5 && d > -1e-5) }' || fail "eval depends on the ranks"
exit 0
