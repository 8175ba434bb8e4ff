#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# --fork: a new run from another one's full state, with a future of its own.
. "$(dirname "$0")/train_setup.sh"
make_data
make_config c.yaml 60

expect 0 "$floe" train c.yaml -n 2 -o base -q checkpoint.keep=0
losses base >base.txt
cp -r base before

# The same future: the same bits.
expect 0 "$floe" train c.yaml -n 2 -o twin --fork base@40
says out.txt '^resume +base/ckpt/step-000000040: step 40, .*forked'
losses twin >twin.txt
sed -n '41,60p' base.txt >tail.txt
same "losses of base and its twin" tail.txt twin.txt
says out.txt '^stage 3/3 at token 21504'

# Another future: equal where nothing changed, different afterwards.
expect 0 "$floe" train c.yaml -n 2 -o other --fork base@20 -q curriculum.2.mix.prose=0.9 curriculum.2.mix.code=0.1
losses other >other.txt
sed -n '21,42p' base.txt >tail.txt
head -22 other.txt >head.txt
same "losses before the changed stage" tail.txt head.txt
[ "$(tail -1 base.txt)" != "$(tail -1 other.txt)" ] || fail "the changed stage changed nothing"
grep -q '"from": "base/ckpt/step-000000020"' other/meta.json || fail "meta.json does not tell the origin"

# The past cannot be changed.
expect 2 "$floe" train c.yaml -n 2 -o no --fork base@20 curriculum.0.mix.prose=0.5
[ ! -e no ] || fail "a refused fork wrote something"
expect 2 "$floe" train c.yaml -n 2 -o no --fork base@33
says err.txt 'no checkpoint of step 33'

# The forked run resumes like any other, and its origin is as it was.
expect 0 "$floe" train c.yaml -n 2 -o twin --fork base@40
says out.txt 'done +all 60 steps'
diff -r base before >/dev/null || fail "a fork changed its origin"
exit 0
