#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Kill and resume: bit-identical to the run that was never stopped; damaged and later checkpoints.
. "$(dirname "$0")/train_setup.sh"
make_data
make_config c.yaml 240
# A selection bias and a growing batch must come back too.
sed -i -e 's/expert_ffn: 48}/expert_ffn: 48, router: {bias_rate: 1.0e-2}}/' \
    -e 's/micro: 2}/micro: 2, ramp: [{until: 20000, sequences: 4}]}/' c.yaml

expect 0 "$floe" train c.yaml -n 2 -o whole -q checkpoint.keep=0
losses whole >whole.txt
hashes whole >whole_hashes.txt

# ---- kill -9 of the front end in full flight; a start at once waits for the ranks to end
"$floe" train c.yaml -n 2 -o cut -q >cut.out 2>&1 &
front=$!
wait_for 60 test -d "$(checkpoint cut 40)"
kill -9 $front
wait $front 2>/dev/null
printf '{"step":9999,"to' >>cut/metrics.jsonl
expect 0 "$floe" train c.yaml -n 2 -o cut
says out.txt '^resume +cut/ckpt/step-[0-9]+: step [0-9]+, token [0-9]+; saved by 2 ranks \(ep 2, zero 2\)'
says out.txt '^done '
losses cut >cut.txt
hashes cut >cut_hashes.txt
same "losses of a killed and resumed run" whole.txt cut.txt
same "stream hashes of a killed and resumed run" whole_hashes.txt cut_hashes.txt
expect 0 "$floe" ckpt diff "$(checkpoint whole 240)" "$(checkpoint cut 240)"

# ---- resume below the newest: later ones move away, records too
expect 0 "$floe" train c.yaml -n 2 -o cut -q --resume 200
ls cut/ckpt | grep -q '^abandoned-' || fail "no abandoned checkpoints: $(ls cut/ckpt)"
[ "$(grep -v '"event"' cut/metrics.abandoned.jsonl | sed -nE 's/^\{"step":([0-9]+),.*/\1/p' | tail -1)" = 240 ] ||
    fail "metrics.abandoned.jsonl does not end with step 240"
losses cut >cut.txt
same "losses after --resume 200" whole.txt cut.txt

# ---- a damaged newest checkpoint is named and passed over
newest=$(checkpoint cut 240)
victim=$(ls -S "$newest"/*.h5 | head -1)
printf 'XXXX' | dd of="$victim" bs=1 seek=5000 conv=notrunc 2>/dev/null
expect 0 "$floe" train c.yaml -n 2 -o cut
says err.txt 'step-000000240'
says out.txt '^resume +cut/ckpt/step-000000220'
losses cut >cut.txt
same "losses after a damaged checkpoint" whole.txt cut.txt

# ---- the plan so far must stay, later stages may change
expect 2 "$floe" train c.yaml -n 2 -o whole --resume 120 curriculum.0.mix.prose=0.8
says err.txt 'stage 1'
expect 2 "$floe" train c.yaml -n 2 -o whole --resume 120 train.seed=6
says err.txt 'seed'
expect 2 "$floe" train c.yaml -n 2 -o whole --resume 120 model.expert_ffn=64
says err.txt 'another model'
losses whole >after.txt
same "records after refused resumes" whole.txt after.txt
expect 0 "$floe" train c.yaml -n 2 -o whole -q --resume 160 curriculum.2.mix.prose=0.5
losses whole | head -160 >after.txt
head -160 whole.txt >before.txt
same "the past of a changed future" before.txt after.txt
exit 0
