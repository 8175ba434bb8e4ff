#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# All fault tests in full; ./test.sh runs them with fewer tries. Takes an hour or two on 2 cores; some parts need root
# and are skipped without. Closes with a table: fault, times tried, lost, wrong.
# usage: tests/faults/run-all.sh [BUILD [NAME…]]      BUILD: build; NAME: of fault_NAME.sh, or slurm
set -u
here=$(cd "$(dirname "$0")" && pwd)
build=$(realpath "${1:-$here/../../build}") || exit 2
[ -x "$build/floe" ] || { echo "$build/floe is missing: ./test.sh builds it" >&2; exit 2; }
[ $# = 0 ] || shift
folder=$(mktemp -d "${TMPDIR:-/tmp}/floe-faults-XXXXXX") || exit 1
names=${*:-$(cd "$here" && ls fault_*.sh | sed -E 's/^fault_(.*)\.sh$/\1/') slurm}
failed=
for name in $names; do
    mkdir -p "$folder/$name"
    begun=$SECONDS
    case $name in
    slurm) "$here/slurm.sh" "$build/floe" "$folder/$name" >"$folder/$name.log" 2>&1 ;;
    *) (cd "$folder/$name" && "$here/fault_$name.sh" "$build/floe" full "$build/tests/preload") >"$folder/$name.log" 2>&1 ;;
    esac
    code=$?
    verdict=passed
    [ $code = 77 ] && verdict=skipped
    [ $code = 0 ] || [ $code = 77 ] || { verdict=FAILED failed="$failed $name"; }
    echo "$name: $verdict in $((SECONDS - begun)) s"
    [ $verdict = passed ] || tail -3 "$folder/$name.log"
    grep '^result: ' "$folder/$name.log" >>"$folder/results"
done
echo
sed -E 's/^result: //' "$folder/results" | column -t -s '|' -o '|'
[ -z "$failed" ] || { echo "failed:$failed; logs: $folder"; exit 1; }
rm -rf "$folder"
