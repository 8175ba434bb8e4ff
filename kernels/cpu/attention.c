// SPDX-License-Identifier: Apache-2.0
// Attention forward with an online softmax over blocks of keys (Dao et al., FlashAttention, 2022).
#include "kernels/cpu/attention.h"

typedef struct {
    float *keys;   // kᵀ in panels: [panel][d][PANEL]
    float *values; // (kv_len, padded)
    float score[Q_BLOCK * SCORE_STRIDE] __attribute__((aligned(64)));
    float scale;                       // of what score holds: the shape's, or 1 where that is capped already
    float most[Q_BLOCK], sum[Q_BLOCK]; // of each query so far
    float *out;                        // (Q_BLOCK, padded), not yet divided by sum
} Forward;

static void cap_scores(float *score, int64_t width, float scale, float cap) {
    float inner = scale / cap;
    SIMD for (int64_t j = 0; j < width; j++) score[j] = cap * fast_tanh(score[j] * inner);
}

// Scores [first, end) of a row become probabilities relative to the row's largest score so far, the rest 0;
// what was summed before is rescaled.
static void softmax_row(Forward *f, int64_t r, int64_t width, int64_t first, int64_t end, float scale,
                        int64_t padded) {
    float *s = f->score + r * SCORE_STRIDE, *out = f->out + r * padded;
    for (int64_t j = 0; j < first; j++) s[j] = -INFINITY;
    for (int64_t j = end; j < width; j++) s[j] = -INFINITY;
    float before = f->most[r], most = largest(s, width);
    if (!(most <= before)) { // or not a number
        float rescale = exp2_below((before - most) * scale * log2_e);
        f->most[r] = most;
        f->sum[r] *= rescale;
        SIMD for (int64_t c = 0; c < padded; c++) out[c] *= rescale;
    }
    float factor = scale * log2_e;
    most = f->most[r];
    if (most == -INFINITY) { // no key seen so far
        memset(s, 0, (size_t)width * sizeof *s);
        return;
    }
    SIMD for (int64_t j = 0; j < width; j++) s[j] = exp2_below((s[j] - most) * factor);
    f->sum[r] += total(s, width);
}

// Queries [i, i + rows) of a head against keys [key, key + KEY_BLOCK).
static void forward_block(Forward *f, const Head *head, const float *q, int64_t i, int64_t rows,
                          int64_t key) {
    const AttentionShape *s = head->shape;
    int64_t d = s->head_dim, padded = head->padded;
    for (int64_t r = 0; r < rows; r += HEAD_ROWS) {
        int64_t n = at_most(HEAD_ROWS, rows - r), end = end_key(head, i + r + n - 1) - key;
        if (end <= 0) continue;
        int64_t panels = panels_of(at_most(end, KEY_BLOCK)), width = panels * PANEL;
        product(n, panels, d, q + r * head->q_stride, head->q_stride, 1, f->keys + key * d, d * PANEL, PANEL,
                f->score + r * SCORE_STRIDE, SCORE_STRIDE, false);
        for (int64_t t = r; t < r + n; t++) {
            int64_t first = first_key(head, i + t) - key;
            int64_t last = at_most(end_key(head, i + t) - key, width);
            if (s->softcap > 0) cap_scores(f->score + t * SCORE_STRIDE, width, s->scale, s->softcap);
            softmax_row(f, t, width, first > 0 ? at_most(first, width) : 0, last > 0 ? last : 0, f->scale,
                        padded);
        }
        product(n, padded / PANEL, at_most(end, KEY_BLOCK), f->score + r * SCORE_STRIDE, SCORE_STRIDE, 1,
                f->values + key * padded, PANEL, padded, f->out + r * padded, padded, true);
    }
}

static void forward_queries(Forward *f, const Head *head, const float *q, float *out, float *lse, int64_t i,
                            int64_t rows) {
    const AttentionShape *s = head->shape;
    int64_t d = s->head_dim, padded = head->padded;
    memset(f->out, 0, (size_t)(rows * padded) * sizeof(float));
    for (int64_t r = 0; r < rows; r++) {
        f->most[r] = -INFINITY;
        f->sum[r] = 0;
    }
    int64_t key = least_key(head, i, rows) / KEY_BLOCK * KEY_BLOCK, end = end_key(head, i + rows - 1);
    for (; key < end; key += KEY_BLOCK) forward_block(f, head, q, i, rows, key);
    for (int64_t r = 0; r < rows; r++) {
        REQUIRE(first_key(head, i + r) < end_key(head, i + r),
                "attention: query %ld sees no key: its document starts at %ld", (long)(i + r),
                (long)first_key(head, i + r));
        float scale = 1.0f / f->sum[r];
        const float *from = f->out + r * padded;
        float *to = out + r * head->q_stride;
        SIMD for (int64_t c = 0; c < d; c++) to[c] = from[c] * scale;
        lse[r] = f->most[r] * f->scale + logf(f->sum[r]);
    }
}

void KERNEL(attention_forward)(Tensor out, Tensor lse, Tensor q, Tensor k, Tensor v,
                               const AttentionShape *shape, Stream stream) {
    const AttentionShape *s = shape;
    check_attention(s, out, lse, q, k, v);
    int64_t d = s->head_dim, group = s->heads / s->kv_heads, key_panels = panels_of(s->kv_len);
    Head head = {
        .shape = s, .padded = panels_of(d) * PANEL, .q_stride = s->heads * d, .kv_stride = s->kv_heads * d};
    // Values are read in whole tiles of keys only up to kv_len.
    size_t keys_size = (size_t)(key_panels * PANEL * d), values_size = (size_t)(s->kv_len * head.padded);
    size_t floats = keys_size + values_size + (size_t)(Q_BLOCK * head.padded);
    float *memory = stream_scratch(stream, floats * sizeof(float));
    Forward f = {.keys = memory,
                 .values = memory + keys_size,
                 .out = memory + keys_size + values_size,
                 .scale = s->softcap > 0 ? 1.0f : s->scale};
    for (int64_t b = 0; b < s->batch; b++)
        for (int64_t g = 0; g < s->kv_heads; g++) {
            int64_t from = b * s->kv_stride * head.kv_stride + g * d;
            pack_transposed(f.keys, tensor_f32(k) + from, head.kv_stride, d, s->kv_len);
            copy_rows(f.values, head.padded, tensor_f32(v) + from, head.kv_stride, s->kv_len, d);
            head.first_query = b * s->q_len;
            head.doc_start = s->doc_start ? s->doc_start + head.first_query : NULL;
            for (int64_t h = g * group; h < (g + 1) * group; h++)
                for (int64_t i = 0; i < s->q_len; i += Q_BLOCK) {
                    int64_t at = (head.first_query + i) * head.q_stride + h * d;
                    forward_queries(&f, &head, tensor_f32(q) + at, tensor_f32(out) + at,
                                    tensor_f32(lse) + (b * s->heads + h) * s->q_len + i, i,
                                    at_most(Q_BLOCK, s->q_len - i));
                    stream_poll(stream);
                }
        }
}
