// SPDX-License-Identifier: Apache-2.0
// The router after its matrix: scores and choice, capacity, weights, order, statistics, gradient.
#include "kernels/cpu/vec.h"
#include <float.h>

static const float smallest_divisor = 0x1p-23f;

// The k largest scores, best first, ties to the lower expert. NaN loses against everything; if nothing else
// is left, the lowest experts are taken, so that indices are always valid and different. Destroys score.
static void choose(int32_t *index, float *score, int64_t E, int64_t k) {
    for (int64_t e = 0; e < E; e++)
        if (isnan(score[e])) score[e] = -3e38f;
    for (int64_t j = 0; j < k; j++) {
        int64_t best = 0;
        for (int64_t e = 1; e < E; e++) best = score[e] > score[best] ? e : best;
        index[j] = (int32_t)best;
        score[best] = -INFINITY;
    }
}

// p = softmax(x), or sigmoid(x); p may be x. Returns log Σ e^x. Destroys work (E).
static float score_row(float *p, const float *x, float *work, int64_t E, ScoreKind scores) {
    float most = largest(x, E), *term = scores == SCORES_SOFTMAX ? p : work;
    SIMD for (int64_t e = 0; e < E; e++) term[e] = fast_exp(x[e] - most);
    float sum = total(term, E), scale = 1.0f / sum;
    if (scores == SCORES_SOFTMAX) {
        SIMD for (int64_t e = 0; e < E; e++) p[e] *= scale;
    } else {
        SIMD for (int64_t e = 0; e < E; e++) p[e] = sigmoid(x[e]);
    }
    return most + logf(sum);
}

void KERNEL(route_scores)(Tensor probs, Tensor lse, Tensor index, Tensor logits, Tensor bias,
                          ScoreKind scores, Stream stream) {
    int64_t T = logits.dim[0], E = logits.dim[1], k = index.dim[1], batch = poll_rows(8 * E);
    REQUIRE(probs.dim[0] == T && probs.dim[1] == E && lse.dim[0] == T && index.dim[0] == T && k >= 1 &&
                k <= E && (!tensor_exists(bias) || bias.dim[0] == E),
            "route_scores: logits (%ld, %ld), probs (%ld, %ld), index (%ld, %ld)", (long)T, (long)E,
            (long)probs.dim[0], (long)probs.dim[1], (long)index.dim[0], (long)k);
    float *score = stream_scratch(stream, (size_t)E * sizeof *score);
    const float *shift = tensor_exists(bias) ? tensor_f32(bias) : NULL;
    for (int64_t t = 0; t < T; t++) {
        float *p = tensor_f32(probs) + t * E;
        tensor_f32(lse)[t] = score_row(p, tensor_f32(logits) + t * E, score, E, scores);
        SIMD for (int64_t e = 0; e < E; e++) score[e] = p[e] + (shift ? shift[e] : 0.0f);
        choose(tensor_i32(index) + t * k, score, E, k);
        if ((t + 1) % batch == 0) stream_poll(stream);
    }
}

// ---- capacity

// Pairs by falling probability, equal ones in pair order: a stable radix sort on the bits of p, which order
// like p because p ≥ 0. order and spare hold `pairs` numbers each; the result is in order.
static void sort_by_probability(uint32_t *order, uint32_t *spare, uint32_t *key, int64_t pairs) {
    for (int64_t i = 0; i < pairs; i++) order[i] = (uint32_t)i;
    for (int shift = 0; shift < 32; shift += 8) {
        int64_t place[257] = {0};
        for (int64_t i = 0; i < pairs; i++) place[(key[i] >> shift & 255) + 1]++;
        for (int d = 0; d < 256; d++) place[d + 1] += place[d];
        for (int64_t i = 0; i < pairs; i++) spare[place[key[order[i]] >> shift & 255]++] = order[i];
        uint32_t *swap = order;
        order = spare;
        spare = swap;
    }
}

