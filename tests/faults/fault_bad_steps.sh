#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# A rank whose kernels fail in a step (preload_nan_flip.c), through the whole of `floe train` with 2 and 4 ranks: NaN in
# a loss, in one rank's gradient, in one expert's gradient or weights, infinities, sums and squares beyond a float,
# spikes; bits that flip in one copy of a weight or a moment; an optimizer that does nothing.
# It failed when guard_judge passed a loss of NaN or an overflow; a bad step kept its gradients or its expert choices; a
# save was made at it; going back lost the passed steps, the ledger's samples, the window of good steps, or took a save that
# was not finite; the end did not say guard.spike; copies were compared at good steps only, at bad ones only, without
# experts, or the first of them was named; equal saves raised no alarm.
. "$(dirname "$0")/../train_setup.sh"
. "$(dirname "$0")/processes.sh"
amount=$2
faulty=$3/preload_nan_flip.so
export ASAN_OPTIONS=${ASAN_OPTIONS:+$ASAN_OPTIONS:}verify_asan_link_order=0

# Spikes have a window of 4 good steps; in stages that begin at steps 12 and 26 they are looked for from 16 and 30 on.
make_data
make_config c.yaml 36
sed -i -e 's/expert_ffn: 48}/expert_ffn: 48, router: {bias_rate: 1.0e-2}}/' \
    -e 's/^checkpoint:.*/checkpoint: {every: 5, keep: 0}/' -e 's/^eval:.*/eval: {every: 0}/' c.yaml
echo "guard: {spike: skip, window: 4, z: 30, replica_check: 5}" >>c.yaml
end=36

with() { # FAULTS COMMAND…
    local faults=$1
    shift
    LD_PRELOAD=$faulty FLOE_FAULT=$faults "$@"
}

train() { # RUN LAYOUT OPTION…: LAYOUT is RANKS.EP.ZERO
    local run=$1 n ep zero
    IFS=. read -r n ep zero <<<"$2"
    shift 2
    "$floe" train c.yaml -o "$run" -n "$n" -q "parallel.ep=$ep" "parallel.zero=$zero" "$@"
}

happened() { # FAULTS: those on stderr are these, each on every rank that it was for
    local count
    count=$(grep -c '^fault: .* on rank' err.txt)
    [ "$count" = "$1" ] || { cat err.txt >&2; fail "$count of $1 faults happened"; }
}

bad_steps() { # RUN: "step reason action back_to"
    sed -nE 's/^\{"event":"bad_step","step":([0-9]+),.*"reason":"([a-z]+)","action":"([a-z]+)".*/\1 \2 \3 &/p' "$1/metrics.jsonl" |
        sed -E 's/\{.*"back_to":([0-9]+).*/\1/;s/ \{.*//'
}

passed_ranges() { # CHECKPOINT
    grep -oE '"first_step":[0-9]+,"last_step":[0-9]+' "$1/MANIFEST.json" | sed -E 's/[^0-9]+/ /g;s/^ //' | tr '\n' ,
}

ledger() { # CHECKPOINT: what was read of each source in each stage
    grep -oE '"ledger":\{"stages":[^]]*\]' "$1/MANIFEST.json"
}

same_state() { # WHAT RUN RUN
    "$floe" ckpt diff "$(checkpoint "$2" $end)" "$(checkpoint "$3" $end)" >out.txt 2>err.txt || { cat out.txt err.txt >&2; fail "$1"; }
}

no_alarm() { # RUN: none of a kind that this test has no cause for
    ! grep -E '"event":"(stale_save|replica_mismatch|quarantine|save_failed)"' "$1/metrics.jsonl" || fail "$1: an alarm without a cause"
}

# Layouts of a key have the same bits: ZeRO 2 adds up the gradients of micro-batches in another order.
key_of() { # LAYOUT
    key=${1%.[01]}
}

whole() { # LAYOUT: the run that nothing happened to
    key_of "$1"
    plain=plain-$key
    [ -d "$plain" ] || { expect 0 train "$plain" "$1"; no_alarm "$plain"; [ -z "$(bad_steps "$plain")" ] || fail "bad steps without a cause"; }
}

# ---- steps that are skipped or passed over on the way back: eight faults in a run

where_bad=(6 8 13 14 18 21 23 30)
saved='5 10 12 15 20 25 26 31 35 36 ' # 12 and 26, the first steps of stages, for good; 31 for 30, which is bad
declare -A expected ranges
expected[skip]="6 nonfinite skip,8 nonfinite skip,13 nonfinite skip,14 nonfinite skip,18 nonfinite skip,21 gnorm skip,23 loss skip,30 nonfinite skip,"
ranges[skip]="6 6,8 8,13 14,18 18,21 21,23 23,30 30,"
expected[rollback]="6 nonfinite rollback 5,8 nonfinite rollback 5,13 nonfinite rollback 12,14 nonfinite rollback 12,18 nonfinite rollback 15,21 gnorm rollback 20,23 loss rollback 20,30 nonfinite rollback 26,"
ranges[rollback]="6 8,13 14,16 18,21 23,27 30,"

