#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# floe ckpt import: exit codes and messages for folders that are not what they say; nothing is left of them.
. "$(dirname "$0")/train_setup.sh"
golden=$(cd "$(dirname "$0")/golden" && pwd)

# refuse CODE TEXT [OPTION…]: importing hf fails with the code and says the text.
refuse() {
    code=$1 text=$2
    shift 2
    expect "$code" "$floe" ckpt import hf -o made/model "$@"
    grep -qF -e "$text" err.txt || { cat err.txt >&2; fail "does not say: $text"; }
    [ -z "$(ls -A made)" ] || fail "$text: leaves $(ls -A made)"
}

fresh() {
    rm -rf hf
    cp -r "$golden/tiny-arctic" hf
    chmod -R u+w hf
}

mkdir made
fresh
sed -i 's/"sliding_window": null/"sliding_window": 64/' hf/config.json
refuse 2 "hf/config.json: sliding_window = 64: is not supported, only null"
fresh
refuse 2 "--collapse-kv 1 is for Arctic's first upload" --collapse-kv 1
refuse 2 "--collapse-kv takes a number of heads" --collapse-kv 3000000000
head -c 5000 "$golden/tiny-arctic/model.safetensors" >hf/model.safetensors
refuse 4 "hf/model.safetensors: "
fresh
printf '\000\000\300\177' | dd of=hf/model.safetensors bs=1 conv=notrunc seek=$(($(wc -c <hf/model.safetensors) - 4)) 2>dd.log
refuse 4 "are NaN or infinite"
rm hf/model.safetensors
refuse 4 "hf: has neither model.safetensors nor model.safetensors.index.json"
fresh
expect 0 "$floe" ckpt import hf -o made/model
expect 0 "$floe" ckpt verify made/model
expect 2 "$floe" ckpt import hf -o made/model
expect 2 "$floe" ckpt import hf
exit 0
