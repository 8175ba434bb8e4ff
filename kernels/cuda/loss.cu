// SPDX-License-Identifier: Apache-2.0
// Both ends of the model: token embedding and cross-entropy.
#include "kernels/cuda/row.h"

constexpr int THREADS = 256;

static __device__ __forceinline__ int64_t checked_token(const int32_t *tokens, int64_t t, int64_t limit) {
    int64_t token = tokens[t];
    if (token < 0 || token >= limit) __trap();
    return token;
}

// ---- embedding

template <typename T, int WIDTH>
static __global__ void copy_rows(T *y, const T *table, const int32_t *tokens, int64_t words, int64_t h) {
    typedef Pack<T, WIDTH> P;
    const P *from = reinterpret_cast<const P *>(table + checked_token(tokens, blockIdx.x, words) * h);
    P *to = reinterpret_cast<P *>(y + blockIdx.x * h);
    for (int64_t at = threadIdx.x; at < h / WIDTH; at += blockDim.x) to[at] = from[at];
}

template <typename T, int WIDTH>
static void launch_copy(Tensor y, Tensor table, Tensor tokens, Stream stream) {
    int64_t h = table.dim[1];
    CUDA_LAUNCH((copy_rows<T, WIDTH>), (unsigned)tokens.dim[0], row_threads(h / WIDTH, THREADS), 0, stream,
                (T *)y.data, (const T *)table.data, tensor_i32(tokens), table.dim[0], h);
}

void KERNEL(embedding_forward)(Tensor y, Tensor table, Tensor tokens, Stream stream) {
    int64_t T = tokens.dim[0], h = table.dim[1];
    REQUIRE(y.dim[0] == T && y.dim[1] == h && y.dtype == table.dtype && tokens.dtype == DTYPE_I32,
            "embedding: (%ld, %ld) from %ld tokens of width %ld", (long)y.dim[0], (long)y.dim[1], (long)T,
            (long)h);
    if (T == 0) return;
    CALL_BY_TYPE(y.dtype, packs_fit(h, y, table), launch_copy, y, table, tokens, stream);
}

// The rows of dy are added token by token in their order: first their places are sorted by token, stably, by
// counting for each how many go before it. T² comparisons: 32768 tokens make 1e9, less than a millisecond's
// work; then one block sums the rows of one token, for some of the columns.
static __global__ void sort_tokens(int32_t *sorted, int32_t *place, const int32_t *tokens, int T,
                                   int64_t words) {
    SHARED(tile, int32_t[THREADS]);
    int t = blockIdx.x * THREADS + threadIdx.x, before = 0;
    int32_t token = t < T ? (int32_t)checked_token(tokens, t, words) : 0;
    for (int first = 0; first < T; first += THREADS) {
        int count = T - first < THREADS ? T - first : THREADS;
        __syncthreads();
        if ((int)threadIdx.x < count) tile[threadIdx.x] = tokens[first + threadIdx.x];
        __syncthreads();
        for (int i = 0; i < count; i++) before += tile[i] < token || (tile[i] == token && first + i < t);
    }
    if (t >= T) return;
    sorted[before] = token;
    place[before] = t;
}

constexpr int COLUMN_THREADS = 128;

template <typename T, int WIDTH>
static __global__ void add_rows(float *dtable, const T *dy, const int32_t *sorted, const int32_t *place,
                                int rows, int64_t h) {
    int first = blockIdx.x, last = rows;
    int32_t token = sorted[first];
    if (first > 0 && sorted[first - 1] == token) return;
    for (int low = first; last - low > 1;) { // last: the first place beyond this token's
        int middle = low + (last - low) / 2;
        if (sorted[middle] == token)
            low = middle;
        else
            last = middle;
    }
    int64_t at = ((int64_t)blockIdx.y * COLUMN_THREADS + threadIdx.x) * WIDTH;
    if (at >= h) return;
    Floats<WIDTH> sum;
    sum.load(dtable + token * h + at);
#pragma unroll 4
    for (int i = first; i < last; i++) {
        Pack<T, WIDTH> p = *reinterpret_cast<const Pack<T, WIDTH> *>(dy + place[i] * h + at);
#pragma unroll
        for (int e = 0; e < WIDTH; e++) sum.at[e] += as_float(p.at[e]);
    }
    sum.store(dtable + token * h + at);
}