eight_faults() { # RANKS: each on a random rank
    local kind step=0
    list=
    for kind in expert-gradient loss gradient infinite huge gradient-spike loss-spike; do
        between 0 $(($1 - 1))
        list+="$kind:$number:${where_bad[step++]},"
    done
    list+="overflow:-1:${where_bad[step]}"
    fired=$((7 + $1))
}

# All by a loss that is none on rank 0, but for those that are spikes: nothing of the kind of a fault may be left.
reference() { # LAYOUT POLICY
    local step
    key_of "$1"
    reference=ref-$key-$2
    [ -d "$reference" ] && return
    list=
    for step in 6 8 13 14 18 30; do list+="loss:0:$step,"; done
    expect 0 with "${list}gradient-spike:1:21,loss-spike:1:23" train "$reference" "$1" "guard.nonfinite=$2" "guard.spike=$2"
    happened 8
}

check_faults() { # RUN POLICY LAYOUT: against the reference
    [ "$(bad_steps "$1" | tr '\n' ,)" = "${expected[$2]}" ] || { bad_steps "$1" >&2; fail "$1: other bad steps"; }
    [ "$(passed_ranges "$(checkpoint "$1" $end)")" = "${ranges[$2]}" ] || fail "$1: passed $(passed_ranges "$(checkpoint "$1" $end)")"
    kept=$(ls "$1/ckpt" | sed -nE 's/^step-0*([0-9]+)$/\1/p' | tr '\n' ' ')
    [ "$kept" = "$saved" ] || fail "$1: saved $kept"
    [ "$(ledger "$(checkpoint "$1" $end)")" = "$(ledger "$(checkpoint "$plain" $end)")" ] || fail "$1: another ledger"
    hashes "$1" >a.txt
    hashes "$plain" >b.txt
    same "$1: stream hashes" a.txt b.txt
    losses "$1" | grep -vE '^(6|8|13|14|18|21|23|30) ' >a.txt
    losses "$reference" | grep -vE '^(6|8|13|14|18|21|23|30) ' >b.txt
    same "$1: losses of good steps" a.txt b.txt
    same_state "$1: something of the faults is left" "$1" "$reference"
    no_alarm "$1"
}

bad_batches() { # LAYOUT POLICY
    local run=bad-$1-$2
    whole "$1"
    reference "$1" "$2"
    eight_faults "${1%%.*}"
    expect 0 with "$list" train "$run" "$1" "guard.nonfinite=$2" "guard.spike=$2"
    happened $fired
    check_faults "$run" "$2" "$1"
    injected=$((injected + fired))
}

# A rank is killed in a step's loss, its backward or its update; the next start goes on.
killed_among_them() { # LAYOUT POLICY STEP
    local run=cut-$1-$2-$3
    whole "$1"
    reference "$1" "$2"
    between 0 $((${1%%.*} - 1))
    local rank=$number
    one_of loss backward update
    [[ " ${where_bad[*]} " != *" $3 "* ]] || [ "$word" != update ] || word=backward # no update in bad steps
    eight_faults "${1%%.*}"
    expect 137 with "$list,kill-$word:$rank:$3" train "$run" "$1" "guard.nonfinite=$2" "guard.spike=$2"
    expect 0 with "$list" train "$run" "$1" "guard.nonfinite=$2" "guard.spike=$2"
    check_faults "$run" "$2" "$1"
    killed=$((killed + 1))
    rm -rf "$run"
}

# ---- the end by policy; what was saved is good to go on from

stop_at() { # LAYOUT FAULT STEP
    local run=stop-$1-$2-$3 policy="guard.nonfinite=stop guard.spike=stop" rank=-1 saved=$((($3 - 1) / 5 * 5))
    [ $saved = 10 ] && [ "$3" -gt 12 ] && saved=12
    whole "$1"
    [ "$2" = overflow ] || { between 0 $((${1%%.*} - 1)); rank=$number; }
    # shellcheck disable=SC2086
    expect 5 with "$2:$rank:$3" train "$run" "$1" $policy
    says err.txt "^error: step $3: .*; nothing was saved after step $saved\. Go on from an earlier checkpoint"
    case $2 in
    loss-spike) says err.txt "^error: step $3: loss [0-9.]+ is [0-9.]+ deviations above the last 4 good steps' [0-9.]+: stopped by guard.spike" ;;
    gradient-spike) says err.txt "^error: step $3: gradient norm [0-9.]+ is .* stopped by guard.spike" ;;
    loss) says err.txt "^error: step $3: loss nan, gradient norm [0-9.]+: training has diverged" ;;
    *) says err.txt "^error: step $3: loss [0-9.]+, gradient norm (nan|inf|1e\+30): training has diverged" ;;
    esac
    [ "$(bad_steps "$run" | wc -l)" = 1 ] && bad_steps "$run" | grep -qE "^$3 [a-z]+ stop" || fail "$run: $(bad_steps "$run")"
    [ "$(ls "$run/ckpt" | tail -1)" = "step-$(printf %09d $saved)" ] || fail "$run: saved $(ls "$run/ckpt")"
    # shellcheck disable=SC2086
    expect 0 train "$run" "$1" $policy
    same_state "$run: not as if nothing had happened" "$run" "$plain"
    stopped=$((stopped + 1))
    rm -rf "$run"
}

