// SPDX-License-Identifier: Apache-2.0
// Matrix products in the manner of Goto and van de Geijn ("Anatomy of high-performance matrix
// multiplication", 2008): b is packed in panels that stay in the caches while a block of a runs over them. K
// is cut at the same places for every row, so that a row's bits do not depend on the others.
#include "kernels/cpu/gemm_micro.h"

// A block of a (BLOCK_M × BLOCK_K) and CHUNK columns of b share the second cache; a panel of b (BLOCK_K ×
// PANEL) and a tile of a the first. b is packed NARROW_N or WIDE_N columns at a time.
enum { BLOCK_K = 256, BLOCK_M = 10 * TILE_ROWS, A_STRIDE = BLOCK_K + LANES, A_FLOATS = BLOCK_M * A_STRIDE };
enum { CHUNK = 8 * PANEL, NARROW_N = 2 * PANEL, WIDE_N = 32768 };

static int64_t smaller(int64_t a, int64_t b) {
    return a < b ? a : b;
}

typedef struct {
    const float *data;
    int64_t ld;
    bool transposed;
} Operand;

// A block of a in packed form. Plain: tile by tile, each row BLOCK_K long at a stride that spreads over the
// cache sets. Transposed: [tile][k][TILE_ROWS]; written in whole vectors, each of which covers what the one
// before wrote too much.
static void pack_a(float *dst, Operand a, int64_t m0, int64_t m, int64_t k0, int64_t k) {
    if (!a.transposed) {
        for (int64_t i = 0; i < m; i++)
            memcpy(dst + i * A_STRIDE, a.data + (m0 + i) * a.ld + k0, (size_t)k * sizeof *dst);
        return;
    }
    enum { READ = (TILE_ROWS + LANES - 1) / LANES * LANES };
    for (int64_t p = 0; p < k; p++) {
        const float *src = a.data + (k0 + p) * a.ld + m0;
        float *to = dst + p * TILE_ROWS;
        int64_t i = 0;
        for (; i + READ <= m; i += TILE_ROWS, to += A_STRIDE * TILE_ROWS)
            for (int64_t r = 0; r < READ; r += LANES) *(Vec *)(to + r) = *(const Vec *)(src + i + r);
        for (; i < m; i += TILE_ROWS, to += A_STRIDE * TILE_ROWS)
            for (int64_t r = 0; r < smaller(TILE_ROWS, m - i); r++) to[r] = src[i + r];
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
    if (width > LANES)
        tile_any(rows, 2, k, a, row_stride, k_stride, b, PANEL, tile, PANEL, false);
    else
        tile_any(rows, 1, k, a, row_stride, k_stride, b, PANEL, tile, PANEL, false);
    for (int i = 0; i < rows; i++)
        for (int64_t j = 0; j < width; j++)
            c[i * ldc + j] = add ? c[i * ldc + j] + tile[i * PANEL + j] : tile[i * PANEL + j];
}

// c (rows, width ≤ PANEL) from a tile of a and a panel of b.
ALWAYS_INLINE void one_tile(int rows, int64_t width, int64_t k, const float *a, int64_t row_stride,
                            int64_t k_stride, const float *b, float *c, int64_t ldc, bool add) {
    if (width == PANEL && rows == TILE_ROWS)
        tile_fixed(TILE_ROWS, 2, k, a, row_stride, k_stride, b, PANEL, c, ldc, add);
    else if (width == PANEL)
        tile_any(rows, 2, k, a, row_stride, k_stride, b, PANEL, c, ldc, add);
    else if (width == LANES)
        tile_any(rows, 1, k, a, row_stride, k_stride, b, PANEL, c, ldc, add);
    else
        edge_tile(rows, width, k, a, row_stride, k_stride, b, c, ldc, add);
}

// c (m, n) from a packed block of a and packed panels of b, tile-row by tile-row.
static void tiles(int64_t m, int64_t n, int64_t k, const float *a, bool transposed, const float *b, float *c,
                  int64_t ldc, bool add) {
    for (int64_t i = 0; i < m; i += TILE_ROWS, a += TILE_ROWS * A_STRIDE) {
        int rows = (int)smaller(TILE_ROWS, m - i);
        for (int64_t j = 0; j < n; j += PANEL) {
            float *to = c + i * ldc + j;
            int64_t width = smaller(PANEL, n - j);
            for (int r = 0; r < rows; r++) { // c arrives while the products are summed
                __builtin_prefetch(to + r * ldc, 1);
                __builtin_prefetch(to + r * ldc + LANES, 1);
            }
            if (transposed)
                one_tile(rows, width, k, a, 1, TILE_ROWS, b + j * k, to, ldc, add);
            else
                one_tile(rows, width, k, a, A_STRIDE, 1, b + j * k, to, ldc, add);
        }
    }
}

// What remains of the work until the next poll.
typedef struct {
    Stream stream;
    int64_t left;
} Poll;

static void poll_after(Poll *poll, int64_t work) {
    enum { POLL_WORK = 4 << 20 }; // multiply-adds: 80 µs at 100 GFLOP/s
    poll->left -= work;
    if (poll->left > 0) return;
    stream_poll(poll->stream);
    poll->left = POLL_WORK;
}

// c[:, n0 : n0 + n] = or += op(a)[:, k0 : k0 + k] op(b)[k0 : k0 + k, n0 : n0 + n]
static void multiply_block(Tensor c, Operand left, int64_t k0, int64_t k, Operand right, int64_t n0,
                           int64_t n, float *packed_a, bool a_is_packed, float *packed_b, bool add,
                           Poll *poll) {
    enum { PACK_COST = 8 }; // packing an element costs as much as 8 multiply-adds
    int64_t M = c.dim[0], N = c.dim[1];
    for (int64_t j = 0; j < n; j += CHUNK) {
        int64_t width = smaller(CHUNK, n - j);
        pack_b(packed_b + j * k, right, k0, k, n0 + j, width);
        poll_after(poll, width * k * PACK_COST);
    }
    for (int64_t m0 = 0; m0 < M; m0 += BLOCK_M) {
        int64_t m = smaller(BLOCK_M, M - m0);
        if (!a_is_packed) pack_a(packed_a, left, m0, m, k0, k);
        for (int64_t j = 0; j < n; j += CHUNK) {
            int64_t width = smaller(CHUNK, n - j);
            tiles(m, width, k, packed_a, left.transposed, packed_b + j * k, tensor_f32(c) + m0 * N + n0 + j,
                  N, add);
            poll_after(poll, m * width * k);
        }
    }
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
    int64_t k_blocks = (K + BLOCK_K - 1) / BLOCK_K, k_most = (K + k_blocks - 1) / k_blocks;
    k_most = smaller(BLOCK_K, (k_most + LANES - 1) / LANES * LANES);
    // One block of a stays for all of b: then b is packed panel by panel, just before its use. Else b is
    // packed whole.
    int64_t n_most = M <= BLOCK_M ? NARROW_N : WIDE_N;
    float *packed_a =
        stream_scratch(stream, (A_FLOATS + (size_t)(BLOCK_K * (smaller(n_most, N) + PANEL))) * sizeof(float));
    Poll poll = {stream, 0};
    for (int64_t k0 = 0; k0 < K; k0 += k_most)
        for (int64_t n0 = 0; n0 < N; n0 += n_most)
            multiply_block(c, left, k0, smaller(k_most, K - k0), right, n0, smaller(n_most, N - n0), packed_a,
                           M <= BLOCK_M && n0 > 0, packed_a + A_FLOATS, into == INTO_SUM || k0 > 0, &poll);
}
