// SPDX-License-Identifier: Apache-2.0
// Attention backward: probabilities are computed again from the saved log-sum-exp, once for the queries'
// gradients and once for those of the keys and values.
#include "kernels/cuda/attention_tile.h"

// dot[lse_at] = Σ_c dout·out of a query's head; one warp each, THREADS / WARP a block.
template <typename T>
static __global__ void __launch_bounds__(THREADS)
    dot_rows(float *dot, const T *dout, const T *out, AttentionShape s) {
    int64_t row = (int64_t)blockIdx.x * (THREADS / WARP) + threadIdx.x / WARP; // of (batch, q_len, heads)
    if (row >= (int64_t)s.batch * s.q_len * s.heads) return;
    int lane = threadIdx.x % WARP;
    float sum = 0;
    for (int c = lane; c < s.head_dim; c += WARP)
        sum += as_float(dout[row * s.head_dim + c]) * as_float(out[row * s.head_dim + c]);
    sum = warp_sum(sum);
    int64_t query = row / s.heads;
    if (lane == 0) dot[lse_at(s, query / s.q_len, row % s.heads, query % s.q_len)] = sum;
}

// What a tile's queries, from query i, need of the forward pass; zeros beyond.
struct Queries {
    Keys sees[ROWS];
    float lse[ROWS], dot[ROWS];
};
static __device__ __forceinline__ void load_queries(Queries &t, const float *lse, const float *dot, int batch,
                                                    int head, int i, const AttentionShape &s,
                                                    const Place &at) {
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
        int query = i + at.row + r;
        int64_t from = lse_at(s, batch, head, query);
        t.sees[r] = keys_of(s, batch, query);
        t.lse[r] = query < s.q_len ? lse[from] : 0.0f;
        t.dot[r] = query < s.q_len ? dot[from] : 0.0f;
    }
}

// Products q·k and dout·v become probabilities and the gradients of q·k.
static __device__ __forceinline__ void score_gradients(Scores &p, Scores &dp, const Queries &t, int key,
                                                       const AttentionShape &s, const Place &at) {
#pragma unroll
    for (int i = 0; i < ROWS; i++)
#pragma unroll
        for (int j = 0; j < KEYS; j++) {
            int place = key + at.key + j * LANES;
            float x = p[i][j] * s.scale, slope = s.scale;
            if (s.softcap > 0) {
                float bent = tanhf(x / s.softcap);
                x = s.softcap * bent;
                slope *= (1.0f - bent) * (1.0f + bent);
            }
            bool seen = place >= t.sees[i].first && place < t.sees[i].end;
            p[i][j] = seen ? expf(x - t.lse[i]) : 0.0f;
            dp[i][j] = seen ? p[i][j] * (dp[i][j] - t.dot[i]) * slope : 0.0f;
        }
}

// Grid (tiles of queries, heads, batch).
template <typename T, int GROUPS>
static __global__ void __launch_bounds__(THREADS, 4 / GROUPS)
    query_gradients(T *dq, const T *dout, const float *lse, const float *dot, const T *q, const T *k,
                    const T *v, AttentionShape s, bool packs) {
    DYNAMIC_SHARED(memory, float);
    Place at = place_of(s);
    int tile = TILE * at.stride;
    float *queries = memory, *douts = queries + tile, *keys = douts + tile, *values = keys + tile;
    float *weight = values + tile;
    int i = (int)(gridDim.x - 1 - blockIdx.x) * TILE, head = blockIdx.y, batch = blockIdx.z, d = s.head_dim;
    int group = s.heads / s.kv_heads, rows = at_most(TILE, s.q_len - i), end = s.q_offset + i + rows;
    int64_t here = query_at(s, batch, head, i);
    load_tile<GROUPS>(queries, q + here, at.q_stride, rows, d, packs, at);
    load_tile<GROUPS>(douts, dout + here, at.q_stride, rows, d, packs, at);
    Queries t;
    load_queries(t, lse, dot, batch, head, i, s, at);
    Sums<GROUPS> sums;
    clear<GROUPS>(sums);
    for (int key = first_tile(s, batch, i); key < end; key += TILE) {
        __syncthreads(); // the tiles before have been read
        int64_t from = key_at(s, batch, head / group, key);
        load_tile<GROUPS>(keys, k + from, at.kv_stride, s.kv_len - key, d, packs, at);
        load_tile<GROUPS>(values, v + from, at.kv_stride, s.kv_len - key, d, packs, at);
        __syncthreads();
        Scores p, dp;
        products(p, queries, keys, at);
        products(dp, douts, values, at);
        score_gradients(p, dp, t, key, s, at);
#pragma unroll
        for (int j = 0; j < KEYS; j++) {
            Quad column;
#pragma unroll
            for (int r = 0; r < ROWS; r++) column.at[r] = dp[r][j];
            *reinterpret_cast<Quad *>(weight + (at.key + j * LANES) * SCORE_STRIDE + at.row) = column;
        }
        __syncthreads();
        add_weighted<GROUPS>(sums, weight, keys, at);
    }
    float factor[ROWS] = {1, 1, 1, 1};
    store_rows<GROUPS>(dq + here, at.q_stride, rows, sums, factor, d, packs, at);
}

