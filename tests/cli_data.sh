#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# floe data pack, ls, verify, tokenizer, sample from the command line.
floe=$1
failures=0
fail() {
    printf 'FAILED: %s\n' "$1"
    failures=$((failures + 1))
}
# expect CODE TEXT COMMAND…: exit code, and a text that stdout or stderr must have.
expect() {
    code=$1 text=$2
    shift 2
    "$@" >out.txt 2>err.txt
    got=$?
    [ "$got" = "$code" ] || fail "$* ended with $got, not $code: $(cat err.txt)"
    [ -z "$text" ] || grep -qF -- "$text" out.txt err.txt || fail "$* did not say '$text' but: $(cat out.txt err.txt)"
}
absent() {
    for file in "$@"; do [ ! -e "$file" ] || fail "$file is there"; done
}

mkdir in
printf 'alpha\n' >in/a.txt
printf 'SELECT 1;\n' >in/b.sql
printf '{"text": "one"}\n{"text": "two"}\n' >in/c.jsonl
gzip -c in/c.jsonl >in/d.jsonl.gz
printf 'x\000y' >in/e.bin

# pack → ls → verify
expect 0 'packed out/all: 34 tokens in 6 documents' "$floe" data pack in -o out/all -j 2
grep -q 'in/e.bin: passed over' err.txt || fail 'the skipped file is not named'
grep -q "$(printf '\r')" err.txt && fail 'progress is drawn although stderr is no terminal'
absent out/all.bin.tmp out/all.idx.tmp
expect 0 'u16' "$floe" data ls out/all
expect 0 '"tokens": 34' "$floe" data ls --json out/all.idx
expect 0 '"documents": 6' "$floe" data ls out/all --json
expect 0 '34 tokens are good, largest id 257' "$floe" data verify out/all
expect 0 '"ok": true' "$floe" data verify --json --vocab 258 out/all
expect 4 'all.bin: token 6 is 257, outside the vocabulary 0 … 256' "$floe" data verify out/all --vocab 257
expect 4 '"ok": false' "$floe" data verify --json out/all out/none
expect 4 'none.idx: No such file' "$floe" data ls out/none
# every thread count gives the same bytes
cp out/all.bin first.bin
cp out/all.idx first.idx
expect 0 'packed' "$floe" data pack in --output=out/all --tokenizer bytes -j1
cmp out/all.bin first.bin && cmp out/all.idx first.idx || fail 'threads change the result'
# id 97 ("a") first, two bytes each, little endian
[ "$(od -An -tu2 -N12 out/all.bin | tr -s ' ')" = ' 97 108 112 104 97 10' ] || fail 'bytes of the shard'

# damage
head -c 40 out/all.bin >cut.bin
cp out/all.idx cut.idx
expect 4 'cut.bin has 40 bytes' "$floe" data verify cut
cp out/all.idx swapped.bin
cp out/all.bin swapped.idx
expect 4 'swapped' "$floe" data verify swapped
printf 'XMIDIDX' | dd of=cut.idx conv=notrunc 2>/dev/null
expect 4 'cut.idx is not a token index' "$floe" data ls cut

# bad input
printf '{"text": "one"}\n{"text": \n' >bad.jsonl
expect 4 'bad.jsonl:2: not JSON' "$floe" data pack bad.jsonl -o bad
expect 2 'none.txt: No such file' "$floe" data pack none.txt -o bad
expect 2 'tokenizer word: unknown' "$floe" data pack in --tokenizer word -o bad
expect 2 '-o PREFIX' "$floe" data pack in
expect 2 '-j takes 1' "$floe" data pack in -o bad -j 0
expect 2 'error' "$floe" data pack
expect 2 'error' "$floe" data pack in -o bad --bogus
expect 2 '' "$floe" data bogus
absent bad.bin bad.idx bad.bin.tmp bad.idx.tmp
for part in pack ls verify sample tokenizer; do expect 0 "floe data $part" "$floe" data $part --help; done

# an interrupt leaves nothing under the final name
i=0
while [ $i -lt 16 ]; do
    cat in/a.txt in/b.sql
    i=$((i + 1))
done >block.txt
i=0
while [ $i -lt 15 ]; do
    cat block.txt block.txt >twice.txt
    mv twice.txt block.txt
    i=$((i + 1))
done
mkdir big
for i in 1 2 3 4 5 6; do cp block.txt big/$i.txt; done
"$floe" data pack big -o stopped -j 1 >out.txt 2>err.txt &
pid=$!
sleep 0.2
if kill -TERM $pid 2>/dev/null; then
    wait $pid
    code=$?
    [ $code = 143 ] || [ $code = 0 ] || fail "an interrupted pack ended with $code: $(cat err.txt)"
    [ $code = 0 ] || absent stopped.bin stopped.idx stopped.bin.tmp stopped.idx.tmp
