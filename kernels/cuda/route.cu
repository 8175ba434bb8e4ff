// SPDX-License-Identifier: Apache-2.0
// The router after its matrix: scores and choice, weights, statistics, gradient. A warp has a token; its
// lanes take the experts in turn, each lane always the same ones.
#include "kernels/cuda/cuda.h"
#include <float.h>

constexpr float smallest_divisor = 0x1p-23f;
constexpr unsigned ALL_LANES = 0xffffffffu;
constexpr int WARPS = 8, ROUTE_THREADS = WARPS * WARP;

// Calls function<HELD>(arguments…): a lane keeps up to HELD experts in registers, more stay in memory.
#define CALL_BY_EXPERTS(E, function, ...)                                                                    \
    do {                                                                                                     \
        if ((E) <= WARP)                                                                                     \
            function<1>(__VA_ARGS__);                                                                        \
        else if ((E) <= 4 * WARP)                                                                            \
            function<4>(__VA_ARGS__);                                                                        \
        else if ((E) <= 8 * WARP)                                                                            \
            function<8>(__VA_ARGS__);                                                                        \
        else                                                                                                 \
            function<12>(__VA_ARGS__);                                                                       \
    } while (0)

// f(expert, its number of the row) for the experts of this lane: held, or in memory at rest[expert].
template <int HELD, typename F>
static __device__ __forceinline__ void each_expert(int E, float (&held)[HELD], float *rest, F f) {
    int lane = threadIdx.x % WARP;
#pragma unroll
    for (int i = 0; i < HELD; i++)
        if (lane + i * WARP < E) f(lane + i * WARP, held[i]);
    for (int e = lane + HELD * WARP; e < E; e += WARP) f(e, rest[e]);
}
template <int HELD, typename F>
static __device__ __forceinline__ void each_expert(int E, const float (&a)[HELD], const float *rest_a,
                                                   float (&b)[HELD], float *rest_b, F f) {
    int lane = threadIdx.x % WARP;
#pragma unroll
    for (int i = 0; i < HELD; i++)
        if (lane + i * WARP < E) f(lane + i * WARP, a[i], b[i]);
    for (int e = lane + HELD * WARP; e < E; e += WARP) f(e, rest_a[e], rest_b[e]);
}

static __device__ __forceinline__ int64_t token_of_warp(void) {
    return (int64_t)blockIdx.x * WARPS + threadIdx.x / WARP;
}

// ---- scores and choice

static __device__ __forceinline__ float warp_max(float x) {
#pragma unroll
    for (int apart = WARP / 2; apart > 0; apart /= 2) x = fmaxf(x, __shfl_xor_sync(ALL_LANES, x, apart));
    return x;
}

// Orders like the score, NaN below every number; never 0. + 0: a zero has no sign.
static __device__ __forceinline__ unsigned order_of(float score) {
    int bits = __float_as_int(isnan(score) ? -3e38f : score + 0.0f);
    return bits < 0 ? ~(unsigned)bits : (unsigned)bits | 0x80000000u;
}

// The k experts that come first by (larger order, lower expert): each time the first behind the last one.
// order holds those of registers; others are made again from p.
template <int HELD>
static __device__ __forceinline__ void choose(int32_t *index, const unsigned (&order)[HELD], const float *p,
                                              const float *bias, int E, int k) {
    int lane = threadIdx.x % WARP, last_expert = -1;
    unsigned last = UINT32_MAX;
    for (int j = 0; j < k; j++) {
        unsigned best = 0;
        int expert = INT32_MAX;
        auto consider = [&](int e, unsigned o) {
            if (o > best && (o < last || (o == last && e > last_expert))) {
                best = o;
                expert = e;
            }
        };
#pragma unroll
        for (int i = 0; i < HELD; i++) consider(lane + i * WARP, order[i]);
        for (int e = lane + HELD * WARP; e < E; e += WARP)
            consider(e, order_of(p[e] + (bias ? bias[e] : 0.0f)));
        last = __reduce_max_sync(ALL_LANES, best);
        last_expert = __reduce_min_sync(ALL_LANES, best == last ? expert : INT32_MAX);
        if (lane == 0) index[j] = last_expert;
    }
}

