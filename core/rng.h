// SPDX-License-Identifier: Apache-2.0
// Counter-based random numbers (Philox 4x32-10): the same (seed, stream, index) gives the same number on any
// rank, thread or device. Nothing is stateful, so nothing has to be checkpointed.
#pragma once
#include <stdint.h>
#ifdef __cplusplus
extern "C" {
#endif

uint64_t rng_u64(uint64_t seed, uint64_t stream, uint64_t index);
double rng_uniform(uint64_t seed, uint64_t stream, uint64_t index); // [0, 1)
float rng_normal(uint64_t seed, uint64_t stream, uint64_t index);   // mean 0, deviation 1 (Box-Muller)
uint64_t hash_text(const char *text);      // FNV-1a, 64 bits: a name as a stream number
uint64_t hash_mix(uint64_t a, uint64_t b); // splitmix64 of both
#ifdef __cplusplus
}
#endif
