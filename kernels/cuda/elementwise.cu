// SPDX-License-Identifier: Apache-2.0
// Kernels without sums over rows: rotation of positions, scale, clamp; and the sum of squares.
#include "kernels/cuda/cuda.h"

constexpr int THREADS = 256;

// ---- sum of squares: partial sums of a number of blocks that depends on the size alone, then their sum

constexpr int SUM_BLOCKS = 1024;

template <typename T, int WIDTH>
static __global__ void sum_of_blocks(double *partial, const T *x, int64_t n) {
    typedef Pack<T, WIDTH> P;
    int64_t thread = (int64_t)blockIdx.x * blockDim.x + threadIdx.x,
            threads = (int64_t)gridDim.x * blockDim.x;
    int64_t packs = n / WIDTH, tail = packs * WIDTH + thread;
    double sum = 0;
    for (int64_t at = thread; at < packs; at += threads) {
        P p = reinterpret_cast<const P *>(x)[at];
#pragma unroll
        for (int i = 0; i < WIDTH; i++) sum += (double)as_float(p.at[i]) * (double)as_float(p.at[i]);
    }
    if (tail < n) sum += (double)as_float(x[tail]) * (double)as_float(x[tail]);
    sum = block_sum(sum);
    if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}

static __global__ void sum_of_sums(double *out, const double *partial, int count) {
    double sum = 0;
    for (int i = threadIdx.x; i < count; i += blockDim.x) sum += partial[i];
    sum = block_sum(sum);
    if (threadIdx.x == 0) *out = sum;
}

template <typename T, int WIDTH>
static void launch_sum(double *scratch, int blocks, Tensor x, Stream stream) {
    CUDA_LAUNCH((sum_of_blocks<T, WIDTH>), blocks, THREADS, 0, stream, scratch + 1, (const T *)x.data,
                tensor_size(x));
    CUDA_LAUNCH(sum_of_sums, 1, THREADS, 0, stream, scratch, scratch + 1, blocks);
}

void KERNEL(sum_squares)(double *out, Tensor x, Stream stream) {
    int64_t blocks = ceil_div(tensor_size(x), (int64_t)THREADS * 16);
    *out = 0;
    if (blocks == 0) return;
    if (blocks > SUM_BLOCKS) blocks = SUM_BLOCKS;
    double *scratch = (double *)stream_scratch(stream, (SUM_BLOCKS + 1) * sizeof(double));
    CALL_BY_TYPE(x.dtype, packs_fit(0, x), launch_sum, scratch, (int)blocks, x, stream);
    fetch_result(out, scratch, sizeof *out, stream);
}

// ---- rotation of positions: a block for a row, a thread for a pack of a head's lower half and its partner

template <typename T, int WIDTH>
static __global__ void rotate(T *x, const float *cosine, const float *sine, RopeShape shape) {
    typedef Pack<T, WIDTH> P;
    int half = shape.head_dim / 2, packs = half / WIDTH;
    int64_t position = shape.first_position + blockIdx.x % (unsigned)shape.seq_len;
    T *row = x + (int64_t)blockIdx.x * shape.heads * shape.head_dim;
    float sign = shape.inverse ? -1.0f : 1.0f;
    for (int i = threadIdx.x; i < shape.heads * packs; i += blockDim.x) {
        int head = i / packs, j = (i - head * packs) * WIDTH;
        T *low = row + (int64_t)head * shape.head_dim + j, *high = low + half;
        P a = *reinterpret_cast<P *>(low), b = *reinterpret_cast<P *>(high);
        Floats<WIDTH> c, s;
        c.load(cosine + position * half + j);
        s.load(sine + position * half + j);
#pragma unroll
        for (int e = 0; e < WIDTH; e++) {
            float l = as_float(a.at[e]), h = as_float(b.at[e]), turn = sign * s.at[e];
            a.at[e] = rounded<T>(l * c.at[e] - h * turn);
            b.at[e] = rounded<T>(h * c.at[e] + l * turn);
        }
        *reinterpret_cast<P *>(low) = a;
        *reinterpret_cast<P *>(high) = b;
    }
}

template <typename T, int WIDTH>
static void launch_rotate(Tensor x, Tensor cosine, Tensor sine, const RopeShape *shape, Stream stream) {
    int64_t packs = (int64_t)shape->heads * shape->head_dim / 2 / WIDTH;
    CUDA_LAUNCH((rotate<T, WIDTH>), (unsigned)x.dim[0], row_threads(packs, THREADS), 0, stream, (T *)x.data,
                tensor_f32(cosine), tensor_f32(sine), *shape);
}

void KERNEL(rope)(Tensor x, Tensor cosine, Tensor sine, const RopeShape *shape, Stream stream) {
    int64_t T = x.dim[0], half = shape->head_dim / 2, width = (int64_t)shape->heads * shape->head_dim;
    int64_t seq_len = shape->seq_len, last = shape->first_position + (T < seq_len ? T : seq_len);
    REQUIRE(x.dim[1] == width && shape->head_dim % 2 == 0 && cosine.dim[1] == half && sine.dim[1] == half &&
                last <= cosine.dim[0] && last <= sine.dim[0] && cosine.dtype == DTYPE_F32 &&
                sine.dtype == DTYPE_F32,
            "rope: rows of %ld for %d heads of %d, tables (%ld, %ld) for %ld positions", (long)x.dim[1],
            shape->heads, shape->head_dim, (long)cosine.dim[0], (long)cosine.dim[1], (long)last);
    if (T == 0 || width == 0) return;
    CALL_BY_TYPE(x.dtype, packs_fit(half, x, cosine, sine), launch_rotate, x, cosine, sine, shape, stream);
}

