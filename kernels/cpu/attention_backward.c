// SPDX-License-Identifier: Apache-2.0
// Attention backward: probabilities are computed again from the saved log-sum-exp, block by block.
#include "kernels/cpu/attention.h"

typedef struct {
    float *keys_t, *values_t;                                     // transposed, in panels: [panel][d][PANEL]
    float *keys;                                                  // (kv_len, padded)
    float *dkeys, *dvalues;                                       // (kv_len in whole tiles, padded)
    float *q, *dout, *dq;                                         // (Q_BLOCK, padded)
    float dot[Q_BLOCK];                                           // Σ_c dout·out of each query
    const float *lse;                                             // of each query
    float p[Q_BLOCK * SCORE_STRIDE] __attribute__((aligned(64))); // scores, then probabilities
    float dp[Q_BLOCK * SCORE_STRIDE]
        __attribute__((aligned(64))); // their gradients, then those of the scores
} Backward;

// p and dp of a row from `width` scores and dout·v; 0 outside [first, end).
static void gradient_row(Backward *w, int64_t r, int64_t width, int64_t first, int64_t end, float scale) {
    float *p = w->p + r * SCORE_STRIDE, *dp = w->dp + r * SCORE_STRIDE, dot = w->dot[r];
    float lse = w->lse[r];
    for (int64_t j = 0; j < first; j++) p[j] = -INFINITY;
    for (int64_t j = end; j < width; j++) p[j] = -INFINITY;
    SIMD for (int64_t j = 0; j < width; j++) {
        p[j] = exp2_below((p[j] * scale - lse) * log2_e);
        dp[j] = p[j] * (dp[j] - dot) * scale;
    }
}

// The same under a softcap: with t = tanh(score·scale/cap) the score's derivative is 1 − t².
static void capped_gradient_row(Backward *w, int64_t r, int64_t width, int64_t first, int64_t end,
                                float scale, float cap) {
    float *p = w->p + r * SCORE_STRIDE, *dp = w->dp + r * SCORE_STRIDE, dot = w->dot[r];
    float lse = w->lse[r], inner = scale / cap;
    SIMD for (int64_t j = 0; j < width; j++) {
        float t = fast_tanh(p[j] * inner);
        p[j] = exp2_below((cap * t - lse) * log2_e);
        dp[j] = p[j] * (dp[j] - dot) * ((1.0f - t) * (1.0f + t)) * scale;
    }
    for (int64_t j = 0; j < first; j++) p[j] = dp[j] = 0;
    for (int64_t j = end; j < width; j++) p[j] = dp[j] = 0;
}

// Queries [i, i + rows) of a head against keys [key, key + KEY_BLOCK).
static void backward_block(Backward *w, const Head *head, int64_t i, int64_t rows, int64_t key) {
    const AttentionShape *s = head->shape;
    int64_t d = s->head_dim, padded = head->padded;
    int64_t widest = at_most(end_key(head, i + rows - 1) - key, KEY_BLOCK);
    for (int64_t r = 0; r < rows; r += HEAD_ROWS) {
        int64_t n = at_most(HEAD_ROWS, rows - r),
                end = at_most(end_key(head, i + r + n - 1) - key, KEY_BLOCK);
        int64_t panels = end > 0 ? panels_of(end) : 0;
        product(n, panels, d, w->q + r * padded, padded, 1, w->keys_t + key * d, d * PANEL, PANEL,
                w->p + r * SCORE_STRIDE, SCORE_STRIDE, false);
        product(n, panels, d, w->dout + r * padded, padded, 1, w->values_t + key * d, d * PANEL, PANEL,
                w->dp + r * SCORE_STRIDE, SCORE_STRIDE, false);
        for (int64_t t = r; t < r + n; t++) {
            int64_t first = first_key(head, i + t) - key;
            int64_t width = panels * PANEL, last = at_most(end_key(head, i + t) - key, width);
            first = first > 0 ? at_most(first, width) : 0;
            last = last > 0 ? last : 0;
            if (s->softcap > 0)
                capped_gradient_row(w, t, width, first, last, s->scale, s->softcap);
            else
                gradient_row(w, t, width, first, last, s->scale);
        }
        if (end > 0)
            product(n, padded / PANEL, end, w->dp + r * SCORE_STRIDE, SCORE_STRIDE, 1, w->keys + key * padded,
                    PANEL, padded, w->dq + r * padded, padded, true);
    }
    // No query before a tile's first key sees it; those from there on have scores for all of the tile.
    for (int64_t j = 0; j < widest; j += HEAD_ROWS) {
        int64_t r = key + j - s->q_offset - i, from = r > 0 ? r : 0;
        product(HEAD_ROWS, padded / PANEL, rows - from, w->p + from * SCORE_STRIDE + j, 1, SCORE_STRIDE,
                w->dout + from * padded, PANEL, padded, w->dvalues + (key + j) * padded, padded, true);
        product(HEAD_ROWS, padded / PANEL, rows - from, w->dp + from * SCORE_STRIDE + j, 1, SCORE_STRIDE,
                w->q + from * padded, PANEL, padded, w->dkeys + (key + j) * padded, padded, true);
    }
}

