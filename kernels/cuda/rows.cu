// SPDX-License-Identifier: Apache-2.0
// Rows to expert order and back: one block for a token.
#include "kernels/cuda/cuda.h"

// Packs that a thread has under way: of a row that is read once, of rows that are added up.
constexpr int GATHERED = 4, COMBINED = 2, ROWS_THREADS = 256;

// rows[row[t, j]] = x[t]; t is the block.
template <typename T, int WIDTH>
static __global__ void __launch_bounds__(ROWS_THREADS)
    gather_token(T *rows, const T *x, const int32_t *row, int k, int packs) {
    typedef Pack<T, WIDTH> P;
    const P *from = reinterpret_cast<const P *>(x) + (int64_t)blockIdx.x * packs;
    const int32_t *places = row + (int64_t)blockIdx.x * k;
    int step = blockDim.x;
    for (int begin = threadIdx.x; begin < packs; begin += GATHERED * step) {
        P held[GATHERED];
#pragma unroll
        for (int i = 0; i < GATHERED; i++)
            if (begin + i * step < packs) held[i] = from[begin + i * step];
        for (int j = 0; j < k; j++) {
            if (places[j] < 0) continue;
            P *to = reinterpret_cast<P *>(rows) + (int64_t)places[j] * packs;
#pragma unroll
            for (int i = 0; i < GATHERED; i++)
                if (begin + i * step < packs) to[begin + i * step] = held[i];
        }
    }
}

// y[t] = or += Σ_j rows[row[t, j]] in f32; t is the block.
template <typename T, int WIDTH>
static __global__ void __launch_bounds__(ROWS_THREADS)
    combine_token(T *y, const T *rows, const int32_t *row, int k, int packs, bool add) {
    typedef Pack<T, WIDTH> P;
    P *to = reinterpret_cast<P *>(y) + (int64_t)blockIdx.x * packs;
    const int32_t *places = row + (int64_t)blockIdx.x * k;
    int step = blockDim.x;
    for (int begin = threadIdx.x; begin < packs; begin += COMBINED * step) {
        bool empty = !add;
        float sum[COMBINED][WIDTH];
#pragma unroll
        for (int i = 0; i < COMBINED; i++) {
            P pack = {};
            if (add && begin + i * step < packs) pack = to[begin + i * step];
#pragma unroll
            for (int c = 0; c < WIDTH; c++) sum[i][c] = add ? as_float(pack.at[c]) : -0.0f; // −0 + x is x
        }
        for (int j = 0; j < k; j++) {
            if (places[j] < 0) continue;
            const P *from = reinterpret_cast<const P *>(rows) + (int64_t)places[j] * packs;
            P pack[COMBINED] = {};
#pragma unroll
            for (int i = 0; i < COMBINED; i++)
                if (begin + i * step < packs) pack[i] = from[begin + i * step];
#pragma unroll
            for (int i = 0; i < COMBINED; i++)
#pragma unroll
                for (int c = 0; c < WIDTH; c++) sum[i][c] += as_float(pack[i].at[c]);
            empty = false;
        }
#pragma unroll
        for (int i = 0; i < COMBINED; i++)
            if (begin + i * step < packs) {
                P pack;
#pragma unroll
                for (int c = 0; c < WIDTH; c++) pack.at[c] = rounded<T>(empty ? 0.0f : sum[i][c]);
                to[begin + i * step] = pack;
            }
    }
}

// Whole warps, all with the same number of turns.
static int threads_for(int packs, int at_once) {
    int64_t turns = ceil_div(packs, ROWS_THREADS * at_once);
    return (int)ceil_div(packs, turns * at_once * WARP) * WARP;
}

static void check_rows(const char *what, Tensor rows, Tensor x, Tensor row) {
    REQUIRE(rows.dim[1] == x.dim[1] && row.dim[0] == x.dim[0] && row.dim[1] <= INT32_MAX &&
                x.dim[1] <= INT32_MAX && rows.dtype == x.dtype,
            "%s: rows (%ld, %ld) %s, tokens (%ld, %ld) %s, places (%ld, %ld)", what, (long)rows.dim[0],
            (long)rows.dim[1], dtype_name(rows.dtype), (long)x.dim[0], (long)x.dim[1], dtype_name(x.dtype),
            (long)row.dim[0], (long)row.dim[1]);
}

