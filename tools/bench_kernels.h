// SPDX-License-Identifier: Apache-2.0
// A kernel table that times every call by kind.
#pragma once
#include "kernels/kernels.h"

typedef enum {
    KIND_GEMM,
    KIND_ATTENTION,
    KIND_ROUTE,
    KIND_ELEMENTWISE,
    KIND_OPTIMIZER,
    KIND_COUNT
} KernelKind;
typedef struct {
    double seconds[KIND_COUNT];
    double gemm_flops;
} KernelTimes;

const char *kernel_kind_name(KernelKind kind);
const Kernels *timed_kernels(const Kernels *plain); // one at a time: it counts in one place
void timed_kernels_reset(void);
KernelTimes timed_kernels_take(void);
