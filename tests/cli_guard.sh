#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Bad steps in runs: with a window of a few steps and a low bound ordinary steps count as spikes. What is dropped or
# passed over is recorded, and a killed run decides as the one that was never stopped.
. "$(dirname "$0")/train_setup.sh"
make_data
make_config c.yaml 120
sed -i -e 's/expert_ffn: 48}/expert_ffn: 48, router: {bias_rate: 1.0e-2}}/' c.yaml
spiky="guard.window=6 guard.z=1.3 guard.max_bad=50 checkpoint.keep=0 eval.every=0"

bad_steps() { # RUN: "step action" of each bad step, and the step that it went back to
    sed -nE -e 's/^\{"event":"bad_step","step":([0-9]+),.*"action":"([a-z]+)".*"back_to":([0-9]+).*/\1 \2 \3/p;t' \
        -e 's/^\{"event":"bad_step","step":([0-9]+),.*"action":"([a-z]+)".*/\1 \2/p' "$1/metrics.jsonl"
}

# The ranges of passed steps that bad steps leave, "first last": later ways back to a step replace earlier ones.
ranges_of() {
    awk '{ from = $3 == "" ? $1 : $3 + 1; while (n && first[n] >= from) n--
           if (n && last[n] + 1 == from) last[n] = $1; else { first[++n] = from; last[n] = $1 } }
         END { for (i = 1; i <= n; i++) print first[i], last[i] }' "$1"
}

recorded_ranges() { # CHECKPOINT
    grep -oE '"first_step":[0-9]+,"last_step":[0-9]+' "$1/MANIFEST.json" | sed -E 's/[^0-9]+/ /g;s/^ //'
}

for policy in skip rollback; do
    expect 0 "$floe" train c.yaml -n 2 -o $policy $spiky guard.spike=$policy
    bad_steps $policy >bad.txt
    [ "$(grep -c " $policy" bad.txt)" -ge 3 ] || fail "$policy: only $(wc -l <bad.txt) bad steps"
    says err.txt "^.*step [0-9]+ is bad: (loss|gradient norm) [0-9.]+ is [0-9.]+ deviations above the last 6 good steps' [0-9.]+ "
    losses $policy >whole.txt
    hashes $policy >whole_hashes.txt
    [ "$(wc -l <whole.txt)" = 120 ] || fail "$policy: not one record a step"
    ranges_of bad.txt >ranges.txt
    recorded_ranges "$(checkpoint $policy 120)" >recorded.txt
    same "$policy: passed steps" ranges.txt recorded.txt

    # ---- killed in full flight
    "$floe" train c.yaml -n 2 -o cut-$policy -q $spiky guard.spike=$policy >cut.out 2>&1 &
    front=$!
    wait_for 60 test -d "$(checkpoint cut-$policy 40)"
    kill -9 $front
    wait $front 2>/dev/null
    expect 0 "$floe" train c.yaml -n 2 -o cut-$policy $spiky guard.spike=$policy
    says out.txt "^resume +cut-$policy/ckpt/"
    losses cut-$policy >cut.txt
    hashes cut-$policy >cut_hashes.txt
    bad_steps cut-$policy >cut_bad.txt
    same "$policy: losses of a killed and resumed run" whole.txt cut.txt
    same "$policy: stream hashes of a killed and resumed run" whole_hashes.txt cut_hashes.txt
    same "$policy: bad steps of a killed and resumed run" bad.txt cut_bad.txt
    expect 0 "$floe" ckpt diff "$(checkpoint $policy 120)" "$(checkpoint cut-$policy 120)"
done
expect 0 "$floe" train c.yaml -n 2 -o plain -q eval.every=0
hashes plain >plain_hashes.txt
same "stream hashes with and without bad steps" plain_hashes.txt whole_hashes.txt

# ---- the way back goes to the checkpoint's weights: with one a step, to those before the bad step, as in skipping
for policy in skip rollback; do
    expect 0 "$floe" train c.yaml -n 2 -o each-$policy -q $spiky guard.spike=$policy checkpoint.every=1 train.steps=60
    losses each-$policy >each-$policy.txt
done
bad_steps each-rollback | grep -q rollback || fail "no way back"
same "losses of skipping and of going back one step" each-skip.txt each-rollback.txt
expect 0 "$floe" ckpt diff "$(checkpoint each-skip 60)" "$(checkpoint each-rollback 60)"

# ---- the end by policy
expect 5 "$floe" train c.yaml -n 2 -o stopped -q $spiky guard.spike=stop
says err.txt 'step [0-9]+: (loss|gradient norm) .* deviations above .* stopped by guard.spike'
grep '"event":"bad_step"' stopped/metrics.jsonl | grep -q '"action":"stop"' || fail "the stop is not recorded"

wild="optim.lr=1.0e+18 optim.clip=0 optim.warmup=0"
expect 5 "$floe" train c.yaml -n 2 -o wild -q $wild guard.nonfinite=skip guard.max_bad=4
says err.txt 'step 5: loss .*bad step number 4 in a row'
[ "$(bad_steps wild | tr '\n' ,)" = "2 skip,3 skip,4 skip,5 stop," ] || fail "bad steps: $(bad_steps wild)"
[ -z "$(ls wild/ckpt)" ] || fail "a diverged state was saved"
# Nowhere to go back to.
expect 5 "$floe" train c.yaml -n 2 -o nowhere -q $wild guard.nonfinite=rollback
says err.txt 'step 2: .*diverged before the first checkpoint'
# No save while steps are bad: the weights may be the reason.
expect 5 "$floe" train c.yaml -n 2 -o unsaved -q $wild guard.nonfinite=skip guard.max_bad=8 checkpoint.every=3
[ -z "$(ls unsaved/ckpt)" ] || fail "saved among bad steps: $(ls unsaved/ckpt)"
exit 0
