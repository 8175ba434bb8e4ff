// SPDX-License-Identifier: Apache-2.0
// The CPU kernels are compiled once for each instruction set (KERNEL_ISA: v2, v3, v4); every external name
// carries it.
#pragma once
#include "core/status.h"
#include "kernels/cpu/tables.h"
#include <math.h>
#include <string.h>

#define KERNEL_PASTE(name, isa) name##_##isa
#define KERNEL_NAME(name, isa)  KERNEL_PASTE(name, isa)
#define KERNEL(name)            KERNEL_NAME(name, KERNEL_ISA)
#define SIMD                    _Pragma("omp simd")

#define KERNEL_DECLARE(name, type) extern type KERNEL(name);
KERNEL_LIST(KERNEL_DECLARE)
#undef KERNEL_DECLARE

// Rows of work between two calls of stream_poll, for loops of `width` elements a row.
static inline int64_t poll_rows(int64_t width) {
    int64_t rows = 32768 / (width > 0 ? width : 1);
    return rows > 0 ? rows : 1;
}
