// SPDX-License-Identifier: Apache-2.0
// Vectors of the instruction set's width, and arithmetic on them whose order of operations does not depend on
// where the data lies: sums over rows must give the same bits wherever a row stands.
#pragma once
#include "kernels/cpu/cpu.h"

#if defined(__AVX512F__)
enum { LANES = 16 };
#elif defined(__AVX2__)
enum { LANES = 8 };
#else
enum { LANES = 4 };
#endif

typedef float Vec __attribute__((vector_size(LANES * 4), aligned(4), may_alias));
typedef int VecMask __attribute__((vector_size(LANES * 4)));
#define ALWAYS_INLINE static inline __attribute__((always_inline))

ALWAYS_INLINE float vec_total(Vec v) {
    float lane[LANES];
    memcpy(lane, &v, sizeof lane);
    for (int half = LANES / 2; half > 0; half /= 2)
        for (int i = 0; i < half; i++) lane[i] += lane[i + half];
    return lane[0];
}

ALWAYS_INLINE float dot(const float *a, const float *b, int64_t n) {
    Vec s0 = {0}, s1 = {0};
    int64_t i = 0;
    for (; i + 2 * LANES <= n; i += 2 * LANES) {
        s0 += *(const Vec *)(a + i) * *(const Vec *)(b + i);
        s1 += *(const Vec *)(a + i + LANES) * *(const Vec *)(b + i + LANES);
    }
    float tail = 0;
    for (; i < n; i++) tail += a[i] * b[i];
    return vec_total(s0 + s1) + tail;
}

ALWAYS_INLINE float total(const float *a, int64_t n) {
    Vec s0 = {0}, s1 = {0};
    int64_t i = 0;
    for (; i + 2 * LANES <= n; i += 2 * LANES) {
        s0 += *(const Vec *)(a + i);
        s1 += *(const Vec *)(a + i + LANES);
    }
    float tail = 0;
    for (; i < n; i++) tail += a[i];
    return vec_total(s0 + s1) + tail;
}

ALWAYS_INLINE float largest(const float *a, int64_t n) {
    float most = a[0];
#pragma omp simd reduction(max : most)
    for (int64_t i = 0; i < n; i++) most = a[i] > most ? a[i] : most;
    return most;
}

// e^x without branches, so that loops over it become vector code; relative error below 3e-7 (measured on
// −87 … 88). Below −87.3 the result is about 1e-38, never a denormal; NaN passes. Cody-Waite
// reduction, then the Taylor series to x⁶ on ±ln2/2 (remainder 1.2e-7).
static inline float fast_exp(float x) {
    float clamped = x < -87.3f ? -87.3f : x;
    clamped = clamped > 88.7f ? 88.7f : clamped;
    float shifted = clamped * 1.44269504f + 12582912.0f; // 1.5·2²³: rounds to an integer in the low bits
    float n = shifted - 12582912.0f;
    float r = clamped - n * 0.693359375f;
    r = r + n * 2.12194440e-4f;
    float p = 1.0f / 720;
    p = p * r + 1.0f / 120;
    p = p * r + 1.0f / 24;
    p = p * r + 1.0f / 6;
    p = p * r + 0.5f;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
    union {
        float f;
        uint32_t bits;
    } scale = {.f = shifted};
    scale.bits = (scale.bits + 127) << 23; // the low bits of shifted are n
    return p * scale.f;
}

// 2^x for x ≤ 0 (to rounding), for softmax: below −120, and at −infinity, exactly 0; NaN passes. Relative
// error below 3e-7. Minimax polynomial on ±½ by Remez' method.
static inline float exp2_below(float x) {
    float shifted = x + 12582912.0f;
    float r = x - (shifted - 12582912.0f);
    float p = 1.3276472e-3f;
    p = p * r + 9.6755413e-3f;
    p = p * r + 5.5507133e-2f;
    p = p * r + 2.4022120e-1f;
    p = p * r + 6.9314697e-1f;
    p = p * r + 1.0000001f;
    union {
        float f;
        uint32_t bits;
    } whole = {.f = shifted}, power = {.f = p};
    power.bits += whole.bits << 23;
    return x < -120.0f ? 0.0f : power.f;
}
static const float log2_e = 1.44269504f;

static inline float sigmoid(float x) {
    return 1.0f / (1.0f + fast_exp(-x));
}

// tanh x = −m/(m + 2) with m = e^(−2|x|) − 1, which keeps its digits near 0: without branches, odd, relative
// error below 4e-7 (measured); ±1 beyond, NaN passes.
static inline float fast_tanh(float x) {
    float twice = -2.0f * fabsf(x);
    twice = twice < -60.0f ? -60.0f : twice;
    float shifted = twice * 1.44269504f + 12582912.0f;
    float n = shifted - 12582912.0f;
    float r = twice - n * 0.693359375f;
    r = r + n * 2.12194440e-4f;
    float p = 1.0f / 5040;
    p = p * r + 1.0f / 720;
    p = p * r + 1.0f / 120;
    p = p * r + 1.0f / 24;
    p = p * r + 1.0f / 6;
    p = p * r + 0.5f;
    p = p * r * r + r; // e^r − 1
    union {
        float f;
        uint32_t bits;
    } scale = {.f = shifted};
    scale.bits = (scale.bits + 127) << 23;
    float m = p * scale.f + (scale.f - 1.0f), magnitude = -m / (m + 2.0f);
    return x < 0 ? -magnitude : magnitude;
}
