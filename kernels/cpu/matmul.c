// SPDX-License-Identifier: Apache-2.0
// Matrix products in the manner of Goto and van de Geijn ("Anatomy of high-performance matrix
// multiplication", 2008): both operands are packed, each part once, just before its first use and while the
// next part is being fetched. K is cut at the same places for every row, so that a row's bits do not depend
// on the others.
#include "kernels/cpu/gemm_micro.h"

// A block of a (BLOCK_M × BLOCK_K) and CHUNK columns of b share the second cache, a tile of a stays in the
// first. At most WIDE_N columns of b are packed at a time.
enum { BLOCK_K = 256, BLOCK_M = 10 * TILE_ROWS, A_STRIDE = BLOCK_K + LANES, A_FLOATS = BLOCK_M * A_STRIDE };
enum { CHUNK = 8 * PANEL, WIDE_N = 32768, LINE = 16 }; // a cache line has LINE floats

static int64_t smaller(int64_t a, int64_t b) {
    return a < b ? a : b;
}

typedef struct {
    const float *data;
    int64_t ld;
    bool transposed;
} Operand;

// ---- fetching ahead: a piece of a matrix is brought to the second cache a few lines at a time

typedef struct {
    const float *row;
    int64_t rows, columns, ld, column;
} Ahead;

// The piece of `operand` with op(…)[row0 : row0 + rows, column0 : column0 + columns].
static Ahead piece_ahead(Operand operand, int64_t row0, int64_t rows, int64_t column0, int64_t columns) {
    if (operand.transposed)
        return (Ahead){operand.data + column0 * operand.ld + row0, columns, rows, operand.ld, 0};
    return (Ahead){operand.data + row0 * operand.ld + column0, rows, columns, operand.ld, 0};
}

static int64_t lines_of(const Ahead *piece) {
    return piece->rows * ((piece->columns + LINE - 1) / LINE);
}

static void fetch(Ahead *piece, int64_t lines) {
    for (; lines > 0 && piece->rows > 0; lines--) {
        __builtin_prefetch(piece->row + piece->column, 0, 2);
        piece->column += LINE;
        if (piece->column < piece->columns) continue;
        piece->column = 0;
        piece->row += piece->ld;
        piece->rows--;
    }
}

// ---- packing

// A tile of a: rows at a stride that spreads over the cache sets.
static void pack_a_tile(float *dst, Operand a, int64_t m0, int64_t rows, int64_t k0, int64_t k) {
    for (int64_t i = 0; i < rows; i++)
        memcpy(dst + i * A_STRIDE, a.data + (m0 + i) * a.ld + k0, (size_t)k * sizeof *dst);
}