// probs may be logits.
template <int HELD>
static __global__ void __launch_bounds__(ROUTE_THREADS)
    score_rows(float *probs, float *lse, int32_t *index, const float *logits, const float *bias, int64_t T,
               int E, int k, bool softmax) {
    int64_t t = token_of_warp();
    if (t >= T) return;
    const float *from = logits + t * E;
    float *p = probs + t * E, held[HELD] = {}, most = -INFINITY, sum = 0;
    each_expert(E, held, p, [&](int e, float &x) {
        x = from[e];
        most = fmaxf(most, x);
    });
    most = warp_max(most);
    each_expert(E, held, p, [&](int, float &x) {
        float term = expf(x - most);
        sum += term;
        x = softmax ? term : 1.0f / (1.0f + expf(-x));
    });
    sum = warp_sum(sum);
    float scale = softmax ? 1.0f / sum : 1.0f;
    if (threadIdx.x % WARP == 0) lse[t] = most + logf(sum);
    each_expert(E, held, p, [&](int e, float &x) { p[e] = x *= scale; });
    unsigned order[HELD];
#pragma unroll
    for (int i = 0; i < HELD; i++) {
        int e = threadIdx.x % WARP + i * WARP;
        order[i] = e < E ? order_of(held[i] + (bias ? bias[e] : 0.0f)) : 0;
    }
    choose(index + t * k, order, p, bias, E, k);
}

template <int HELD>
static void launch_scores(Tensor probs, Tensor lse, Tensor index, Tensor logits, Tensor bias,
                          ScoreKind scores, Stream stream) {
    int64_t T = logits.dim[0];
    CUDA_LAUNCH(score_rows<HELD>, (unsigned)ceil_div(T, WARPS), ROUTE_THREADS, 0, stream, tensor_f32(probs),
                tensor_f32(lse), tensor_i32(index), tensor_f32(logits),
                tensor_exists(bias) ? tensor_f32(bias) : nullptr, T, (int)logits.dim[1], (int)index.dim[1],
                scores == SCORES_SOFTMAX);
}

void KERNEL(route_scores)(Tensor probs, Tensor lse, Tensor index, Tensor logits, Tensor bias,
                          ScoreKind scores, Stream stream) {
    int64_t T = logits.dim[0], E = logits.dim[1], k = index.dim[1];
    REQUIRE(probs.dim[0] == T && probs.dim[1] == E && lse.dim[0] == T && index.dim[0] == T && k >= 1 &&
                k <= E && E <= INT32_MAX && (!tensor_exists(bias) || bias.dim[0] == E),
            "route_scores: logits (%ld, %ld), probs (%ld, %ld), index (%ld, %ld)", (long)T, (long)E,
            (long)probs.dim[0], (long)probs.dim[1], (long)index.dim[0], (long)k);
    REQUIRE(logits.dtype == DTYPE_F32 && probs.dtype == DTYPE_F32, "route_scores: logits are f32, not %s",
            dtype_name(logits.dtype));
    if (T == 0) return;
    CALL_BY_EXPERTS(E, launch_scores, probs, lse, index, logits, bias, scores, stream);
}

// ---- weights

// A thread has a token.
static __global__ void __launch_bounds__(ROUTE_THREADS)
    weigh(float *weight, const float *probs, const int32_t *index, const int32_t *kept, int64_t T, int64_t E,
          int k, bool renormalize) {
    int64_t t = (int64_t)blockIdx.x * ROUTE_THREADS + threadIdx.x;
    if (t >= T) return;
    const float *p = probs + t * E;
    float sum = 0;
    for (int64_t i = t * k; i < (t + 1) * k; i++) {
        float w = !kept || kept[i] ? p[index[i]] : 0.0f;
        weight[i] = w;
        sum += w;
    }
    if (!renormalize) return;
    float divisor = sum < smallest_divisor ? smallest_divisor : sum;
    for (int64_t i = t * k; i < (t + 1) * k; i++) weight[i] /= divisor;
}

