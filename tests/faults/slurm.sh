#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# The job script of floe slurm on a real Slurm cluster: two nodes, a rank on each, over TCP. Signals before the time limit, preemption, a
# lost node, a dead rank, scancel; with srun and with mpirun. Takes about 6 minutes, needs root, slurmctld, slurmd, munge and iproute2.
# usage: tests/faults/slurm.sh FLOE [FOLDER [PART…]]     FOLDER: empty, kept; else a temporary one
#        parts: asked limit cancelled dead mpirun; limit needs asked
. "$(dirname "$0")/../train_setup.sh"
. "$(dirname "$0")/slurm_cluster.sh"
floe=$(realpath "$1")
missing=$(cluster_missing)
[ -z "$missing" ] || { echo "skipped: $missing"; exit 77; }
folder=${2:-$(mktemp -d /tmp/floe-slurm-XXXXXX)}
mkdir -p "$folder" && cd "$folder" || exit 1
FLOE_PRESETS=$(realpath "$(dirname "$0")/../../configs/presets" 2>/dev/null)
export FLOE_PRESETS OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 OMPI_MCA_btl_vader_single_copy_mechanism=none \
    OMPI_MCA_hwloc_base_binding_policy=none OMPI_MCA_mpi_yield_when_idle=1 # both nodes are this machine

end() {
    code=$?
    trap - EXIT
    cluster_down
    [ $code = 0 ] && [ -z "$2" ] && rm -rf "$folder" || echo "files: $folder"
    exit $code
}
trap 'end "$@"' EXIT
trap 'exit 1' INT TERM
cluster_up "$folder/cluster" || fail "no cluster; see $folder/cluster/*.log"
make_data

# submit RUN STEPS [SLURM OPTIONS]: $job, its output in $out
submit() {
    run=$1
    make_config "$run.yaml" "$2"
    shift 2
    expect 0 "$floe" slurm "$run.yaml" checkpoint.every=50 --nodes 2 --ranks-per-node 1 -o "$run" "$@"
    sed "${edit:-}" out.txt >"$run.sbatch"
    job=$(sbatch --parsable "$run.sbatch") || fail "sbatch"
    out=$run-$job.out
}
state() { # of $job, from Slurm
    scontrol show job "$job" | sed -nE "s/.*[ ]$1=([^ ]*).*/\1/p"
}
trained() { # STEPS in all starts, whose output is in one file
    [ "$(grep -c '^step ' "$out" 2>/dev/null)" -ge "$1" ]
}
trains() { # STEPS from now on
    wait_for 60 test -e "$out"
    wait_for 120 trained $(($(grep -c '^step ' "$out") + $1))
}
restarted() { # RESTARTS
    [ "$(state Restarts)" -ge "$1" ] && [ "$(state JobState)" = RUNNING ]
}
ended() { # STATE
    [ "$(state JobState)" = "$1" ]
}
over() {
    case $(state JobState) in COMPLETED | FAILED | CANCELLED | TIMEOUT) return 0 ;; esac
    return 1
}
completes() { # SECONDS
    wait_for "$1" over
    ended COMPLETED || fail "$run ended as $(state JobState)"
    says "$out" '^done '
}
same_as_undisturbed() { # RUN
    expect 0 "$floe" train "$1.yaml" -o "$1-whole" -n 2 checkpoint.every=0 -q
    losses "$1" >a.txt
    losses "$1-whole" >b.txt
    hashes "$1" >>a.txt
    hashes "$1-whole" >>b.txt
    [ -s a.txt ] || fail "$1 has no losses"
    same "losses or data of $1 and of a run that nobody stopped" a.txt b.txt
}
now() { date +%s.%N; }
since() { awk -v a="$1" -v b="$(now)" 'BEGIN { printf "%.1f", b - a }'; }

# ---- asked by hand, preempted, with a lost node; it finishes with the losses of an undisturbed run
part_asked() {
    submit asked 400
    trains 30
    scancel --batch --signal=USR2 "$job"
    wait_for 60 restarted 1
    says "$out" '^stop .*SIGUSR2'
    trains 30
    printf '#!/bin/sh\nsleep 2\n' >urgent.sbatch
    sbatch -p high -N 2 --ntasks-per-node=2 -t 1 -o urgent.out urgent.sbatch >/dev/null
    wait_for 90 restarted 2
    says "$out" '^stop .*SIG(TERM|USR2)'
    [ "$(grep -c '^stop ' "$out")" = 2 ] || fail "no save at preemption"
    trains 30
    cluster_lose_node 1
    wait_for 120 ended PENDING
    cluster_start_node 1
    wait_for 120 restarted 3
    completes 300
    same_as_undisturbed asked
    echo "asked, preempted, node lost: $(state Restarts) restarts, $(wc -l <a.txt) equal values"
}

# ---- the time limit: 2 minutes are less than the run needs
part_limit() {
    rate=$(awk '/^step / { n++ } END { print n }' "$out")
    seconds=$(sed -nE 's/^\{"step":.*"step_s":([0-9.e-]+).*/\1/p' asked/metrics.jsonl | awk '{ s += $1 } END { print s }')
    steps=$(awk -v n="$rate" -v s="$seconds" 'BEGIN { print 10 * int(14 * n / s) }')
    submit limit "$steps" --time 2m
    grep -q '^#SBATCH --time=0-00:02:00' limit.sbatch || fail "no limit"
    completes 600
    [ "$(state Restarts)" -ge 1 ] || fail "$steps steps were done before the limit"
    ! grep -q 'DUE TO TIME LIMIT' "$out" || fail "the limit was met"
    same_as_undisturbed limit
    echo "time limit: $(state Restarts) restarts, $(grep -cE '^stop .*SIGUSR2' "$out") by the signal, $(wc -l <a.txt) equal values"
}

# ---- cancelled: saved, and it stays cancelled
part_cancelled() {
    submit cancelled 100000
    trains 20
    scancel "$job"
    wait_for 30 ended CANCELLED
    wait_for 30 grep -q '^stop ' "$out"
    sleep 10
    ended CANCELLED || fail "a cancelled job came back"
    echo "scancel: saved at $(sed -nE 's/^stop +([0-9]+).*/step \1/p' "$out"), not requeued"
}

# ---- a rank dies: the job ends with its exit code and is not requeued
part_dead() {
    submit dead 100000
    trains 30
    begun=$(now)
    kill -9 "$(pgrep -f "^$floe train dead.yaml" | head -1)" || fail "no rank"
    wait_for 30 ended FAILED
    echo "a rank killed: the job ended after $(since "$begun") s with $(state ExitCode)"
    grep -qE '^1(2[89]|[3-9][0-9]):0$' <<<"$(state ExitCode)" || fail "exit code $(state ExitCode)" # another rank may meet SIGPIPE first
}

# ---- with mpirun, where Slurm has no PMIx
part_mpirun() {
    edit='s/grep -q pmix; then/grep -q none-of-these; then/' submit mpirun 200
    trains 30
    scancel --batch --signal=USR2 "$job"
    wait_for 60 restarted 1
    completes 300
    same_as_undisturbed mpirun
    echo "mpirun: $(state Restarts) restart, $(wc -l <a.txt) equal values"
}

parts=${*:3}
for part in ${parts:-asked limit cancelled dead mpirun}; do
    part_$part
done
echo passed