void KERNEL(route_capacity)(Tensor kept, Tensor index, Tensor probs, int64_t capacity, DropPolicy policy,
                            Stream stream) {
    int64_t T = index.dim[0], k = index.dim[1], E = probs.dim[1], pairs = T * k;
    REQUIRE(kept.dim[0] == T && kept.dim[1] == k && probs.dim[0] == T && pairs <= INT32_MAX,
            "capacity: kept (%ld, %ld), index (%ld, %ld), probs (%ld, %ld)", (long)kept.dim[0],
            (long)kept.dim[1], (long)T, (long)k, (long)probs.dim[0], (long)E);
    size_t words = (size_t)E * 2 + (size_t)pairs * 3;
    int64_t *used = stream_scratch(stream, words * sizeof(uint32_t));
    uint32_t *order = (uint32_t *)(used + E), *spare = order + pairs, *key = spare + pairs;
    memset(used, 0, (size_t)E * sizeof *used);
    if (policy == DROP_PROBS) {
        for (int64_t i = 0; i < pairs; i++) {
            float p = tensor_f32(probs)[i / k * E + tensor_i32(index)[i]];
            memcpy(&key[i], &p, sizeof p);
            key[i] = ~key[i];
        }
        sort_by_probability(order, spare, key, pairs);
    } else {
        for (int64_t i = 0; i < pairs; i++) order[i] = (uint32_t)(i % T * k + i / T);
    }
    for (int64_t i = 0; i < pairs; i++) {
        int64_t *places = &used[tensor_i32(index)[order[i]]];
        tensor_i32(kept)[order[i]] = *places < capacity;
        ++*places;
    }
    stream_poll(stream);
}

// ---- weights and order

void KERNEL(route_weights)(Tensor weight, Tensor probs, Tensor index, Tensor kept, bool renormalize,
                           Stream stream) {
    int64_t T = index.dim[0], k = index.dim[1], E = probs.dim[1];
    REQUIRE(tensor_size(weight) == T * k && probs.dim[0] == T &&
                (!tensor_exists(kept) || tensor_size(kept) == T * k),
            "route_weights: index (%ld, %ld), %ld weights, %ld rows of probs", (long)T, (long)k,
            (long)tensor_size(weight), (long)probs.dim[0]);
    for (int64_t t = 0; t < T; t++) {
        const float *p = tensor_f32(probs) + t * E;
        float *w = tensor_f32(weight) + t * k, sum = 0;
        for (int64_t j = 0; j < k; j++) {
            bool keep = !tensor_exists(kept) || tensor_i32(kept)[t * k + j];
            w[j] = keep ? p[tensor_i32(index)[t * k + j]] : 0.0f;
            sum += w[j];
        }
        if (!renormalize) continue;
        float divisor = sum < smallest_divisor ? smallest_divisor : sum;
        for (int64_t j = 0; j < k; j++) w[j] /= divisor;
    }
    stream_poll(stream);
}

void KERNEL(route_sort)(Tensor row, Tensor counts, Tensor index, Tensor kept, Stream stream) {
    int64_t pairs = tensor_size(index), E = counts.dim[0];
    REQUIRE(tensor_size(row) == pairs && pairs <= INT32_MAX &&
                (!tensor_exists(kept) || tensor_size(kept) == pairs),
            "route_sort: %ld pairs, %ld places", (long)pairs, (long)tensor_size(row));
    const int32_t *expert = tensor_i32(index), *keep = tensor_exists(kept) ? tensor_i32(kept) : NULL;
    int32_t *count = tensor_i32(counts), *next = stream_scratch(stream, (size_t)E * sizeof *next);
    memset(count, 0, (size_t)E * sizeof *count);
    for (int64_t i = 0; i < pairs; i++) count[expert[i]] += !keep || keep[i];
    int32_t start = 0;
    for (int64_t e = 0; e < E; e++) {
        next[e] = start;
        start += count[e];
    }
    for (int64_t i = 0; i < pairs; i++) tensor_i32(row)[i] = !keep || keep[i] ? next[expert[i]]++ : -1;
    stream_poll(stream);
}

// 1/Σ p of sigmoid scores; where all of them vanish a share is 0, not NaN.
static float share_of(const float *p, int64_t E) {
    float sum = total(p, E);
    return 1.0f / (sum < FLT_MIN ? FLT_MIN : sum);
}

void KERNEL(route_stats)(Tensor chosen, Tensor first, Tensor prob_sum, Tensor probs, Tensor index,
                         ScoreKind scores, Stream stream) {
    int64_t T = probs.dim[0], E = probs.dim[1], k = index.dim[1], G = chosen.dim[0];
    REQUIRE(G >= 1 && T % G == 0 && chosen.dim[1] == E && tensor_size(first) == G * E &&
                tensor_size(prob_sum) == G * E && index.dim[0] == T,
            "route_stats: %ld tokens in %ld groups, %ld experts for %ld", (long)T, (long)G,
            (long)chosen.dim[1], (long)E);
    memset(chosen.data, 0, tensor_bytes(chosen));
    memset(first.data, 0, tensor_bytes(first));
    memset(prob_sum.data, 0, tensor_bytes(prob_sum));
    for (int64_t t = 0; t < T; t++) {
        int64_t group = t / (T / G) * E;
        const int32_t *choice = tensor_i32(index) + t * k;
        const float *p = tensor_f32(probs) + t * E;
        float *sum = tensor_f32(prob_sum) + group;
        for (int64_t j = 0; j < k; j++) tensor_i32(chosen)[group + choice[j]]++;
        tensor_i32(first)[group + choice[0]]++;
        if (scores == SCORES_SIGMOID) {
            float share = share_of(p, E);
            SIMD for (int64_t e = 0; e < E; e++) sum[e] += p[e] * share;
        } else {
            SIMD for (int64_t e = 0; e < E; e++) sum[e] += p[e];
        }
    }
    stream_poll(stream);
}

