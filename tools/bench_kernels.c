// SPDX-License-Identifier: Apache-2.0
#include "tools/bench_kernels.h"
#include "core/clock.h"

static const Kernels *plain_table;
static KernelTimes times;

const char *kernel_kind_name(KernelKind kind) {
    static const char *const names[KIND_COUNT] = {"gemm", "attention", "route_permute", "elementwise",
                                                  "optimizer"};
    return names[kind];
}

// Declares timed_NAME with the parameters of NAME_fn, which calls the plain kernel and counts its time.
#define TIMED(kind, name, parameters, arguments)                                                             \
    static void timed_##name parameters {                                                                    \
        double begun = clock_seconds();                                                                      \
        plain_table->name arguments;                                                                         \
        times.seconds[kind] += clock_seconds() - begun;                                                      \
    }

static void timed_matmul(Tensor c, Tensor a, bool ta, Tensor b, bool tb, Into into, Stream stream) {
    double begun = clock_seconds();
    plain_table->matmul(c, a, ta, b, tb, into, stream);
    times.seconds[KIND_GEMM] += clock_seconds() - begun;
    times.gemm_flops += 2.0 * (double)c.dim[0] * (double)c.dim[1] * (double)a.dim[ta ? 0 : 1];
}

TIMED(KIND_OPTIMIZER, sum_squares, (double *out, Tensor x, Stream s), (out, x, s))
TIMED(KIND_ELEMENTWISE, rmsnorm_forward, (Tensor y, Tensor r, Tensor x, Tensor w, float e, Into i, Stream s),
      (y, r, x, w, e, i, s))
TIMED(KIND_ELEMENTWISE, rmsnorm_backward,
      (Tensor dx, Tensor dw, Tensor dy, Tensor x, Tensor w, Tensor r, Into i, Stream s),
      (dx, dw, dy, x, w, r, i, s))
TIMED(KIND_ELEMENTWISE, layernorm_forward,
      (Tensor y, Tensor r, Tensor x, Tensor w, float e, Into i, Stream s), (y, r, x, w, e, i, s))
TIMED(KIND_ELEMENTWISE, layernorm_backward,
      (Tensor dx, Tensor dw, Tensor dy, Tensor x, Tensor w, Tensor r, Into i, Stream s),
      (dx, dw, dy, x, w, r, i, s))
TIMED(KIND_ELEMENTWISE, rope, (Tensor x, Tensor c, Tensor n, const RopeShape *h, Stream s), (x, c, n, h, s))
TIMED(KIND_ELEMENTWISE, scale, (Tensor x, float f, Stream s), (x, f, s))
TIMED(KIND_ELEMENTWISE, clamp_forward, (Tensor x, Tensor i, float b, Stream s), (x, i, b, s))
TIMED(KIND_ELEMENTWISE, clamp_backward, (Tensor d, Tensor i, Stream s), (d, i, s))
TIMED(KIND_ELEMENTWISE, glu_forward, (Tensor a, Tensor g, Tensor u, Tensor c, Activation f, Stream s),
      (a, g, u, c, f, s))
TIMED(KIND_ELEMENTWISE, glu_backward,
      (Tensor dg, Tensor du, Tensor a, Tensor ds, Tensor da, Tensor g, Tensor u, Tensor c, Activation f,
       Stream s),
      (dg, du, a, ds, da, g, u, c, f, s))
TIMED(KIND_ATTENTION, attention_forward,
      (Tensor o, Tensor l, Tensor q, Tensor k, Tensor v, const AttentionShape *h, Stream s),
      (o, l, q, k, v, h, s))
TIMED(KIND_ATTENTION, attention_backward,
      (Tensor dq, Tensor dk, Tensor dv, Tensor d, Tensor o, Tensor l, Tensor q, Tensor k, Tensor v,
       const AttentionShape *h, Stream s),
      (dq, dk, dv, d, o, l, q, k, v, h, s))
