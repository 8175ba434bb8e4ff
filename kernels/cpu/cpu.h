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

extern matmul_fn KERNEL(matmul);
extern sum_squares_fn KERNEL(sum_squares);
extern norm_forward_fn KERNEL(rmsnorm_forward), KERNEL(layernorm_forward);
extern norm_backward_fn KERNEL(rmsnorm_backward), KERNEL(layernorm_backward);
extern rope_fn KERNEL(rope);
extern scale_fn KERNEL(scale);
extern clamp_forward_fn KERNEL(clamp_forward);
extern clamp_backward_fn KERNEL(clamp_backward);
extern glu_forward_fn KERNEL(glu_forward);
extern glu_backward_fn KERNEL(glu_backward);
extern attention_forward_fn KERNEL(attention_forward);
extern attention_backward_fn KERNEL(attention_backward);
extern embedding_forward_fn KERNEL(embedding_forward);
extern embedding_backward_fn KERNEL(embedding_backward);
extern cross_entropy_fn KERNEL(cross_entropy);
extern route_scores_fn KERNEL(route_scores);
extern route_capacity_fn KERNEL(route_capacity);
extern route_weights_fn KERNEL(route_weights);
extern route_sort_fn KERNEL(route_sort);
extern route_stats_fn KERNEL(route_stats);
extern route_backward_fn KERNEL(route_backward);
extern rows_gather_fn KERNEL(rows_gather);
extern rows_combine_fn KERNEL(rows_combine);
extern pairs_gather_fn KERNEL(pairs_gather);
extern pairs_scatter_fn KERNEL(pairs_scatter);
extern adamw_fn KERNEL(adamw);

// Rows of work between two calls of stream_poll, for loops of `width` elements a row.
static inline int64_t poll_rows(int64_t width) {
    int64_t rows = 32768 / (width > 0 ? width : 1);
    return rows > 0 ? rows : 1;
}
