# SPDX-License-Identifier: Apache-2.0
# For bash: the processes of a job, and what a run has after it has ended. Source it behind ../train_setup.sh.

RANDOM=${FLOE_FAULT_SEED:=$((RANDOM * 32768 + RANDOM))}
echo "seed: FLOE_FAULT_SEED=$FLOE_FAULT_SEED"
exec {nothing}<> <(:)

# Counts by $kind of fault.
declare -A tried lost wrong
failures=0

bad() { # lost|wrong TEXT…: what went wrong; about: a function that says what was being tried in $run
    local -n count=$1
    count[$kind]=$((${count[$kind]:-0} + 1))
    failures=$((failures + 1))
    shift
    echo "seed $FLOE_FAULT_SEED: $(about): $*" >&2
    tail -n 5 $run.out $run.err >&2
}

nap_ms() { # without a process of its own
    local s
    printf -v s '%d.%03d' $(($1 / 1000)) $(($1 % 1000))
    read -r -t "$s" -u "$nothing" _ || true
}

between() { # FIRST LAST: a random $number
    number=$(($1 + (RANDOM * 32768 + RANDOM) % ($2 - $1 + 1)))
}

one_of() { # WORD…: a random $word
    between 1 $#
    word=${!number}
}

now_ms() {
    local t=$EPOCHREALTIME
    printf -v now '%d%03d' "${t%.*}" "$((10#${t#*.} / 1000))"
}

# Processes of mpirun and of the ranks that the front end $front has started. That others end meanwhile is no failure.
job_processes() {
    grep -lzs "^FLOE_JOB=floe-$(id -u)-$front-" /proc/[0-9]*/environ | sed -E "s,/proc/([0-9]+)/.*,\1,"
}

rank_process() { # RANK
    local process
    for process in $(job_processes); do
        grep -qzxs "OMPI_COMM_WORLD_RANK=$1" "/proc/$process/environ" && echo "$process"
    done
}

mpirun_process() {
    local process comm
    for process in $(job_processes); do
        read -r comm <"/proc/$process/comm" 2>/dev/null || continue
        case $comm in mpirun | orterun) echo "$process" ;; esac
    done
}

# Of a run whose front end is gone: neither ranks, mpirun nor shared memory, and nobody who holds the lock.
is_gone() { # RUN
    ! compgen -G "/dev/shm/floe-$(id -u)-$front-*" >/dev/null && [ -z "$(job_processes)" ] && { [ ! -e "$1/lock" ] || flock -n -x "$1/lock" true; }
}

has_step() { # OUTPUT: of a run that trains
    grep -qs '^step ' "$1"
}

newest_saved() { # RUN: the last step whose save the run has reported, or 0
    local step
    step=$(grep -s '"event":"save"' "$1/metrics.jsonl" | sed -nE 's/.*"step":([0-9]+)[,}].*/\1/p' | sort -n | tail -1)
    echo "${step:-0}"
}

ledger_of() { # CHECKPOINT
    grep -o '"ledger":{.*"guard"' "$1/MANIFEST.json"
}

# What two runs have learned, from what, and what they keep.
same_runs() { # RUN RUN STEP
    local what
    for what in losses hashes; do
        $what "$1" >same_a.txt
        $what "$2" >same_b.txt
        [ -s same_a.txt ] && cmp -s same_a.txt same_b.txt || { diff same_a.txt same_b.txt | head -5 && echo "$what differ" && return 1; }
    done
    [ "$(ledger_of "$(checkpoint "$1" "$3")")" = "$(ledger_of "$(checkpoint "$2" "$3")")" ] || { echo "ledgers differ" && return 1; }
    "$floe" ckpt diff "$(checkpoint "$1" "$3")" "$(checkpoint "$2" "$3")" || return 1
}
