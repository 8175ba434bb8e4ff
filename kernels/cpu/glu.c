// SPDX-License-Identifier: Apache-2.0
// Gated linear units. Each loop is compiled once for each activation.
#include "kernels/cpu/vec.h"

// GELU's (1 + tanh(u))/2 is sigmoid(2u): this is 2u, u = √(2/π)(z + 0.044715 z³). Beyond ±10 the sigmoid is
// 1 or 0 in f32; z is held there, so that nothing overflows.
static const float gelu_linear = 1.59576912f, gelu_cubic = 0.0713548163f; // 2√(2/π), that · 0.044715
static inline float gelu_held(float z) {
    return z < -10.0f ? -10.0f : z > 10.0f ? 10.0f : z;
}
static inline float gelu_argument(float held) {
    return held * (gelu_linear + gelu_cubic * (held * held));
}

ALWAYS_INLINE void forward_row(float *to, const float *gate, const float *up, float scale, int64_t f,
                               Activation activation) {
    SIMD for (int64_t c = 0; c < f; c++) {
        float z = gate[c];
        to[c] =
            z * sigmoid(activation == ACTIVATION_GELU_TANH ? gelu_argument(gelu_held(z)) : z) * up[c] * scale;
    }
}

void KERNEL(glu_forward)(Tensor act, Tensor gate, Tensor up, Tensor scale, Activation activation,
                         Stream stream) {
    int64_t N = act.dim[0], f = act.dim[1], batch = poll_rows(2 * f);
    REQUIRE(tensor_size(gate) == N * f && tensor_size(up) == N * f &&
                (!tensor_exists(scale) || scale.dim[0] == N),
            "glu: act (%ld, %ld), gate of %ld, up of %ld elements", (long)N, (long)f, (long)tensor_size(gate),
            (long)tensor_size(up));
    for (int64_t r = 0; r < N; r++) {
        float s = tensor_exists(scale) ? tensor_f32(scale)[r] : 1.0f;
        float *to = tensor_f32(act) + r * f;
        const float *g = tensor_f32(gate) + r * f, *u = tensor_f32(up) + r * f;
        if (activation == ACTIVATION_GELU_TANH)
            forward_row(to, g, u, s, f, ACTIVATION_GELU_TANH);
        else
            forward_row(to, g, u, s, f, ACTIVATION_SILU);
        if ((r + 1) % batch == 0) stream_poll(stream);
    }
}

// One piece of a row; product[c] = dact·φ(gate)·up. Pointers may be equal as glu_backward_fn allows.
static void silu_backward_piece(int64_t n, float *dgate, float *dup, float *act, float *product,
                                const float *dact, const float *gate, const float *up, float scale) {
    SIMD for (int64_t c = 0; c < n; c++) {
        float g = gate[c], u = up[c], d = dact[c], sig = sigmoid(g), silu = g * sig;
        dgate[c] = d * scale * u * (sig + silu * (1.0f - sig));
        act[c] = silu * u * scale;
        dup[c] = d * scale * silu;
        product[c] = d * (silu * u);
    }
}

// φ'(z) = sig + z·sig·(1 − sig)·(2u)', where 1 − sig = e/(1 + e) keeps its digits.
static void gelu_backward_piece(int64_t n, float *dgate, float *dup, float *act, float *product,
                                const float *dact, const float *gate, const float *up, float scale) {
    SIMD for (int64_t c = 0; c < n; c++) {
        float g = gate[c], u = up[c], d = dact[c], held = gelu_held(g), e = fast_exp(-gelu_argument(held));
        float sig = 1.0f / (1.0f + e), gelu = g * sig, rise = gelu_linear + 3.0f * gelu_cubic * (held * held);
        dgate[c] = d * scale * u * (sig + gelu * (e * sig) * rise);
        act[c] = gelu * u * scale;
        dup[c] = d * scale * gelu;
        product[c] = d * (gelu * u);
    }
}

void KERNEL(glu_backward)(Tensor dgate, Tensor dup, Tensor act, Tensor dscale, Tensor dact, Tensor gate,
                          Tensor up, Tensor scale, Activation activation, Stream stream) {
    enum { PIECE = 512 };
    float product[PIECE];
    int64_t N = dact.dim[0], f = dact.dim[1], batch = poll_rows(3 * f);
    bool scaled = tensor_exists(scale);
    REQUIRE(tensor_size(gate) == N * f && tensor_size(up) == N * f && tensor_size(dgate) == N * f &&
                tensor_size(dup) == N * f && tensor_size(act) == N * f &&
                (!scaled || (scale.dim[0] == N && dscale.dim[0] == N)),
            "glu backward: dact (%ld, %ld), gate of %ld, up of %ld elements", (long)N, (long)f,
            (long)tensor_size(gate), (long)tensor_size(up));
    for (int64_t r = 0; r < N; r++) {
        float s = scaled ? tensor_f32(scale)[r] : 1.0f, sum = 0;
        for (int64_t c = 0; c < f; c += PIECE) {
            int64_t n = f - c < PIECE ? f - c : PIECE, at = r * f + c;
            (activation == ACTIVATION_GELU_TANH ? gelu_backward_piece : silu_backward_piece)(
                n, tensor_f32(dgate) + at, tensor_f32(dup) + at, tensor_f32(act) + at, product,
                tensor_f32(dact) + at, tensor_f32(gate) + at, tensor_f32(up) + at, s);
            if (scaled) sum += total(product, n);
        }
        if (scaled) tensor_f32(dscale)[r] = sum;
        if ((r + 1) % batch == 0) stream_poll(stream);
    }
}
