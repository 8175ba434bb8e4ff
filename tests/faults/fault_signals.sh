#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# TERM, INT, HUP, USR2, USR1 and --max-time while a run checks its data, starts, loads, trains, waits for data, evaluates, saves in the foreground and writes
# beside the training; once and twice; to the front end and to an mpirun without one. Disks are slow (preload_slow.c), so that each phase is
# long enough to be met. A run takes many of them, started again after each stop, and has to end as a run that nobody disturbed; then the next one.
# Seen to fail where the front end does not note signals before it starts ranks (cmd_train.c), sends them before the ranks listen
# (launch.c), where TERM counts as a second signal behind USR2 (signals.c), an evaluation is not broken off (evaluate.c), and a stop saves
# nothing (loop.c).
. "$(dirname "$0")/../train_setup.sh"
. "$(dirname "$0")/processes.sh"
slow=$3/preload_slow.so
steps=300 rounds=0
[ "${2:-quick}" = full ] && steps=600 rounds=1
export ASAN_OPTIONS=${ASAN_OPTIONS:+$ASAN_OPTIONS:}verify_asan_link_order=0
make_data
make_config c.yaml $steps
base="data.holdout=30% eval.sequences=1300"
expect 0 "$floe" train c.yaml -n 2 $base -o whole -q checkpoint.every=4 eval.every=0
phases="checking starting loading training data evaluation foreground writer"

declare -A longest
run=run

about() {
    echo "$signals to $target while $phase"
}

# What the phase needs: $options of the run, $disk
prepare() {
    options="checkpoint.every=0 eval.every=0" disk=
    case $phase in
    checking) disk=FLOE_SLOW_DATA=20 ;;
    loading) disk=FLOE_SLOW_LOAD=100 ;;
    data) disk=FLOE_SLOW_DATA=250 ;;
    evaluation) options="checkpoint.every=0 eval.every=3" ;;
    foreground) options="checkpoint.every=4 eval.every=0 checkpoint.background=false" disk=FLOE_SLOW_SAVE=1000 ;;
    writer) options="checkpoint.every=4 eval.every=0" disk=FLOE_SLOW_SAVE=1000 ;;
    esac
}

start() { # [--max-time T]
    rm -f run.out slow
    [ $phase = data ] || touch slow
    local command=("$floe" train c.yaml)
    if [ "$target" = mpirun ]; then command=("$(dirname "$0")/../mpirun.sh" 2 "${command[@]}"); else command+=(-n 2); fi
    env LD_PRELOAD="$slow" FLOE_SLOW_WHEN=slow $disk "${command[@]}" -o run $base $options "$@" >run.out 2>run.err &
    front=$!
    now_ms
    begun=$now
}

# The front end has begun to look after signals; before that they end it, as they end any program.
listens() {
    local mask caught=0
    for mask in $(sed -nE 's/^Sig(Cgt|Blk):\s*//p' "/proc/$front/status" 2>/dev/null); do caught=$((caught | 16#$mask)); done
    [ $((caught & 1 << 14)) != 0 ] && ! grep -q '^env' "/proc/$front/comm"
}

in_phase() {
    case $phase in
    checking) grep -qs "/data/.*bin" "/proc/$front/maps" ;;
    starting) listens ;;
    loading) grep -qs '^memory ' run.out ;;
    training | data) has_step run.out ;;
    evaluation) grep -s '^step \|^eval ' run.out | tail -n 1 | grep -qE '^step +[0-9]*/' && (($(last_step) % 3 == 0)) ;;
    *) compgen -G 'run/ckpt/.tmp-*' >/dev/null && has_step run.out ;;
    esac
}

last_step() { # that the run has recorded
    local step
    step=$(losses run 2>/dev/null | tail -n 1)
    echo "${step:+${step%% *}}"
}

await_phase() {
    local until=$((SECONDS + 30))
    until in_phase; do
        kill -0 $front 2>/dev/null && [ $SECONDS -lt $until ] || { bad wrong "never came there" && return 1; }
        nap_ms 5
    done
    case $phase in
    checking) between 0 1000 ;;
    starting) between 0 500 ;;
    training) between 0 150 ;;
    data) touch slow && between 200 1000 ;;
    *) between 20 400 ;;
    esac
    nap_ms $number
}

await_end() { # $code
    local limit=${1:-30} until
    until=$((SECONDS + limit))
    while kill -0 $front 2>/dev/null; do
        [ $SECONDS -lt $until ] || { bad wrong "still runs after $limit s" && kill -9 $front; }
        nap_ms 10
    done
    wait $front
    code=$?
    now_ms
    ended=$now
    until is_gone run; do
        now_ms
        [ $((now - ended)) -lt 20000 ] || { bad wrong "processes are left" && break; }
        nap_ms 20
    done
}

whole_checkpoints() {
    compgen -G 'run/ckpt/step-*' >/dev/null || return 0
    "$floe" ckpt verify --all run >verify.txt 2>&1 && grep -q ' 0 damaged; 0 in quarantine' verify.txt ||
        bad lost "$(grep -v ': whole$' verify.txt)"
}

# Steps that began more than a second after the signal.
late_steps() {
    sed -nE 's/^\{"step":[0-9]+,"t":([0-9.]+),.*"step_s":([0-9.e-]+),.*/\1 \2/p' run/metrics.jsonl 2>/dev/null |
        awk -v sent="$sent" '$1 - $2 > sent / 1000 + 1' | wc -l
}