void KERNEL(route_weights)(Tensor weight, Tensor probs, Tensor index, Tensor kept, bool renormalize,
                           Stream stream) {
    int64_t T = index.dim[0], k = index.dim[1], E = probs.dim[1];
    REQUIRE(tensor_size(weight) == T * k && probs.dim[0] == T && k <= INT32_MAX &&
                (!tensor_exists(kept) || tensor_size(kept) == T * k),
            "route_weights: index (%ld, %ld), %ld weights, %ld rows of probs", (long)T, (long)k,
            (long)tensor_size(weight), (long)probs.dim[0]);
    if (T == 0) return;
    CUDA_LAUNCH(weigh, (unsigned)ceil_div(T, ROUTE_THREADS), ROUTE_THREADS, 0, stream, tensor_f32(weight),
                tensor_f32(probs), tensor_i32(index), tensor_exists(kept) ? tensor_i32(kept) : nullptr, T, E,
                (int)k, renormalize);
}

// ---- statistics: a block has a slice of a group's tokens; slices are added up afterwards

constexpr int MOST_SLICES = 512, SLICE_TOKENS = 32, MOST_EXPERTS = 4096;

// (blocks, E) each.
struct Stats {
    int32_t *chosen, *first;
    float *prob_sum;
};
// Tokens of a group, slices of it, tokens of a slice.
struct Slices {
    int64_t group;
    int count, tokens;
};

static __device__ float share_of(float sum) {
    return 1.0f / (sum < FLT_MIN ? FLT_MIN : sum);
}

// How often each expert was chosen in `pairs` pairs, whole tokens.
static __device__ void count_choices(int32_t *chosen, int32_t *first, const int32_t *index, int pairs, int E,
                                     int k) {
    DYNAMIC_SHARED(count, int32_t); // (2, E)
    for (int e = threadIdx.x; e < 2 * E; e += blockDim.x) count[e] = 0;
    __syncthreads();
    for (int i = threadIdx.x; i < pairs; i += blockDim.x) {
        atomicAdd(&count[index[i]], 1);
        if (i % k == 0) atomicAdd(&count[E + index[i]], 1);
    }
    __syncthreads();
    for (int e = threadIdx.x; e < E; e += blockDim.x) {
        chosen[e] = count[e];
        first[e] = count[E + e];
    }
}

// Σ of a row of probabilities, of which the warp holds the columns from `column` on.
template <int HELD>
static __device__ __forceinline__ float row_sum(const float (&held)[HELD], const float *p, int column,
                                                int E) {
    float sum = 0;
#pragma unroll
    for (int i = 0; i < HELD; i++) sum += held[i];
    if (E > HELD * WARP)
        for (int e = threadIdx.x % WARP; e < E; e += WARP)
            if (e < column || e >= column + HELD * WARP) sum += p[e];
    return warp_sum(sum);
}