else
    wait $pid
fi
rm -rf big block.txt

# SentencePiece, where the build has it
i=0
while [ $i -lt 300 ]; do
    echo "line $i: the quick brown fox jumps over the lazy dog, again and again"
    i=$((i + 1))
done >text.txt
if "$floe" data tokenizer text.txt -o tok.model --vocab 320 >out.txt 2>err.txt; then
    expect 0 'packed pieces' "$floe" data pack text.txt -o pieces --tokenizer sentencepiece:tok.model
    expect 0 'tokens are good' "$floe" data verify pieces --vocab 320
    expect 2 'too small' "$floe" data tokenizer text.txt -o small.model --vocab 100
    expect 2 '--vocab N' "$floe" data tokenizer text.txt -o small.model
    expect 2 'cannot train 99999 pieces' "$floe" data tokenizer text.txt -o large.model --vocab 99999
    absent small.model large.model
else
    grep -q 'no SentencePiece' err.txt || fail "data tokenizer: $(cat err.txt)"
fi

# sample: 3 stages over 2 sources whose tokens say where they are from
awk 'BEGIN { for (i = 0; i < 400; i++) printf "abcdefgh" }' >lower.txt
awk 'BEGIN { for (i = 0; i < 200; i++) printf "ABCDEFGH" }' >upper.txt
"$floe" data pack lower.txt -o lower >/dev/null && "$floe" data pack upper.txt -o upper >/dev/null || fail 'packing'
cat >run.yaml <<'EOF'
model: {layers: 1, hidden: 32, heads: 2, kv_heads: 1, head_dim: 16, vocab: 259, dense_ffn: 32, experts: 2, top_k: 1, expert_ffn: 16}
batch: {sequences: 4, seq_len: 8, micro: 4}
train: {steps: 30}
data: {tokenizer: bytes, holdout: 0, sources: {low: {path: lower}, up: {path: upper}}}
curriculum:
  - {until: 320, mix: {low: 1}}
  - {until: 640, mix: {low: 0.5, up: 0.5}}
  - {until: 100%, mix: {up: 1}}
EOF
expect 0 '' "$floe" data sample run.yaml --from-step 1 --steps 30 -o all.npy
expect 0 '' "$floe" data sample run.yaml --from-step 10 --steps 2 -o two.npy parallel.ep=1
absent all.npy.tmp
grep -aq "'descr': '<i4', 'fortran_order': False, 'shape': (120, 9" all.npy || fail 'header of all.npy'
row=$((9 * 4))
# Rows 36 … 43 are the last 8 of 120; the switch to stage 2 is at row 40.
tail -c $((120 * row)) all.npy | tail -c +$((36 * row + 1)) | head -c $((8 * row)) >a.raw
tail -c $((8 * row)) two.npy >b.raw
cmp a.raw b.raw || fail 'steps 10 and 11 differ from the same rows of steps 1 to 30'
rows() { # FIRST COUNT: ids of these rows of all.npy, one a line
    tail -c $((120 * row)) all.npy | tail -c +$(($1 * row + 1)) | head -c $(($2 * row)) | od -An -v -tu4 | tr -s ' ' '\n' | grep .
}
[ "$(rows 0 40 | awk '$1 < 97' | wc -l)" = 0 ] || fail 'stage 1 has another source'
upper_in_2=$(rows 40 40 | awk '$1 < 97' | wc -l)
[ "$upper_in_2" = $((20 * 9)) ] || fail "stage 2 has $upper_in_2 tokens of source up"
[ "$(rows 80 40 | awk '$1 >= 97 && $1 < 256' | wc -l)" = 0 ] || fail 'stage 3 has another source'
expect 0 'stage 2, source up' "$floe" data sample run.yaml --from-step 11 --steps 10 --text
grep -q '^abcdefgha$' out.txt || fail 'text of a sample'
expect 2 'counts from 1' "$floe" data sample run.yaml --from-step 0 -o x.npy
expect 2 '-o FILE.npy' "$floe" data sample run.yaml --from-step 1
expect 4 'lower.bin: token' "$floe" data sample run.yaml --from-step 1 --steps 30 -o x.npy model.vocab=90 data.tokenizer=bytes
mv upper.bin gone.bin
expect 4 'upper.bin' "$floe" data sample run.yaml -o x.npy
absent x.npy x.npy.tmp

[ $failures = 0 ] && echo 'all good'
[ $failures = 0 ]
