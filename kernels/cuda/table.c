// SPDX-License-Identifier: Apache-2.0
#include "kernels/cuda/tables.h"

const Kernels KERNEL(kernels) = {
#define KERNEL_FILL(name, type) .name = KERNEL(name),
    KERNEL_LIST(KERNEL_FILL)
#undef KERNEL_FILL
};