// A block (slice, columns): the sums of up to HELD·WARP experts; blocks of the first columns count choices.
template <int HELD>
static __global__ void __launch_bounds__(ROUTE_THREADS)
    add_tokens(Stats stats, const float *probs, const int32_t *index, Slices slices, int E, int k,
               bool shares) {
    SHARED(sums, float[WARPS][HELD * WARP]);
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, column = blockIdx.y * HELD * WARP;
    int64_t begin = (int64_t)(blockIdx.x % slices.count) * slices.tokens, left = slices.group - begin;
    int64_t token = blockIdx.x / slices.count * slices.group + begin;
    int tokens = left < slices.tokens ? (int)left : slices.tokens;
    constexpr int AT_ONCE = HELD > 4 ? 2 : 4; // tokens of a warp under way
    float sum[HELD] = {};
    for (int t = warp; t < tokens; t += AT_ONCE * WARPS) {
        float p[AT_ONCE][HELD];
#pragma unroll
        for (int a = 0; a < AT_ONCE; a++)
#pragma unroll
            for (int i = 0; i < HELD; i++) {
                int e = column + lane + i * WARP;
                bool there = e < E && t + a * WARPS < tokens;
                p[a][i] = there ? probs[(token + t + a * WARPS) * E + e] : 0.0f;
            }
#pragma unroll
        for (int a = 0; a < AT_ONCE; a++) {
            float share = 1;
            if (shares && t + a * WARPS < tokens)
                share = share_of(row_sum(p[a], probs + (token + t + a * WARPS) * E, column, E));
#pragma unroll
            for (int i = 0; i < HELD; i++) sum[i] += p[a][i] * share;
        }
    }
#pragma unroll
    for (int i = 0; i < HELD; i++) sums[warp][lane + i * WARP] = sum[i];
    __syncthreads();
    for (int c = threadIdx.x; c < HELD * WARP && column + c < E; c += ROUTE_THREADS) {
        float total = 0;
        for (int w = 0; w < WARPS; w++) total += sums[w][c];
        stats.prob_sum[(int64_t)blockIdx.x * E + column + c] = total;
    }
    if (blockIdx.y == 0)
        count_choices(stats.chosen + (int64_t)blockIdx.x * E, stats.first + (int64_t)blockIdx.x * E,
                      index + token * k, tokens * k, E, k);
}

// to (G, E) = Σ of the group's slices; block (WARP experts, WARPS parts of the slices) of group blockIdx.y.
static __global__ void __launch_bounds__(ROUTE_THREADS) add_slices(Stats to, Stats from, int slices, int E) {
    SHARED(sums, float[WARPS][WARP]);
    SHARED(counts, int32_t[2][WARPS][WARP]);
    int x = threadIdx.x, y = threadIdx.y, e = blockIdx.x * WARP + x, chosen = 0, first = 0;
    float sum = 0;
    if (e < E)
        for (int s = y; s < slices; s += WARPS) {
            int64_t i = ((int64_t)blockIdx.y * slices + s) * E + e;
            sum += from.prob_sum[i];
            chosen += from.chosen[i];
            first += from.first[i];
        }
    sums[y][x] = sum;
    counts[0][y][x] = chosen;
    counts[1][y][x] = first;
    __syncthreads();
    if (y > 0 || e >= E) return;
    for (int part = 1; part < WARPS; part++) {
        sum += sums[part][x];
        chosen += counts[0][part][x];
        first += counts[1][part][x];
    }
    int64_t i = (int64_t)blockIdx.y * E + e;
    to.prob_sum[i] = sum;
    to.chosen[i] = chosen;
    to.first[i] = first;
}

template <int HELD>
static void launch_stats(Stats stats, Tensor probs, Tensor index, Slices slices, int64_t blocks,
                         ScoreKind scores, Stream stream) {
    int E = (int)probs.dim[1];
    CUDA_LAUNCH(add_tokens<HELD>, dim3((unsigned)blocks, (unsigned)ceil_div(E, HELD * WARP)), ROUTE_THREADS,
                2 * (size_t)E * sizeof(int32_t), stream, stats, tensor_f32(probs), tensor_i32(index), slices,
                E, (int)index.dim[1], scores == SCORES_SIGMOID);
}

