#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# What stays of a run's checkpoints: while it trains, by hand (pin, prune), and what verify --all says.
. "$(dirname "$0")/train_setup.sh"
make_data
make_config c.yaml 120
sed -i -e '/until: 31%/d; /until: 70%/d' c.yaml # one stage: none is kept for ever for its sake

there() { # RUN: the steps that it has
    ls "$1/ckpt" | sed -nE 's/^step-0*([0-9]+)$/\1/p' | tr '\n' ' ' | sed 's/ $//'
}
stay() { # RUN EXPECTED
    [ "$(there "$1")" = "$2" ] || fail "$1 has steps '$(there "$1")', not '$2'"
}
damage() { # CKPT: a byte in the middle of its largest file
    victim=$(ls -S "$1"/*.h5 | head -1)
    at=$(($(stat -c %s "$victim") / 2))
    printf 'XXXX' | dd of="$victim" bs=1 seek=$at conv=notrunc 2>/dev/null
}

# ---- while it trains
expect 0 "$floe" train c.yaml -n 2 -o run checkpoint.every=10 checkpoint.keep=2 checkpoint.keep_every=50
stay run "50 100 110 120"
[ "$(grep -c '"event":"verified"' run/metrics.jsonl)" = 12 ] || fail "not every checkpoint was verified"
expect 0 "$floe" ckpt ls run
[ "$(grep -c ' verified ' out.txt)" = 4 ] || fail "not all are told as verified"

# ---- pinned by hand, unpinned, and what cannot be pinned
expect 0 "$floe" ckpt pin run@110
says out.txt 'step-000000110: pinned'
expect 0 "$floe" ckpt ls run
says out.txt ' pinned verified +run/ckpt/step-000000110'
expect 0 "$floe" ckpt ls --json run
[ "$(grep -c '"pinned": true' out.txt)" = 1 ] || fail "ls --json does not tell the pinned one"
expect 2 "$floe" ckpt pin run@7
expect 2 "$floe" ckpt pin absent
expect 0 "$floe" ckpt verify run # nothing was added to the folder

# ---- prune: first says, then does
expect 0 "$floe" ckpt prune run --keep 1 --dry-run
says out.txt '^ +50  stays: a multiple of checkpoint.keep_every'
says out.txt '^ +110  stays: pinned'
says out.txt '^run: 4 checkpoints, 0 would go'
sed -i 's/keep_every: *50/keep_every: 0/' run/config.yaml
expect 0 "$floe" ckpt prune run --keep 1 --dry-run
says out.txt '^run: 4 checkpoints, 2 would go'
stay run "50 100 110 120"
expect 0 "$floe" ckpt prune run --keep 1
says out.txt '^run: 4 checkpoints, 2 removed'
stay run "110 120"
expect 0 "$floe" ckpt pin run@110 --remove
expect 0 "$floe" ckpt prune run # its own keep is 2
stay run "110 120"
expect 2 "$floe" ckpt prune absent
expect 2 "$floe" ckpt prune data

# ---- an unverified one that is damaged takes no whole one with it
expect 0 "$floe" train c.yaml -n 2 -o old -q checkpoint.every=40 checkpoint.keep=0
rm -r old/ckpt/.verified
cp -r old all
damage "$(checkpoint old 120)"
expect 4 "$floe" ckpt prune old --keep 1
says err.txt 'step-000000120/shard_[0-9_of]+part000.h5: damaged: [a-z]+ of [a-z0-9._]+, elements [0-9]+ to [0-9]+, at byte [0-9]+; .* moved to old/ckpt/damaged-step-000000120'
stay old 80
[ -d old/ckpt/damaged-step-000000120 ] || fail "the damaged one is gone"

# ---- verify --all
expect 0 "$floe" ckpt verify --all old
says out.txt '^1 checkpoints: 1 whole, 0 damaged; 1 in quarantine'
damage "$(checkpoint all 40)"
expect 4 "$floe" ckpt verify --all all
says out.txt '^3 checkpoints: 2 whole, 1 damaged; 0 in quarantine'
expect 0 "$floe" train c.yaml -n 2 -o all -q --resume 80 # 120 is abandoned, and done again
damage "$(ls -d all/ckpt/abandoned-*/step-000000120)"
expect 4 "$floe" ckpt verify --all all
says err.txt 'abandoned-[0-9-]+/step-000000120'

# ---- resume: the damaged newest is moved away, told once and recorded; the one before is used
damage "$(checkpoint run 120)"
expect 4 "$floe" train c.yaml -n 2 -o run --resume 120
stay run "110 120"
expect 0 "$floe" train c.yaml -n 2 -o run
says out.txt '^resume +run/ckpt/step-000000110'
[ "$(grep -c 'step-000000120.*damaged: .* at byte .* moved to run/ckpt/damaged-step-000000120' err.txt)" = 1 ] ||
    fail "not told in one line: $(cat err.txt)"
grep '"event":"quarantine"' run/metrics.jsonl | grep -q '"damaged_step":120' || fail "the quarantine is not recorded"
stay run "110 120" # 120 was trained anew
cp -r run cut
truncate -s 100 "$(checkpoint cut 120)/MANIFEST.json"
expect 4 "$floe" train c.yaml -n 2 -o cut --resume 120
says err.txt 'step-000000120 is damaged'
stay cut "110 120"
# All of them: never from the start in silence.
damage "$(checkpoint run 110)"
damage "$(checkpoint run 120)"
expect 4 "$floe" train c.yaml -n 2 -o run
says err.txt 'no checkpoint in run/ckpt can be loaded'
stay run ""
expect 4 "$floe" train c.yaml -n 2 -o run

# ---- not while the run is going
"$floe" train c.yaml -n 2 -o busy train.steps=100000 -q >busy.out 2>&1 &
front=$!
wait_for 60 test -d "$(checkpoint busy 20)"
expect 1 "$floe" ckpt prune busy --keep 1
says err.txt 'busy is in use by'
expect 0 "$floe" ckpt pin busy@20
kill -TERM $front
wait $front
[ -d "$(checkpoint busy 20)" ] || fail "the pinned one is gone"
exit 0
