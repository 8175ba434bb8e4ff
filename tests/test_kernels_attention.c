// SPDX-License-Identifier: Apache-2.0
#include "tests/kernels_harness.h"

typedef struct {
    AttentionShape shape;
    double *q, *k, *v, *dout;
    double *out, *lse; // written by the reference where given
} Problem;

static double capped(const AttentionShape *s, double score) {
    double cap = (double)s->softcap;
    return cap > 0 ? cap * tanh(score / cap) : score;
}

// Attention as its contract says, one query at a time; returns Σ out·dout.
static double attention_reference(const void *context) {
    const Problem *p = context;
    const AttentionShape *s = &p->shape;
    int64_t d = s->head_dim, group = s->heads / s->kv_heads;
    double loss = 0, *weight = calloc((size_t)s->kv_len + 1, sizeof *weight);
    for (int64_t b = 0; b < s->batch; b++)
        for (int64_t i = 0; i < s->q_len; i++)
            for (int64_t h = 0; h < s->heads; h++) {
                int64_t row = b * s->q_len + i, first = s->doc_start ? s->doc_start[row] : 0;
                int64_t end = s->q_offset + i + 1;
                const double *q = p->q + (row * s->heads + h) * d;
                double sum = 0;
                for (int64_t j = first; j < end; j++) {
                    const double *k = p->k + ((b * s->kv_stride + j) * s->kv_heads + h / group) * d;
                    double score = 0;
                    for (int64_t c = 0; c < d; c++) score += q[c] * k[c];
                    weight[j] = exp(capped(s, score * (double)s->scale));
                    sum += weight[j];
                }
                for (int64_t c = 0; c < d; c++) {
                    double y = 0;
                    for (int64_t j = first; j < end; j++)
                        y += weight[j] / sum *
                             p->v[((b * s->kv_stride + j) * s->kv_heads + h / group) * d + c];
                    if (p->dout) loss += y * p->dout[(row * s->heads + h) * d + c];
                    if (p->out) p->out[(row * s->heads + h) * d + c] = y;
                }
                if (p->lse) p->lse[(b * s->heads + h) * s->q_len + i] = log(sum);
            }
    free(weight);
    return loss;
}

typedef struct {
    Tensor q, k, v, out, lse;
} Tensors;

static Tensors tensors_of(const AttentionShape *s) {
    int64_t queries = (int64_t)s->batch * s->q_len, keys = s->batch * s->kv_stride;
    return (Tensors){input(queries, s->heads * s->head_dim, 1), input(keys, s->kv_heads * s->head_dim, 1),
                     input(keys, s->kv_heads * s->head_dim, 1), output(queries, s->heads * s->head_dim),
                     output(s->batch * s->heads, s->q_len)};
}

static void check_forward(AttentionShape s) {
    Tensors t = tensors_of(&s);
    kernels->attention_forward(t.out, t.lse, t.q, t.k, t.v, &s, stream);
    Problem p = {.shape = s, .q = doubles_of(t.q), .k = doubles_of(t.k), .v = doubles_of(t.v)};
    p.out = doubles(tensor_size(t.out));
    p.lse = doubles(tensor_size(t.lse));
    attention_reference(&p);
    // Scores of size ~4 carry an error of ~1e-6, and so do the weights.
    for (int64_t i = 0; i < tensor_size(t.out); i++) close_to(tensor_f32(t.out)[i], p.out[i], 4e-6);
    for (int64_t i = 0; i < tensor_size(t.lse); i++) close_to(tensor_f32(t.lse)[i], p.lse[i], 2e-6);
    harness_end();
}

static void forward_equals_reference(void) {
    check_forward(shape_of(1, 1, 1, 1, 1, 2, 1));
    check_forward(shape_of(2, 24, 24, 4, 2, 10, 24));
    check_forward(shape_of(1, 150, 150, 2, 1, 32, 150));
    check_forward(
        shape_of(1, 67, 131, 3, 3, 64, 140)); // a cache that holds 64 earlier rows and has room for more
    check_forward(shape_of(2, 1, 33, 4, 2, 6, 50));
    check_forward(shape_of(1, 300, 300, 1, 1, 80, 300));
}

// With scores of deviation `spread`, so that the cap bends many of them.
static AttentionShape with_softcap(AttentionShape s, float softcap, float spread) {
    s.softcap = softcap;
    s.scale *= spread;
    return s;
}

