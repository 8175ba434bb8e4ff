#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# SIGSTOP of a rank in the middle of everything: for 5 s, after which training goes on as if nothing had been; for ever, where the watchdog
# names it, keeps the stacks and ends the job with 75, and the same line, or --restarts, goes on as a run that nothing happened to.
# Seen to fail where the watchdog loses patience after a fifth of its limit, does not say which rank has no report, and where the front end does
# not learn that it was the watchdog (all watchdog.c).
. "$(dirname "$0")/../train_setup.sh"
. "$(dirname "$0")/processes.sh"
slow=$3/preload_slow.so
rounds=1
[ "${2:-quick}" = full ] && rounds=4
export ASAN_OPTIONS=${ASAN_OPTIONS:+$ASAN_OPTIONS:}verify_asan_link_order=0
steps=80
make_data
make_config c.yaml $steps
base="checkpoint.every=4 eval.every=10 data.holdout=30% eval.sequences=100"
expect 0 "$floe" train c.yaml -n 2 $base -o whole -q
phases="training saving writing"

about() {
    echo "rank $rank stopped $kind, while $phase"
}

# Starts a run, and stops a random rank of it in the given phase: $rank, its process in $stopped
stop_rank() { # PHASE OPTION…
    phase=$1 run=run-$((++runs))
    shift
    tried[$kind]=$((${tried[$kind]:-0} + 1))
    local background=true disk=
    [ $phase != saving ] || background=false
    [ $phase = training ] || disk=FLOE_SLOW_SAVE=500
    touch slow
    env LD_PRELOAD="$slow" FLOE_SLOW_WHEN=slow $disk "$floe" train c.yaml -n 2 $base -o $run "$@" checkpoint.background=$background \
        >$run.out 2>$run.err &
    front=$!
    between 0 1
    rank=$number
    wait_for 60 has_step $run.out
    stopped=$(rank_process $rank)
    between 0 150
    case $phase in
    training) nap_ms $number ;;
    *) wait_for 60 compgen -G "$run/ckpt/.tmp-*" && nap_ms $((3 * number)) ;;
    esac
    kill -STOP "$stopped" || bad wrong "it had ended by then"
}

# Whether the job has ended; $code
ends_within() { # SECONDS
    local until=$((SECONDS + $1))
    while kill -0 $front 2>/dev/null; do
        [ $SECONDS -lt $until ] || { bad wrong "still runs after $1 s" && kill -9 $front; }
        nap_ms 20
    done
    wait $front
    code=$?
    wait_for 10 is_gone $run
}

check_end() {
    : >differences.txt
    [ $code = 0 ] && same_runs whole $run $steps >differences.txt 2>&1 || bad wrong "exit code $code; $(cat differences.txt)"
    "$floe" ckpt verify --all $run >verify.txt 2>&1 && grep -q ' 0 damaged; 0 in quarantine' verify.txt ||
        bad lost "$(grep -v ': whole$' verify.txt)"
}

for_a_while() { # PHASE
    kind="for 5 s"
    stop_rank $1 guard.watchdog=15
    sleep 5
    kill -CONT "$stopped"
    rm -f slow
    ends_within 300
    check_end
    grep -q 'no progress\|waits\|error' $run.err && bad wrong "something is said of a rank that was stopped for a while"
    [ ! -e $run/log ] || ! ls $run/log | grep -q stack || bad wrong "stacks are written"
    rm -rf $run
}

check_report() {
    grep -Eq "^\[rank $((1 - rank))\] error: no progress for [0-9]+ s \(guard.watchdog = 3\).* none from rank $rank\$" $run.err ||
        bad wrong "the rank that was stopped is not named"
    grep -q 'stack of the main thread' "$run/log/stack-rank-$((1 - rank)).txt" || bad wrong "no stack of the other rank"
}

for_ever() { # PHASE
    kind="for ever"
    stop_rank $1 guard.watchdog=3
    rm -f slow
    ends_within 40
    [ $code = 75 ] || bad wrong "exit code $code"
    check_report
    local saved resumed
    saved=$(newest_saved $run)
    "$floe" train c.yaml -n 2 $base -o $run >$run.out 2>$run.err &
    front=$!
    ends_within 300
    resumed=$(sed -nE 's/^resume .*: step ([0-9]+), .*/\1/p' $run.out)
    [ "${resumed:-0}" -ge "$saved" ] || bad lost "went on from step ${resumed:-0}, $saved was saved"
    check_end
    rm -rf $run
}

with_restart() { # PHASE
    kind="for ever, with --restarts"
    stop_rank $1 guard.watchdog=3 --restarts 1
    rm -f slow
    ends_within 300
    check_report
    grep -q '^recovery ' $run.out || bad wrong "the recovery is not told"
    check_end
    rm -rf $run
}

runs=0
for round in $(seq $rounds); do
    for phase in $phases; do
        [ $rounds -gt 1 ] || [ $phase = training ] || continue
        for_a_while $phase
    done
    for what in for_ever with_restart; do
        for phase in $phases; do
            [ $rounds -gt 1 ] || case $what-$phase in for_ever-writing | with_restart-saving) ;; *) continue ;; esac
            $what $phase
        done
    done
done
for kind in "${!tried[@]}"; do
    echo "result: SIGSTOP of a rank $kind | ${tried[$kind]} | ${lost[$kind]:-0} | ${wrong[$kind]:-0} | in steps, in saves, while the writer wrote"
done
[ $failures = 0 ]
