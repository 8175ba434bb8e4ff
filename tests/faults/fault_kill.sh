#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# SIGKILL of a rank, of mpirun, of the front end or of all at once, at random times of a run over three stages: while it starts and loads,
# trains, saves in the foreground and writes beside the training. The same line again must go on from the last save that was reported, or a
# later one; at the end all is as in a run that nobody killed. A killed rank with --restarts: the time from the kill to the next step.
# Seen to fail with files written straight into step-N (checkpoint_folder.c), with a resume from the last checkpoint but one, without
# cutting the records back (metrics.c), and where the death of the front end reaches neither keeper, mpirun nor ranks (launch.c, launch_job.c).
. "$(dirname "$0")/../train_setup.sh"
. "$(dirname "$0")/processes.sh"
kills=12 recoveries=1
[ "${2:-quick}" = full ] && kills=240 recoveries=20
steps=120
make_data
make_config c.yaml $steps
start="$floe train c.yaml -n 2 checkpoint.every=4 eval.every=30"
expect 0 $start -o whole -q

declare -A while
runs=0 slowest=0

about() {
    echo "kill $done of $kind in $run ($options)"
}

new_run() {
    run=run-$((++runs))
    reported=0
}

# Names the process, or processes, to kill: $targets
choose() {
    one_of rank rank mpirun front all
    kind=$word
    case $kind in
    rank)
        between 0 1
        targets=$(rank_process $number)
        ;;
    mpirun) targets=$(mpirun_process) ;;
    front) targets=$front ;;
    all) targets="$front $(job_processes)" ;;
    esac
    [ -n "$targets" ] || { kind=front targets=$front; }
}

has_temporary() { # of a save that has begun
    set -- $run/ckpt/.tmp-*
    [ -e "$1" ]
}

# Waits for the moment to kill.
aim() {
    one_of start step step save save writing
    moment=$word
    if [ $moment = start ]; then
        between 5 700
        nap_ms $number
        choose
        return
    fi
    until has_step $run.out || ! kill -0 $front 2>/dev/null; do nap_ms 5; done
    choose
    case $moment in
    step)
        between 5 400
        nap_ms $number
        ;;
    *)
        between 0 3 # not always the first one: nothing would ever be learned
        [ $number = 0 ] || until grep -qs '^save ' $run.out || ! kill -0 $front 2>/dev/null; do nap_ms 2; done
        until has_temporary || ! kill -0 $front 2>/dev/null; do :; done
        between 0 25
        [ $moment = writing ] || nap_ms $number
        ;;
    esac
}

# How the kill was met, from what lies there once all have ended.
judge_moment() {
    local begun=training
    has_step $run.out || begun="starting or loading"
    has_temporary && begun="saving in the foreground"
    has_temporary && [[ $options = *background=true* ]] && begun="the writer wrote"
    set -- $run/ckpt/.trash-*
    [ -e "$1" ] && begun="removing an old checkpoint"
    while[$begun]=$((${while[$begun]:-0} + 1))
}

await_end() { # $code; the ranks have to be gone within seconds
    now_ms
    local killed=$now
    wait $front 2>/dev/null
    code=$?
    until is_gone $run; do
        now_ms
        [ $((now - killed)) -lt 20000 ] || { bad wrong "processes are left: $(job_processes)" && break; }
        nap_ms 20
    done
    now_ms
    [ $code = 0 ] || [ $((now - killed)) -le $slowest ] || slowest=$((now - killed))
}

# What the start before has reported as saved must be there, whole, and gone on from.
check_start() { # of the start that is over
    local resumed saved
    resumed=$(sed -nE 's/^resume .*: step ([0-9]+), .*/\1/p' $run.out)
    if [ -n "$resumed" ]; then
        [ "$resumed" -ge $reported ] || bad lost "went on from step $resumed, $reported was saved"
    elif has_step $run.out; then
        [ $reported = 0 ] || bad lost "began anew, step $reported was saved"
    fi
    saved=$(newest_saved $run)
    [ "$saved" -le $reported ] || reported=$saved
    set -- $run/ckpt/step-*
    if [ -e "$1" ]; then
        "$floe" ckpt verify --all $run >verify.txt 2>&1 && grep -q ' 0 damaged; 0 in quarantine' verify.txt ||
            bad lost "$(grep -v ': whole$' verify.txt)"
    fi
    grep -Eq "damaged|quarantine" $run.out $run.err && bad wrong "says that something is damaged"
}

finish_run() {
    same_runs whole $run $steps >differences.txt 2>&1 || bad wrong "$(cat differences.txt)"
    [ "$(ls -A whole/ckpt)" = "$(ls -A $run/ckpt)" ] || bad wrong "other checkpoints are left: $(ls -A $run/ckpt)"
    rm -rf $run
}

# A run with --restarts 1, a rank of which is killed once.
recover() {
    run=recovering-$1 options="--restarts 1" kind=restarts
    tried[restarts]=$((${tried[restarts]:-0} + 1))
    $start -o $run $options >$run.out 2>$run.err &
    front=$!
    until has_step $run.out || ! kill -0 $front 2>/dev/null; do nap_ms 5; done
    between 5 400
    nap_ms $number
    between 0 1
    kill -9 "$(rank_process $number)"
    await_end
    [ $code = 0 ] || bad wrong "exit code $code"
    sed -nE 's/^\{"event":"recovered".*"seconds":([0-9.]+).*/\1/p' $run/metrics.jsonl >>recovery.txt
    finish_run
}

new_run
done=0
while :; do
    one_of true false zlib
    options="checkpoint.background=true checkpoint.compress=zlib"
    [ $word = zlib ] || options=checkpoint.background=$word
    $start -o $run $options >$run.out 2>$run.err &
    front=$!
    if [ $done -lt $kills ]; then
        aim
        kill -9 $targets 2>/dev/null
    else
        kind=rank
    fi
    await_end
    check_start
    if [ $code = 0 ]; then
        finish_run
        [ $done -lt $kills ] || break
        new_run
        continue
    fi
    [ $code = 137 ] || bad wrong "exit code $code"
    done=$((done + 1))
    tried[$kind]=$((${tried[$kind]:-0} + 1))
    judge_moment
done

echo "all processes were gone within $slowest ms of a kill"
for i in $(seq $recoveries); do recover $i; done
[ "$(wc -l <recovery.txt)" = $recoveries ] || bad wrong "only $(wc -l <recovery.txt) recoveries are recorded"
sort -n recovery.txt | awk '{ s[NR] = $1 } END { printf "recovery from the last step before the kill to the next: median %.2f s, %.2f to %.2f s\n",
    s[int((NR + 1) / 2)], s[1], s[NR] }'

result() { # KEY NAME
    echo "result: SIGKILL of $2 | ${tried[$1]:-0} | ${lost[$1]:-0} | ${wrong[$1]:-0} | $3"
}
again="at random times of $runs runs over three stages, started again with the same line"
result rank "a rank" "$again"
result mpirun mpirun "$again"
result front "the front end" "$again"
result all "the whole job at once" "$again"
result restarts "a rank, with --restarts" "at random times; the front end starts the ranks again"
for moment in "${!while[@]}"; do echo "killed while $moment: ${while[$moment]}"; done
[ $failures = 0 ]
