#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# A dense model becomes one with experts that computes the same and trains on.
. "$(dirname "$0")/train_setup.sh"
make_data
make_config c.yaml 30
# Routing settings mean nothing to a dense model; carried over they would change what the new one computes.
dense="model.arch=llama model.experts=0 parallel.ep=1 model.router.normalize=never model.router.capacity_factor=0.5"
# shellcheck disable=SC2086
expect 0 "$floe" train c.yaml -n 2 -o dense -q $dense

logprobs() { # CKPT FILE
    expect 0 "$floe" eval "$1" --data data/code --seq-len 32 --sequences 4 --logprobs "$2.npy"
    tail -c 512 "$2.npy" | od -An -v -tf4 -w4 >"$2"
}

furthest() { # FILE FILE: the largest difference
    paste "$1" "$2" | awk '{ d = $1 - $2; if (d < 0) d = -d; if (d > worst) worst = d } END { print worst + 0; exit NR != 128 }'
}

same_function() { # WHAT FILE
    # The sum over experts rounds otherwise than the one FFN does: a few 1e-7.
    worst=$(furthest base "$2") || fail "$1: not 128 log-probabilities"
    echo "$1: differs by $worst at most"
    awk -v d="$worst" 'BEGIN { exit !(d <= 1e-5) }' || fail "$1 computes something else: $worst"
}

logprobs dense base
expect 0 "$floe" ckpt upcycle dense --experts 6 --top-k 2 -o copies
expect 0 "$floe" ckpt verify copies
logprobs copies out
same_function "copies" out
expect 0 "$floe" ckpt inspect copies
says out.txt '^ +expert_ffn: 64$'
says out.txt '^ +dense_ffn: 0$'
says out.txt '^ +arch: mixtral$'
says out.txt '^upcycled_from +"?dense'

# Its files are Mixtral's. Router weights are N(0, 0.02^2): of 384 the deviation is within 0.017 ... 0.023 (4 sigma).
expect 0 "$floe" ckpt export copies -o hf --dtype f32
length=$(od -An -tu8 -N8 hf/model.safetensors | tr -d ' ')
at=$(head -c $((length + 8)) hf/model.safetensors | sed -nE 's/.*layers\.1\.block_sparse_moe\.gate\.weight":[^}]*"shape":\[6,64\],"data_offsets":\[([0-9]+),.*/\1/p')
tail -c +$((length + 9 + at)) hf/model.safetensors | head -c 1536 | od -An -v -tf4 -w4 | awk '
    { s += $1; q += $1 * $1 } END { d = sqrt(q / NR); exit !(NR == 384 && d > 0.017 && d < 0.023 && s < 1.6 && s > -1.6) }' ||
    fail "router weights are not N(0, 0.02^2)"

expect 0 "$floe" ckpt upcycle dense@20 --experts 4 --top-k 4 -o all
expect 0 "$floe" ckpt upcycle dense --experts 4 --top-k 1 --dense-residual -o beside
logprobs beside out
same_function "beside the dense FFN" out
expect 0 "$floe" ckpt upcycle dense --experts 4 --top-k 2 --dense-residual --noise 0.3 -o beside-noise
logprobs beside-noise out
same_function "beside the dense FFN, with noise" out

# A dense model of another architecture, where it is the same block.
# shellcheck disable=SC2086
expect 0 "$floe" train c.yaml -n 1 -o other -q $dense model.arch=arctic train.steps=2
expect 0 "$floe" ckpt upcycle other --experts 3 --top-k 2 -o from-other
logprobs other base
logprobs from-other out
same_function "arctic without experts" out
# shellcheck disable=SC2086
expect 0 "$floe" train c.yaml -n 1 -o odd -q $dense model.norm=layer model.attn_softcap=20 train.steps=2
expect 0 "$floe" ckpt upcycle odd --experts 3 --top-k 2 -o from-odd
logprobs odd base
logprobs from-odd out
same_function "a dense model of its own kind" out
logprobs dense base

# Noise makes the experts differ, by what was asked for; the same seed gives the same model.
for name in noisy again; do expect 0 "$floe" ckpt upcycle dense --experts 4 --top-k 2 --noise 0.3 -o $name; done
expect 0 "$floe" ckpt diff noisy again
logprobs noisy out
worst=$(furthest base out)
awk -v d="$worst" 'BEGIN { exit !(d > 1e-3 && d < 5) }' || fail "noise changes log-probabilities by $worst"

# Training goes on from where the dense model was.
for name in copies beside noisy; do
    expect 0 "$floe" train c.yaml -n 2 -o on-$name -q train.init_from=$name parallel.ep=1 train.steps=10 \
        model.experts=null model.dense_ffn=null model.expert_ffn=null
    loss=$(losses on-$name | head -1 | cut -d' ' -f2)
    last=$(losses dense | tail -1 | cut -d' ' -f2)
    echo "$name: dense ended with $last, goes on with $loss"
    awk -v a="$last" -v b="$loss" 'BEGIN { exit !(b < a + 0.5) }' || fail "$name begins with a loss of $loss"
done
# All experts are used and their down matrices, which began at 0, have moved.
expect 1 "$floe" ckpt diff beside on-beside
says out.txt '^layers\.1\.experts\.3\.down'

expect 2 "$floe" ckpt upcycle copies --experts 4 --top-k 2 -o x
says err.txt 'has 6 experts already'
expect 2 "$floe" ckpt upcycle dense --experts 2 --top-k 3 -o x
says err.txt 'from 1 to the 2 experts'
expect 2 "$floe" ckpt upcycle dense --experts 2 -o x
expect 2 "$floe" ckpt upcycle dense --top-k 1 -o x
expect 2 "$floe" ckpt upcycle dense --experts 2 --top-k 1
expect 2 "$floe" ckpt upcycle nowhere --experts 2 --top-k 1 -o x
expect 2 "$floe" ckpt upcycle dense --experts 2 --top-k 1 -o copies
says err.txt 'is there already'
[ ! -e x ] || fail "a refused upcycling wrote something"
[ -z "$(ls -A | grep '^\.tmp')" ] || fail "something was left"
exit 0