void KERNEL(route_stats)(Tensor chosen, Tensor first, Tensor prob_sum, Tensor probs, Tensor index,
                         ScoreKind scores, Stream stream) {
    int64_t T = probs.dim[0], E = probs.dim[1], k = index.dim[1], G = chosen.dim[0];
    REQUIRE(G >= 1 && T % G == 0 && chosen.dim[1] == E && tensor_size(first) == G * E &&
                tensor_size(prob_sum) == G * E && index.dim[0] == T && T * k <= INT32_MAX,
            "route_stats: %ld tokens in %ld groups, %ld experts for %ld", (long)T, (long)G,
            (long)chosen.dim[1], (long)E);
    REQUIRE(E <= MOST_EXPERTS, "route_stats: %ld experts, at most %d fit a block", (long)E, MOST_EXPERTS);
    int64_t tokens = ceil_div(T, MOST_SLICES) > SLICE_TOKENS ? ceil_div(T, MOST_SLICES) : SLICE_TOKENS;
    int64_t count = ceil_div(T / G, tokens) > 1 ? ceil_div(T / G, tokens) : 1, blocks = G * count;
    Slices slices = {T / G, (int)count, (int)tokens};
    Stats to = {tensor_i32(chosen), tensor_i32(first), tensor_f32(prob_sum)}, part = to;
    if (count > 1) {
        part.chosen = (int32_t *)stream_scratch(stream, (size_t)(3 * blocks * E) * sizeof(int32_t));
        part.first = part.chosen + blocks * E;
        part.prob_sum = (float *)(part.first + blocks * E);
    }
    CALL_BY_EXPERTS(E, launch_stats, part, probs, index, slices, blocks, scores, stream);
    if (count > 1)
        CUDA_LAUNCH(add_slices, dim3((unsigned)ceil_div(E, WARP), (unsigned)G), dim3(WARP, WARPS), 0, stream,
                    to, part, (int)count, (int)E);
}

// ---- gradient

struct Gradient {
    float *dlogits;
    const float *dweight, *weight, *probs, *lse, *balance; // balance may be NULL
    const int32_t *index, *kept;                           // kept may be NULL
    int64_t T, group;                                      // tokens; tokens of a group
    int E, k;
    bool renormalize;
    float z_scale;
};

// dp = the gradient through the weights of token t. Where the divisor is clamped it is a constant.
template <int HELD>
static __device__ __forceinline__ void weights_backward(float (&dp)[HELD], float *rest, const Gradient &g,
                                                        int64_t t) {
    int lane = threadIdx.x % WARP, k = g.k;
    const float *p = g.probs + t * g.E, *dweight = g.dweight + t * k, *weight = g.weight + t * k;
    const int32_t *index = g.index + t * k, *kept = g.kept ? g.kept + t * k : nullptr;
    float sum = 0, mean = 0, divisor = 1;
    if (g.renormalize) {
        for (int j = lane; j < k; j += WARP) {
            sum += !kept || kept[j] ? p[index[j]] : 0.0f;
            mean += dweight[j] * weight[j];
        }
        sum = warp_sum(sum);
        mean = sum < smallest_divisor ? 0.0f : warp_sum(mean);
        divisor = sum < smallest_divisor ? smallest_divisor : sum;
    }
    each_expert(g.E, dp, rest, [](int, float &d) { d = 0; });
    for (int begin = 0; begin < k; begin += WARP) {
        int j = begin + lane, count = k - begin < WARP ? k - begin : WARP;
        bool there = j < k && (!kept || kept[j]);
        int choice = there ? index[j] : -1;
        float d = there ? (dweight[j] - mean) / divisor : 0.0f;
        for (int from = 0; from < count; from++) { // to the lane of the expert
            int e = __shfl_sync(ALL_LANES, choice, from);
            float value = __shfl_sync(ALL_LANES, d, from);
#pragma unroll
            for (int i = 0; i < HELD; i++)
                if (e == lane + i * WARP) dp[i] += value;
            if (e >= HELD * WARP && e % WARP == lane) rest[e] += value;
        }
    }
}

template <int HELD>
static __device__ __forceinline__ void softmax_backward(float (&dp)[HELD], float *rest,
                                                        const float (&p)[HELD], const float *probs,
                                                        const float *b, float z, int E) {
    float along = 0;
    each_expert(E, p, probs, dp, rest, [&](int e, float pe, float &d) {
        if (b) d += b[e];
        along += pe * d;
    });
    float shift = z - warp_sum(along);
    each_expert(E, p, probs, dp, rest, [&](int e, float pe, float &d) { rest[e] = pe * (d + shift); });
}

