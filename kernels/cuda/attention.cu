// SPDX-License-Identifier: Apache-2.0
// Attention forward with an online softmax over tiles of keys (Dao et al., FlashAttention, 2022).
#include "kernels/cuda/attention_tile.h"

// Of the thread's rows so far: the largest score, the sum of exp(score − most), that sum with the values.
template <int GROUPS> struct Softmax {
    float most[ROWS], sum[ROWS];
    Sums<GROUPS> out;
};

// Scores of the keys from `key` become weights, in shared memory as [key][row]; what was summed before is
// rescaled.
template <int GROUPS>
static __device__ __forceinline__ void take_scores(Softmax<GROUPS> &f, float *weight, Scores &score,
                                                   const Keys (&sees)[ROWS], int key, const AttentionShape &s,
                                                   const Place &at) {
#pragma unroll
    for (int i = 0; i < ROWS; i++) {
        float most = -INFINITY, sum = 0;
#pragma unroll
        for (int j = 0; j < KEYS; j++) {
            int place = key + at.key + j * LANES;
            float x = score[i][j] * s.scale;
            if (s.softcap > 0) x = s.softcap * tanhf(x / s.softcap);
            score[i][j] = x;
            if (place >= sees[i].first && place < sees[i].end) most = fmaxf(most, x);
        }
        most = fmaxf(f.most[i], row_max(most));
        // Equal also where no key was seen so far and both are −∞.
        float rescale = f.most[i] == most ? 1.0f : expf(f.most[i] - most);
        f.most[i] = most;
#pragma unroll
        for (int j = 0; j < KEYS; j++) {
            int place = key + at.key + j * LANES;
            bool seen = place >= sees[i].first && place < sees[i].end;
            score[i][j] = seen ? expf(score[i][j] - most) : 0.0f;
            sum += score[i][j];
        }
        f.sum[i] = f.sum[i] * rescale + row_sum(sum);
#pragma unroll
        for (int g = 0; g < GROUPS; g++)
#pragma unroll
            for (int e = 0; e < 4; e++) f.out[i][g][e] *= rescale;
    }
#pragma unroll
    for (int j = 0; j < KEYS; j++) {
        Quad column;
#pragma unroll
        for (int i = 0; i < ROWS; i++) column.at[i] = score[i][j];
        *reinterpret_cast<Quad *>(weight + (at.key + j * LANES) * SCORE_STRIDE + at.row) = column;
    }
}

// Grid (tiles of queries, heads, batch); the tiles with the most keys come first.
template <typename T, int GROUPS>
static __global__ void __launch_bounds__(THREADS, 8 / GROUPS)
    forward_tile(T *out, float *lse, const T *q, const T *k, const T *v, AttentionShape s, bool packs) {
    DYNAMIC_SHARED(memory, float);
    Place at = place_of(s);
    float *queries = memory, *keys = queries + TILE * at.stride, *values = keys + TILE * at.stride;
    float *weight = values + TILE * at.stride;
    int i = (int)(gridDim.x - 1 - blockIdx.x) * TILE, head = blockIdx.y, batch = blockIdx.z, d = s.head_dim;
    int group = s.heads / s.kv_heads, rows = at_most(TILE, s.q_len - i), end = s.q_offset + i + rows;
    load_tile<GROUPS>(queries, q + query_at(s, batch, head, i), at.q_stride, rows, d, packs, at);
    Keys sees[ROWS];
    Softmax<GROUPS> f;
    clear<GROUPS>(f.out);
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
        sees[r] = keys_of(s, batch, i + at.row + r);
        f.most[r] = -INFINITY;
        f.sum[r] = 0;
    }
    for (int key = first_tile(s, batch, i); key < end; key += TILE) {
        __syncthreads(); // the tiles before have been read
        int64_t from = key_at(s, batch, head / group, key);
        load_tile<GROUPS>(keys, k + from, at.kv_stride, s.kv_len - key, d, packs, at);
        load_tile<GROUPS>(values, v + from, at.kv_stride, s.kv_len - key, d, packs, at);
        __syncthreads();
        Scores score;
        products(score, queries, keys, at);
        take_scores<GROUPS>(f, weight, score, sees, key, s, at);
        __syncthreads();
        add_weighted<GROUPS>(f.out, weight, values, at);
    }
    float factor[ROWS];
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
        if (at.row + r < rows && sees[r].first >= sees[r].end) __trap(); // a document that starts later
        factor[r] = 1.0f / f.sum[r];
        if (at.row + r < rows && at.key == 0)
            lse[lse_at(s, batch, head, i + at.row + r)] = f.most[r] + logf(f.sum[r]);
    }
    store_rows<GROUPS>(out + query_at(s, batch, head, i), at.q_stride, rows, f.out, factor, d, packs, at);
}

template <typename T, int GROUPS>
static void launch_forward(Tensor out, Tensor lse, Tensor q, Tensor k, Tensor v, const AttentionShape *s,
                           Stream stream) {
    bool packs = quads_fit(s->head_dim, out, q, k, v);
    size_t shared = shared_bytes(s, 3, 1);
    allow_shared(forward_tile<T, GROUPS>, shared);
    CUDA_LAUNCH((forward_tile<T, GROUPS>), grid_of(s->q_len, s->heads, s->batch), THREADS, shared, stream,
                (T *)out.data, tensor_f32(lse), (const T *)q.data, (const T *)k.data, (const T *)v.data, *s,
                packs);
}

void KERNEL(own_attention_forward)(Tensor out, Tensor lse, Tensor q, Tensor k, Tensor v,
                                   const AttentionShape *shape, Stream stream) {
    if (tensor_size(q) == 0) return;
    CALL_BY_HEAD(q.dtype, shape->head_dim, launch_forward, out, lse, q, k, v, shape, stream);
}
