// SPDX-License-Identifier: Apache-2.0
#include "kernels/cpu/cpu.h"

const Kernels KERNEL(cpu_kernels) = {
#define KERNEL_ENTRY(name, type) .name = KERNEL(name),
    KERNEL_LIST(KERNEL_ENTRY)
#undef KERNEL_ENTRY
};