# ---- NaN in weights: no batch is to blame

bad_expert() { # LAYOUT
    local run=expert-$1 n=${1%%.*} ep
    ep=${1#*.}
    ep=${ep%.*}
    whole "$1"
    between 0 $((n - 1))
    if [ "$n" = "$ep" ]; then # the only copy: the checkpoint has the right one
        expect 5 with "expert-weight:$number:13" train "$run-skip" "$1" guard.nonfinite=skip guard.max_bad=4
        says err.txt '^error: step 16: loss nan, .*bad step number 4 in a row .*nothing was saved after step 12\.'
        reference=ref-$key-13
        [ -d "$reference" ] || expect 0 with "loss:0:13" train "$reference" "$1" guard.nonfinite=rollback
        expect 0 with "expert-weight:$number:13" train "$run" "$1" guard.nonfinite=rollback
        same_state "$run: a NaN is left" "$run" "$reference"
        experts=$((experts + 1))
        rm -rf "$run-skip"
    else
        expect 4 with "expert-weight:$number:13" train "$run" "$1" guard.nonfinite=rollback
        named "$run" "$number" 13 'layers\.0\.experts' "$n" "$((n / ep))"
    fi
    experts=$((experts + 1))
    rm -rf "$run"
}

# An update that makes a NaN shows in the next step; the save of step 15 lies between. Copies that get it from its owner
# do not differ.
bad_update() { # LAYOUT
    local run=update-$1 n=${1%%.*}
    whole "$1"
    between 0 $((n - 1))
    if [ "${1##*.}" = 0 ]; then
        expect 4 with "update:$number:15" train "$run" "$1" guard.nonfinite=rollback
        named "$run" "$number" 16 embed "$n" "$n"
    else
        reference=ref-$key-16
        [ -d "$reference" ] || expect 0 with "loss:0:15,loss:0:16" train "$reference" "$1" guard.nonfinite=rollback
        expect 0 with "update:$number:15" train "$run" "$1" guard.nonfinite=rollback
        says err.txt '^warning: the weights or moments that were saved at step 15 are not finite; further back'
        [ "$(bad_steps "$run")" = "16 nonfinite rollback 12" ] || fail "$run: $(bad_steps "$run")"
        same_state "$run: a NaN is left" "$run" "$reference"
    fi
    experts=$((experts + 1))
    rm -rf "$run"
}

# ---- copies that differ

named() { # RUN RANK STEP GROUP RANKS COPIES
    local rank=$2 apart=$(($5 / $6)) first line
    if [ "$6" = 2 ]; then # both are: which is right is open
        first=$(($2 % apart))
        rank=$((first + apart))
        line="differ from rank $first's; which is right is open"
    else
        line="differ from those of most of the $6 ranks"
    fi
    says err.txt "^error: step $3: the weights of $4 on rank $rank \([^)]+\) $line .*checkpoints from step $((($3 - 1) / 5 * 5)) on may hold it"
    says "$1/metrics.jsonl" "\"event\":\"replica_mismatch\",\"step\":$3,.*\"rank\":$rank,\"host\":\"[^\"]+\",\"group\":\"$4\""
}

# From a checkpoint before that step on, as the message says, the run is as if nothing had happened.
flip() { # LAYOUT KIND STEP: weights flip before the step's comparison, moments behind it
    local run=flip-$1 n ep zero rank group=embed copies found last=$((($3 + 4) / 5 * 5))
    case $2 in flip-m | flip-v) last=$(($3 / 5 * 5 + 5)) ;; esac
    IFS=. read -r n ep zero <<<"$1"
    whole "$1"
    copies=$n
    [ "$2" != flip-expert ] || { copies=$((n / ep)) group='layers\.[01]\.experts'; }
    between 0 $((n - 1))
    rank=$number
    between 0 2000000000
    with "$2:$rank:$3:$number" train "$run" "$1" guard.spike=off >out.txt 2>err.txt
    code=$?
    happened 1
    flips=$((flips + 1))
    if [ $code != 4 ]; then
        echo "missed: $1 $2:$rank:$3:$number (exit $code)"
        grep '^fault' err.txt
        missed=$((missed + 1))
    else
        found=$(sed -nE 's/^error: step ([0-9]+): the weights of .*/\1/p' err.txt) # a bad step compares, too
        [ "$found" -ge "$3" ] && [ "$found" -le $last ] || fail "$run: found in step $found"
        named "$run" "$rank" "$found" "$group" "$n" "$copies"
        expect 0 train "$run" "$1" "--resume=$((last - 10))"
        same_state "$run: not as if nothing had happened" "$run" "$plain"
    fi
    rm -rf "$run"
}

