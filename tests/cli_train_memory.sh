#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Each ZeRO stage saves memory on each rank: as planned, and as measured.
. "$(dirname "$0")/train_setup.sh"
make_data
make_config c.yaml 3

figure() { # RUN SECTION KEY: of meta.json
    awk -v section="\"$2\"" -v key="\"$3\"" '
        index($0, section ": {") { inside = 1 }
        inside && index($0, key ":") { gsub(/[^0-9]/, ""); print; exit }' "$1/meta.json"
}

# 2 replicas of 12 layers, 12 M parameters: stage 2 keeps the gradients of two layers whole, of the others a half
for zero in 0 1 2; do
    expect 0 "$floe" train c.yaml -n 2 -q -o "zero$zero" parallel.ep=1 "parallel.zero=$zero" checkpoint.every=0 eval.every=0 \
        model.layers=12 model.hidden=128 model.head_dim=32 model.expert_ffn=512 model.dense_ffn=512
    for key in weights grads optimizer total; do
        figure "zero$zero" plan $key >"$key$zero"
        [ -s "$key$zero" ] || fail "meta.json has no plan of $key"
    done
    figure "zero$zero" measured held >"held$zero"
    [ -s "held$zero" ] || fail "meta.json has no measurement"
done

below() { # SHARE FILE FILE: the first figure is less than that share of the second
    awk -v share="$1" 'NR == 1 { a = $1 } NR == 2 { exit !(a < share * $1) }' "$2" "$3" ||
        fail "$2 = $(cat "$2") is not below $1 of $3 = $(cat "$3")"
}
below 0.75 optimizer1 optimizer0
below 0.75 grads2 grads1
below 0.9 total1 total0
below 0.95 total2 total1
below 0.9 held1 held0
below 0.95 held2 held1
# What was measured is no more than what was planned and the libraries' own share.
for zero in 0 1 2; do
    awk 'NR == 1 { held = $1 } NR == 2 { exit !(held < $1 + 40e6) }' "held$zero" "total$zero" ||
        fail "zero $zero takes $(cat "held$zero") bytes, planned were $(cat "total$zero")"
done
# Received rows are bounded: whole steps with every token to one expert take no more memory than balanced ones, where
# room for all of them would be 2 × (rows of 128 · 4 tokens, of width 128 + 3 · 1024) × 4 bytes more in each of 4 layers.
for force in balanced one; do
    expect 0 "$floe" train c.yaml -n 2 -q -o "$force" parallel.ep=2 parallel.expert_rows=1 "model.router.force=$force" \
        model.layers=4 model.hidden=128 model.head_dim=32 model.top_k=1 model.expert_ffn=1024 batch.seq_len=128 \
        batch.micro=4 checkpoint.every=0 eval.every=0
    figure "$force" measured held >"held$force"
done
awk 'NR == 1 { one = $1 } NR == 2 { exit !(one < $1 + 4e6) }' heldone heldbalanced ||
    fail "every token to one expert takes $(cat heldone) bytes, balanced routing $(cat heldbalanced)"
grep -q '"waves":1' one/metrics.jsonl || fail "rows beyond the room did not travel in a second wave"
# The stages do the same work: equal bits with one micro-step a rank.
for zero in 0 1 2; do
    expect 0 "$floe" train c.yaml -n 2 -q -o "one$zero" parallel.ep=2 "parallel.zero=$zero" batch.micro=4
    losses "one$zero" >"one$zero.txt"
done
same "losses of ZeRO stages 0 and 1" one0.txt one1.txt
same "losses of ZeRO stages 1 and 2" one1.txt one2.txt
exit 0