TIMED(KIND_ELEMENTWISE, embedding_forward, (Tensor y, Tensor t, Tensor i, Stream s), (y, t, i, s))
TIMED(KIND_ELEMENTWISE, embedding_backward, (Tensor d, Tensor y, Tensor i, Stream s), (d, y, i, s))
TIMED(KIND_ELEMENTWISE, cross_entropy, (Tensor l, Tensor x, Tensor t, float g, Stream s), (l, x, t, g, s))
TIMED(KIND_ROUTE, route_scores, (Tensor p, Tensor l, Tensor i, Tensor x, Tensor b, ScoreKind k, Stream s),
      (p, l, i, x, b, k, s))
TIMED(KIND_ROUTE, route_capacity, (Tensor k, Tensor i, Tensor p, int64_t c, DropPolicy d, Stream s),
      (k, i, p, c, d, s))
TIMED(KIND_ROUTE, route_weights, (Tensor w, Tensor p, Tensor i, Tensor k, bool r, Stream s),
      (w, p, i, k, r, s))
TIMED(KIND_ROUTE, route_sort, (Tensor r, Tensor c, Tensor i, Tensor k, Stream s), (r, c, i, k, s))
TIMED(KIND_ROUTE, route_stats, (Tensor c, Tensor f, Tensor u, Tensor p, Tensor i, ScoreKind k, Stream s),
      (c, f, u, p, i, k, s))
TIMED(KIND_ROUTE, route_backward,
      (Tensor d, Tensor dw, Tensor w, Tensor p, Tensor l, Tensor i, Tensor k, Tensor b, bool r, ScoreKind c,
       float z, Stream s),
      (d, dw, w, p, l, i, k, b, r, c, z, s))
TIMED(KIND_ROUTE, rows_gather, (Tensor r, Tensor x, Tensor i, Stream s), (r, x, i, s))
TIMED(KIND_ROUTE, rows_combine, (Tensor y, Tensor r, Tensor i, Into o, Stream s), (y, r, i, o, s))
TIMED(KIND_ROUTE, pairs_gather, (Tensor r, Tensor v, Tensor i, Stream s), (r, v, i, s))
TIMED(KIND_ROUTE, pairs_scatter, (Tensor v, Tensor r, Tensor i, Stream s), (v, r, i, s))
TIMED(KIND_OPTIMIZER, adamw,
      (Tensor w, Tensor m1, Tensor m, Tensor v, Tensor g, const AdamwStep *t, Stream s),
      (w, m1, m, v, g, t, s))

const Kernels *timed_kernels(const Kernels *plain) {
    static const Kernels table = {
        .matmul = timed_matmul,
        .sum_squares = timed_sum_squares,
        .rmsnorm_forward = timed_rmsnorm_forward,
        .rmsnorm_backward = timed_rmsnorm_backward,
        .layernorm_forward = timed_layernorm_forward,
        .layernorm_backward = timed_layernorm_backward,
        .rope = timed_rope,
        .scale = timed_scale,
        .clamp_forward = timed_clamp_forward,
        .clamp_backward = timed_clamp_backward,
        .glu_forward = timed_glu_forward,
        .glu_backward = timed_glu_backward,
        .attention_forward = timed_attention_forward,
        .attention_backward = timed_attention_backward,
        .embedding_forward = timed_embedding_forward,
        .embedding_backward = timed_embedding_backward,
        .cross_entropy = timed_cross_entropy,
        .route_scores = timed_route_scores,
        .route_capacity = timed_route_capacity,
        .route_weights = timed_route_weights,
        .route_sort = timed_route_sort,
        .route_stats = timed_route_stats,
        .route_backward = timed_route_backward,
        .rows_gather = timed_rows_gather,
        .rows_combine = timed_rows_combine,
        .pairs_gather = timed_pairs_gather,
        .pairs_scatter = timed_pairs_scatter,
        .adamw = timed_adamw,
    };
    plain_table = plain;
    return &table;
}

void timed_kernels_reset(void) {
    times = (KernelTimes){0};
}

KernelTimes timed_kernels_take(void) {
    return times;
}
