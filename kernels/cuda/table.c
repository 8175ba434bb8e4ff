// SPDX-License-Identifier: Apache-2.0
#include "kernels/cuda/tables.h"

const Kernels KERNEL(kernels) = {
    .rmsnorm_forward = KERNEL(rmsnorm_forward),
    .rmsnorm_backward = KERNEL(rmsnorm_backward),
    .layernorm_forward = KERNEL(layernorm_forward),
    .layernorm_backward = KERNEL(layernorm_backward),
};
