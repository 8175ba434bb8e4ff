#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# The front end around a real job: what stops before any rank starts, and that nothing is left when a part is killed.
# tests/test_launch.c has the cases that need no job.
. "$(dirname "$0")/train_setup.sh"
make_data
make_config c.yaml 100000
options="-n 2 checkpoint.every=0 eval.every=0"

start() { # RUN: in the background; $front, $mpirun, $ranks
    "$floe" train c.yaml -o "$1" $options >"$1.out" 2>"$1.err" &
    front=$!
    wait_for 30 grep -q '^step .* 3/100000' "$1.out"
    mpirun=$(pgrep -P $front mpirun) || fail "no mpirun below the front end"
    ranks=$(pgrep -P "$mpirun")
    [ "$(echo "$ranks" | wc -w)" = 2 ] || fail "not two ranks: $ranks"
    ls -d /dev/shm/floe-*-$front-* >/dev/null || fail "no folder of the job in /dev/shm"
}

# Within 2 s no process of the job is there, nothing of it stays in /dev/shm, and its folder can be locked again.
nothing_left() { # RUN
    tries=40
    for pid in $front $mpirun $ranks; do
        while kill -0 "$pid" 2>/dev/null; do
            tries=$((tries - 1))
            [ $tries -gt 0 ] || fail "process $pid of the job is still there"
            sleep 0.05
        done
    done
    while ls -d /dev/shm/floe-*-$front-* >/dev/null 2>&1; do
        tries=$((tries - 1))
        [ $tries -gt 0 ] || fail "left in /dev/shm: $(ls -d /dev/shm/floe-*-$front-*)"
        sleep 0.05
    done
    begun=$(date +%s)
    expect 0 "$floe" train c.yaml -o "$1" -n 2 train.steps=2
    [ $(($(date +%s) - begun)) -le 8 ] || fail "the lock of a dead job was held"
}

# ---- before any rank starts
expect 2 "$floe" train c.yaml -o x -n 3
says err.txt 'batch.sequences = 8 must be a multiple of the number of ranks = 3; possible: 6 or 9'
says err.txt '^2 errors. Nothing was started.'
[ ! -e x ] || fail "a run folder after a wrong configuration"
FLOE_MPIRUN=/nowhere/mpirun expect 1 "$floe" train c.yaml -o x -n 2
says err.txt '/nowhere/mpirun was not found; install openmpi-bin'
[ ! -e x ] || fail "a run folder without a run"

# ---- the front end is killed
start a
kill -9 $front
wait $front 2>/dev/null
nothing_left a

# ---- mpirun is killed: its death is the job's, and is named
start b
kill -9 "$mpirun"
wait $front
got=$?
[ $got = 137 ] || fail "exit code $got instead of 137"
says b.err '^error: mpirun was ended by signal 9'
nothing_left b

# ---- a rank is killed
start c
kill -9 "${ranks%%[!0-9]*}"
wait $front
got=$?
[ $got = 137 ] || fail "exit code $got instead of 137"
says c.err 'signal 9'
nothing_left c

# ---- as a plain user
plain="setpriv --reuid=65534 --regid=65534 --clear-groups"
if [ "$(id -u)" = 0 ] && chmod -R a+rX . && mkdir plain && chmod 777 plain &&
    $plain sh -c 'test -x "$0" && test -r c.yaml' "$floe" 2>/dev/null; then
    expect 0 env HOME=/nowhere $plain "$floe" train c.yaml -o plain/run -n 2 train.steps=2
    says out.txt '^done '
fi