template <typename T, int WIDTH> static void launch_gather(Tensor rows, Tensor x, Tensor row, Stream stream) {
    int packs = (int)(x.dim[1] / WIDTH);
    CUDA_LAUNCH((gather_token<T, WIDTH>), (unsigned)x.dim[0], threads_for(packs, GATHERED), 0, stream,
                (T *)rows.data, (const T *)x.data, tensor_i32(row), (int)row.dim[1], packs);
}

template <typename T, int WIDTH>
static void launch_combine(Tensor y, Tensor rows, Tensor row, Into into, Stream stream) {
    int packs = (int)(y.dim[1] / WIDTH);
    CUDA_LAUNCH((combine_token<T, WIDTH>), (unsigned)y.dim[0], threads_for(packs, COMBINED), 0, stream,
                (T *)y.data, (const T *)rows.data, tensor_i32(row), (int)row.dim[1], packs, into == INTO_SUM);
}

void KERNEL(rows_gather)(Tensor rows, Tensor x, Tensor row, Stream stream) {
    check_rows("rows_gather", rows, x, row);
    if (tensor_size(x) == 0) return;
    CALL_BY_TYPE(x.dtype, packs_fit(x.dim[1], rows, x), launch_gather, rows, x, row, stream);
}

void KERNEL(rows_combine)(Tensor y, Tensor rows, Tensor row, Into into, Stream stream) {
    check_rows("rows_combine", rows, y, row);
    if (tensor_size(y) == 0) return;
    CALL_BY_TYPE(y.dtype, packs_fit(y.dim[1], rows, y), launch_combine, y, rows, row, into, stream);
}

// ---- scalars

static __global__ void __launch_bounds__(ROWS_THREADS)
    gather_pairs(float *rows, const float *value, const int32_t *row, int64_t pairs) {
    int64_t i = (int64_t)blockIdx.x * ROWS_THREADS + threadIdx.x;
    if (i < pairs && row[i] >= 0) rows[row[i]] = value[i];
}

static __global__ void __launch_bounds__(ROWS_THREADS)
    scatter_pairs(float *value, const float *rows, const int32_t *row, int64_t pairs) {
    int64_t i = (int64_t)blockIdx.x * ROWS_THREADS + threadIdx.x;
    if (i < pairs) value[i] = row[i] >= 0 ? rows[row[i]] : 0.0f;
}

static void check_pairs(const char *what, Tensor rows, Tensor value, Tensor row) {
    REQUIRE(tensor_size(value) == tensor_size(row) && rows.dtype == DTYPE_F32 && value.dtype == DTYPE_F32,
            "%s: %ld values in %s, %ld places, rows in %s", what, (long)tensor_size(value),
            dtype_name(value.dtype), (long)tensor_size(row), dtype_name(rows.dtype));
}

void KERNEL(pairs_gather)(Tensor rows, Tensor value, Tensor row, Stream stream) {
    check_pairs("pairs_gather", rows, value, row);
    int64_t pairs = tensor_size(row);
    if (pairs == 0) return;
    CUDA_LAUNCH(gather_pairs, (unsigned)ceil_div(pairs, ROWS_THREADS), ROWS_THREADS, 0, stream,
                tensor_f32(rows), tensor_f32(value), tensor_i32(row), pairs);
}

void KERNEL(pairs_scatter)(Tensor value, Tensor rows, Tensor row, Stream stream) {
    check_pairs("pairs_scatter", rows, value, row);
    int64_t pairs = tensor_size(row);
    if (pairs == 0) return;
    CUDA_LAUNCH(scatter_pairs, (unsigned)ceil_div(pairs, ROWS_THREADS), ROWS_THREADS, 0, stream,
                tensor_f32(value), tensor_f32(rows), tensor_i32(row), pairs);
}