// Whether any query of a tile sees any of the tile's keys; the same in all threads.
static __device__ __forceinline__ bool tiles_meet(const Queries &t, int key) {
    bool meet = false;
#pragma unroll
    for (int r = 0; r < ROWS; r++)
        meet |= at_least(t.sees[r].first, key) < at_most(t.sees[r].end, key + TILE);
    return __syncthreads_or(meet);
}

// Grid (tiles of keys, key heads, batch).
template <typename T, int GROUPS>
static __global__ void __launch_bounds__(THREADS, 4 / GROUPS)
    key_gradients(T *dk, T *dv, const T *dout, const float *lse, const float *dot, const T *q, const T *k,
                  const T *v, AttentionShape s, bool packs) {
    DYNAMIC_SHARED(memory, float);
    Place at = place_of(s);
    int tile = TILE * at.stride;
    float *keys = memory, *values = keys + tile, *queries = values + tile, *douts = queries + tile;
    float *weight = douts + tile, *slope = weight + TILE * SCORE_STRIDE;
    int key = (int)blockIdx.x * TILE, kv_head = blockIdx.y, batch = blockIdx.z, d = s.head_dim;
    int group = s.heads / s.kv_heads, rows = at_most(TILE, s.kv_len - key);
    int64_t here = key_at(s, batch, kv_head, key);
    load_tile<GROUPS>(keys, k + here, at.kv_stride, rows, d, packs, at);
    load_tile<GROUPS>(values, v + here, at.kv_stride, rows, d, packs, at);
    Sums<GROUPS> key_sums, value_sums;
    clear<GROUPS>(key_sums);
    clear<GROUPS>(value_sums);
    int first = at_least(key - s.q_offset, 0) / TILE * TILE; // queries before see no key of this tile
    for (int head = kv_head * group; head < (kv_head + 1) * group; head++)
        for (int i = first; i < s.q_len; i += TILE) {
            Queries t;
            load_queries(t, lse, dot, batch, head, i, s, at);
            if (!tiles_meet(t, key)) continue; // and the tiles before have been read
            int64_t from = query_at(s, batch, head, i);
            load_tile<GROUPS>(queries, q + from, at.q_stride, s.q_len - i, d, packs, at);
            load_tile<GROUPS>(douts, dout + from, at.q_stride, s.q_len - i, d, packs, at);
            __syncthreads();
            Scores p, dp;
            products(p, queries, keys, at);
            products(dp, douts, values, at);
            score_gradients(p, dp, t, key, s, at);
#pragma unroll
            for (int r = 0; r < ROWS; r++)
#pragma unroll
                for (int j = 0; j < KEYS; j++) {
                    int to = (at.row + r) * SCORE_STRIDE + at.key + j * LANES;
                    weight[to] = p[r][j];
                    slope[to] = dp[r][j];
                }
            __syncthreads();
            add_weighted<GROUPS>(value_sums, weight, douts, at);
            add_weighted<GROUPS>(key_sums, slope, queries, at);
        }
    float factor[ROWS] = {1, 1, 1, 1};
    store_rows<GROUPS>(dk + here, at.kv_stride, rows, key_sums, factor, d, packs, at);
    store_rows<GROUPS>(dv + here, at.kv_stride, rows, value_sums, factor, d, packs, at);
}

template <typename T, int GROUPS>
static void launch_backward(Tensor dq, Tensor dk, Tensor dv, Tensor dout, Tensor out, Tensor lse, Tensor q,
                            Tensor k, Tensor v, const AttentionShape *s, Stream stream) {
    bool packs = quads_fit(s->head_dim, dq, dk, dv, dout, q, k, v);
    int64_t rows = (int64_t)s->batch * s->q_len * s->heads;
    float *dot = (float *)stream_scratch(stream, (size_t)rows * sizeof(float));
    if (rows > 0) {
        size_t shared = shared_bytes(s, 4, 1);
        CUDA_LAUNCH((dot_rows<T>), (unsigned)ceil_div(rows, THREADS / WARP), THREADS, 0, stream, dot,
                    (const T *)dout.data, (const T *)out.data, *s);
        allow_shared(query_gradients<T, GROUPS>, shared);
        CUDA_LAUNCH((query_gradients<T, GROUPS>), grid_of(s->q_len, s->heads, s->batch), THREADS, shared,
                    stream, (T *)dq.data, (const T *)dout.data, tensor_f32(lse), dot, (const T *)q.data,
                    (const T *)k.data, (const T *)v.data, *s, packs);
    }
    size_t shared = shared_bytes(s, 4, 2);
    allow_shared(key_gradients<T, GROUPS>, shared);
    CUDA_LAUNCH((key_gradients<T, GROUPS>), grid_of(s->kv_len, s->kv_heads, s->batch), THREADS, shared,
                stream, (T *)dk.data, (T *)dv.data, (const T *)dout.data, tensor_f32(lse), dot,
                (const T *)q.data, (const T *)k.data, (const T *)v.data, *s, packs);
}

void KERNEL(own_attention_backward)(Tensor dq, Tensor dk, Tensor dv, Tensor dout, Tensor out, Tensor lse,
                                    Tensor q, Tensor k, Tensor v, const AttentionShape *shape,
                                    Stream stream) {
    if (shape->batch == 0 || shape->kv_len == 0) return;
    CALL_BY_HEAD(q.dtype, shape->head_dim, launch_backward, dq, dk, dv, dout, out, lse, q, k, v, shape,
                 stream);
}