// ---- gradient

// Adds the gradient through one token's weights to dp. Where the divisor is clamped it is a constant.
static void weights_backward(float *dp, int64_t k, const float *dweight, const float *weight, const float *p,
                             const int32_t *choice, const int32_t *kept, bool renormalize) {
    float sum = 0, mean = 0, divisor = 1;
    if (renormalize) {
        for (int64_t j = 0; j < k; j++) sum += !kept || kept[j] ? p[choice[j]] : 0.0f;
        divisor = sum < smallest_divisor ? smallest_divisor : sum;
        if (sum >= smallest_divisor)
            for (int64_t j = 0; j < k; j++) mean += dweight[j] * weight[j];
    }
    for (int64_t j = 0; j < k; j++)
        if (!kept || kept[j]) dp[choice[j]] += (dweight[j] - mean) / divisor;
}

// dlogits of one token from dp, in place, with b as balance (E).
static void softmax_backward(float *dp, const float *p, const float *b, float z, int64_t E) {
    if (b) {
        SIMD for (int64_t e = 0; e < E; e++) dp[e] += b[e];
    }
    float shift = z - dot(p, dp, E);
    SIMD for (int64_t e = 0; e < E; e++) dp[e] = p[e] * (dp[e] + shift);
}

// b acts on p/S: where all p are tiny 1/S is huge, p/S is not.
static void sigmoid_backward(float *dp, const float *p, const float *b, int64_t E) {
    if (b) {
        float share = share_of(p, E), mean = dot(p, b, E) * share;
        SIMD for (int64_t e = 0; e < E; e++) dp[e] =
            (1.0f - p[e]) * (p[e] * dp[e] + p[e] * share * (b[e] - mean));
    } else {
        SIMD for (int64_t e = 0; e < E; e++) dp[e] *= p[e] * (1.0f - p[e]);
    }
}

void KERNEL(route_backward)(Tensor dlogits, Tensor dweight, Tensor weight, Tensor probs, Tensor lse,
                            Tensor index, Tensor kept, Tensor balance, bool renormalize, ScoreKind scores,
                            float z_scale, Stream stream) {
    int64_t T = probs.dim[0], E = probs.dim[1], k = index.dim[1], batch = poll_rows(8 * E);
    bool balanced = tensor_exists(balance);
    int64_t G = balanced ? balance.dim[0] : 1;
    REQUIRE(dlogits.dim[0] == T && dlogits.dim[1] == E && tensor_size(dweight) == T * k &&
                tensor_size(weight) == T * k && lse.dim[0] == T && index.dim[0] == T && G >= 1 &&
                T % G == 0 && (!balanced || balance.dim[1] == E),
            "route_backward: probs (%ld, %ld), dlogits (%ld, %ld), index (%ld, %ld), %ld groups", (long)T,
            (long)E, (long)dlogits.dim[0], (long)dlogits.dim[1], (long)index.dim[0], (long)k, (long)G);
    REQUIRE(scores == SCORES_SOFTMAX || z_scale == 0, "route_backward: sigmoid scores with z-loss of %g",
            (double)z_scale);
    for (int64_t t = 0; t < T; t++) {
        const float *p = tensor_f32(probs) + t * E;
        const float *b = balanced ? tensor_f32(balance) + t / (T / G) * E : NULL;
        float *dp = tensor_f32(dlogits) + t * E;
        memset(dp, 0, (size_t)E * sizeof *dp);
        weights_backward(dp, k, tensor_f32(dweight) + t * k, tensor_f32(weight) + t * k, p,
                         tensor_i32(index) + t * k, tensor_exists(kept) ? tensor_i32(kept) + t * k : NULL,
                         renormalize);
        if (scores == SCORES_SIGMOID)
            sigmoid_backward(dp, p, b, E);
        else
            softmax_backward(dp, p, b, z_scale * 2.0f * tensor_f32(lse)[t], E);
        if ((t + 1) % batch == 0) stream_poll(stream);
    }
}
