#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
. "$(dirname "$0")/train_setup.sh"
make_data
make_config c.yaml 200
expect 0 "$floe" train c.yaml -n 2 -o run -q checkpoint.every=0 eval.every=0

expect 0 "$floe" generate run -p 'def f12' --tokens 40 --temperature 0
says out.txt '^def f12'
[ "$(wc -c <out.txt)" -ge 20 ] || fail "no text came: $(cat out.txt)"
mv out.txt greedy.txt
expect 0 "$floe" generate run -p 'def f12' --tokens 40 --top-k 1 --seed 9
same "greedy text and the best one of 1" greedy.txt out.txt
expect 0 "$floe" generate run -p 'def' --tokens 50 --seed 3 --temperature 1.5
mv out.txt three.txt
expect 0 "$floe" generate run -p 'def' --tokens 50 --seed 3 --temperature 1.5
same "texts of one seed" three.txt out.txt
expect 0 "$floe" generate run -p 'def' --tokens 50 --seed 4 --temperature 1.5
! cmp -s three.txt out.txt || fail "the seed changes nothing"
expect 0 "$floe" generate run --tokens 5
expect 2 "$floe" generate run -p "$(printf '%080d' 7)"
says err.txt '80 tokens.*64 positions'
expect 2 "$floe" generate nowhere -p x
expect 0 "$floe" generate run -p "$(printf '%080d' 7)" --positions 90 --tokens 5 --bos
json=$(cd "$(dirname "$0")/golden_tokenizer" && pwd)/gpt2.json
expect 2 "$floe" generate run -p x --tokenizer "hf:$json"
says err.txt '427 ids, but the model 259'

# A tokenizer of Hugging Face's, from packing to text.
expect 0 "$floe" data pack code.txt -o data/pieces --tokenizer "hf:$json"
expect 0 "$floe" train c.yaml -n 2 -o pieces -q train.steps=5 eval.every=0 model.vocab=432 "data.tokenizer=hf:$json" \
    data.sources.prose.path=data/pieces data.sources.code.path=data/pieces
expect 0 "$floe" generate pieces -p 'def f1' --bos --tokens 8
says out.txt 'def f1'
expect 0 "$floe" generate pieces -p 'def f1' --tokens 8 --tokenizer "hf:$json"
exit 0
