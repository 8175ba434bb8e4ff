#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# The main job on this machine: sets everything up, makes a corpus of real text, trains a small Arctic on MPI ranks
# through three curriculum stages, stops it once and resumes it on another number of ranks, and lets it write a line.
# usage: ./run.sh        the run folder is runs/demo; one that is there already is kept as runs/demo-TIME
set -euo pipefail
cd "$(dirname "$0")"
readonly run=runs/demo config=configs/demo.yaml first_steps=60

say() { printf '\n== %s\n' "$*"; }
fail() {
    printf 'run.sh: error: %s\n' "$*" >&2
    exit 1
}

tools/setup.sh
tools/corpus.sh
mkdir -p runs
if [[ -d $run ]]; then mv "$run" "$run-$(date -u +%Y%m%d-%H%M%S)"; fi

say "training begins on one rank"
build/floe train "$config" -n 1 parallel.ep=1 -o "$run" &
train=$!
trap 'kill -TERM $train 2>/dev/null || true; wait $train; exit $?' INT TERM
until grep -qs "\"step\": *$first_steps," "$run/metrics.jsonl"; do
    kill -0 "$train" 2>/dev/null || fail "the first part ended early"
    sleep 0.2
done
say "stopping it as a cluster would, with SIGTERM: it saves and ends with exit code 75"
kill -TERM "$train"
code=0
wait "$train" || code=$?
trap - INT TERM
[[ $code == 75 ]] || fail "the first part ended with exit code $code instead of 75"

say "going on from there on two ranks, which share out the experts"
build/floe train "$config" -n 2 -o "$run"

say "held-out loss by source"
build/floe eval "$run"

say "the model writes"
build/floe generate "$run" -p "In the beginning " --tokens 160 --temperature 0.7 --top-k 20 --seed 1

printf '\n== next\n'
printf '  %-70s %s\n' \
    "build/floe generate $run -p 'def main(' --tokens 200" 'let it write on' \
    "build/floe ckpt ls $run" 'its checkpoints' \
    "build/floe train $config -n 2 train.steps=1800 -o runs/longer" 'a longer run' \
    "build/floe config show $config --origin" 'every setting and where it comes from' \
    './test.sh' 'the tests'
