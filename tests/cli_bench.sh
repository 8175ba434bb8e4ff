#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# The benchmarks run, and their JSON has what the documentation names. Their figures are for quiet machines.
. "$(dirname "$0")/train_setup.sh"
unset FLOE_RUNS
make_config c.yaml 10

has() { # KEY…: in the one line of out.txt
    for key in "$@"; do says out.txt "\"$key\": [{0-9]"; done
    [ "$(wc -l <out.txt)" = 1 ] || fail "more than one line of JSON"
}

expect 0 "$floe" bench step c.yaml -n 2 --repeats 2 --json
has ranks tokens_per_s step_s gemm_s rest_s
expect 0 "$floe" bench overlap c.yaml -n 2 --repeats 2 --json
expect 0 "$floe" bench gemm c.yaml --repeats 2 --json

expect 0 "$floe" bench save c.yaml -n 2 --repeats 2 --json
has ranks state_bytes saved_bytes copy_alone_s stall_s write_s durable_s plain_write_s step_s step_beside_s
[ ! -e floe-bench-save ] || fail "bench save left something behind"
mkdir mine
touch mine/kept
expect 0 "$floe" bench save c.yaml -n 1 --repeats 1 -o mine parallel.ep=1 checkpoint.compress=zlib
says out.txt '^written at +[0-9.]+ GB/s'
[ "$(ls mine)" = kept ] || fail "bench save removed what it did not make, or left what it made"
touch file
expect 1 "$floe" bench save c.yaml -n 2 --repeats 1 -o file/folder
says err.txt 'file/folder'
expect 2 "$floe" bench save c.yaml --repeats 0
