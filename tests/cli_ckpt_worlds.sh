#!/bin/sh
# A checkpoint of any number of ranks loads on any other: 1, 2, 3, 4 against each other, with other expert-parallel sizes
# and ZeRO stages. Saved states have the same digest whoever wrote them.
floe=$1
tests=$(cd "$(dirname "$0")" && pwd)
program=$(dirname "$floe")/tests/mpi_checkpoint
[ -x "$program" ] || { echo "$program is not built"; exit 77; }
fail() {
    echo "FAILED: $*"
    exit 1
}
for n in 1 2 3 4; do
    for stage in 0 2; do
        "$tests/mpirun.sh" $n "$program" save 7 $((stage ? n : 1)) $stage run-$n-$stage || fail "save on $n ranks"
    done
done
for m in 1 2 3 4; do
    "$tests/mpirun.sh" $m "$program" load 7 run-* || fail "load on $m ranks"
done
for n in 2 3 4; do
    for stage in 0 2; do
        "$floe" ckpt diff run-1-0@7 run-$n-$stage@7 || fail "run-$n-$stage differs"
        "$floe" ckpt verify run-$n-$stage >/dev/null || fail "run-$n-$stage is not whole"
    done
done
[ "$("$floe" ckpt inspect --json run-1-0 | grep '"master"' | tail -1)" = \
    "$("$floe" ckpt inspect --json run-4-2 | grep '"master"' | tail -1)" ] || fail "digests differ"
