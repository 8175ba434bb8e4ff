# SPDX-License-Identifier: Apache-2.0
# What the command tests of training share: . "$(dirname "$0")/train_setup.sh". $1 is the floe binary; the working
# directory is empty.
floe=$1
set -u
export FLOE_RUNS=runs

fail() {
    echo "FAILED: $*" >&2
    exit 1
}

# expect CODE COMMAND…: runs it, output in out.txt and err.txt.
expect() {
    wanted=$1
    shift
    "$@" >out.txt 2>err.txt
    got=$?
    [ "$got" = "$wanted" ] || { cat out.txt err.txt >&2; fail "exit code $got instead of $wanted: $*"; }
}

says() { # FILE PATTERN
    grep -qE "$2" "$1" || { cat "$1" >&2; fail "$1 has no line like: $2"; }
}

# Two sources of text, the same everywhere.
make_data() {
    awk 'BEGIN { s = 7; for (i = 0; i < 6000; i++) { n = 0; line = ""; while (n++ < 9) { s = (s * 1103515245 + 12345) % 2147483648;
        line = line substr("the river ran over stones and no one saw the old mill burn at dawn", 1 + s % 50, 6) " " } print line } }' >prose.txt
    awk 'BEGIN { s = 3; for (i = 0; i < 5000; i++) { s = (s * 1103515245 + 12345) % 2147483648;
        printf "def f%d(x):\n    return x * %d + %d\n\n", i, s % 97, s % 13 } }' >code.txt
    expect 0 "$floe" data pack prose.txt -o data/prose
    expect 0 "$floe" data pack code.txt -o data/code
}

# make_config FILE STEPS: 3 stages over 512 tokens a step; the first switch falls inside a step.
make_config() {
    cat >"$1" <<END
model: {layers: 2, hidden: 64, heads: 4, kv_heads: 2, head_dim: 16, vocab: 259, dense_ffn: 64, experts: 4, top_k: 2, expert_ffn: 48}
parallel: {ep: 2, zero: 2}
batch: {sequences: 8, seq_len: 64, micro: 2}
optim: {lr: 3.0e-3, warmup: 5}
train: {steps: $2, seed: 5}
data: {tokenizer: bytes, holdout: 2%, sources: {prose: {path: data/prose}, code: {path: data/code}}}
curriculum:
  - {until: 31%, mix: {prose: 0.9, code: 0.1}}
  - {until: 70%, mix: {prose: 0.5, code: 0.5}}
  - {until: 100%, mix: {prose: 0.1, code: 0.9}}
checkpoint: {every: 20, keep: 3}
eval: {every: 50, sequences: 8}
END
}

# "step loss" of each step's record, as written.
losses() {
    grep -v '"event"' "$1/metrics.jsonl" | sed -nE 's/^\{"step":([0-9]+),.*"loss":([^,]+),.*/\1 \2/p'
}

hashes() {
    grep -v '"event"' "$1/metrics.jsonl" | sed -nE 's/^\{"step":([0-9]+),.*"stream_hash":"([^"]+)".*/\1 \2/p'
}

same() { # what, files
    cmp -s "$2" "$3" || { diff "$2" "$3" | head -5 >&2; fail "$1 differ"; }
}

# The losses of two runs agree within a relative tolerance, step by step, and have equal steps.
close_losses() { # TOLERANCE RUN RUN
    losses "$2" >close_a.txt
    losses "$3" >close_b.txt
    paste -d ' ' close_a.txt close_b.txt | awk -v tol="$1" '
        NF != 4 || $1 != $3 { print "steps differ: " $0; bad = 1; exit }
        { d = $2 - $4; if (d < 0) d = -d; if (d > tol * $2) { print "step " $1 ": " $2 " and " $4; bad = 1; exit } }
        END { exit bad || NR == 0 }' || fail "losses of $2 and $3 differ by more than $1"
}

# wait_for SECONDS COMMAND…: until it succeeds.
wait_for() {
    tries=$(($1 * 20))
    shift
    while ! "$@" >/dev/null 2>&1; do
        tries=$((tries - 1))
        [ $tries -gt 0 ] || fail "waited in vain for: $*"
        sleep 0.05
    done
}

checkpoint() { # RUN STEP: its folder
    printf '%s/ckpt/step-%09d' "$1" "$2"
}
