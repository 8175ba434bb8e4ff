# SPDX-License-Identifier: Apache-2.0
# A private Slurm cluster on this machine: . slurm_cluster.sh; cluster_up FOLDER; … ; cluster_down. Nodes n0 and n1 are network namespaces
# with a host name of their own, each with its slurmd; the controller and munged run outside. As root.

cluster_nodes=2
cluster_net=10.79.33

# Why there can be no cluster here, or nothing.
cluster_missing() {
    [ "$(id -u)" = 0 ] || { echo "needs root: it makes network namespaces"; return; }
    for program in slurmctld slurmd munged sbatch srun scontrol ip nsenter unshare runuser; do
        command -v $program >/dev/null || { echo "$program is missing (slurmctld slurmd munge slurm-client iproute2)"; return; }
    done
    id munge >/dev/null 2>&1 || { echo "there is no user munge"; return; }
    ip netns add floe-try 2>/dev/null && ip netns del floe-try || echo "network namespaces are not allowed"
}

cluster_network() {
    ip link add fslurm type bridge && ip addr add $cluster_net.1/24 dev fslurm && ip link set fslurm up || return 1
    for i in $(seq 0 $((cluster_nodes - 1))); do
        ip netns add floe-n$i && ip link add fslurm$i type veth peer name eth0 netns floe-n$i &&
            ip link set fslurm$i master fslurm up && ip -n floe-n$i addr add $cluster_net.$((10 + i))/24 dev eth0 &&
            ip -n floe-n$i link set lo up && ip -n floe-n$i link set eth0 up || return 1
    done
}

# Requeued jobs wait until their credential has expired: 2 minutes, unless cred_expire says less.
cluster_config() {
    cat <<END_CONFIG
ClusterName=floe
SlurmctldHost=$(hostname)($cluster_net.1)
AuthType=auth/munge
AuthInfo=socket=$cluster/munge/socket,cred_expire=5
SlurmUser=root
SlurmdUser=root
SlurmctldPidFile=$cluster/slurmctld.pid
SlurmdPidFile=$cluster/slurmd.%n.pid
StateSaveLocation=$cluster/state
SlurmdSpoolDir=$cluster/spool.%n
SlurmctldLogFile=$cluster/slurmctld.log
SlurmdLogFile=$cluster/slurmd.%n.log
TmpFS=$cluster/tmp.%n
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
ReturnToService=2
KillWait=20
SlurmdTimeout=15
SchedulerParameters=sched_interval=2,bf_interval=2
NodeName=n0 NodeAddr=$cluster_net.10 CPUs=2
NodeName=n1 NodeAddr=$cluster_net.11 CPUs=2
PartitionName=low Nodes=ALL Default=YES State=UP PriorityTier=1 GraceTime=30
PartitionName=high Nodes=ALL State=UP PriorityTier=2
END_CONFIG
}

cluster_up() { # FOLDER: made; $cluster
    cluster=$1
    mkdir -p "$cluster/munge" "$cluster/state" && chmod 755 "$cluster" || return 1
    export SLURM_CONF=$cluster/slurm.conf
    cluster_config >"$SLURM_CONF"
    head -c 128 /dev/urandom >"$cluster/munge/key"
    chown -R munge: "$cluster/munge" && chmod 711 "$cluster/munge" && chmod 400 "$cluster/munge/key"
    cluster_network || return 1
    runuser -u munge -- munged --socket="$cluster/munge/socket" --key-file="$cluster/munge/key" --pid-file="$cluster/munge/pid" \
        --log-file="$cluster/munge/log" --seed-file="$cluster/munge/seed" --num-threads=1 || return 1
    slurmctld -c -f "$SLURM_CONF" || return 1
    for i in $(seq 0 $((cluster_nodes - 1))); do
        cluster_start_node $i || return 1
    done
    for try in $(seq 60); do
        [ "$(sinfo -h -p low -t idle -o %D 2>/dev/null)" = $cluster_nodes ] && return
        sleep 0.5
    done
    return 1
}

# Without what an earlier life has left: a socket in the spool folder keeps slurmd from starting steps of the same number again.
cluster_start_node() { # NUMBER
    rm -rf "$cluster/spool.n$1" "$cluster/tmp.n$1"
    mkdir -p "$cluster/spool.n$1" "$cluster/tmp.n$1"
    nsenter --net=/run/netns/floe-n$1 unshare --uts sh -c "hostname n$1 && exec slurmd -f '$SLURM_CONF' -N n$1"
}

# As if its power had failed: every process in the node's network is killed.
cluster_lose_node() { # NUMBER
    ip netns pids floe-n$1 | xargs -r kill -9
}

# Ends what cluster_up has started, by process number.
cluster_down() {
    scancel --full --signal=KILL -p low -p high 2>/dev/null
    for file in "$cluster"/slurmd.*.pid "$cluster/slurmctld.pid" "$cluster/munge/pid"; do
        [ -f "$file" ] || continue
        pid=$(cat "$file")
        kill "$pid" 2>/dev/null
        for try in $(seq 50); do
            kill -0 "$pid" 2>/dev/null || break
            sleep 0.1
        done
    done
    for i in $(seq 0 $((cluster_nodes - 1))); do
        ip netns del floe-n$i 2>/dev/null
        ip link del fslurm$i 2>/dev/null
    done
    ip link del fslurm 2>/dev/null
    return 0
}
