// SPDX-License-Identifier: Apache-2.0
// Kernels without a structure over rows: sum of squares, rotation of positions, scale, clamp, AdamW.
#include "kernels/cpu/vec.h"

enum { CHUNK = 32768 }; // elements between two polls

void KERNEL(sum_squares)(double *out, Tensor x, Stream stream) {
    typedef double VecDouble __attribute__((vector_size(LANES * 8)));
    int64_t n = tensor_size(x), i = 0;
    const float *from = tensor_f32(x);
    VecDouble s0 = {0}, s1 = {0};
    while (i + 2 * LANES <= n) {
        int64_t stop = n - i < CHUNK ? n : i + CHUNK;
        for (; i + 2 * LANES <= stop; i += 2 * LANES) {
            VecDouble a = __builtin_convertvector(*(const Vec *)(from + i), VecDouble);
            VecDouble b = __builtin_convertvector(*(const Vec *)(from + i + LANES), VecDouble);
            s0 += a * a;
            s1 += b * b;
        }
        stream_poll(stream);
    }
    double sum = 0;
    s0 += s1;
    for (int l = 0; l < LANES; l++) sum += s0[l];
    for (; i < n; i++) sum += (double)from[i] * (double)from[i];
    *out = sum;
}

void KERNEL(rope)(Tensor x, Tensor cosine, Tensor sine, const RopeShape *shape, Stream stream) {
    int64_t T = x.dim[0], half = shape->head_dim / 2, width = (int64_t)shape->heads * shape->head_dim;
    int64_t seq_len = shape->seq_len, last = shape->first_position + (T < seq_len ? T : seq_len);
    REQUIRE(x.dim[1] == width && shape->head_dim % 2 == 0 && cosine.dim[1] == half && sine.dim[1] == half &&
                last <= cosine.dim[0] && last <= sine.dim[0],
            "rope: rows of %ld for %d heads of %d, tables (%ld, %ld) for %ld positions", (long)x.dim[1],
            shape->heads, shape->head_dim, (long)cosine.dim[0], (long)cosine.dim[1], (long)last);
    int64_t batch = poll_rows(width);
    float sign = shape->inverse ? -1.0f : 1.0f;
    for (int64_t t = 0; t < T; t++) {
        int64_t position = shape->first_position + t % seq_len;
        const float *c = tensor_f32(cosine) + position * half, *s = tensor_f32(sine) + position * half;
        for (int h = 0; h < shape->heads; h++) {
            float *low = tensor_f32(x) + t * width + h * 2 * half, *high = low + half;
            SIMD for (int64_t j = 0; j < half; j++) {
                float a = low[j], b = high[j], turn = sign * s[j];
                low[j] = a * c[j] - b * turn;
                high[j] = b * c[j] + a * turn;
            }
        }
        if ((t + 1) % batch == 0) stream_poll(stream);
    }
}

void KERNEL(scale)(Tensor x, float factor, Stream stream) {
    int64_t n = tensor_size(x);
    for (int64_t start = 0; start < n; start += CHUNK) {
        int64_t count = n - start < CHUNK ? n - start : CHUNK;
        float *at = tensor_f32(x) + start;
        SIMD for (int64_t i = 0; i < count; i++) at[i] *= factor;
        stream_poll(stream);
    }
}

// ---- clamp

enum { WORD = 32 }; // elements of a word of the mask

static inline float clamped(float x, float bound) { // not a number stays
    return x < -bound ? -bound : x > bound ? bound : x;
}

// Clamps n ≤ WORD elements and returns which were inside. bit[j] = 1 << j, from memory because SSE has no
// shift by lane.
ALWAYS_INLINE uint32_t clamp_word(float *x, int64_t n, const uint32_t *bit, float bound) {
    uint32_t inside = 0;
#pragma omp simd reduction(| : inside)
    for (int64_t j = 0; j < n; j++) {
        inside |= fabsf(x[j]) <= bound ? bit[j] : 0;
        x[j] = clamped(x[j], bound);
    }
    return inside;
}

ALWAYS_INLINE void keep_inside(float *dx, int64_t n, const uint32_t *bit, uint32_t inside) {
    SIMD for (int64_t j = 0; j < n; j++) dx[j] = inside & bit[j] ? dx[j] : 0.0f;
}