// Rows [i, i + rows) of a head, with q, dout, out and dq at the first of them.
static void backward_queries(Backward *w, const Head *head, const float *q, const float *dout,
                             const float *out, float *dq, int64_t i, int64_t rows) {
    int64_t d = head->shape->head_dim, padded = head->padded;
    copy_rows(w->q, padded, q, head->q_stride, rows, d);
    copy_rows(w->dout, padded, dout, head->q_stride, rows, d);
    memset(w->dq, 0, (size_t)(rows * padded) * sizeof(float));
    for (int64_t r = 0; r < rows; r++)
        w->dot[r] = dot(dout + r * head->q_stride, out + r * head->q_stride, d);
    int64_t key = least_key(head, i, rows) / KEY_BLOCK * KEY_BLOCK, end = end_key(head, i + rows - 1);
    for (; key < end; key += KEY_BLOCK) backward_block(w, head, i, rows, key);
    for (int64_t r = 0; r < rows; r++)
        memcpy(dq + r * head->q_stride, w->dq + r * padded, (size_t)d * sizeof(float));
}

static float *take(float **memory, int64_t floats) {
    float *taken = *memory;
    *memory += (floats + LANES - 1) / LANES * LANES;
    return taken;
}

void KERNEL(attention_backward)(Tensor dq, Tensor dk, Tensor dv, Tensor dout, Tensor out, Tensor lse,
                                Tensor q, Tensor k, Tensor v, const AttentionShape *shape, Stream stream) {
    const AttentionShape *s = shape;
    check_attention(s, out, lse, q, k, v);
    REQUIRE(tensor_size(dq) == tensor_size(q) && tensor_size(dout) == tensor_size(q) &&
                tensor_size(dk) == tensor_size(k) && tensor_size(dv) == tensor_size(v),
            "attention backward: %ld queries, gradients of %ld and %ld", (long)tensor_size(q),
            (long)tensor_size(dq), (long)tensor_size(dk));
    int64_t d = s->head_dim, group = s->heads / s->kv_heads, padded = panels_of(d) * PANEL;
    int64_t packed = panels_of(s->kv_len) * PANEL * d, whole = (s->kv_len + PANEL) * padded;
    Head head = {.shape = s, .padded = padded, .q_stride = s->heads * d, .kv_stride = s->kv_heads * d};
    size_t floats = (size_t)(2 * packed + 3 * whole + 3 * Q_BLOCK * padded + 8 * LANES);
    float *memory = stream_scratch(stream, floats * sizeof(float));
    Backward w = {
        .keys_t = take(&memory, packed), .values_t = take(&memory, packed), .keys = take(&memory, whole)};
    w.dkeys = take(&memory, whole), w.dvalues = take(&memory, whole);
    w.q = take(&memory, Q_BLOCK * padded), w.dout = take(&memory, Q_BLOCK * padded);
    w.dq = take(&memory, Q_BLOCK * padded);
    for (int64_t b = 0; b < s->batch; b++)
        for (int64_t g = 0; g < s->kv_heads; g++) {
            int64_t at_keys = b * s->kv_stride * head.kv_stride + g * d;
            pack_transposed(w.keys_t, tensor_f32(k) + at_keys, head.kv_stride, d, s->kv_len);
            pack_transposed(w.values_t, tensor_f32(v) + at_keys, head.kv_stride, d, s->kv_len);
            copy_rows(w.keys, padded, tensor_f32(k) + at_keys, head.kv_stride, s->kv_len, d);
            memset(w.dkeys, 0, (size_t)whole * sizeof(float));
            memset(w.dvalues, 0, (size_t)whole * sizeof(float));
            head.first_query = b * s->q_len;
            head.doc_start = s->doc_start ? s->doc_start + head.first_query : NULL;
            for (int64_t h = g * group; h < (g + 1) * group; h++)
                for (int64_t i = 0; i < s->q_len; i += Q_BLOCK) {
                    int64_t at = (head.first_query + i) * head.q_stride + h * d;
                    w.lse = tensor_f32(lse) + (b * s->heads + h) * s->q_len + i;
                    backward_queries(&w, &head, tensor_f32(q) + at, tensor_f32(dout) + at,
                                     tensor_f32(out) + at, tensor_f32(dq) + at, i,
                                     at_most(Q_BLOCK, s->q_len - i));
                    stream_poll(stream);
                }
            for (int64_t t = 0; t < s->kv_len; t++) {
                memcpy(tensor_f32(dk) + at_keys + t * head.kv_stride, w.dkeys + t * padded,
                       (size_t)d * sizeof(float));
                memcpy(tensor_f32(dv) + at_keys + t * head.kv_stride, w.dvalues + t * padded,
                       (size_t)d * sizeof(float));
            }
        }
}
