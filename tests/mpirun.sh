#!/bin/sh
# mpirun.sh RANKS PROGRAM [ARG]…: ranks on this machine, as root or not, more than there are cores if need be.
ranks=$1
shift
[ "$(id -u)" = 0 ] && set -- --allow-run-as-root "$@"
exec mpirun -np "$ranks" --oversubscribe --bind-to none --mca btl self,vader --mca mpi_yield_when_idle 1 "$@"