static void softcap_bends_scores(void) {
    check_forward(with_softcap(shape_of(1, 1, 1, 1, 1, 2, 1), 2, 3));
    check_forward(with_softcap(shape_of(2, 24, 24, 4, 2, 10, 24), 1.5f, 1));
    check_forward(with_softcap(shape_of(1, 300, 300, 4, 2, 34, 300), 2, 3));
    check_forward(with_softcap(shape_of(1, 67, 131, 3, 3, 64, 140), 2, 2));
    check_forward(with_softcap(shape_of(1, 150, 150, 2, 1, 32, 150), 0.01f, 100)); // all at either end
    AttentionShape s = with_softcap(shape_of(2, 200, 200, 2, 1, 16, 200), 1, 2);
    int32_t start[400];
    for (int i = 0; i < 400; i++) start[i] = i % 200 < 170 ? 0 : i % 200 < 171 ? 170 : 171;
    s.doc_start = start;
    check_forward(s);
}

static void documents_are_kept_apart(void) {
    AttentionShape s = shape_of(2, 200, 200, 2, 1, 16, 200);
    int32_t start[400];
    for (int i = 0; i < 400; i++)
        start[i] = i % 200 < 37 ? 0 : i % 200 < 170 ? 37 : i % 200 < 171 ? 170 : 171;
    s.doc_start = start;
    check_forward(s);
}

// Queries one by one on a growing cache give what the whole sequence gives.
static void check_cache(float softcap) {
    AttentionShape whole = with_softcap(shape_of(1, 140, 140, 4, 2, 24, 140), softcap, 1);
    Tensors t = tensors_of(&whole);
    kernels->attention_forward(t.out, t.lse, t.q, t.k, t.v, &whole, stream);
    Tensor row = output(1, whole.heads * whole.head_dim), lse = output(whole.heads, 1);
    for (int i = 0; i < whole.q_len; i++) {
        AttentionShape one = with_softcap(shape_of(1, 1, i + 1, 4, 2, 24, 140), softcap, 1);
        kernels->attention_forward(row, lse, tensor_rows(t.q, i, 1), t.k, t.v, &one, stream);
        // Same blocks of keys in the same order.
        assert_memory_equal(row.data, tensor_rows(t.out, i, 1).data, tensor_bytes(row));
    }
    harness_end();
}

static void cache_equals_whole(void) {
    check_cache(0);
    check_cache(2);
}

static void check_backward(AttentionShape s) {
    Tensors t = tensors_of(&s);
    kernels->attention_forward(t.out, t.lse, t.q, t.k, t.v, &s, stream);
    Tensor dout = input(t.out.dim[0], t.out.dim[1], 1), dq = output(t.q.dim[0], t.q.dim[1]);
    Tensor dk = output(t.k.dim[0], t.k.dim[1]), dv = output(t.v.dim[0], t.v.dim[1]);
    kernels->attention_backward(dq, dk, dv, dout, t.out, t.lse, t.q, t.k, t.v, &s, stream);
    Problem p = {.shape = s, .q = doubles_of(t.q), .k = doubles_of(t.k), .v = doubles_of(t.v)};
    p.dout = doubles_of(dout);
    gradient_check(attention_reference, &p, p.q, dq, 4e-6);
    gradient_check(attention_reference, &p, p.k, dk, 4e-6);
    gradient_check(attention_reference, &p, p.v, dv, 4e-6);
    harness_end();
}

static void backward_equals_differences(void) {
    check_backward(shape_of(1, 1, 1, 1, 1, 2, 1));
    check_backward(shape_of(2, 19, 19, 4, 2, 6, 19));
    check_backward(shape_of(1, 9, 30, 2, 1, 8, 30));
    AttentionShape s = shape_of(2, 21, 21, 2, 2, 4, 21);
    int32_t start[42];
    for (int i = 0; i < 42; i++) start[i] = i % 21 < 5 ? 0 : i % 21 < 18 ? 5 : 18;
    s.doc_start = start;
    check_backward(s);
    check_backward(with_softcap(s, 1.5f, 2));
    check_backward(with_softcap(shape_of(1, 1, 1, 1, 1, 2, 1), 2, 3));
    check_backward(with_softcap(shape_of(2, 19, 19, 4, 2, 6, 19), 2, 3));
    check_backward(with_softcap(shape_of(1, 9, 30, 2, 1, 8, 30), 30, 8));
}

