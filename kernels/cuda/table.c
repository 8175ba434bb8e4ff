// SPDX-License-Identifier: Apache-2.0
#include "kernels/cuda/tables.h"

const Kernels KERNEL(kernels) = {
    .matmul = KERNEL(matmul),
    .sum_squares = KERNEL(sum_squares),
    .rmsnorm_forward = KERNEL(rmsnorm_forward),
    .rmsnorm_backward = KERNEL(rmsnorm_backward),
    .layernorm_forward = KERNEL(layernorm_forward),
    .layernorm_backward = KERNEL(layernorm_backward),
    .rope = KERNEL(rope),
    .scale = KERNEL(scale),
    .clamp_forward = KERNEL(clamp_forward),
    .clamp_backward = KERNEL(clamp_backward),
    .glu_forward = KERNEL(glu_forward),
    .glu_backward = KERNEL(glu_backward),
    .attention_forward = KERNEL(attention_forward),
    .attention_backward = KERNEL(attention_backward),
    .embedding_forward = KERNEL(embedding_forward),
    .embedding_backward = KERNEL(embedding_backward),
    .cross_entropy = KERNEL(cross_entropy),
    .adamw = KERNEL(adamw),
};
