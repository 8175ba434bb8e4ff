// SPDX-License-Identifier: Apache-2.0
// What attention's forward and backward share: blocks of query rows against blocks of keys, computed by the
// small matrix products of gemm_micro.h. Widths are padded to whole panels with zeros.
#pragma once
#include "kernels/attention_check.h"
#include "kernels/cpu/gemm_micro.h"

#if defined(__AVX512F__)
enum { HEAD_ROWS = 8 };
#else
enum { HEAD_ROWS = 4 };
#endif
enum {
    Q_BLOCK = 64,
    KEY_BLOCK = 128,
    SCORE_STRIDE = KEY_BLOCK + 16
}; // the stride spreads columns over the cache sets

// One query head of one sequence.
typedef struct {
    const AttentionShape *shape;
    int64_t padded; // head_dim in whole panels
    int64_t q_stride, kv_stride;
    int64_t first_query;      // row of q of the sequence's first query
    const int32_t *doc_start; // of that row, or NULL
} Head;

static inline int64_t at_most(int64_t a, int64_t b) {
    return a < b ? a : b;
}

// Keys [first, end) that query i of the sequence sees.
static inline int64_t first_key(const Head *head, int64_t i) {
    return head->doc_start ? head->doc_start[i] : 0;
}
static inline int64_t end_key(const Head *head, int64_t i) {
    return at_most(head->shape->q_offset + i + 1, head->shape->kv_len);
}

// The least first key of queries [i, i + rows).
static inline int64_t least_key(const Head *head, int64_t i, int64_t rows) {
    int64_t least = first_key(head, i);
    for (int64_t r = 1; r < rows; r++) least = at_most(least, first_key(head, i + r));
    return least;
}

// c (rows, panels·PANEL) = or += a (rows, k) b; panel j of b begins at b + j·panel_stride, its rows are
// b_stride apart.
static inline void product(int64_t rows, int64_t panels, int64_t k, const float *a, int64_t row_stride,
                           int64_t k_stride, const float *b, int64_t panel_stride, int64_t b_stride, float *c,
                           int64_t ldc, bool add) {
    for (int64_t j = 0; j < panels; j++)
        for (int64_t i = 0; i < rows; i += HEAD_ROWS) {
            const float *from = a + i * row_stride, *panel = b + j * panel_stride;
            float *to = c + i * ldc + j * PANEL;
            if (rows - i >= HEAD_ROWS)
                tile_fixed(HEAD_ROWS, 2, k, from, row_stride, k_stride, panel, b_stride, to, ldc, add);
            else
                for (int64_t r = 0; r < rows - i; r++)
                    tile_fixed(1, 2, k, from + r * row_stride, row_stride, k_stride, panel, b_stride,
                               to + r * ldc, ldc, add);
        }
}

// dst (rows, padded) = src (rows, d), the rest of each row 0.
static inline void copy_rows(float *dst, int64_t padded, const float *src, int64_t ld, int64_t rows,
                             int64_t d) {
    for (int64_t r = 0; r < rows; r++) {
        memcpy(dst + r * padded, src + r * ld, (size_t)d * sizeof *dst);
        for (int64_t c = d; c < padded; c++) dst[r * padded + c] = 0;
    }
}
