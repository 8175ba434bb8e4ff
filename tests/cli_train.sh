#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# A run from nothing: lines, folder, records, and what bad input gets.
. "$(dirname "$0")/train_setup.sh"
make_data
make_config c.yaml 60

expect 0 "$floe" train c.yaml -n 2 --dry-run
[ ! -e runs ] || fail "a dry run wrote something"
grep '^memory  *plan' out.txt >plan.txt || fail "a dry run shows no plan of memory"

# ---- a fresh run; 60 steps of 512 tokens: stages end at floor(9523.2) and 21504
expect 0 "$floe" train c.yaml -n 2
for word in machine mpi model data batch memory resume done; do says out.txt "^$word "; done
says out.txt '^resume +none'
says out.txt '^step +1/60 \| loss [0-9.]+ \| gnorm [0-9.]+ \| lr [0-9.e-]+ \| '
says out.txt '^stage 2/3 at token 9472$'
says out.txt '^stage 3/3 at token 21504$'
says out.txt '^eval +50/60 \| loss .* prose .* code '
says out.txt '^save +20/60 \| ckpt/step-000000020 '
[ "$(grep -c '^step ' out.txt)" = 60 ] || fail "not 60 step lines"
# The switch stands just before the line of the step in which it happens: sample 148 = token 9472 is in step 19.
grep -A1 '^stage 2/3' out.txt | grep -qE '^step +19/60' || fail "stage 2 is announced at another step"
grep -A1 '^stage 3/3' out.txt | grep -qE '^step +43/60' || fail "stage 3 is announced at another step"
grep '^memory  *plan' out.txt >taken.txt
same "the memory of a dry run and of the run" plan.txt taken.txt
[ -L runs/latest ] || fail "no link runs/latest"
run=runs/$(readlink runs/latest)
for name in config.yaml config.input.yaml meta.json log.txt metrics.jsonl ckpt ctl lock; do
    [ -e "$run/$name" ] || fail "$run/$name is missing"
done
losses "$run" >one.txt
[ "$(wc -l <one.txt)" = 60 ] && head -1 one.txt | grep -q '^1 ' || fail "not one record a step from 1"
grep -c '"event":"eval"' "$run/metrics.jsonl" | grep -qx 2 || fail "not 2 evaluations"
grep -q '"event":"stage".*"token":9472' "$run/metrics.jsonl" || fail "no record of the stage"
grep -q '"mem_bytes"' "$run/meta.json" && grep -q '"measured"' "$run/meta.json" || fail "no memory in meta.json"
says "$run/log.txt" '^step +60/60'
# keep 3: of 20, 40, 60 and the switches at 19 and 42 (permanent) nothing goes; the first step's loss is near ln 259
[ -d "$(checkpoint "$run" 19)" ] && [ -d "$(checkpoint "$run" 42)" ] && [ -d "$(checkpoint "$run" 60)" ] ||
    fail "checkpoints missing: $(ls "$run/ckpt")"
awk '$1 == 1 && ($2 < 5.3 || $2 > 5.9) { exit 1 } $1 == 60 && $2 > 4.5 { exit 1 }' one.txt || fail "the loss does not fall as it should"

# ---- the same again: the same bits
expect 0 "$floe" train c.yaml -n 2 -o again -q
[ ! -s out.txt ] || fail "-q prints: $(head -1 out.txt)"
losses again >two.txt
same "losses of two equal runs" one.txt two.txt

# ---- refusals
expect 0 "$floe" train c.yaml -n 2 -o again
says out.txt 'done +all 60 steps'
expect 2 "$floe" train c.yaml -n 2 -o again --resume=never
says err.txt 'again already holds a run'
expect 2 "$floe" train c.yaml -n 2 -o again --resume=13
says err.txt 'no checkpoint of that step'
expect 2 "$floe" train c.yaml -n 2 -o new modl.layers=3
expect 2 "$floe" train c.yaml -n 2 -o new parallel.ep=3
expect 2 "$floe" train c.yaml -n 2 -o new --max-time=soon
expect 2 "$floe" train c.yaml -n 2 -o new train.init_from=nowhere
expect 2 "$floe" train c.yaml -n 2 -o new --fork nowhere@3
[ ! -e new ] || fail "a refused start wrote something: $(ls -R new)"

# ---- weights alone
expect 0 "$floe" train c.yaml -n 2 -o tuned train.init_from=again train.steps=3
says out.txt '^resume +weights of again/ckpt/step-000000060'
losses tuned | awk '$1 == 1 && $2 > 4.5 { exit 1 }' || fail "train.init_from did not start from the weights"

# ---- a loss that is no longer a number
expect 5 "$floe" train c.yaml -n 2 -o wild -q optim.lr=1.0e+18 optim.clip=0 optim.warmup=0
says err.txt 'step 2: .*diverged'
grep -v '"event"' wild/metrics.jsonl | tail -1 | grep -q '"loss":null.*"nonfinite":true' || fail "no null for a loss that is not a number"
[ -z "$(ls wild/ckpt)" ] || fail "a diverged state was saved"

# ---- bad data
mkdir bad
cp data/* bad/
size=$(wc -c <bad/code.bin)
head -c $((size - 6)) bad/code.bin >bad/code.short && mv bad/code.short bad/code.bin
expect 4 "$floe" train c.yaml -n 2 -o new data.sources.code.path=bad/code
says err.txt 'bad/code'
[ ! -e new ] || fail "a start with bad data wrote something"
cp data/code.bin bad/code.bin
awk 'BEGIN { for (i = 0; i < 2000; i++) printf "\377\377" }' >hole.bin # 2000 tokens of 65535
LC_ALL=C dd if=hole.bin of=bad/code.bin bs=1 seek=60000 conv=notrunc 2>/dev/null
expect 4 "$floe" train c.yaml -n 2 -o holed data.sources.code.path=bad/code
says err.txt 'bad/code.bin is damaged: bytes [0-9]+ to [0-9]+ '
rm bad/code.crc holed -r
expect 4 "$floe" train c.yaml -n 2 -o holed data.sources.code.path=bad/code
says err.txt 'bad/code.bin.*(65535|-1)'
[ "$(grep -c 65535 err.txt)" = 1 ] || fail "the error is not said once"
# A tokenizer with more ids than the model.
expect 2 "$floe" train c.yaml -n 2 -o small model.vocab=258
says err.txt "data.tokenizer = bytes has 259 ids, model.vocab = 258 has no room"
[ ! -e small ] || fail "a run folder was made"
exit 0
