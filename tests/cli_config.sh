#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# floe config, version, doctor, completion, help and usage errors. $1: the floe binary.
floe=$1
here=$(cd "$(dirname "$0")" && pwd)
FLOE_PRESETS=$here/../configs/presets
export FLOE_PRESETS
failed=0
fail() {
    printf 'FAILED: %s\n' "$1"
    failed=1
}
# code EXPECTED COMMAND…: the exit code; output in out and err
code() {
    expected=$1
    shift
    "$@" >out 2>err
    got=$?
    [ $got = "$expected" ] || {
        fail "exit code $got instead of $expected: $*"
        cat out err
    }
}
has() { grep -qF -e "$2" "$1" || { fail "no '$2' in $1 of the last command"; cat "$1"; }; }

# help and usage
code 0 "$floe" --help
[ "$(wc -l <out)" -le 40 ] || fail "--help has more than 40 lines"
[ "$(sed -n '/^examples:/,/^$/p' out | grep -c '^  floe ')" = 4 ] || fail "--help has no 4 examples"
code 2 "$floe"
code 2 "$floe" trian
has err "command line: error: unknown command 'trian'; did you mean 'train'?"
code 2 "$floe" config chek tiny
has err "did you mean 'check'?"
code 2 "$floe" config check tiny --rank 3
has err "unknown option '--rank'; did you mean '--ranks'?"
code 2 "$floe" config check tiny -n many
has err "--ranks many: expected a whole number, 0 or more"
code 2 "$floe" config check tiny -n
has err "--ranks needs a value"
code 2 "$floe" version now
for command in train config data ckpt eval generate bench slurm doctor completion version; do
    code 0 "$floe" "$command" --help
    has out "floe $command"
    [ -s err ] && fail "$command --help writes on stderr"
done
code 0 "$floe" --version
has out 'floe '
code 0 "$floe" version --json
has out '"version":'

# check
code 0 "$floe" config check tiny -n 2
has out 'ok: '
code 2 "$floe" config check tiny -n 3
has err 'parallel.ep = 2 must divide model.experts = 8 and the number of ranks = 3'
has err 'Nothing was started.'
printf 'model:\n    layers: 2\n    topk: 3\n' >my.yaml
code 2 "$floe" config check my.yaml
has err "my.yaml:3:5: error: unknown key 'model.topk'; did you mean 'top_k'?"
has err '1 error. Nothing was started. See: floe config keys model'

# the three ways to write an override, and --
code 0 "$floe" config show tiny optim.lr=0.25 --json
has out '"lr": 0.25'
code 0 "$floe" config show tiny --optim.lr=0.25 --json
has out '"lr": 0.25'
code 0 "$floe" config show --optim.lr 0.25 tiny --json
has out '"lr": 0.25'
code 2 "$floe" config show tiny --optim.lr
has err '--optim.lr needs a value'

# show: origins, counts; what it prints is a configuration again
code 0 "$floe" config show tiny optim.lr=0.25 --origin
has out 'lr: 0.25                                # command line'
has out 'presets/tiny.yaml:'
code 0 "$floe" config show arctic-480b
has out '478,584,608,768 total, 17,318,647,808 active'
cp out arctic.yaml
code 0 "$floe" config diff arctic-480b arctic.yaml
[ -s out ] && fail "config show does not print a configuration of the same values"
for file in "$FLOE_PRESETS"/*.yaml; do
    preset=$(basename "$file" .yaml)
    code 0 "$floe" config show "$preset"
    has out ' active a token'
    has out ' flop a token'
    has out '# training state '
    cp out shown.yaml
    code 0 "$floe" config diff "$preset" shown.yaml
    [ -s out ] && fail "config show $preset does not print a configuration of the same values: $(cat out)"
done
code 0 "$floe" config show apus-xdan-136b
has out '113,662,983,168 total, 60,814,752,768 active'
code 0 "$floe" config diff tiny tiny optim.lr=0.25
[ "$(cat out)" = 'optim.lr                         0.003 -> 0.25' ] || fail "config diff: $(cat out)"
code 0 "$floe" config show arctic-480b --json
has out '"total": 478584608768'

# keys and the page made from them
code 0 "$floe" config keys optim
has out optim.weight_decay
grep -q model out && fail "config keys optim lists other keys"
code 2 "$floe" config keys optiim
code 0 "$floe" config keys model.moe_input
has out 'by arch'
has out 'one of layer, attention'
code 0 "$floe" config keys --format json
code 0 "$floe" config keys --format markdown
cmp out "$here/../docs/configuration.md" ||
    fail "docs/configuration.md is old: floe config keys --format markdown > docs/configuration.md"

# completion
code 0 "$floe" completion bash
cp out floe.bash
code 0 "$floe" completion zsh
code 0 "$floe" completion fish
has out 'complete -c floe'
code 2 "$floe" completion tcsh
if command -v bash >/dev/null; then
    complete_words() {
        bash -c '. ./floe.bash; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _floe 2>/dev/null; echo "${COMPREPLY[*]}"' - "$@"
    }
    [ "$(complete_words floe tr)" = train ] || fail "completion of a command"
    [ "$(complete_words floe config d)" = diff ] || fail "completion of a part: $(complete_words floe config d)"
    [ "$(complete_words floe train --run)" = --run-dir ] || fail "completion of an option"
    [ "$(complete_words floe train optim.sch)" = optim.schedule= ] || fail "completion of a key"
    [ "$(complete_words floe train optim.schedule = w)" = wsd ] || fail "completion of a value"
fi

# doctor
code 0 "$floe" doctor
has out libfyaml
code 0 "$floe" doctor --json
has out '"mpi"'
FLOE_MPIRUN=/nowhere/mpirun code 1 "$floe" doctor
has out 'install openmpi-bin or set FLOE_MPIRUN'

exit $failed
