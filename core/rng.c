// SPDX-License-Identifier: Apache-2.0
#include "core/rng.h"
#include <math.h>

// Philox 4x32 with 10 rounds, constants of Salmon et al., "Parallel random numbers: as easy as 1, 2, 3"
// (SC'11).
static void philox(uint32_t x[4], uint32_t key0, uint32_t key1) {
    for (int round = 0; round < 10; round++) {
        uint64_t a = (uint64_t)0xD2511F53u * x[0], b = (uint64_t)0xCD9E8D57u * x[2];
        uint32_t y0 = (uint32_t)(b >> 32) ^ x[1] ^ key0, y2 = (uint32_t)(a >> 32) ^ x[3] ^ key1;
        x[1] = (uint32_t)b;
        x[3] = (uint32_t)a;
        x[0] = y0;
        x[2] = y2;
        key0 += 0x9E3779B9u;
        key1 += 0xBB67AE85u;
    }
}

static void block(uint32_t x[4], uint64_t seed, uint64_t stream, uint64_t index) {
    x[0] = (uint32_t)index;
    x[1] = (uint32_t)(index >> 32);
    x[2] = (uint32_t)stream;
    x[3] = (uint32_t)(stream >> 32);
    philox(x, (uint32_t)seed, (uint32_t)(seed >> 32));
}

uint64_t rng_u64(uint64_t seed, uint64_t stream, uint64_t index) {
    uint32_t x[4];
    block(x, seed, stream, index);
    return (uint64_t)x[1] << 32 | x[0];
}

double rng_uniform(uint64_t seed, uint64_t stream, uint64_t index) {
    return (double)(rng_u64(seed, stream, index) >> 11) * 0x1p-53;
}

float rng_normal(uint64_t seed, uint64_t stream, uint64_t index) {
    uint32_t x[4];
    block(x, seed, stream, index);
    double u = ((double)x[0] + 1.0) * 0x1p-32, angle = (double)x[1] * (6.283185307179586477 * 0x1p-32);
    return (float)(sqrt(-2.0 * log(u)) * cos(angle));
}

uint64_t hash_text(const char *text) {
    uint64_t hash = 0xcbf29ce484222325u;
    for (; *text; text++) hash = (hash ^ (unsigned char)*text) * 0x100000001b3u;
    return hash;
}

uint64_t hash_mix(uint64_t a, uint64_t b) {
    uint64_t z = a + 0x9e3779b97f4a7c15u * (b + 1);
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}
