#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Sets everything up, builds with warnings as errors and runs all tests. Closes with "N passed, N failed".
# usage: ./test.sh [CTEST-OPTION…]       for example ./test.sh -R checkpoint
set -euo pipefail
cd "$(dirname "$0")"
tools/setup.sh --tests

log=build/test.log
code=0
ctest --test-dir build --output-on-failure --no-tests=error -j "${FLOE_JOBS:-2}" "$@" 2>&1 | tee "$log" || code=$?
summary=$(grep -E 'tests passed, [0-9]+ tests? failed out of [0-9]+' "$log" || echo '0% tests passed, 1 tests failed out of 1')
failed=$(sed -E 's/.*passed, ([0-9]+) tests? failed.*/\1/' <<<"$summary")
skipped=$(grep -cE '^ *[0-9]+/[0-9]+ Test .*\*\*\*Skipped' "$log" || true)
passed=$(($(sed -E 's/.*out of ([0-9]+)/\1/' <<<"$summary") - failed - skipped))
# Other versions format some lines otherwise.
if [[ $(clang-format --version 2>/dev/null) == *'version 14.'* ]]; then
    mapfile -t sources < <(find core kernels comm data model optim train tools tests -name '*.[ch]' -o -name '*.cc' -o -name '*.cu')
    if clang-format --dry-run --Werror "${sources[@]}" 2>build/format.log; then
        passed=$((passed + 1))
    else
        failed=$((failed + 1))
        echo "formatting differs (build/format.log): clang-format -i the files that it names"
        grep -o '^[^:]*' build/format.log | sort -u | head -20
    fi
else
    echo "formatting is not checked: it needs clang-format 14"
    skipped=$((skipped + 1))
fi
printf '%d passed, %d failed, %d skipped\n' "$passed" "$failed" "$skipped"
[[ $code == 0 && $failed == 0 ]]
