// SPDX-License-Identifier: Apache-2.0
// What attention's forward and backward share: tiles of vectors in shared memory, and their products. All
// arithmetic and all tiles are f32. A block has a tile of queries, or of keys for dk and dv, and alone sums
// what belongs to it, in the order of the tiles: nothing depends on what else runs, nor do a query's bits on
// its place among the queries.
#pragma once
#include "kernels/cuda/attention.h"
#include "kernels/cuda/cuda.h"

// A thread has 4 rows and 2 columns of a tile of scores, and of a tile of vectors the same 4 rows and
// GROUPS · 4 columns, COLUMN_STEP apart.
constexpr int TILE = 32, LANES = 16, ROWS = 4, KEYS = 2, THREADS = TILE / ROWS * LANES;
constexpr int COLUMN_STEP = 4 * LANES, SCORE_STRIDE = TILE + 4;
static_assert(OWN_MOST_HEAD_DIM == 4 * COLUMN_STEP, "at most 4 groups of columns");
typedef Pack<float, 4> Quad;

// Floats between the rows of a tile in shared memory: a multiple of 4, spread over the banks.
static __host__ __device__ __forceinline__ int tile_stride(int head_dim) {
    return (head_dim + 3) / 4 * 4 + 4;
}

static __host__ __device__ __forceinline__ int at_most(int a, int b) {
    return a < b ? a : b;
}
static __host__ __device__ __forceinline__ int at_least(int a, int b) {
    return a > b ? a : b;
}

struct Place {
    int row, key, column; // first row; key and key + LANES; first column
    int width, stride;    // of tiles in shared memory
    int64_t q_stride, kv_stride;
};

static __device__ __forceinline__ Place place_of(const AttentionShape &s) {
    int lane = threadIdx.x % LANES;
    return {.row = (int)threadIdx.x / LANES * ROWS,
            .key = lane,
            .column = lane * 4,
            .width = tile_stride(s.head_dim) - 4,
            .stride = tile_stride(s.head_dim),
            .q_stride = (int64_t)s.heads * s.head_dim,
            .kv_stride = (int64_t)s.kv_heads * s.head_dim};
}

// First element of a head in row i of a sequence.
static __device__ __forceinline__ int64_t query_at(const AttentionShape &s, int batch, int head, int64_t i) {
    return (((int64_t)batch * s.q_len + i) * s.heads + head) * s.head_dim;
}
static __device__ __forceinline__ int64_t key_at(const AttentionShape &s, int batch, int head, int64_t j) {
    return ((batch * s.kv_stride + j) * s.kv_heads + head) * s.head_dim;
}
static __device__ __forceinline__ int64_t lse_at(const AttentionShape &s, int batch, int head, int64_t i) {
    return ((int64_t)batch * s.heads + head) * s.q_len + i;
}

// Keys [first, end) that query i sees; none where i is no query.
struct Keys {
    int first, end;
};
static __device__ __forceinline__ Keys keys_of(const AttentionShape &s, int batch, int i) {
    if (i >= s.q_len) return {0, 0};
    return {s.doc_start ? s.doc_start[(int64_t)batch * s.q_len + i] : 0, s.q_offset + i + 1};
}

// The first of the tile's keys that any query of a tile sees, the same in all threads, in whole tiles.
static __device__ __forceinline__ int first_tile(const AttentionShape &s, int batch, int i) {
    if (!s.doc_start) return 0;
    int least = s.kv_len, end = at_most(i + TILE, s.q_len);
    for (; i < end; i++) least = at_most(least, keys_of(s, batch, i).first);
    return at_least(least, 0) / TILE * TILE;
}

// Rows [0, rows) of d elements become a tile of f32, zeros elsewhere.
template <int GROUPS, typename T>
static __device__ __forceinline__ void load_tile(float *tile, const T *from, int64_t row_stride, int rows,
                                                 int d, bool packs, const Place &at) {
#pragma unroll(4 / GROUPS)
    for (int i = 0; i < ROWS; i++) {
        int row = (int)threadIdx.x / LANES + i * (THREADS / LANES);
#pragma unroll
        for (int g = 0; g < GROUPS; g++) {
            int c = at.column + g * COLUMN_STEP;
            if (c >= at.width) continue;
            const T *source = from + row * row_stride + c;
            Quad quad = {};
            if (row < rows && packs) {
                Pack<T, 4> pack = *reinterpret_cast<const Pack<T, 4> *>(source);
#pragma unroll
                for (int e = 0; e < 4; e++) quad.at[e] = as_float(pack.at[e]);
            } else if (row < rows) {
#pragma unroll
                for (int e = 0; e < 4; e++)
                    if (c + e < d) quad.at[e] = as_float(source[e]);
            }
            *reinterpret_cast<Quad *>(tile + row * at.stride + c) = quad;
        }
    }
}

typedef float Scores[ROWS][KEYS];
template <int GROUPS> using Sums = float[ROWS][GROUPS][4];

