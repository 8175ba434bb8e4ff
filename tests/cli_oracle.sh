#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# A model in Hugging Face form, imported and evaluated by the command, gives the reference's log-probabilities
# (golden/README.md) on any number of ranks.
. "$(dirname "$0")/train_setup.sh"
golden=$(cd "$(dirname "$0")/golden" && pwd)

for model in tiny-arctic tiny-arctic-freq2 tiny-mixtral tiny-apus tiny-dbrx tiny-grok tiny-llama; do
    expect 0 "$floe" ckpt import "$golden/$model" -o "$model"
    expect 0 "$floe" ckpt verify "$model"
    for ranks in 1 2; do
        expect 0 "$floe" eval "$model" --data "$golden/text" --seq-len 24 --logprobs "$model-$ranks.npy" -n $ranks
        head -c 128 "$model-$ranks.npy" | grep -aq "'<f4'.*(8, 24[,)]" || fail "$model-$ranks.npy has another shape"
        # 1e-5: five times what float32 deviates from float64 in the reference's own implementation.
        tail -c $((8 * 24 * 4)) "$model-$ranks.npy" | od -An -v -tf4 -w4 | paste - "$golden/text-$model.txt" | awk '
            { d = $1 - $2; if (d < 0) d = -d; if (d > worst) worst = d }
            END { print "'"$model, $ranks"' ranks: differs by " worst " at most"; exit !(NF == 2 && NR == 192 && worst <= 1e-5) }' ||
            fail "$model on $ranks ranks differs from the reference"
    done
done
exit 0