// Adds one query's gradients from the definition in double: qi, dyi, dqi (d); k, v, dk, dv (keys, d).
static void add_gradients(const AttentionShape *s, int64_t first, int64_t end, const double *qi,
                          const double *dyi, double *dqi, const double *k, const double *v, double *dk,
                          double *dv) {
    int64_t d = s->head_dim;
    double *p = calloc((size_t)end * 3, sizeof *p), *dp = p + end, *slope = dp + end, sum = 0, mean = 0;
    for (int64_t j = first; j < end; j++) {
        double score = 0;
        for (int64_t c = 0; c < d; c++) score += qi[c] * k[j * d + c] * (double)s->scale;
        for (int64_t c = 0; c < d; c++) dp[j] += dyi[c] * v[j * d + c];
        double bent = capped(s, score), ratio = s->softcap > 0 ? bent / (double)s->softcap : 0;
        slope[j] = (1 - ratio * ratio) * (double)s->scale;
        sum += p[j] = exp(bent);
    }
    for (int64_t j = first; j < end; j++) mean += dp[j] * (p[j] /= sum);
    for (int64_t j = first; j < end; j++)
        for (int64_t c = 0; c < d; c++) {
            double ds = p[j] * (dp[j] - mean) * slope[j];
            dqi[c] += ds * k[j * d + c];
            dk[j * d + c] += ds * qi[c];
            dv[j * d + c] += p[j] * dyi[c];
        }
    free(p);
}

// Several blocks of queries and keys; finite differences would take too long. One sequence, one kv head.
static void check_long(AttentionShape s) {
    Tensors t = tensors_of(&s);
    kernels->attention_forward(t.out, t.lse, t.q, t.k, t.v, &s, stream);
    Tensor dout = input(t.out.dim[0], t.out.dim[1], 1), dq = output(t.q.dim[0], t.q.dim[1]);
    Tensor dk = output(t.k.dim[0], t.k.dim[1]), dv = output(t.v.dim[0], t.v.dim[1]);
    kernels->attention_backward(dq, dk, dv, dout, t.out, t.lse, t.q, t.k, t.v, &s, stream);
    double *q = doubles_of(t.q), *k = doubles_of(t.k), *v = doubles_of(t.v), *dy = doubles_of(dout);
    double *want_q = doubles(tensor_size(dq)), *want_k = doubles(tensor_size(dk)),
           *want_v = doubles(tensor_size(dv));
    for (int64_t i = 0; i < s.q_len; i++)
        for (int64_t h = 0; h < s.heads; h++) {
            int64_t at = (i * s.heads + h) * s.head_dim;
            add_gradients(&s, s.doc_start ? s.doc_start[i] : 0, i + s.q_offset + 1, q + at, dy + at,
                          want_q + at, k, v, want_k, want_v);
        }
    for (int64_t i = 0; i < tensor_size(dq); i++) close_to(tensor_f32(dq)[i], want_q[i], 4e-6);
    for (int64_t i = 0; i < tensor_size(dk); i++) close_to(tensor_f32(dk)[i], want_k[i], 1e-5);
    for (int64_t i = 0; i < tensor_size(dv); i++) close_to(tensor_f32(dv)[i], want_v[i], 1e-5);
    harness_end();
}

static void backward_of_long_sequences(void) {
    AttentionShape s =
        shape_of(1, 200, 213, 2, 1, 34, 213); // 13 earlier keys: tiles of queries and keys do not line up
    check_long(s);
    check_long(with_softcap(s, 2, 2));
    int32_t start[200];
    for (int i = 0; i < 200; i++) start[i] = i < 50 ? 0 : i < 180 ? 41 : 190;
    s.doc_start = start;
    check_long(s);
    check_long(with_softcap(s, 1, 1));
}

EVERY_ISA(forward_equals_reference)
EVERY_ISA(softcap_bends_scores)
EVERY_ISA(documents_are_kept_apart)
EVERY_ISA(cache_equals_whole)
EVERY_ISA(backward_equals_differences)
EVERY_ISA(backward_of_long_sequences)

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(forward_equals_reference_everywhere),
        cmocka_unit_test(softcap_bends_scores_everywhere),
        cmocka_unit_test(documents_are_kept_apart_everywhere),
        cmocka_unit_test(cache_equals_whole_everywhere),
        cmocka_unit_test(backward_equals_differences_everywhere),
        cmocka_unit_test(backward_of_long_sequences_everywhere),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