template <typename T, int WIDTH>
static void launch_add(Tensor dtable, Tensor dy, const int32_t *sorted, const int32_t *place, Stream stream) {
    int64_t rows = dy.dim[0], h = dy.dim[1];
    CUDA_LAUNCH((add_rows<T, WIDTH>), dim3((unsigned)rows, (unsigned)ceil_div(h / WIDTH, COLUMN_THREADS)),
                COLUMN_THREADS, 0, stream, tensor_f32(dtable), (const T *)dy.data, sorted, place, (int)rows,
                h);
}

void KERNEL(embedding_backward)(Tensor dtable, Tensor dy, Tensor tokens, Stream stream) {
    int64_t T = tokens.dim[0], h = dtable.dim[1];
    REQUIRE(dy.dim[0] == T && dy.dim[1] == h && dtable.dtype == DTYPE_F32 && tokens.dtype == DTYPE_I32 &&
                T <= INT32_MAX,
            "embedding backward: (%ld, %ld) for %ld tokens of width %ld", (long)dy.dim[0], (long)dy.dim[1],
            (long)T, (long)h);
    if (T == 0) return;
    int32_t *sorted = (int32_t *)stream_scratch(stream, 2 * (size_t)T * sizeof(int32_t)), *place = sorted + T;
    CUDA_LAUNCH(sort_tokens, (unsigned)ceil_div(T, THREADS), THREADS, 0, stream, sorted, place,
                tensor_i32(tokens), (int)T, dtable.dim[0]);
    CALL_BY_TYPE(dy.dtype, packs_fit(h, dy, dtable), launch_add, dtable, dy, sorted, place, stream);
}

// ---- cross-entropy: a block for a row, which up to 8 packs of each thread hold in registers

constexpr int LOSS_HELD = 8, LOSS_THREADS = 512;

template <typename T, int WIDTH>
static __global__ void __launch_bounds__(LOSS_THREADS)
    cross_entropy_row(float *logprob, T *logits, const int32_t *targets, float grad_scale, int64_t V) {
    typedef Pack<T, WIDTH> P;
    int64_t packs = V / WIDTH, target = checked_token(targets, blockIdx.x, V);
    T *row = logits + blockIdx.x * V;
    float aim = as_float(row[target]), most = -INFINITY, sum = 0;
    Row<T, WIDTH, LOSS_HELD> x;
    x.load(row, packs);
    each_pack(packs, x, [&](int64_t, const P &p) {
#pragma unroll
        for (int i = 0; i < WIDTH; i++) most = fmaxf(most, as_float(p.at[i]));
    });
    most = block_max(most);
    each_pack(packs, x, [&](int64_t, const P &p) {
#pragma unroll
        for (int i = 0; i < WIDTH; i++) sum += expf(as_float(p.at[i]) - most);
    });
    sum = block_sum(sum); // all have read the target's logit by now
    if (threadIdx.x == 0) logprob[blockIdx.x] = aim - most - logf(sum);
    if (grad_scale == 0) return;
    float scale = grad_scale / sum;
    each_pack(packs, x, [&](int64_t at, const P &p) {
        P out;
#pragma unroll
        for (int i = 0; i < WIDTH; i++) {
            float value = expf(as_float(p.at[i]) - most) * scale;
            out.at[i] = rounded<T>(at * WIDTH + i == target ? value - grad_scale : value);
        }
        reinterpret_cast<P *>(row)[at] = out;
    });
}

template <typename T, int WIDTH>
static void launch_cross_entropy(Tensor logprob, Tensor logits, Tensor targets, float grad_scale,
                                 Stream stream) {
    int64_t V = logits.dim[1];
    CUDA_LAUNCH((cross_entropy_row<T, WIDTH>), (unsigned)logits.dim[0], row_threads(V / WIDTH, LOSS_THREADS),
                0, stream, tensor_f32(logprob), (T *)logits.data, tensor_i32(targets), grad_scale, V);
}

void KERNEL(cross_entropy)(Tensor logprob, Tensor logits, Tensor targets, float grad_scale, Stream stream) {
    int64_t T = logits.dim[0], V = logits.dim[1];
    REQUIRE(logprob.dim[0] == T && targets.dim[0] == T && V > 0 && logprob.dtype == DTYPE_F32 &&
                targets.dtype == DTYPE_I32,
            "cross entropy: logits (%ld, %ld), %ld targets", (long)T, (long)V, (long)targets.dim[0]);
    if (T == 0) return;
    CALL_BY_TYPE(logits.dtype, packs_fit(V, logits), launch_cross_entropy, logprob, logits, targets,
                 grad_scale, stream);
}