# ---- states that do not change

idle() { # LAYOUT FIRST LAST: the optimizer does nothing in these steps
    local run=idle-$1 list= step
    whole "$1"
    for ((step = $2; step <= $3; step++)); do list+="idle:-1:$step,"; done
    expect 0 with "${list%,}" train "$run" "$1" checkpoint.every=4
    grep -oE '"event":"stale_save","step":[0-9]+.*"same_as":[0-9]+' "$run/metrics.jsonl" |
        sed -E 's/.*"step":([0-9]+).*"same_as":([0-9]+)/\1 \2/' >a.txt
    for ((step = 8; step <= 32; step += 4)); do # saves beside those of 12 and 26
        [ $((step - 4)) -ge $(($2 - 1)) ] && [ $step -le "$3" ] && echo "$step $((step - 4))"
    done >b.txt
    same "$run: alarms" b.txt a.txt
    alarms=$((alarms + $(wc -l <b.txt)))
    says err.txt '^warning: the state saved at step [0-9]+ is that of step [0-9]+, bit for bit'
    rm -rf "$run"
}

injected=0 killed=0 stopped=0 experts=0 flips=0 missed=0 alarms=0
if [ "$amount" = full ]; then
    for layout in {2.1,2.2,4.1,4.2}.{0,1,2}; do
        for policy in skip rollback; do bad_batches $layout $policy; done
        bad_expert $layout
        bad_update $layout
    done
    for policy in skip rollback; do
        for step in {6..36}; do
            one_of 2.1.0 2.1.2 2.2.1 2.2.2 4.2.2
            killed_among_them "$word" $policy $step
        done
    done
    for layout in 2.1.0 2.2.2 4.2.1; do
        for kind in loss gradient infinite huge overflow expert-gradient loss-spike gradient-spike; do
            between 20 24
            stop_at $layout $kind $number
        done
    done
    for ((i = 0; i < 100; i++)); do
        one_of {2.1,2.2,4.1,4.2}.{0,1,2}
        layout=$word
        kinds="flip-dense"
        [ "${layout%.*}" = 2.2 ] || kinds+=" flip-expert"
        [ "${layout##*.}" != 0 ] || kinds+=" flip-m flip-v"
        one_of $kinds
        between 11 34
        [ "${layout##*.}" = 0 ] || number=$(((number + 4) / 5 * 5)) # the next update replaces it
        flip "$layout" "$word" $number
    done
    for layout in 2.1.0 2.2.2 4.2.1; do idle $layout 13 24; done
else
    bad_batches 4.2.2 rollback
    between 13 25
    killed_among_them 2.2.1 rollback $number
    stop_at 2.1.0 loss-spike 22
    bad_expert 2.2.1
    bad_expert 2.1.0
    bad_update 2.2.1
    flip 4.2.2 flip-dense 15
    flip 4.2.2 flip-expert 20
    flip 2.1.0 flip-expert 17
    flip 4.2.0 flip-m 20
    idle 2.1.0 13 24
fi
result() { # KIND TRIED WRONG HOW
    echo "result: $1 | $2 | 0 | $3 | $4; 2 and 4 ranks, ep 1 and 2, ZeRO 0 to 2"
}
result "NaN, infinity, overflow or spike in a step, skipped or gone back from" $injected 0 \
    "kernels that fail on random ranks in 8 steps of a run; weights, moments, ledger, records as with other faults there"
result "kill of a rank among bad steps" $killed 0 "in loss, backward or update of every step; decides as the run that was not killed"
result "bad step that ends the run" $stopped 0 "exit code 5, message; the next start ends as the run that nothing happened to"
result "NaN in the weights of an expert, or from an update" $experts 0 "copies that differ: exit code 4, rank named; else gone back from, past a save that has it, or the end"
result "bit flip in one copy of a weight or moment" $flips $missed "random bits; exit code 4, rank and weights named; goes on from before it as if nothing had happened"
result "saves of a state that did not change" $alarms 0 "an optimizer that does nothing"
[ $missed = 0 ]
