#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
. "$(dirname "$0")/train_setup.sh"
make_data
make_config c.yaml 60
expect 0 "$floe" train c.yaml -n 2 -o run -q

# The run's held-out text gives what the run's own last evaluation gave.
expect 0 "$floe" eval run --json
loss=$(sed -nE 's/^  "loss": ([0-9.]+).*/\1/p' out.txt)
last=$(sed -nE 's/.*"event":"eval".*"loss":([0-9.]+).*/\1/p' run/metrics.jsonl | tail -1)
echo "$loss $last" | awk '{ d = $1 - $2; exit !(NF == 2 && d < 1e-5 && d > -1e-5) }' || fail "eval gives $loss, training gave $last"
expect 0 "$floe" eval run@40
says out.txt '^prose +[0-9.]+ +[0-9.]+ +8$'

# A shard: sequence i is tokens iS ... iS + S; the file holds each log-probability.
expect 0 "$floe" eval "$(checkpoint run 60)" --data data/code --seq-len 32 --sequences 7 --logprobs lp.npy --json
head -c 128 lp.npy | grep -aq "'<f4'.*(7, 32" || fail "lp.npy has another shape"
[ "$(wc -c <lp.npy)" -ge $((7 * 32 * 4 + 64)) ] || fail "lp.npy is too short"
loss=$(sed -nE 's/^  "loss": ([0-9.]+).*/\1/p' out.txt)
tail -c $((7 * 32 * 4)) lp.npy | od -An -v -tf4 -w4 | awk -v loss="$loss" '
    { sum -= $1; n++; if ($1 > 0) bad = 1 } END { d = sum / n - loss; exit !(n == 224 && !bad && d < 1e-5 && d > -1e-5) }' ||
    fail "the log-probabilities do not add up to the loss $loss"
# Fewer sequences, another number of ranks: the same numbers at the same places.
expect 0 "$floe" eval run --data data/code --seq-len 32 --sequences 3 --logprobs few.npy -n 2
for f in lp few; do tail -c +$(($(wc -c <$f.npy) - $([ $f = lp ] && echo 7 || echo 3) * 128 + 1)) $f.npy | head -c 384 | od -An -v -tf4 -w4 >$f.txt; done
paste lp.txt few.txt | awk '{ d = $1 - $2; if (d > 1e-5 || d < -1e-5) bad = 1 } END { exit bad || NR != 96 }' || fail "logprobs depend on the ranks"

expect 2 "$floe" eval nowhere
expect 2 "$floe" eval run --seq-len 32
expect 2 "$floe" eval run@33
expect 4 "$floe" eval run --data data/nothing
exit 0