# A stop: what was learned by then is saved, at most a step after the signal.
check_stop() {
    local step saved
    await_end
    [ $code = 75 ] || { bad wrong "exit code $code instead of 75" && return; }
    step=$(last_step)
    saved=$(ls run/ckpt 2>/dev/null | sed -nE 's/^step-0*([0-9]+)$/\1/p' | tail -n 1)
    [ "${step:-0}" = "${saved:-0}" ] || bad lost "step ${step:-0} was done, ${saved:-0} is saved"
    [ $phase != evaluation ] || ! grep -q "\"event\":\"eval\",\"step\":$step," run/metrics.jsonl || bad wrong "evaluated to the end"
    [ "$(late_steps)" = 0 ] || bad wrong "$(late_steps) steps more than a second after the signal"
    [ $((ended - sent)) -le ${longest[$phase]:-0} ] || longest[$phase]=$((ended - sent))
    [ $((ended - sent)) -lt 20000 ] || bad wrong "took $((ended - sent)) ms to stop"
}

# A save on the way: then it goes on.
check_save() {
    local until=$((SECONDS + 30)) before=${1:-0} saved
    rm slow
    while :; do
        saved=$(newest_saved run)
        [ "$saved" -gt "$before" ] && [ "$(last_step)" -gt $((saved + 1)) ] && break
        kill -0 $front 2>/dev/null && [ $SECONDS -lt $until ] || { bad wrong "no save and steps behind it" && break; }
        nap_ms 20
    done
    grep -q '"event":"signal".*"action":"save"' run/metrics.jsonl || bad wrong "the signal is not recorded"
    kill -USR2 $front
    await_end
    [ $code = 75 ] || bad wrong "exit code $code for USR2 after USR1"
}

send() { # SIGNAL
    kill -"$1" $front 2>/dev/null || bad wrong "it had ended by then"
    now_ms
    sent=$now
}

finish() {
    phase=finishing signals=nothing target="front end" kind="the end" disk=
    options="checkpoint.every=4 eval.every=0"
    : >differences.txt
    start
    await_end 600
    [ $code = 0 ] && same_runs whole run $steps >differences.txt 2>&1 || bad wrong "exit code $code; $(cat differences.txt)"
}

# A new run where too few steps are left for what comes.
make_room() {
    local step
    step=$(last_step)
    [ "${step:-0}" -gt $((steps - 150)) ] || return 0
    finish
    rm -r run
}

once() { # PHASE SIGNAL TARGET
    make_room
    phase=$1 signals=$2 target=$3 kind="$2 to $3"
    local before
    tried[$kind]=$((${tried[$kind]:-0} + 1))
    prepare
    start
    await_phase && {
        before=$(last_step)
        send "$2"
        if [ "$2" = USR1 ]; then check_save "$before"; else check_stop; fi
    }
    whole_checkpoints
}

twice() { # PHASE SIGNAL SIGNAL
    make_room
    phase=$1 signals="$2 and $3" target="front end" kind="two signals"
    tried[$kind]=$((${tried[$kind]:-0} + 1))
    prepare
    start
    await_phase && {
        send "$2"
        [ $phase = writer ] || [ $phase = foreground ] || between 0 30 # the first may have ended it by then
        nap_ms $number
        if kill -"$3" $front 2>/dev/null; then
            now_ms
            sent=$now
            await_end
            [ $code = $((128 + $(kill -l "$3"))) ] || [ $code = 75 ] || bad wrong "exit code $code"
            [ $((ended - sent)) -lt 4000 ] || bad wrong "took $((ended - sent)) ms to end"
            case $phase in foreground | writer) [ $code != 75 ] || bad wrong "went on saving" ;; esac
        else
            await_end
        fi
    }
    whole_checkpoints
}

# A scheduler's warning and then its TERM, to one rank: the save goes on.
stop_then_term() { # PHASE
    make_room
    phase=$1 signals="USR2, then TERM to a rank" target="front end" kind="USR2, then TERM"
    tried[$kind]=$((${tried[$kind]:-0} + 1))
    prepare
    start
    await_phase && {
        send USR2
        nap_ms 300
        between 0 1
        kill -TERM "$(rank_process $number)" 2>/dev/null # may have ended
        check_stop
    }
    whole_checkpoints
}

max_time() { # PHASE
    make_room
    phase=$1 signals=--max-time target="front end" kind=--max-time
    tried[$kind]=$((${tried[$kind]:-0} + 1))
    prepare
    start --max-time 2s
    sent=$((begun + 2500)) # it counts from the ranks' start
    check_stop
    grep -q '^stop .*--max-time' run.out || bad wrong "does not say why it stopped"
    whole_checkpoints
}

if [ $rounds = 0 ]; then
    for phase in $phases; do
        one_of TERM INT HUP USR2
        once $phase $word "front end"
    done
    once starting TERM "front end"
    once loading USR1 "front end"
    once writer USR1 "front end"
    once evaluation USR2 mpirun
    once foreground USR1 mpirun
    stop_then_term writer
    twice writer TERM TERM
    twice foreground INT TERM
    max_time writer
fi
for round in $(seq $rounds); do
    for phase in $phases; do
        for signal in TERM INT HUP USR2 USR1; do once $phase $signal "front end"; done
        for signal in TERM INT HUP; do twice $phase $signal $signal; done
        twice $phase INT TERM
        [ $phase = starting ] || [ $phase = checking ] || for signal in USR1 USR2; do once $phase $signal mpirun; done
    done
    for phase in training data evaluation foreground writer; do
        max_time $phase
        stop_then_term $phase
    done
done
finish
for kind in "${!tried[@]}"; do
    echo "result: $kind | ${tried[$kind]} | ${lost[$kind]:-0} | ${wrong[$kind]:-0} | while starting, loading, training, waiting for data, evaluating, saving, writing"
done
for phase in "${!longest[@]}"; do echo "from a signal while $phase to the end: ${longest[$phase]} ms at most"; done
[ $failures = 0 ]
