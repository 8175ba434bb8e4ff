#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# The job script that floe slurm prints: its text, what is refused, and what it does, with stand-ins for Slurm's commands.
# tests/faults/slurm.sh runs it on a real cluster.
. "$(dirname "$0")/train_setup.sh"
command -v bash >/dev/null || { echo "skipped: no bash"; exit 77; }
make_data
make_config c.yaml 100

# ---- the text
print() { # ARGUMENTS: the script, in job.sbatch
    expect 0 "$floe" slurm "$@"
    cp out.txt job.sbatch
    [ ! -s err.txt ] || fail "floe slurm $* writes on stderr"
    bash -n job.sbatch || fail "bash cannot read the script of floe slurm $*"
}

print c.yaml 'train.steps=100' --nodes 2 --ranks-per-node 1 --time 1d2h30m --partition 'long,short' -o 'my runs/a'
for line in '#!/bin/bash' '#SBATCH --job-name="a"' "#SBATCH --chdir=\"$PWD\"" '#SBATCH --output="a-%j.out"' '#SBATCH --open-mode=append' \
    '#SBATCH --nodes=2' '#SBATCH --ntasks-per-node=1' '#SBATCH --partition=long,short' '#SBATCH --time=1-02:30:00' '#SBATCH --requeue' \
    '#SBATCH --signal=B:USR2@600'; do
    grep -qxF -e "$line" job.sbatch || { cat job.sbatch >&2; fail "no line $line"; }
done
says job.sbatch "^train=\(/.*floe train c.yaml train.steps=100 -o 'my runs/a' --max-time 94800s\)$"
[ ! -e 'my runs' ] || fail "a run folder by floe slurm"

print c.yaml --nodes 2
! grep -qE -e '--(time|partition)=|max-time' job.sbatch || fail "a limit that nobody asked for"
says job.sbatch '^train=\(.* -o runs/c-[0-9]{8}-[0-9]{6}-[0-9a-f]{4}\)$'
print c.yaml --nodes 2 --time 4m -o it
says job.sbatch '^#SBATCH --signal=B:USR2@60$'

# ---- what is refused: all on stderr, nothing printed
refuses() { # MESSAGE ARGUMENTS
    message=$1
    shift
    expect 2 "$floe" slurm "$@"
    says err.txt "$message"
    [ ! -s out.txt ] || fail "a script from floe slurm $*"
}
refuses "unknown key 'optim.lrr'; did you mean 'lr'" c.yaml --nodes 2 optim.lrr=1
refuses 'number of ranks = 3; possible' c.yaml --nodes 3
expect 4 "$floe" slurm c.yaml --nodes 2 data.sources.prose.path=nowhere
says err.txt 'nowhere.idx: No such file'
[ ! -s out.txt ] || fail "a script without data"
refuses 'data.sources is empty' bench-small --nodes 2
refuses 'nodes 0: expected 1 to' c.yaml --nodes 0
refuses 'ranks-per-node x: expected a whole number' c.yaml --ranks-per-node x
refuses 'at most 1048576 ranks' c.yaml --nodes 1048576 --ranks-per-node 2
refuses "'soon' is not a duration" c.yaml --nodes 2 --time soon
refuses 'whole minutes' c.yaml --nodes 2 --time 150s
refuses 'at least 2m' c.yaml --nodes 2 --time 1m
refuses "partition 'a b': expected a name" c.yaml --nodes 2 --partition 'a b'
refuses "partition '': expected a name" c.yaml --nodes 2 --partition ''
refuses 'cannot have the character 0x22' c.yaml --nodes 2 -o 'a"b'
refuses 'an argument is missing' --nodes 2

