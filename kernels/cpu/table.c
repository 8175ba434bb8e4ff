// SPDX-License-Identifier: Apache-2.0
#include "kernels/cpu/cpu.h"

const Kernels KERNEL(cpu_kernels) = {
    .matmul = KERNEL(matmul),
    .sum_squares = KERNEL(sum_squares),
    .rmsnorm_forward = KERNEL(rmsnorm_forward),
    .rmsnorm_backward = KERNEL(rmsnorm_backward),
    .rope = KERNEL(rope),
    .swiglu_forward = KERNEL(swiglu_forward),
    .swiglu_backward = KERNEL(swiglu_backward),
    .attention_forward = KERNEL(attention_forward),
    .attention_backward = KERNEL(attention_backward),
    .embedding_forward = KERNEL(embedding_forward),
    .embedding_backward = KERNEL(embedding_backward),
    .cross_entropy = KERNEL(cross_entropy),
    .topk_softmax = KERNEL(topk_softmax),
    .route_capacity = KERNEL(route_capacity),
    .route_weights = KERNEL(route_weights),
    .route_sort = KERNEL(route_sort),
    .route_stats = KERNEL(route_stats),
    .route_backward = KERNEL(route_backward),
    .rows_gather = KERNEL(rows_gather),
    .rows_combine = KERNEL(rows_combine),
    .pairs_gather = KERNEL(pairs_gather),
    .pairs_scatter = KERNEL(pairs_scatter),
    .adamw = KERNEL(adamw),
};
