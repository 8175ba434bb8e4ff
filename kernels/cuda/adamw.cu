// SPDX-License-Identifier: Apache-2.0
// One pass over a shard: gradient, both moments and the master weights in, moments, master and rounded
// weights out.
#include "kernels/cuda/cuda.h"

constexpr int THREADS = 256;

// Of one step: rate = lr/(1 − β₁ᵗ), unbias = 1/√(1 − β₂ᵗ), keep = 1 − lr·decay.
struct Update {
    float beta1, rest1, beta2, rest2, eps, rate, unbias, keep, scale;
};

static __device__ __forceinline__ void update_one(const Update &u, float &w, float &m, float &v, float grad) {
    float g = grad * u.scale;
    m = u.beta1 * m + u.rest1 * g;
    v = u.beta2 * v + u.rest2 * (g * g);
    w = w * u.keep - u.rate * (m / (sqrtf(v) * u.unbias + u.eps));
}

template <typename T, int WIDTH>
static __global__ void update_packs(T *weight, float *master, float *m, float *v, const float *grad, Update u,
                                    int64_t n) {
    int64_t thread = (int64_t)blockIdx.x * blockDim.x + threadIdx.x, packs = n / WIDTH, at = thread * WIDTH,
            tail = packs * WIDTH + thread;
    if (thread < packs) {
        Floats<WIDTH> w, first, second, g;
        w.load(master + at);
        first.load(m + at);
        second.load(v + at);
        g.load(grad + at);
        Pack<T, WIDTH> out;
#pragma unroll
        for (int i = 0; i < WIDTH; i++) {
            update_one(u, w.at[i], first.at[i], second.at[i], g.at[i]);
            out.at[i] = rounded<T>(w.at[i]);
        }
        w.store(master + at);
        first.store(m + at);
        second.store(v + at);
        if ((void *)weight != (void *)master) *reinterpret_cast<Pack<T, WIDTH> *>(weight + at) = out;
    }
    if (tail < n) {
        update_one(u, master[tail], m[tail], v[tail], grad[tail]);
        weight[tail] = rounded<T>(master[tail]);
    }
}

template <typename T, int WIDTH>
static void launch_update(Tensor weight, Tensor master, Tensor m, Tensor v, Tensor grad, const Update &update,
                          Stream stream) {
    int64_t n = tensor_size(master);
    CUDA_LAUNCH((update_packs<T, WIDTH>), (unsigned)ceil_div(n, (int64_t)WIDTH * THREADS), THREADS, 0, stream,
                (T *)weight.data, tensor_f32(master), tensor_f32(m), tensor_f32(v), tensor_f32(grad), update,
                n);
}

void KERNEL(adamw)(Tensor weight, Tensor master, Tensor m, Tensor v, Tensor grad, const AdamwStep *step,
                   Stream stream) {
    int64_t n = tensor_size(master);
    REQUIRE(tensor_size(weight) == n && tensor_size(m) == n && tensor_size(v) == n &&
                tensor_size(grad) == n && master.dtype == DTYPE_F32 && m.dtype == DTYPE_F32 &&
                v.dtype == DTYPE_F32 && grad.dtype == DTYPE_F32 && step->step >= 1,
            "adamw: step %ld over %ld weights, %ld gradients", (long)step->step, (long)n,
            (long)tensor_size(grad));
    if (n == 0) return;
    double t = (double)step->step;
    Update update;
    update.beta1 = step->beta1;
    update.rest1 = (float)(1.0 - (double)step->beta1);
    update.beta2 = step->beta2;
    update.rest2 = (float)(1.0 - (double)step->beta2);
    update.eps = step->eps;
    update.rate = (float)((double)step->lr / (1.0 - pow((double)step->beta1, t)));
    update.unbias = (float)(1.0 / sqrt(1.0 - pow((double)step->beta2, t)));
    update.keep = 1.0f - step->lr * step->decay;
    update.scale = step->grad_scale;
    CALL_BY_TYPE(weight.dtype, packs_fit(0, weight, master, m, v, grad), launch_update, weight, master, m, v,
                 grad, update, stream);
}