static void check_clamp(Tensor x, Tensor inside) {
    REQUIRE(inside.dtype == DTYPE_I32 && inside.dim[0] == x.dim[0] &&
                inside.dim[1] == (x.dim[1] + WORD - 1) / WORD,
            "clamp: mask (%ld, %ld) for (%ld, %ld)", (long)inside.dim[0], (long)inside.dim[1], (long)x.dim[0],
            (long)x.dim[1]);
}

void KERNEL(clamp_forward)(Tensor x, Tensor inside, float bound, Stream stream) {
    int64_t T = x.dim[0], n = x.dim[1], words = (n + WORD - 1) / WORD, batch = poll_rows(n);
    REQUIRE(bound >= 0, "clamp: bound %g", (double)bound);
    if (tensor_exists(inside)) check_clamp(x, inside);
    uint32_t bit[WORD];
    for (int j = 0; j < WORD; j++) bit[j] = 1u << j;
    for (int64_t t = 0; t < T; t++) {
        float *row = tensor_f32(x) + t * n;
        if (tensor_exists(inside)) {
            uint32_t *word = (uint32_t *)tensor_i32(inside) + t * words;
            int64_t whole = n / WORD;
            for (int64_t i = 0; i < whole; i++) word[i] = clamp_word(row + i * WORD, WORD, bit, bound);
            if (whole < words) word[whole] = clamp_word(row + whole * WORD, n % WORD, bit, bound);
        } else {
            SIMD for (int64_t c = 0; c < n; c++) row[c] = clamped(row[c], bound);
        }
        if ((t + 1) % batch == 0) stream_poll(stream);
    }
}

void KERNEL(clamp_backward)(Tensor dx, Tensor inside, Stream stream) {
    int64_t T = dx.dim[0], n = dx.dim[1], words = (n + WORD - 1) / WORD, batch = poll_rows(n);
    check_clamp(dx, inside);
    uint32_t bit[WORD];
    for (int j = 0; j < WORD; j++) bit[j] = 1u << j;
    for (int64_t t = 0; t < T; t++) {
        float *row = tensor_f32(dx) + t * n;
        const uint32_t *word = (const uint32_t *)tensor_i32(inside) + t * words;
        int64_t whole = n / WORD;
        for (int64_t i = 0; i < whole; i++) keep_inside(row + i * WORD, WORD, bit, word[i]);
        if (whole < words) keep_inside(row + whole * WORD, n % WORD, bit, word[whole]);
        if ((t + 1) % batch == 0) stream_poll(stream);
    }
}

// ---- optimizer

static uint16_t bf16_of(float x) { // round to nearest even
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return (uint16_t)(bits >> 16 | 0x40);
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

void KERNEL(adamw)(Tensor weight, Tensor master, Tensor m, Tensor v, Tensor grad, const AdamwStep *step,
                   Stream stream) {
    int64_t n = tensor_size(master);
    REQUIRE(tensor_size(weight) == n && tensor_size(m) == n && tensor_size(v) == n &&
                tensor_size(grad) == n && weight.dtype != DTYPE_I32 && step->step >= 1,
            "adamw: step %ld over %ld weights, %ld gradients", (long)step->step, (long)n,
            (long)tensor_size(grad));
    double t = (double)step->step;
    float rate = (float)((double)step->lr / (1.0 - pow((double)step->beta1, t)));
    float unbias = (float)(1.0 / sqrt(1.0 - pow((double)step->beta2, t)));
    float b1 = step->beta1, b2 = step->beta2, eps = step->eps, scale = step->grad_scale;
    float c1 = (float)(1.0 - (double)b1), c2 = (float)(1.0 - (double)b2),
          keep = 1.0f - step->lr * step->decay;
    for (int64_t start = 0; start < n; start += CHUNK) {
        int64_t count = n - start < CHUNK ? n - start : CHUNK;
        float *w = tensor_f32(master) + start, *first = tensor_f32(m) + start,
              *second = tensor_f32(v) + start;
        const float *gradient = tensor_f32(grad) + start;
        SIMD for (int64_t i = 0; i < count; i++) {
            float g = gradient[i] * scale;
            first[i] = b1 * first[i] + c1 * g;
            second[i] = b2 * second[i] + c2 * (g * g);
            w[i] = w[i] * keep - rate * (first[i] / (sqrtf(second[i]) * unbias + eps));
        }
        if (weight.dtype == DTYPE_BF16)
            for (int64_t i = 0; i < count; i++) ((uint16_t *)weight.data)[start + i] = bf16_of(w[i]);
        else if (weight.data != master.data)
            memcpy(tensor_f32(weight) + start, w, (size_t)count * sizeof *w);
        stream_poll(stream);
    }
}
