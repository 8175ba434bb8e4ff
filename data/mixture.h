// SPDX-License-Identifier: Apache-2.0
// N samples spread over sources in exact proportion to integer weights, as a closed formula: which source
// sample n takes its turn from, and which of that source's samples it is, cost a binary search and no memory.
// docs/formats.md has the formula. Within any prefix each source is a few samples from its share; at N its
// count is its quota.
#pragma once
#include <stdint.h>

typedef struct {
    int sources;
    int64_t samples; // N
    int64_t block;   // P; the last block takes the rest too: P … 2P − 1 samples
    int64_t blocks;
    int64_t stride, last_stride; // A of a block and of the last one
    int64_t *cumulative;         // [sources + 1]: Q_1 + … + Q_j
} Mixture;

// Quotas by largest remainders (ties: the first source). Some weight > 0; samples > 0.
Mixture mixture_create(const int64_t *weight, int sources, int64_t samples);
void mixture_free(Mixture *mixture);
int64_t mixture_quota(const Mixture *mixture, int source);
// Source of sample n in [0, N). ordinal in [0, quota) numbers the source's samples; each comes once, a
// block's before the next block's.
int mixture_source(const Mixture *mixture, int64_t n, int64_t *ordinal);
// Adds to count[sources] how many of the first n in [0, N] samples are of each source; closed form.
void mixture_count(const Mixture *mixture, int64_t n, int64_t *count);

// Image of r under a keyed bijection of [0, n): a 6-round Feistel network on the next even number of bits,
// walked until it lands inside.
int64_t feistel_permute(int64_t r, int64_t n, uint64_t key);
