#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Files of the newest checkpoint that are cut, missing, replaced, swapped, or of another step or another number of ranks:
# verify says so, a start names the file, moves the checkpoint away, goes on from the one before, and ends as ever.
# Seen to fail: where a manifest's step was not compared with its folder's name (checkpoint_folder.c), where checksums were not
# compared (checkpoint_file.c).
floe=$1
. "$(dirname "$0")/../train_setup.sh"
case $2 in quick) rounds=1 share=2 ;; *) rounds=5 share=1 ;; esac # of files cut or missing every share-th
seed=${FLOE_FAULT_SEED:-$(od -An -N2 -tu2 /dev/urandom | tr -d ' ')}
echo "seed $seed"
RANDOM=$seed
make_data
make_config c.yaml 30
sed -i -e 's/every: 20/every: 10/' -e 's/every: 50/every: 0/' c.yaml
expect 0 "$floe" train c.yaml -n 2 -o whole -q
expect 0 "$floe" train c.yaml -n 4 -o other -q
losses whole >whole.txt
newest=cut/ckpt/step-000000030 older=cut/ckpt/step-000000021 manifest=MANIFEST.json
shard() { # RANK [RANKS]
    printf 'shard_%05d_of_%05d_part000.h5' $1 ${2:-2}
}
size() {
    stat -c %s "$1"
}
swap() {
    mv "$1" swapped && mv "$2" "$1" && mv swapped "$2"
}

# ---- what happens to the files; each sets `named`, what messages must name
cut_shard() {
    named=$(shard $((RANDOM % 2)))
    truncate -s $((RANDOM * RANDOM % $(size $newest/$named))) $newest/$named
}
cut_manifest() {
    named=$manifest
    truncate -s $((RANDOM % $(size $newest/$named))) $newest/$named
}
longer_shard() {
    named=$(shard $((RANDOM % 2)))
    printf x >>$newest/$named
}
empty_shard() {
    named=$(shard 0)
    : >$newest/$named
}
garbage() {
    named=$(shard $((RANDOM % 2)))
    head -c $(size $newest/$named) /dev/urandom >garbage
    mv garbage $newest/$named
}
zeros() { # what some file systems leave of what was not flushed
    named=$(shard $((RANDOM % 2)))
    bytes=$(size $newest/$named)
    : >$newest/$named
    truncate -s $bytes $newest/$named
}
no_shard() {
    named=$(shard $((RANDOM % 2)))
    rm $newest/$named
}
no_manifest() {
    named=$manifest
    rm $newest/$named
}
nothing() {
    named=$manifest
    rm $newest/*
}
a_folder() {
    named=$(shard 1)
    rm $newest/$named
    mkdir $newest/$named
}
shards_swapped() {
    named=$(shard 0)
    swap $newest/$(shard 0) $newest/$(shard 1)
}
shard_of_another_step() {
    named=$(shard $((RANDOM % 2)))
    cp $older/$named $newest/$named
}
manifest_of_another_step() {
    named=step-000000030
    cp $older/$manifest $newest/$manifest
}
all_of_another_step() {
    named=step-000000030
    rm -r $newest
    cp -r $older $newest
}
shard_of_four_ranks() {
    named=$(shard 1)
    cp other/ckpt/step-000000030/$(shard 1 4) $newest/$named
}
manifest_of_four_ranks() {
    named=$(shard 0 4)
    cp other/ckpt/step-000000030/$manifest $newest/$manifest
}

turn=$seed
note() {
    [ "$1" = lost ] && lost=$((lost + 1)) || wrong=$((wrong + 1))
    echo "$1: $damage ($named): $2"
    head -5 err.txt
}
damaged() { # KIND DAMAGE…
    kind=$1 tried=0 lost=0 wrong=0
    shift
    for damage in $(for r in $(seq $rounds); do echo "$@"; done); do
        turn=$((turn + 1))
        [ $((turn % share)) = 0 ] || continue
        tried=$((tried + 1))
        rm -rf cut
        cp -r whole cut
        $damage
        "$floe" ckpt verify $newest >out.txt 2>err.txt
        code=$?
        [ $code = 4 ] || [ $damage = all_of_another_step ] || note wrong "verify: exit code $code"
        "$floe" train c.yaml -n 2 -o cut >out.txt 2>err.txt || note lost "exit code $?"
        grep -q "warning: .*$named.*; moved to cut/ckpt/damaged-step-000000030" err.txt || note wrong "the file is not named"
        grep -q '^resume .*step-000000021: step 21' out.txt || note lost "$(grep '^resume' out.txt)"
        losses cut >losses.txt
        cmp -s whole.txt losses.txt || note wrong "losses differ"
        "$floe" ckpt diff whole/ckpt/step-000000030 $newest >diff.txt 2>&1 || note wrong "$(tail -1 diff.txt)"
    done
    echo "result: $kind | $tried | $lost | $wrong | a start goes on from the checkpoint before, to the same end"
    all_bad=$((${all_bad:-0} + lost + wrong))
}
damaged "files truncated, longer, empty, overwritten" cut_shard cut_manifest longer_shard empty_shard garbage zeros
damaged "files missing" no_shard no_manifest nothing a_folder
share=1
damaged "files swapped or of another step" shards_swapped shard_of_another_step manifest_of_another_step all_of_another_step
damaged "files of a run on 4 ranks" shard_of_four_ranks manifest_of_four_ranks
[ $all_bad = 0 ] || fail "see above"
exit 0