// ---- scale

template <typename T, int WIDTH> static __global__ void scale_packs(T *x, float factor, int64_t n) {
    typedef Pack<T, WIDTH> P;
    int64_t thread = (int64_t)blockIdx.x * blockDim.x + threadIdx.x, packs = n / WIDTH,
            tail = packs * WIDTH + thread;
    if (thread < packs) {
        P *at = reinterpret_cast<P *>(x) + thread, p = *at;
#pragma unroll
        for (int i = 0; i < WIDTH; i++) p.at[i] = rounded<T>(as_float(p.at[i]) * factor);
        *at = p;
    }
    if (tail < n) x[tail] = rounded<T>(as_float(x[tail]) * factor);
}

template <typename T, int WIDTH> static void launch_scale(Tensor x, float factor, Stream stream) {
    int64_t n = tensor_size(x);
    CUDA_LAUNCH((scale_packs<T, WIDTH>), (unsigned)ceil_div(n, (int64_t)WIDTH * THREADS), THREADS, 0, stream,
                (T *)x.data, factor, n);
}

void KERNEL(scale)(Tensor x, float factor, Stream stream) {
    if (tensor_size(x) == 0) return;
    CALL_BY_TYPE(x.dtype, packs_fit(0, x), launch_scale, x, factor, stream);
}

// ---- clamp: a block for a row; neighbouring lanes put the 32 bits of a word of the mask together

constexpr int WORD = 32;

template <typename T, int WIDTH>
static __global__ void clamp_rows(T *x, unsigned *inside, float bound, int64_t n, int64_t words) {
    typedef Pack<T, WIDTH> P;
    constexpr int LANES = WORD / WIDTH; // of a word
    int64_t packs = n / WIDTH, whole = (packs + WARP - 1) / WARP * WARP;
    P *row = reinterpret_cast<P *>(x + blockIdx.x * n);
    for (int64_t at = threadIdx.x; at < whole; at += blockDim.x) {
        unsigned bits = 0;
        if (at < packs) {
            P p = row[at];
#pragma unroll
            for (int i = 0; i < WIDTH; i++) {
                float value = as_float(p.at[i]);
                if (fabsf(value) <= bound) bits |= 1u << i;
                p.at[i] = rounded<T>(value < -bound ? -bound : value > bound ? bound : value); // NaN stays
            }
            row[at] = p;
        }
        bits <<= at % LANES * WIDTH;
#pragma unroll
        for (int apart = 1; apart < LANES; apart *= 2) bits |= __shfl_xor_sync(0xffffffffu, bits, apart);
        if (inside && at < packs && at % LANES == 0) inside[blockIdx.x * words + at / LANES] = bits;
    }
}

template <typename T, int WIDTH>
static __global__ void keep_inside(T *dx, const unsigned *inside, int64_t n, int64_t words) {
    typedef Pack<T, WIDTH> P;
    constexpr int LANES = WORD / WIDTH;
    P *row = reinterpret_cast<P *>(dx + blockIdx.x * n);
    for (int64_t at = threadIdx.x; at < n / WIDTH; at += blockDim.x) {
        unsigned bits = inside[blockIdx.x * words + at / LANES] >> at % LANES * WIDTH;
        P p = row[at];
#pragma unroll
        for (int i = 0; i < WIDTH; i++)
            if (!(bits >> i & 1)) p.at[i] = rounded<T>(0.0f);
        row[at] = p;
    }
}

static void check_clamp(Tensor x, Tensor inside) {
    REQUIRE(inside.dtype == DTYPE_I32 && inside.dim[0] == x.dim[0] &&
                inside.dim[1] == ceil_div(x.dim[1], WORD),
            "clamp: mask (%ld, %ld) for (%ld, %ld)", (long)inside.dim[0], (long)inside.dim[1], (long)x.dim[0],
            (long)x.dim[1]);
}

template <typename T, int WIDTH>
static void launch_clamp(Tensor x, Tensor inside, float bound, Stream stream) {
    int64_t n = x.dim[1];
    unsigned *mask = tensor_exists(inside) ? (unsigned *)inside.data : NULL;
    CUDA_LAUNCH((clamp_rows<T, WIDTH>), (unsigned)x.dim[0], row_threads(n / WIDTH, THREADS), 0, stream,
                (T *)x.data, mask, bound, n, ceil_div(n, WORD));
}

void KERNEL(clamp_forward)(Tensor x, Tensor inside, float bound, Stream stream) {
    REQUIRE(bound >= 0, "clamp: bound %g", (double)bound);
    if (tensor_exists(inside)) check_clamp(x, inside);
    if (tensor_size(x) == 0) return;
    CALL_BY_TYPE(x.dtype, packs_fit(x.dim[1], x), launch_clamp, x, inside, bound, stream);
}

template <typename T, int WIDTH> static void launch_keep(Tensor dx, Tensor inside, Stream stream) {
    int64_t n = dx.dim[1];
    CUDA_LAUNCH((keep_inside<T, WIDTH>), (unsigned)dx.dim[0], row_threads(n / WIDTH, THREADS), 0, stream,
                (T *)dx.data, (const unsigned *)inside.data, n, ceil_div(n, WORD));
}

void KERNEL(clamp_backward)(Tensor dx, Tensor inside, Stream stream) {
    check_clamp(dx, inside);
    if (tensor_size(dx) == 0) return;
    CALL_BY_TYPE(dx.dtype, packs_fit(dx.dim[1], dx), launch_keep, dx, inside, stream);
}
