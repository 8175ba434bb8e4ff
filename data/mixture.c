// SPDX-License-Identifier: Apache-2.0
#include "data/mixture.h"
#include "core/status.h"
#include <stdbool.h>
#include <stdlib.h>

typedef unsigned __int128 Wide;

static int64_t greatest_common_divisor(int64_t a, int64_t b) {
    while (b) {
        int64_t rest = a % b;
        a = b;
        b = rest;
    }
    return a;
}

// The first integer ≥ odd(length / golden ratio) that has no factor in common with length.
static int64_t golden_stride(int64_t length) {
    int64_t stride = (int64_t)((Wide)(uint64_t)length * 0x9e3779b97f4a7c15u >> 64) | 1;
    while (greatest_common_divisor(stride, length) != 1) stride++;
    return stride;
}

// Hamilton's method: floors of the exact shares, then one more to each of the largest remainders.
static void set_quotas(Mixture *mixture, const int64_t *weight) {
    int sources = mixture->sources;
    Wide total = 0, *rest = calloc((size_t)sources, sizeof *rest);
    int64_t given = 0, *quota = mixture->cumulative + 1;
    REQUIRE(rest, "out of memory");
    for (int i = 0; i < sources; i++) total += (uint64_t)weight[i];
    REQUIRE(total > 0, "%d sources, all of weight 0", sources);
    for (int i = 0; i < sources; i++) {
        Wide share = (Wide)(uint64_t)weight[i] * (uint64_t)mixture->samples;
        quota[i] = (int64_t)(share / total);
        rest[i] = share % total;
        given += quota[i];
    }
    for (; given < mixture->samples; given++) {
        int best = 0;
        for (int i = 1; i < sources; i++)
            if (rest[i] > rest[best]) best = i;
        quota[best]++;
        rest[best] = 0;
    }
    free(rest);
}

Mixture mixture_create(const int64_t *weight, int sources, int64_t samples) {
    REQUIRE(sources > 0 && samples > 0, "%d sources, %lld samples", sources, (long long)samples);
    Mixture mixture = {.sources = sources, .samples = samples};
    mixture.cumulative = calloc((size_t)sources + 1, sizeof *mixture.cumulative);
    REQUIRE(mixture.cumulative, "out of memory");
    set_quotas(&mixture, weight);
    int64_t least = samples;
    for (int i = 1; i <= sources; i++) {
        int64_t quota = mixture.cumulative[i];
        if (quota > 0 && quota < least) least = quota;
        mixture.cumulative[i] += mixture.cumulative[i - 1];
    }
    // Large enough for one sample at least of each source, so that the counts below never go back.
    Wide block = 1024;
    while (block < (Wide)samples && block * (Wide)least < (Wide)samples) block *= 2;
    mixture.block = block < (Wide)samples ? (int64_t)block : samples;
    mixture.blocks = samples / mixture.block;
    mixture.stride = golden_stride(mixture.block);
    mixture.last_stride = golden_stride(samples - (mixture.blocks - 1) * mixture.block);
    return mixture;
}

void mixture_free(Mixture *mixture) {
    free(mixture->cumulative);
    *mixture = (Mixture){0};
}

int64_t mixture_quota(const Mixture *mixture, int source) {
    return mixture->cumulative[source + 1] - mixture->cumulative[source];
}

// C(x, j) = floor(x · (Q_1 + … + Q_j) / N)
static int64_t share(const Mixture *mixture, int64_t x, int j) {
    return (int64_t)((Wide)(uint64_t)x * (uint64_t)mixture->cumulative[j] / (uint64_t)mixture->samples);
}

typedef struct {
    int64_t low, high, length, stride;
} Block;

static Block block_of(const Mixture *mixture, int64_t n) {
    int64_t b = n / mixture->block;
    bool last = b >= mixture->blocks - 1;
    if (last) b = mixture->blocks - 1;
    int64_t low = b * mixture->block, high = last ? mixture->samples : low + mixture->block;
    return (Block){low, high, high - low, last ? mixture->last_stride : mixture->stride};
}

// Of the block's samples, those of sources 1 … j.
static int64_t block_share(const Mixture *mixture, const Block *block, int j) {
    return share(mixture, block->high, j) - share(mixture, block->low, j);
}

int mixture_source(const Mixture *mixture, int64_t n, int64_t *ordinal) {
    REQUIRE(n >= 0 && n < mixture->samples, "sample %lld of %lld", (long long)n, (long long)mixture->samples);
    Block block = block_of(mixture, n);
    int64_t turn =
        (int64_t)((Wide)(uint64_t)(n - block.low) * (uint64_t)block.stride % (uint64_t)block.length); // v
    int low = 0, high = mixture->sources - 1;
    while (low < high) {
        int middle = (low + high) / 2;
        if (turn < block_share(mixture, &block, middle + 1))
            high = middle;
        else
            low = middle + 1;
    }
    *ordinal = share(mixture, block.low, low + 1) - share(mixture, block.low, low) + turn -
               block_share(mixture, &block, low);
    return low;
}

// Sum over p in [0, n) of floor((a·p + b) / m), by the Euclidean recursion on lattice points.
static Wide floor_sum(Wide n, Wide m, Wide a, Wide b) {
    Wide sum = 0;
    for (;;) {
        sum += n * (n - 1) / 2 * (a / m) + n * (b / m);
        a %= m;
        b %= m;
        Wide top = a * n + b;
        if (top < m) return sum;
        n = top / m;
        b = top % m;
        Wide swap = m;
        m = a;
        a = swap;
    }
}

// How many p in [0, n) have p·stride mod length < bound.
static int64_t turns_below(const Block *block, int64_t n, int64_t bound) {
    if (n == 0) return 0;
    Wide length = (Wide)block->length, stride = (Wide)block->stride;
    return (int64_t)(floor_sum((Wide)n, length, stride, length) -
                     floor_sum((Wide)n, length, stride, length - (Wide)bound));
}

void mixture_count(const Mixture *mixture, int64_t n, int64_t *count) {
    REQUIRE(n >= 0 && n <= mixture->samples, "sample %lld of %lld", (long long)n,
            (long long)mixture->samples);
    Block block = block_of(mixture, n);
    int64_t before = 0;
    for (int j = 1; j <= mixture->sources; j++) {
        int64_t below = turns_below(&block, n - block.low, block_share(mixture, &block, j));
        count[j - 1] += share(mixture, block.low, j) - share(mixture, block.low, j - 1) + below - before;
        before = below;
    }
}

static uint64_t scramble(uint64_t x) { // splitmix64's finish
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
    x = (x ^ x >> 27) * 0x94d049bb133111ebu;
    return x ^ x >> 31;
}

int64_t feistel_permute(int64_t r, int64_t n, uint64_t key) {
    REQUIRE(r >= 0 && r < n, "%lld of %lld", (long long)r, (long long)n);
    if (n == 1) return 0;
    int bits = 64 - __builtin_clzll((unsigned long long)n - 1), half = (bits + 1) / 2;
    uint64_t mask = ((uint64_t)1 << half) - 1, x = (uint64_t)r;
    do {
        uint64_t left = x >> half, right = x & mask;
        for (uint64_t round = 0; round < 6; round++) {
            uint64_t next = left ^ (scramble(right + key + round * 0x9e3779b97f4a7c15u) & mask);
            left = right;
            right = next;
        }
        x = left << half | right;
    } while (x >= (uint64_t)n);
    return (int64_t)x;
}
