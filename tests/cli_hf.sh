#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Hugging Face folders in and out: nothing changes on the way.
. "$(dirname "$0")/train_setup.sh"
golden=$(cd "$(dirname "$0")/golden" && pwd)

# The values' bytes: what follows the header.
values() {
    length=$(od -An -tu8 -N8 "$1" | tr -d ' ')
    tail -c +$((length + 9)) "$1"
}

# Files that others have written: folder → checkpoint → folder.
for folder in "$golden"/tiny-*/; do
    name=$(basename "$folder")
    expect 0 "$floe" ckpt import "$folder" -o "$name"
    expect 0 "$floe" ckpt export "$name" -o "hf-$name" --dtype f32
    values "$folder/model.safetensors" >theirs
    values "hf-$name/model.safetensors" >ours
    same "$name: values" theirs ours
    expect 0 "$floe" ckpt import "hf-$name" -o "again-$name"
    expect 0 "$floe" ckpt inspect "$name"
    sed -n '/^model:/,/^$/p' out.txt >before
    expect 0 "$floe" ckpt inspect "again-$name"
    sed -n '/^model:/,/^$/p' out.txt >after
    same "$name: configurations" before after
done

# Models that were trained here: checkpoint → folder → checkpoint, in one file and in many.
make_data
make_config c.yaml 2
for arch in arctic mixtral dbrx grok llama; do
    more="model.dense_ffn=0 model.experts=4"
    [ $arch = arctic ] && more="model.dense_ffn=48"
    [ $arch = llama ] && more="model.experts=0 parallel.ep=1"
    # shellcheck disable=SC2086
    expect 0 "$floe" train c.yaml -n 2 -o run-$arch -q model.arch=$arch $more
    expect 0 "$floe" ckpt export run-$arch -o hf-$arch --dtype f32
    says out.txt 'tensors in 1 file,'
    expect 0 "$floe" ckpt export run-$arch -o cut-$arch --dtype f32 --shard-size 60KB
    [ -e cut-$arch/model-00001-of-000*.safetensors ] || fail "$arch: no shards"
    for kind in hf cut; do
        expect 0 "$floe" ckpt import $kind-$arch -o back-$kind-$arch
        expect 0 "$floe" ckpt diff run-$arch back-$kind-$arch
        says out.txt 'bit-equal'
    done
    expect 0 "$floe" eval run-$arch --data data/code --seq-len 32 --sequences 4 --logprobs a.npy
    expect 0 "$floe" eval back-hf-$arch --data data/code --seq-len 32 --sequences 4 --logprobs b.npy
    same "$arch: log-probabilities" a.npy b.npy
done

# BF16 is the default; a second round changes nothing more.
expect 0 "$floe" ckpt export run-mixtral -o bf
says bf/config.json '"torch_dtype": "bfloat16"'
says bf/config.json '"max_position_embeddings": 64'
expect 0 "$floe" ckpt import bf -o from-bf
expect 0 "$floe" ckpt export from-bf -o bf2
same "rounded files" bf/model.safetensors bf2/model.safetensors

expect 2 "$floe" ckpt export run-mixtral
expect 2 "$floe" ckpt export run-mixtral -o bf
says err.txt 'is there already'
expect 2 "$floe" ckpt export run-mixtral -o x --shard-size much
says err.txt "5GB, 500MB"
expect 2 "$floe" ckpt export run-mixtral -o x --dtype f16
expect 2 "$floe" ckpt export nowhere -o x
expect 0 "$floe" train c.yaml -n 1 -o run-odd -q model.arch=mixtral model.dense_ffn=16 parallel.ep=1 train.steps=1
expect 2 "$floe" ckpt export run-odd -o x
says err.txt 'dense_ffn = 16'
[ ! -e x ] || fail "a refused export wrote something"
[ -z "$(ls -A | grep '^\.tmp')" ] || fail "something was left"
exit 0
