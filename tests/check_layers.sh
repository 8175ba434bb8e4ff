#!/bin/sh
# Fails where a room includes a room that it must not know, or where a library is used outside its room.
# Rooms and arrows: docs/architecture.md. "a: b c" = a may include b and c.
cd "$(dirname "$0")/.." || exit 2
allowed='
core:
kernels: core
comm: core kernels
data: core
model: core kernels comm
optim: core kernels comm
train: core kernels comm data model optim
tools: core kernels comm data model optim train
'
status=0
report() {
    [ -z "$2" ] || { printf '%s\n%s\n' "$1" "$2"; status=1; }
}
for room in core kernels comm data model optim train tools; do
    ok=$(printf '%s' "$allowed" | sed -n "s/^$room://p")
    report "$room may include only:$ok" "$(grep -rnE '^[[:space:]]*#[[:space:]]*include[[:space:]]*"' "$room" \
        --include='*.[ch]' --include='*.cc' --include='*.cu' --include='*.inc' |
        awk -F'"' -v self="$room" -v ok=" $ok " '{split($2, p, "/"); if (p[1] != self && index(ok, " " p[1] " ") == 0) print}')"
done
outside() { # what, pattern, allowed path pattern
    report "$1" "$(grep -rnE "$2" core kernels comm data model optim train tools --include='*.[ch]' --include='*.cc' | grep -vE "$3")"
}
outside 'MPI is called in comm only:' '\bMPI_[A-Z][a-z]' '^comm/|^[^:]*:[0-9]+:[[:space:]]*//'
outside 'HDF5 is called in core/hdf5_file.c only:' '\bH5[A-Z]+[a-z_]+\(|include <hdf5' '^core/hdf5_file\.c'
outside 'libfyaml is called in core/yaml.c only:' '\bfy_[a-z_]+\(|include <libfyaml' '^core/yaml\.c'
outside 'CUDA, cuBLAS, cuDNN and NCCL are called in core/device_cuda.c, kernels/cuda and comm/*_nccl.c only:' \
    '\b(cuda|cublasLt|cudnn|nccl)[A-Z][A-Za-z]+\(|include <(cuda|cublas|cudnn|nccl)' '^core/device_cuda\.[ch]|^kernels/cuda/|^comm/[a-z_]*nccl\.c'
exit $status