// The thread's rows of x times its rows `key` of y.
static __device__ __forceinline__ void products(Scores &s, const float *x, const float *y, const Place &at) {
#pragma unroll
    for (int i = 0; i < ROWS; i++)
#pragma unroll
        for (int j = 0; j < KEYS; j++) s[i][j] = 0;
    x += at.row * at.stride;
    y += at.key * at.stride;
#pragma unroll 2
    for (int c = 0; c < at.width; c += 4) {
        Quad left[ROWS];
#pragma unroll
        for (int i = 0; i < ROWS; i++) left[i] = *reinterpret_cast<const Quad *>(x + i * at.stride + c);
#pragma unroll
        for (int j = 0; j < KEYS; j++) {
            Quad right = *reinterpret_cast<const Quad *>(y + j * LANES * at.stride + c);
#pragma unroll
            for (int i = 0; i < ROWS; i++)
#pragma unroll
                for (int e = 0; e < 4; e++) s[i][j] += left[i].at[e] * right.at[e];
        }
    }
}

template <int GROUPS> static __device__ __forceinline__ void clear(Sums<GROUPS> &sums) {
#pragma unroll
    for (int i = 0; i < ROWS; i++)
#pragma unroll
        for (int g = 0; g < GROUPS; g++)
#pragma unroll
            for (int e = 0; e < 4; e++) sums[i][g][e] = 0;
}

// sums[row] += Σ_k weight[k][row] · y[k]
template <int GROUPS>
static __device__ __forceinline__ void add_weighted(Sums<GROUPS> &sums, const float *weight, const float *y,
                                                    const Place &at) {
#pragma unroll 2
    for (int k = 0; k < TILE; k++) {
        Quad w = *reinterpret_cast<const Quad *>(weight + k * SCORE_STRIDE + at.row);
#pragma unroll
        for (int g = 0; g < GROUPS; g++) {
            int c = at.column + g * COLUMN_STEP;
            if (c >= at.width) continue;
            Quad v = *reinterpret_cast<const Quad *>(y + k * at.stride + c);
#pragma unroll
            for (int i = 0; i < ROWS; i++)
#pragma unroll
                for (int e = 0; e < 4; e++) sums[i][g][e] += w.at[i] * v.at[e];
        }
    }
}

// The thread's rows of a tile whose first element is at `to`, each times its factor.
template <int GROUPS, typename T>
static __device__ __forceinline__ void store_rows(T *to, int64_t row_stride, int rows,
                                                  const Sums<GROUPS> &sums, const float (&factor)[ROWS],
                                                  int d, bool packs, const Place &at) {
#pragma unroll
    for (int i = 0; i < ROWS; i++) {
        if (at.row + i >= rows) continue;
#pragma unroll
        for (int g = 0; g < GROUPS; g++) {
            int c = at.column + g * COLUMN_STEP;
            if (c >= at.width) continue;
            Pack<T, 4> pack;
#pragma unroll
            for (int e = 0; e < 4; e++) pack.at[e] = rounded<T>(sums[i][g][e] * factor[i]);
            T *target = to + (at.row + i) * row_stride + c;
            if (packs) {
                *reinterpret_cast<Pack<T, 4> *>(target) = pack;
                continue;
            }
#pragma unroll
            for (int e = 0; e < 4; e++)
                if (c + e < d) target[e] = pack.at[e];
        }
    }
}

// Over the LANES threads that have the same rows; every one gets the result.
static __device__ __forceinline__ float row_max(float x) {
#pragma unroll
    for (int apart = LANES / 2; apart > 0; apart /= 2)
        x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, apart, LANES));
    return x;
}
static __device__ __forceinline__ float row_sum(float x) {
#pragma unroll
    for (int apart = LANES / 2; apart > 0; apart /= 2) x += __shfl_xor_sync(0xffffffffu, x, apart, LANES);
    return x;
}

// ---- launches

// Whether 4 neighbours of every row can be moved at once.
static inline bool quads_fit(int head_dim, Tensor t) {
    return head_dim % 4 == 0 && (uintptr_t)t.data % (4 * dtype_bytes(t.dtype)) == 0;
}
template <typename... Rest> static inline bool quads_fit(int head_dim, Tensor first, Rest... rest) {
    return quads_fit(head_dim, first) && quads_fit(head_dim, rest...);
}

// Calls function<T, GROUPS>(arguments…).
#define CALL_BY_HEAD(dtype, head_dim, function, ...)                                                         \
    do {                                                                                                     \
        if ((dtype) == DTYPE_F32 && (head_dim) <= 2 * COLUMN_STEP)                                           \
            function<float, 2>(__VA_ARGS__);                                                                 \
        else if ((dtype) == DTYPE_F32)                                                                       \
            function<float, 4>(__VA_ARGS__);                                                                 \
        else if ((dtype) == DTYPE_BF16 && (head_dim) <= 2 * COLUMN_STEP)                                     \
            function<__nv_bfloat16, 2>(__VA_ARGS__);                                                         \
        else if ((dtype) == DTYPE_BF16)                                                                      \
            function<__nv_bfloat16, 4>(__VA_ARGS__);                                                         \
        else                                                                                                 \
            DIE("%s: no kernel for %s", #function, dtype_name(dtype));                                       \
    } while (0)

static inline size_t shared_bytes(const AttentionShape *s, int tiles, int score_tiles) {
    return (size_t)(TILE * (tiles * tile_stride(s->head_dim) + score_tiles * SCORE_STRIDE)) * sizeof(float);
}

static inline dim3 grid_of(int length, int heads, int batch) {
    return dim3((unsigned)ceil_div(length, TILE), (unsigned)heads, (unsigned)batch);
}