// b acts on p/S: where all p are tiny 1/S is huge, p/S is not.
template <int HELD>
static __device__ __forceinline__ void sigmoid_backward(float (&dp)[HELD], float *rest,
                                                        const float (&p)[HELD], const float *probs,
                                                        const float *b, int E) {
    float share = 0, mean = 0;
    if (b) {
        float sums[2] = {0, 0}; // Σ p, Σ p·b
        each_expert(E, p, probs, dp, rest, [&](int e, float pe, float &) {
            sums[0] += pe;
            sums[1] += pe * b[e];
        });
        share = share_of(warp_sum(sums[0]));
        mean = warp_sum(sums[1]) * share;
    }
    each_expert(E, p, probs, dp, rest, [&](int e, float pe, float &d) {
        float balance = b ? pe * share * (b[e] - mean) : 0.0f;
        rest[e] = (1.0f - pe) * (pe * d + balance);
    });
}

// Blocks of a multiprocessor: registers for all that is held; asked for more of them, some would go to
// memory.
template <int HELD>
static __global__ void __launch_bounds__(ROUTE_THREADS, HELD > 8 ? 2 : 3)
    backward_tokens(Gradient g, bool softmax) {
    int64_t t = token_of_warp();
    if (t >= g.T) return;
    const float *probs = g.probs + t * g.E, *b = g.balance ? g.balance + t / g.group * g.E : nullptr;
    float p[HELD], dp[HELD], *dlogits = g.dlogits + t * g.E;
#pragma unroll
    for (int i = 0; i < HELD; i++) {
        int e = threadIdx.x % WARP + i * WARP;
        p[i] = e < g.E ? probs[e] : 0.0f;
    }
    weights_backward(dp, dlogits, g, t);
    if (softmax)
        softmax_backward(dp, dlogits, p, probs, b, g.z_scale * 2.0f * g.lse[t], g.E);
    else
        sigmoid_backward(dp, dlogits, p, probs, b, g.E);
}

template <int HELD> static void launch_backward(Gradient g, ScoreKind scores, Stream stream) {
    CUDA_LAUNCH(backward_tokens<HELD>, (unsigned)ceil_div(g.T, WARPS), ROUTE_THREADS, 0, stream, g,
                scores == SCORES_SOFTMAX);
}

void KERNEL(route_backward)(Tensor dlogits, Tensor dweight, Tensor weight, Tensor probs, Tensor lse,
                            Tensor index, Tensor kept, Tensor balance, bool renormalize, ScoreKind scores,
                            float z_scale, Stream stream) {
    int64_t T = probs.dim[0], E = probs.dim[1], k = index.dim[1];
    bool balanced = tensor_exists(balance);
    int64_t G = balanced ? balance.dim[0] : 1;
    REQUIRE(dlogits.dim[0] == T && dlogits.dim[1] == E && tensor_size(dweight) == T * k &&
                tensor_size(weight) == T * k && lse.dim[0] == T && index.dim[0] == T && G >= 1 &&
                T % G == 0 && (!balanced || balance.dim[1] == E) && E <= INT32_MAX && k <= INT32_MAX,
            "route_backward: probs (%ld, %ld), dlogits (%ld, %ld), index (%ld, %ld), %ld groups", (long)T,
            (long)E, (long)dlogits.dim[0], (long)dlogits.dim[1], (long)index.dim[0], (long)k, (long)G);
    REQUIRE(scores == SCORES_SOFTMAX || z_scale == 0, "route_backward: sigmoid scores with z-loss of %g",
            (double)z_scale);
    if (T == 0) return;
    Gradient g = {tensor_f32(dlogits),
                  tensor_f32(dweight),
                  tensor_f32(weight),
                  tensor_f32(probs),
                  tensor_f32(lse),
                  balanced ? tensor_f32(balance) : nullptr,
                  tensor_i32(index),
                  tensor_exists(kept) ? tensor_i32(kept) : nullptr,
                  T,
                  T / G,
                  (int)E,
                  (int)k,
                  renormalize,
                  z_scale};
    CALL_BY_EXPERTS(E, launch_backward, g, scores, stream);
}
