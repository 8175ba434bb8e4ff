// SPDX-License-Identifier: Apache-2.0
// The innermost matrix product on packed panels, shared by matmul and attention. A panel of b is [k][PANEL],
// zero-padded in its last columns. Each element of c is one chain of multiply-adds over k, whatever the tile
// around it: that is what makes a row's result independent of the number of rows.
#pragma once
#include "kernels/cpu/vec.h"

#if defined(__AVX512F__)
enum { TILE_ROWS = 14 };
#else
enum { TILE_ROWS = 6 };
#endif
enum { PANEL = 2 * LANES };

// c (rows, vectors·LANES) = or += a (rows, k) b (k, …). a[i·row_stride + p·k_stride]; rows and vectors are
// constants where it is inlined.
ALWAYS_INLINE void tile_fixed(int rows, int vectors, int64_t k, const float *a, int64_t row_stride,
                              int64_t k_stride, const float *b, int64_t b_stride, float *c, int64_t ldc,
                              bool add) {
    Vec sum[TILE_ROWS][2];
#pragma GCC unroll 16
    for (int i = 0; i < rows; i++)
#pragma GCC unroll 2
        for (int v = 0; v < vectors; v++) sum[i][v] = (Vec){0};
    for (int64_t p = 0; p < k; p++) {
        Vec b0 = *(const Vec *)(b + p * b_stride),
            b1 = vectors > 1 ? *(const Vec *)(b + p * b_stride + LANES) : b0;
#pragma GCC unroll 16
        for (int i = 0; i < rows; i++) {
            float x = a[i * row_stride + p * k_stride];
            sum[i][0] += x * b0;
            if (vectors > 1) sum[i][1] += x * b1;
        }
    }
#pragma GCC unroll 16
    for (int i = 0; i < rows; i++)
#pragma GCC unroll 2
        for (int v = 0; v < vectors; v++) {
            Vec *to = (Vec *)(c + i * ldc + v * LANES);
            if (add) sum[i][v] += *to;
            *to = sum[i][v];
        }
}

// The same for any rows ≤ TILE_ROWS; writes vectors·LANES columns of c.
ALWAYS_INLINE void tile_any(int rows, int vectors, int64_t k, const float *a, int64_t row_stride,
                            int64_t k_stride, const float *b, int64_t b_stride, float *c, int64_t ldc,
                            bool add) {
#define TILE_CASE(n)                                                                                         \
    case n:                                                                                                  \
        if (n <= TILE_ROWS)                                                                                  \
            tile_fixed(n <= TILE_ROWS ? n : 1, vectors, k, a, row_stride, k_stride, b, b_stride, c, ldc,     \
                       add);                                                                                 \
        break;
    switch (rows) {
        TILE_CASE(1)
        TILE_CASE(2)
        TILE_CASE(3)
        TILE_CASE(4)
        TILE_CASE(5)
        TILE_CASE(6)
        TILE_CASE(7)
        TILE_CASE(8)
        TILE_CASE(9)
        TILE_CASE(10)
        TILE_CASE(11)
        TILE_CASE(12)
        TILE_CASE(13)
        TILE_CASE(14)
    }
#undef TILE_CASE
}

// ---- packing: dst is ⌈n / PANEL⌉ panels of [k][PANEL]

static inline int64_t panels_of(int64_t n) {
    return (n + PANEL - 1) / PANEL;
}

// From rows: element (p, j) at src[p·ld + j].
static inline void pack_rows(float *dst, const float *src, int64_t ld, int64_t k, int64_t n) {
    int64_t whole = n / PANEL * PANEL;
    for (int64_t p = 0; p < k; p++, src += ld, dst += PANEL) {
        for (int64_t j = 0; j < whole; j += PANEL) {
            *(Vec *)(dst + j * k) = *(const Vec *)(src + j);
            *(Vec *)(dst + j * k + LANES) = *(const Vec *)(src + j + LANES);
        }
        if (whole == n) continue;
        for (int64_t i = 0; i < PANEL; i++) dst[whole * k + i] = whole + i < n ? src[whole + i] : 0;
    }
}

// r[i][j] → r[j][i] by log₂ LANES rounds of interleaving the lower half of the rows with the upper half.
ALWAYS_INLINE void transpose(Vec r[LANES]) {
    VecMask low, high;
    for (int i = 0; i < LANES; i++) {
        low[i] = i / 2 + (i % 2) * LANES;
        high[i] = LANES / 2 + i / 2 + (i % 2) * LANES;
    }
    Vec t[LANES];
#pragma GCC unroll 4
    for (int round = 1; round < LANES; round *= 2) {
#pragma GCC unroll 16
        for (int i = 0; i < LANES / 2; i++) {
            t[2 * i] = __builtin_shuffle(r[i], r[i + LANES / 2], low);
            t[2 * i + 1] = __builtin_shuffle(r[i], r[i + LANES / 2], high);
        }
#pragma GCC unroll 16
        for (int i = 0; i < LANES; i++) r[i] = t[i];
    }
}

// From columns: element (p, j) at src[j·ld + p].
static inline void pack_transposed(float *dst, const float *src, int64_t ld, int64_t k, int64_t n) {
    for (int64_t j = 0; j < n; j += PANEL, dst += k * PANEL, src += PANEL * ld) {
        int64_t width = n - j < PANEL ? n - j : PANEL, p = 0;
        for (; p + LANES <= k; p += LANES)
            for (int64_t half = 0; half < PANEL; half += LANES) {
                Vec r[LANES];
                const float *from = src + half * ld + p;
#pragma GCC unroll 16
                for (int64_t i = 0; i < LANES; i++)
                    r[i] = half + i < width ? *(const Vec *)(from + i * ld) : (Vec){0};

                transpose(r);
#pragma GCC unroll 16
                for (int64_t i = 0; i < LANES; i++) *(Vec *)(dst + (p + i) * PANEL + half) = r[i];
            }
        for (; p < k; p++)
            for (int64_t i = 0; i < PANEL; i++) dst[p * PANEL + i] = i < width ? src[i * ld + p] : 0;
    }
}
