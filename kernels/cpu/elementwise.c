// SPDX-License-Identifier: Apache-2.0
// Kernels without a structure over rows: sum of squares, rotation of positions, SwiGLU, AdamW.
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

void KERNEL(swiglu_forward)(Tensor act, Tensor gate, Tensor up, Tensor scale, Stream stream) {
    int64_t N = act.dim[0], f = act.dim[1], batch = poll_rows(2 * f);
    REQUIRE(tensor_size(gate) == N * f && tensor_size(up) == N * f &&
                (!tensor_exists(scale) || scale.dim[0] == N),
            "swiglu: act (%ld, %ld), gate of %ld, up of %ld elements", (long)N, (long)f,
            (long)tensor_size(gate), (long)tensor_size(up));
    for (int64_t r = 0; r < N; r++) {
        float s = tensor_exists(scale) ? tensor_f32(scale)[r] : 1.0f;
        float *to = tensor_f32(act) + r * f;
        const float *g = tensor_f32(gate) + r * f, *u = tensor_f32(up) + r * f;
        SIMD for (int64_t c = 0; c < f; c++) to[c] = g[c] * sigmoid(g[c]) * u[c] * s;
        if ((r + 1) % batch == 0) stream_poll(stream);
    }
}

// One piece of a row; product[c] = dact·silu(gate)·up. Pointers may be equal as swiglu_backward_fn allows.
static void swiglu_backward_piece(int64_t n, float *dgate, float *dup, float *act, float *product,
                                  const float *dact, const float *gate, const float *up, float scale) {
    SIMD for (int64_t c = 0; c < n; c++) {
        float g = gate[c], u = up[c], d = dact[c], sig = sigmoid(g), silu = g * sig;
        dgate[c] = d * scale * u * (sig + silu * (1.0f - sig));
        act[c] = silu * u * scale;
        dup[c] = d * scale * silu;
        product[c] = d * (silu * u);
    }
}

void KERNEL(swiglu_backward)(Tensor dgate, Tensor dup, Tensor act, Tensor dscale, Tensor dact, Tensor gate,
                             Tensor up, Tensor scale, Stream stream) {
    enum { PIECE = 512 };
    float product[PIECE];
    int64_t N = dact.dim[0], f = dact.dim[1], batch = poll_rows(3 * f);
    bool scaled = tensor_exists(scale);
    REQUIRE(tensor_size(gate) == N * f && tensor_size(up) == N * f && tensor_size(dgate) == N * f &&
                tensor_size(dup) == N * f && tensor_size(act) == N * f &&
                (!scaled || (scale.dim[0] == N && dscale.dim[0] == N)),
            "swiglu backward: dact (%ld, %ld), gate of %ld, up of %ld elements", (long)N, (long)f,
            (long)tensor_size(gate), (long)tensor_size(up));
    for (int64_t r = 0; r < N; r++) {
        float s = scaled ? tensor_f32(scale)[r] : 1.0f, sum = 0;
        for (int64_t c = 0; c < f; c += PIECE) {
            int64_t n = f - c < PIECE ? f - c : PIECE, at = r * f + c;
            swiglu_backward_piece(n, tensor_f32(dgate) + at, tensor_f32(dup) + at, tensor_f32(act) + at,
                                  product, tensor_f32(dact) + at, tensor_f32(gate) + at, tensor_f32(up) + at,
                                  s);
            if (scaled) sum += total(product, n);
        }
        if (scaled) tensor_f32(dscale)[r] = sum;
        if ((r + 1) % batch == 0) stream_poll(stream);
    }
}

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
