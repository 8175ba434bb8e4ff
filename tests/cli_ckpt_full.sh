#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Saves on a full disk, a tmpfs of a few megabytes: training goes on, older checkpoints are whole, the next interval
# tries again, and checkpoint.required_every ends the run in time. Needs a mount of its own, so a namespace.
if [ "${2-}" != inside ]; then
    for flags in -rm -m; do
        unshare $flags mount -t tmpfs none /mnt 2>/dev/null && exec unshare $flags "$0" "$1" inside
    done
    echo "no namespace to mount a tmpfs in"
    exit 77
fi
. "$(dirname "$0")/train_setup.sh"
make_data
make_config c.yaml 100
sed -i -e '/until: 31%/d; /until: 70%/d' c.yaml
options="-n 2 checkpoint.every=10 checkpoint.keep=0 eval.every=0"

expect 0 "$floe" train c.yaml -o whole -q $options
size=$(du -k "$(checkpoint whole 20)" | cut -f1) # KiB of a checkpoint
disk() { # KiB: a fresh folder `small` of that size
    umount small 2>/dev/null
    mkdir -p small
    mount -t tmpfs -o size="$1k" none small || fail "no tmpfs"
}
events() { # RUN EVENT: how many
    grep -c "\"event\":\"$2\"" "$1/metrics.jsonl"
}
nothing_left() {
    [ -z "$(ls -A "$1/ckpt" | grep -E '^\.(tmp|trash)-')" ] || fail "left behind: $(ls -A "$1/ckpt")"
}

# ---- room for three: the others fail, training ends like the one that had room but for its last save
for background in true false; do
    disk $((size * 7 / 2))
    expect 1 "$floe" train c.yaml -o small/run $options checkpoint.background=$background
    says err.txt 'step 40 was not saved: .*No space left.*; training goes on'
    losses whole >whole.txt
    losses small/run >full.txt
    same "losses on a full disk" whole.txt full.txt
    [ "$(ls small/run/ckpt | grep -c ^step-)" = 3 ] || fail "not three checkpoints: $(ls small/run/ckpt)"
    nothing_left small/run
    [ "$(events small/run save_failed)" = 7 ] || fail "$(events small/run save_failed) failed saves"
    grep -q '"event":"save_failed".*"save_failures":7' small/run/metrics.jsonl || fail "failures are not counted"
    grep -q '^{"step":95,.*"save_failures":' small/run/metrics.jsonl || fail "steps do not tell failed saves"
    expect 0 "$floe" ckpt verify --all small/run
    expect 0 "$floe" ckpt diff "$(checkpoint whole 30)" "$(checkpoint small/run 30)"
done

# ---- space comes back: the next interval saves
disk $((size * 3 / 2))
"$floe" train c.yaml -o small/run $options train.steps=100000 >run.out 2>run.err &
front=$!
wait_for 60 grep -q 'step 20 was not saved' run.err
mv small/run/ckpt/step-000000010 elsewhere || fail "mv"
wait_for 60 grep -qE '^save ' run.out
wait_for 60 sh -c 'ls small/run/ckpt | grep -q ^step-'
nothing_left small/run
kill -TERM $front
wait $front
step=$(ls small/run/ckpt | sed -nE 's/^step-0*([0-9]+)$/\1/p' | head -1)
[ "$step" -gt 20 ] || fail "step $step"
expect 0 "$floe" ckpt verify small/run

# ---- no more than required_every is risked
disk $((size * 5 / 2))
expect 75 "$floe" train c.yaml -o small/run $options checkpoint.required_every=35
says err.txt 'stopped at step 55: the newest checkpoint is that of step 20, checkpoint.required_every = 35 steps allow no more, and saving fails: .*No space left'
[ "$(grep -c 'stopped at step' err.txt)" = 1 ] || fail "not one line"
mv small/run moved
expect 0 "$floe" train c.yaml -o moved $options
says out.txt '^resume +moved/ckpt/step-000000020'
losses moved >full.txt
same "losses after a stop for want of space" whole.txt full.txt

# ---- a disk so full that records cannot be written either: they are written when there is space again
disk $((size * 3 / 2))
"$floe" train c.yaml -o small/run $options train.steps=100000 >run.out 2>run.err &
front=$!
wait_for 60 test -d "$(checkpoint small/run 10)"
dd if=/dev/zero of=small/filler bs=4k 2>/dev/null
wait_for 60 grep -q 'metrics.jsonl: cannot write: .*; records are kept in memory' run.err
kill -0 $front || fail "the run has ended: $(cat run.err)"
rm small/filler small/run/ckpt/step-000000010 -r
kill -TERM $front
wait $front
[ $? = 75 ] || fail "no exit code 75: $(cat run.err)"
losses small/run >full.txt
awk '$1 != NR { exit 1 }' full.txt || fail "records are missing"
umount small

# ---- no step changes anything: the second save says so
expect 0 "$floe" train c.yaml -o still $options train.steps=20 optim.clip=1.0e-300 optim.weight_decay=0
says err.txt 'the state saved at step 20 is that of step 10, bit for bit'
grep '"event":"stale_save"' still/metrics.jsonl | grep -q '"same_as":10' || fail "the alarm is not recorded"
[ "$(events whole stale_save)" = 0 ] || fail "a false alarm"
exit 0