# ---- stand-ins: what they were called with is in calls.txt
mpirun=$(command -v mpirun)
mkdir bin
cat >bin/srun <<'STAND_IN'
#!/bin/sh
[ "$1" = --mpi=list ] && { echo "$FAKE_MPI" >&2; exit 0; }
echo "srun $*" >>calls.txt
while :; do case $1 in --*) shift ;; *) break ;; esac; done
[ "$FAKE_CODE" ] && exit "$FAKE_CODE"
"$@" -n 2 &
ranks=$!
trap 'kill -USR2 $ranks' USR2
trap 'kill -KILL $ranks; exit 137' TERM
code=129
while [ $code -gt 128 ] && kill -0 $ranks 2>/dev/null; do
    wait $ranks
    code=$?
done
exit $code
STAND_IN
cat >bin/mpirun <<'STAND_IN'
#!/bin/sh
echo "mpirun $*" >>calls.txt
exit "$FAKE_CODE"
STAND_IN
cat >bin/scontrol <<'STAND_IN'
#!/bin/sh
echo "scontrol $*" >>calls.txt
STAND_IN
cat >bin/squeue <<'STAND_IN'
#!/bin/sh
echo "$FAKE_STATE"
STAND_IN
chmod +x bin/*

submit() { # starts the script in the background as Slurm would; $job
    : >calls.txt
    PATH="$PWD/bin:$PATH" FLOE_MPIRUN=${FLOE_MPIRUN:-$mpirun} SLURM_JOB_ID=77 SLURM_NTASKS=2 FAKE_MPI=${mpi-pmix_v4} \
        FAKE_CODE=${code-} FAKE_STATE=${state-RUNNING} bash job.sbatch >>job.out 2>&1 &
    job=$!
}
ends() { # CODE
    wait $job
    got=$?
    [ $got = "$1" ] || { tail -20 job.out >&2; fail "the script ends with $got instead of $1"; }
}
called() { grep -qxF -e "$1" calls.txt || { cat calls.txt >&2; fail "no call: $1"; }; }
not_requeued() { ! grep -q '^scontrol' calls.txt || fail "requeued"; }

# ---- a signal: the ranks save and stop with 75, the job is requeued; the next start goes on to the end
print c.yaml --nodes 2 --time 10m -o run
submit
wait_for 60 grep -q '^step .* 10/100' job.out
kill -USR2 $job
kill -TERM $job
ends 75
called 'scontrol requeue 77'
says job.out '^stop .*SIGUSR2'
says calls.txt '^srun --mpi=pmix --wait=5 .*floe train c.yaml -o run --max-time 450s$'
submit
ends 0
not_requeued
says job.out '^done '
expect 0 "$floe" train c.yaml -o undisturbed -n 2
losses run >a.txt
losses undisturbed >b.txt
[ "$(wc -l <a.txt)" = 100 ] || fail "steps are missing"
same "losses of the run that was stopped and of one that was not" a.txt b.txt

# ---- now the time for a step and a save is known
print c.yaml --nodes 2 --time 10m -o run
says job.sbatch '^# and a save, which took up to .* s and .* s in run/metrics.jsonl'
lead=$(sed -nE 's/^#SBATCH --signal=B:USR2@([0-9]+)$/\1/p' job.sbatch)
[ "$lead" -gt 30 ] && [ "$lead" -lt 200 ] || fail "$lead s for a step and a save"
mkdir slow
printf '%s\n' '{"step":1,"step_s":20.0}' '{"event":"save","step":1,"seconds":80.0}' >slow/metrics.jsonl
refuses 'a step of 20 s and a save of 1m20s .slow/metrics.jsonl. need 290 s at the end' c.yaml --nodes 2 --time 4m -o slow
print c.yaml --nodes 2 --time 5m -o slow
says job.sbatch '^#SBATCH --signal=B:USR2@230$'

# ---- other ends
for code in 0 1 5 137; do
    submit
    ends $code
    not_requeued
done
code=75 submit
ends 75
called 'scontrol requeue 77'
for state in COMPLETING CANCELLED ''; do # scancel: it stays cancelled
    code=75 submit
    ends 75
    not_requeued
done
state=RUNNING
mpi=none code=75 submit
ends 75
called "mpirun -np 2 $(sed -nE 's/^train=\((.*)\)$/\1/p' job.sbatch)"
called 'scontrol requeue 77'
exit 0
