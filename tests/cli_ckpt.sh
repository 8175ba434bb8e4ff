#!/bin/sh
# floe ckpt: ls, inspect, verify, diff, import; what they print and their exit codes.
floe=$1
tests=$(cd "$(dirname "$0")" && pwd)
program=$(dirname "$floe")/tests/mpi_checkpoint
[ -x "$program" ] || { echo "$program is not built"; exit 77; }
fail() {
    echo "FAILED: $*"
    exit 1
}
expect() { # exit code, text, command…: runs it and looks for the text in what it prints
    code=$1
    text=$2
    shift 2
    "$@" >out 2>&1
    got=$?
    [ $got = "$code" ] || { cat out; fail "$* ended with $got, not $code"; }
    grep -qF -e "$text" out || { cat out; fail "$* does not say '$text'"; }
}
for step in 1 2; do
    "$program" save $step 1 1 run || fail "save"
done

expect 0 "run/ckpt/step-000000002" "$floe" ckpt ls run
[ "$(grep -c step-0 out)" = 2 ] || fail "ls does not list both"
expect 0 '"step": 2' "$floe" ckpt ls --json run
expect 2 "is no checkpoint and holds none" "$floe" ckpt ls "$tests"
expect 2 "absent" "$floe" ckpt ls absent
expect 0 "layers.2.experts.11.up" "$floe" ckpt inspect run
expect 0 "10 x 24" "$floe" ckpt inspect run@1
expect 0 '"digest"' "$floe" ckpt inspect run/ckpt/step-000000001 --json
expect 2 "no checkpoint of step 7" "$floe" ckpt inspect run@7

expect 0 "bit-equal: 144 tensors" "$floe" ckpt diff run run@2
expect 1 "values differ" "$floe" ckpt diff run@1 run@2
expect 1 '"equal": false' "$floe" ckpt diff run@1 run@2 --json

expect 0 "step-000000002: whole" "$floe" ckpt verify run
cp -r run damaged
printf '\377' | dd of=damaged/ckpt/step-000000001/shard_00000_of_00001_part000.h5 bs=1 seek=30000 conv=notrunc 2>/dev/null
expect 4 "step-000000001/shard_00000_of_00001_part000.h5: damaged" "$floe" ckpt verify damaged
grep -q "step-000000002: whole" out || fail "the whole one is not told"
expect 4 "damaged" "$floe" ckpt diff run@1 damaged@1
printf x >>damaged/ckpt/step-000000002/MANIFEST.json
expect 0 "damaged" "$floe" ckpt ls damaged
expect 4 "MANIFEST.json: damaged" "$floe" ckpt verify damaged/ckpt/step-000000002

# A Hugging Face folder whose weights are all 0: 1 layer, width 4, 2 experts.
mkdir hf
cat >hf/config.json <<'END'
{"architectures": ["ArcticForCausalLM"], "vocab_size": 8, "hidden_size": 4, "intermediate_size": 6, "num_hidden_layers": 1,
 "num_attention_heads": 2, "num_key_value_heads": 1, "num_local_experts": 2, "num_experts_per_tok": 1,
 "moe_layer_frequency": 1, "parallel_attn_mlp_res": true, "rms_norm_eps": 1e-05, "rope_theta": 10000.0, "bos_token_id": 1}
END
at=0
header=
tensor() { # name, rows, columns (0: none)
    bytes=$(($2 * ($3 ? $3 : 1) * 4))
    shape=$2
    [ "$3" = 0 ] || shape=$2,$3
    header="$header${header:+,}\"$1\":{\"dtype\":\"F32\",\"shape\":[$shape],\"data_offsets\":[$at,$((at + bytes))]}"
    at=$((at + bytes))
}
l=model.layers.0
tensor model.embed_tokens.weight 8 4
tensor lm_head.weight 8 4
tensor model.norm.weight 4 0
for norm in input post_attention residual; do tensor $l.${norm}_layernorm.weight 4 0; done
for w in q:4 k:2 v:2 o:4; do tensor $l.self_attn.${w%:*}_proj.weight ${w#*:} 4; done
for w in w1 w2 w3; do tensor $l.residual_mlp.$w.weight 4 4; done
tensor $l.block_sparse_moe.gate.weight 2 4
for e in 0 1; do
    tensor $l.block_sparse_moe.experts.$e.w1.weight 6 4
    tensor $l.block_sparse_moe.experts.$e.w3.weight 6 4
    tensor $l.block_sparse_moe.experts.$e.w2.weight 4 6
done
header="{$header}"
length=${#header}
{
    printf "\\$(printf %o $((length % 256)))\\$(printf %o $((length / 256)))\0\0\0\0\0\0%s" "$header"
    head -c $at /dev/zero
} >hf/model.safetensors
expect 2 "-o CKPT is missing" "$floe" ckpt import hf
expect 0 '"bos_token_id":1' "$floe" ckpt import hf -o new/model
expect 2 "is there already" "$floe" ckpt import hf -o new/model
expect 0 "top_k: 1" "$floe" ckpt inspect new/model
expect 0 "weights" "$floe" ckpt ls new
expect 0 "whole" "$floe" ckpt verify new/model
expect 1 "is in the second one only" "$floe" ckpt diff new/model run
sed 's/"num_local_experts": 2/"num_local_experts": 3/' hf/config.json >config && mv config hf/config.json
expect 4 "model.layers.0.block_sparse_moe.experts.2.w2.weight is missing" "$floe" ckpt import hf -o other
[ -e other ] && fail "a failed import left something"
[ -z "$(ls -A | grep '^\.tmp')" ] || fail "a failed import left something"
exit 0
