// SPDX-License-Identifier: Apache-2.0
// Matrix products in the manner of Goto and van de Geijn ("Anatomy of high-performance matrix
// multiplication", 2008): b is packed in panels that stay in the caches while a block of a runs over them. K
// is cut at the same places for every row, so that a row's bits do not depend on the others.
#include "kernels/cpu/gemm_micro.h"

enum { BLOCK_K = 256, BLOCK_N = 512, BLOCK_M = 10 * TILE_ROWS, A_STRIDE = BLOCK_K + LANES };

typedef struct {
    const float *data;
    int64_t ld;
    bool transposed;
} Operand;

// A block of a in packed form. Plain: tile-row by tile-row, each row BLOCK_K long at a stride that spreads
// over the cache sets. Transposed: [tile][k][TILE_ROWS].
static void pack_a(float *dst, Operand a, int64_t m0, int64_t m, int64_t k0, int64_t k) {
    if (!a.transposed) {
        for (int64_t i = 0; i < m; i++)
            memcpy(dst + i * A_STRIDE, a.data + (m0 + i) * a.ld + k0, (size_t)k * sizeof *dst);
        return;
    }
    for (int64_t i = 0; i < m; i += TILE_ROWS, dst += A_STRIDE * TILE_ROWS) {
        int64_t rows = m - i < TILE_ROWS ? m - i : TILE_ROWS;
        const float *src = a.data + k0 * a.ld + m0 + i;
        for (int64_t p = 0; p < k; p++)
            for (int64_t r = 0; r < rows; r++) dst[p * TILE_ROWS + r] = src[p * a.ld + r];
    }
}

static void pack_b(float *dst, Operand b, int64_t k0, int64_t k, int64_t n0, int64_t n) {
    if (b.transposed)
        pack_transposed(dst, b.data + n0 * b.ld + k0, b.ld, k, n);
    else
        pack_rows(dst, b.data + k0 * b.ld + n0, b.ld, k, n);
}

// One tile at the right edge: through a buffer, so that nothing beyond c's columns is touched.
static void edge_tile(int rows, int64_t width, int64_t k, const float *a, int64_t row_stride,
                      int64_t k_stride, const float *b, float *c, int64_t ldc, bool add) {
    float tile[TILE_ROWS * PANEL] __attribute__((aligned(64)));
    tile_any(rows, 2, k, a, row_stride, k_stride, b, PANEL, tile, PANEL, false);
    for (int i = 0; i < rows; i++)
        for (int64_t j = 0; j < width; j++)
            c[i * ldc + j] = add ? c[i * ldc + j] + tile[i * PANEL + j] : tile[i * PANEL + j];
}

ALWAYS_INLINE void panel_strided(int64_t m, int64_t width, int64_t k, const float *a, int64_t row_stride,
                                 int64_t k_stride, const float *b, float *c, int64_t ldc, bool add) {
    for (int64_t i = 0; i < m; i += TILE_ROWS) {
        int rows = m - i < TILE_ROWS ? (int)(m - i) : TILE_ROWS;
        const float *block = a + i * A_STRIDE;
        float *to = c + i * ldc;
        if (width == PANEL && rows == TILE_ROWS)
            tile_fixed(TILE_ROWS, 2, k, block, row_stride, k_stride, b, PANEL, to, ldc, add);
        else if (width == PANEL)
            tile_any(rows, 2, k, block, row_stride, k_stride, b, PANEL, to, ldc, add);
        else if (width == LANES)
            tile_any(rows, 1, k, block, row_stride, k_stride, b, PANEL, to, ldc, add);
        else
            edge_tile(rows, width, k, block, row_stride, k_stride, b, to, ldc, add);
    }
}

// c (m, width ≤ PANEL) from a packed block of a and one panel of b.
static void panel(int64_t m, int64_t width, int64_t k, const float *a, bool transposed, const float *b,
                  float *c, int64_t ldc, bool add) {
    if (transposed)
        panel_strided(m, width, k, a, 1, TILE_ROWS, b, c, ldc, add);
    else
        panel_strided(m, width, k, a, A_STRIDE, 1, b, c, ldc, add);
}

static int64_t smaller(int64_t a, int64_t b) {
    return a < b ? a : b;
}

void KERNEL(matmul)(Tensor c, Tensor a, bool a_transposed, Tensor b, bool b_transposed, Into into,
                    Stream stream) {
    int64_t M = c.dim[0], N = c.dim[1], K = a.dim[a_transposed ? 0 : 1];
    REQUIRE(a.dim[a_transposed ? 1 : 0] == M && b.dim[b_transposed ? 1 : 0] == K &&
                b.dim[b_transposed ? 0 : 1] == N,
            "matmul (%ld, %ld) = %s(%ld, %ld) %s(%ld, %ld)", (long)M, (long)N, a_transposed ? "ᵀ" : "",
            (long)a.dim[0], (long)a.dim[1], b_transposed ? "ᵀ" : "", (long)b.dim[0], (long)b.dim[1]);
    if (M == 0 || N == 0) return;
    if (K == 0) {
        if (into == INTO_ZERO) memset(c.data, 0, tensor_bytes(c));
        return;
    }
    Operand left = {tensor_f32(a), a.dim[1], a_transposed}, right = {tensor_f32(b), b.dim[1], b_transposed};
    size_t a_floats = (size_t)BLOCK_M * A_STRIDE;
    float *packed_a =
        stream_scratch(stream, (a_floats + (size_t)BLOCK_K * (BLOCK_N + PANEL)) * sizeof(float));
    float *packed_b = packed_a + a_floats;
    for (int64_t k0 = 0; k0 < K; k0 += BLOCK_K) {
        int64_t k = smaller(BLOCK_K, K - k0);
        bool add = into == INTO_SUM || k0 > 0;
        for (int64_t n0 = 0; n0 < N; n0 += BLOCK_N) {
            int64_t n = smaller(BLOCK_N, N - n0);
            pack_b(packed_b, right, k0, k, n0, n);
            for (int64_t m0 = 0; m0 < M; m0 += BLOCK_M) {
                int64_t m = smaller(BLOCK_M, M - m0);
                pack_a(packed_a, left, m0, m, k0, k);
                for (int64_t j = 0; j < n; j += PANEL)
                    panel(m, smaller(PANEL, n - j), k, packed_a, a_transposed,
                          packed_b + j / PANEL * k * PANEL, tensor_f32(c) + m0 * N + n0 + j, N, add);
                stream_poll(stream);
            }
        }
    }
}