// All tiles of a block of a transposed a, each [k][TILE_ROWS]; in whole vectors, each of which covers what
// the one before wrote too much.
static void pack_a_transposed(float *dst, Operand a, int64_t m0, int64_t m, int64_t k0, int64_t k) {
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

// ---- the product

// c[:, n0 : n0 + n] = or += op(a)[:, k0 : k0 + k] op(b)[k0 : k0 + k, n0 : n0 + n], of M rows
typedef struct {
    float *c;
    int64_t ldc, M, k0, k, n0, n;
    Operand a, b;
    float *packed_a, *packed_b;
    bool add;
    Stream stream;
    int64_t until_poll; // multiply-adds
} Job;

static void poll_after(Job *job, int64_t work) {
    enum { POLL_WORK = 4 << 20 }; // 80 µs at 100 GFLOP/s
    job->until_poll -= work;
    if (job->until_poll > 0) return;
    stream_poll(job->stream);
    job->until_poll = POLL_WORK;
}

// What is fetched while the tiles of a chunk are computed.
typedef struct {
    Ahead b;
    int64_t b_lines; // a tile
    bool a;          // a's tiles are packed on the way
} Fetch;

// Rows [m0, m0 + m) of columns [j, j + n) of the job, tile-row by tile-row.
static void tiles(const Job *job, int64_t m0, int64_t m, int64_t j, int64_t n, const float *b, Fetch ahead) {
    int64_t k = job->k, panels = panels_of(n);
    float *a = job->packed_a;
    for (int64_t i = 0; i < m; i += TILE_ROWS, a += TILE_ROWS * A_STRIDE) {
        int rows = (int)smaller(TILE_ROWS, m - i);
        Ahead next = {0};
        if (ahead.a) {
            pack_a_tile(a, job->a, m0 + i, rows, job->k0, k);
            next = piece_ahead(job->a, m0 + i + rows, smaller(TILE_ROWS, job->M - m0 - i - rows), job->k0, k);
        }
        int64_t a_lines = lines_of(&next) / panels + 1;
        for (int64_t p = 0; p < panels; p++) {
            float *to = job->c + (m0 + i) * job->ldc + job->n0 + j + p * PANEL;
            for (int r = 0; r < rows; r++) { // c arrives while the products are summed
                __builtin_prefetch(to + r * job->ldc, 1);
                __builtin_prefetch(to + r * job->ldc + LANES, 1);
            }
            fetch(&next, a_lines);
            fetch(&ahead.b, ahead.b_lines);
            int64_t width = smaller(PANEL, n - p * PANEL);
            if (job->a.transposed)
                one_tile(rows, width, k, a, 1, TILE_ROWS, b + p * PANEL * k, to, job->ldc, job->add);
            else
                one_tile(rows, width, k, a, A_STRIDE, 1, b + p * PANEL * k, to, job->ldc, job->add);
        }
    }
}

static void multiply(Job *job) {
    enum { PACK_COST = 8 };          // packing an element costs as much as 8 multiply-adds
    bool single = job->M <= BLOCK_M; // no part of b is used twice: one chunk's place serves all
    for (int64_t m0 = 0; m0 < job->M; m0 += BLOCK_M) {
        int64_t m = smaller(BLOCK_M, job->M - m0);
        if (job->a.transposed) pack_a_transposed(job->packed_a, job->a, m0, m, job->k0, job->k);
        for (int64_t j = 0; j < job->n; j += CHUNK) {
            int64_t width = smaller(CHUNK, job->n - j);
            float *b = job->packed_b + (single ? 0 : j * job->k);
            Fetch ahead = {.a = j == 0 && !job->a.transposed};
            if (m0 == 0) {
                pack_b(b, job->b, job->k0, job->k, job->n0 + j, width);
                poll_after(job, width * job->k * PACK_COST);
                ahead.b = piece_ahead(job->b, job->k0, job->k, job->n0 + j + width,
                                      smaller(CHUNK, job->n - j - width));
                ahead.b_lines =
                    lines_of(&ahead.b) / (((m + TILE_ROWS - 1) / TILE_ROWS) * panels_of(width)) + 1;
            }
            tiles(job, m0, m, j, width, b, ahead);
            poll_after(job, m * width * job->k);
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
    int64_t k_blocks = (K + BLOCK_K - 1) / BLOCK_K, k_even = (K + k_blocks - 1) / k_blocks;
    int64_t k_most = smaller(BLOCK_K, (k_even + LANES - 1) / LANES * LANES), n_most = smaller(WIDE_N, N);
    float *scratch =
        stream_scratch(stream, (A_FLOATS + (size_t)(BLOCK_K * (n_most + PANEL))) * sizeof(float));
    Job job = {.c = tensor_f32(c),
               .ldc = N,
               .M = M,
               .a = {tensor_f32(a), a.dim[1], a_transposed},
               .b = {tensor_f32(b), b.dim[1], b_transposed},
               .packed_a = scratch,
               .packed_b = scratch + A_FLOATS,
               .stream = stream};
    for (job.k0 = 0; job.k0 < K; job.k0 += k_most)
        for (job.n0 = 0; job.n0 < N; job.n0 += n_most) {
            job.k = smaller(k_most, K - job.k0);
            job.n = smaller(n_most, N - job.n0);
            job.add = into == INTO_SUM || job.k0 > 0;
            multiply(&job);
        }
}
