// SPDX-License-Identifier: Apache-2.0
// Gated linear units: a block for a row.
#include "kernels/cuda/cuda.h"

constexpr int THREADS = 512;

// GELU's (1 + tanh(u))/2 is sigmoid(2u), 2u = z·(linear + cubic·z²). Beyond ±10 the sigmoid is 1 or 0 in f32;
// z is held there, so that nothing overflows.
constexpr float GELU_LINEAR = 1.59576912f, GELU_CUBIC = 0.0713548163f; // 2√(2/π), that · 0.044715

// φ(z), and its slope φ'(z).
template <Activation PHI> static __device__ __forceinline__ float activate(float z, float &slope) {
    if (PHI == ACTIVATION_SILU) {
        float s = 1.0f / (1.0f + expf(-z)), silu = z * s;
        slope = s + silu * (1.0f - s);
        return silu;
    }
    float held = fminf(fmaxf(z, -10.0f), 10.0f), square = held * held;
    float e = expf(-held * (GELU_LINEAR + GELU_CUBIC * square));
    float s = 1.0f / (1.0f + e), gelu = z * s; // 1 − s is e·s, with all its digits
    slope = s + gelu * (e * s) * (GELU_LINEAR + 3.0f * GELU_CUBIC * square);
    return gelu;
}

// act may be gate or up.
template <typename T, int WIDTH, Activation PHI>
static __global__ void __launch_bounds__(THREADS)
    forward_row(T *act, const T *gate, const T *up, const float *scale, int64_t f) {
    typedef Pack<T, WIDTH> P;
    int64_t first = blockIdx.x * (f / WIDTH);
    float s = scale ? scale[blockIdx.x] : 1.0f;
    for (int64_t at = threadIdx.x; at < f / WIDTH; at += blockDim.x) {
        P g = reinterpret_cast<const P *>(gate)[first + at], u = reinterpret_cast<const P *>(up)[first + at];
#pragma unroll
        for (int i = 0; i < WIDTH; i++) {
            float slope, phi = activate<PHI>(as_float(g.at[i]), slope);
            g.at[i] = rounded<T>(phi * as_float(u.at[i]) * s);
        }
        reinterpret_cast<P *>(act)[first + at] = g;
    }
}

// A thread reads all of an element before it writes any: pointers may be equal as glu_backward_fn allows.
template <typename T, int WIDTH, Activation PHI>
static __global__ void __launch_bounds__(THREADS)
    backward_row(T *dgate, T *dup, T *act, float *dscale, const T *dact, const T *gate, const T *up,
                 const float *scale, int64_t f) {
    typedef Pack<T, WIDTH> P;
    int64_t first = blockIdx.x * (f / WIDTH);
    float s = scale ? scale[blockIdx.x] : 1.0f, sum = 0;
    for (int64_t at = threadIdx.x; at < f / WIDTH; at += blockDim.x) {
        P g = reinterpret_cast<const P *>(gate)[first + at], u = reinterpret_cast<const P *>(up)[first + at],
          d = reinterpret_cast<const P *>(dact)[first + at];
#pragma unroll
        for (int i = 0; i < WIDTH; i++) {
            float slope, phi = activate<PHI>(as_float(g.at[i]), slope), above = as_float(d.at[i]),
                         other = as_float(u.at[i]);
            g.at[i] = rounded<T>(above * s * other * slope);
            u.at[i] = rounded<T>(above * s * phi);
            d.at[i] = rounded<T>(phi * other * s);
            sum += above * (phi * other);
        }
        reinterpret_cast<P *>(dgate)[first + at] = g;
        reinterpret_cast<P *>(act)[first + at] = d;
        reinterpret_cast<P *>(dup)[first + at] = u;
    }
    if (!scale) return;
    sum = block_sum(sum);
    if (threadIdx.x == 0) dscale[blockIdx.x] = sum;
}

static const float *scale_or_null(Tensor scale) {
    return tensor_exists(scale) ? tensor_f32(scale) : NULL;
}

template <typename T, int WIDTH>
static void launch_forward(Tensor act, Tensor gate, Tensor up, Tensor scale, Activation activation,
                           Stream stream) {
    int64_t f = act.dim[1];
    CUDA_LAUNCH((activation == ACTIVATION_SILU ? forward_row<T, WIDTH, ACTIVATION_SILU>
                                               : forward_row<T, WIDTH, ACTIVATION_GELU_TANH>),
                (unsigned)act.dim[0], row_threads(f / WIDTH, THREADS), 0, stream, (T *)act.data,
                (const T *)gate.data, (const T *)up.data, scale_or_null(scale), f);
}

void KERNEL(glu_forward)(Tensor act, Tensor gate, Tensor up, Tensor scale, Activation activation,
                         Stream stream) {
    int64_t N = act.dim[0], f = act.dim[1];
    REQUIRE(tensor_size(gate) == N * f && tensor_size(up) == N * f && gate.dtype == act.dtype &&
                up.dtype == act.dtype &&
                (!tensor_exists(scale) || (scale.dim[0] == N && scale.dtype == DTYPE_F32)),
            "glu: act (%ld, %ld), gate of %ld, up of %ld elements", (long)N, (long)f, (long)tensor_size(gate),
            (long)tensor_size(up));
    if (N == 0 || f == 0) return;
    CALL_BY_TYPE(act.dtype, packs_fit(f, act, gate, up), launch_forward, act, gate, up, scale, activation,
                 stream);
}

template <typename T, int WIDTH>
static void launch_backward(Tensor dgate, Tensor dup, Tensor act, Tensor dscale, Tensor dact, Tensor gate,
                            Tensor up, Tensor scale, Activation activation, Stream stream) {
    int64_t f = dact.dim[1];
    CUDA_LAUNCH((activation == ACTIVATION_SILU ? backward_row<T, WIDTH, ACTIVATION_SILU>
                                               : backward_row<T, WIDTH, ACTIVATION_GELU_TANH>),
                (unsigned)dact.dim[0], row_threads(f / WIDTH, THREADS), 0, stream, (T *)dgate.data,
                (T *)dup.data, (T *)act.data, tensor_f32(dscale), (const T *)dact.data, (const T *)gate.data,
                (const T *)up.data, scale_or_null(scale), f);
}

void KERNEL(glu_backward)(Tensor dgate, Tensor dup, Tensor act, Tensor dscale, Tensor dact, Tensor gate,
                          Tensor up, Tensor scale, Activation activation, Stream stream) {
    int64_t N = dact.dim[0], f = dact.dim[1];
    bool scaled = tensor_exists(scale);
    DType type = dact.dtype;
    REQUIRE(tensor_size(gate) == N * f && tensor_size(up) == N * f && tensor_size(dgate) == N * f &&
                tensor_size(dup) == N * f && tensor_size(act) == N * f && gate.dtype == type &&
                up.dtype == type && dgate.dtype == type && dup.dtype == type && act.dtype == type &&
                (!scaled || (scale.dim[0] == N && dscale.dim[0] == N && scale.dtype == DTYPE_F32 &&
                             dscale.dtype == DTYPE_F32)),
            "glu backward: dact (%ld, %ld), gate of %ld, up of %ld elements", (long)N, (long)f,
            (long)tensor_size(gate), (long)tensor_size(up));
    if (N == 0) return;
    CALL_BY_TYPE(type, packs_fit(f, dact, gate, up, dgate, dup, act), launch_backward, dgate, dup, act,
                 dscale, dact, gate, up, scale, activation, stream);
}
