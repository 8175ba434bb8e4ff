// SPDX-License-Identifier: Apache-2.0
// RMSNorm and LayerNorm: one row's arithmetic with a mean that RMSNorm gives as the constant 0.
#include "kernels/cpu/vec.h"

static void check_norm(Tensor y, Tensor rstd, Tensor x, Tensor w) {
    int64_t T = x.dim[0], h = x.dim[1];
    REQUIRE(y.dim[0] == T && y.dim[1] == h && w.dim[0] == h && rstd.dim[0] == T,
            "norm: x (%ld, %ld), y (%ld, %ld), w (%ld), rstd (%ld)", (long)T, (long)h, (long)y.dim[0],
            (long)y.dim[1], (long)w.dim[0], (long)rstd.dim[0]);
}

ALWAYS_INLINE void norm_row(float *to, const float *from, float mean, float r, const float *weight, int64_t h,
                            Into into) {
    if (into == INTO_SUM) {
        SIMD for (int64_t c = 0; c < h; c++) to[c] += (from[c] - mean) * r * weight[c];
    } else {
        SIMD for (int64_t c = 0; c < h; c++) to[c] = (from[c] - mean) * r * weight[c];
    }
}

void KERNEL(rmsnorm_forward)(Tensor y, Tensor rstd, Tensor x, Tensor w, float eps, Into into, Stream stream) {
    int64_t T = x.dim[0], h = x.dim[1], batch = poll_rows(h);
    check_norm(y, rstd, x, w);
    for (int64_t t = 0; t < T; t++) {
        const float *from = tensor_f32(x) + t * h;
        float r = 1.0f / sqrtf(dot(from, from, h) / (float)h + eps);
        tensor_f32(rstd)[t] = r;
        norm_row(tensor_f32(y) + t * h, from, 0.0f, r, tensor_f32(w), h, into);
        if ((t + 1) % batch == 0) stream_poll(stream);
    }
}

// Σ_c (x − mean)²
static float squares_about(const float *x, float mean, int64_t h) {
    Vec sum = {0};
    int64_t c = 0;
    for (; c + LANES <= h; c += LANES) {
        Vec off = *(const Vec *)(x + c) - mean;
        sum += off * off;
    }
    float tail = 0;
    for (; c < h; c++) tail += (x[c] - mean) * (x[c] - mean);
    return vec_total(sum) + tail;
}

void KERNEL(layernorm_forward)(Tensor y, Tensor rstd, Tensor x, Tensor w, float eps, Into into,
                               Stream stream) {
    int64_t T = x.dim[0], h = x.dim[1], batch = poll_rows(h);
    check_norm(y, rstd, x, w);
    for (int64_t t = 0; t < T; t++) {
        const float *from = tensor_f32(x) + t * h;
        float mean = total(from, h) / (float)h;
        float r = 1.0f / sqrtf(squares_about(from, mean, h) / (float)h + eps);
        tensor_f32(rstd)[t] = r;
        norm_row(tensor_f32(y) + t * h, from, mean, r, tensor_f32(w), h, into);
        if ((t + 1) % batch == 0) stream_poll(stream);
    }
}

// ---- backward

static void check_backward(Tensor dx, Tensor dw, Tensor dy, Tensor x, Tensor w, Tensor rstd) {
    int64_t T = x.dim[0], h = x.dim[1];
    REQUIRE(dy.dim[0] == T && dy.dim[1] == h && dx.dim[0] == T && dx.dim[1] == h && dw.dim[0] == h &&
                w.dim[0] == h && rstd.dim[0] == T,
            "norm backward: x (%ld, %ld), dy (%ld, %ld), w (%ld), rstd (%ld)", (long)T, (long)h,
            (long)dy.dim[0], (long)dy.dim[1], (long)w.dim[0], (long)rstd.dim[0]);
}

// Σ_c dy·w·(x − mean)
ALWAYS_INLINE float dot3(const float *dy, const float *w, const float *x, float mean, int64_t h) {
    Vec sum = {0};
    int64_t c = 0;
    for (; c + LANES <= h; c += LANES)
        sum += *(const Vec *)(dy + c) * *(const Vec *)(w + c) * (*(const Vec *)(x + c) - mean);
    float tail = 0;
    for (; c < h; c++) tail += dy[c] * w[c] * (x[c] - mean);
    return vec_total(sum) + tail;
}

// shift: mean_c(dy·w) for LayerNorm, 0 for RMSNorm.
ALWAYS_INLINE void backward_row(float *to, float *dweight, const float *dy, const float *x, float mean,
                                float r, const float *weight, float shift, int64_t h, Into into) {
    float along = dot3(dy, weight, x, mean, h) * r / (float)h;
    if (into == INTO_SUM) {
        SIMD for (int64_t c = 0; c < h; c++) {
            float hat = (x[c] - mean) * r, g = dy[c];
            dweight[c] += g * hat;
            to[c] += r * (g * weight[c] - hat * along - shift);
        }
    } else {
        SIMD for (int64_t c = 0; c < h; c++) {
            float hat = (x[c] - mean) * r, g = dy[c];
            dweight[c] += g * hat;
            to[c] = r * (g * weight[c] - hat * along - shift);
        }
    }
}

void KERNEL(rmsnorm_backward)(Tensor dx, Tensor dw, Tensor dy, Tensor x, Tensor w, Tensor rstd, Into into,
                              Stream stream) {
    int64_t T = x.dim[0], h = x.dim[1], batch = poll_rows(2 * h);
    check_backward(dx, dw, dy, x, w, rstd);
    for (int64_t t = 0; t < T; t++) {
        backward_row(tensor_f32(dx) + t * h, tensor_f32(dw), tensor_f32(dy) + t * h, tensor_f32(x) + t * h,
                     0.0f, tensor_f32(rstd)[t], tensor_f32(w), 0.0f, h, into);
        if ((t + 1) % batch == 0) stream_poll(stream);
    }
}

void KERNEL(layernorm_backward)(Tensor dx, Tensor dw, Tensor dy, Tensor x, Tensor w, Tensor rstd, Into into,
                                Stream stream) {
    int64_t T = x.dim[0], h = x.dim[1], batch = poll_rows(2 * h);
    check_backward(dx, dw, dy, x, w, rstd);
    for (int64_t t = 0; t < T; t++) {
        const float *row = tensor_f32(x) + t * h, *d = tensor_f32(dy) + t * h;
        float mean = total(row, h) / (float)h, shift = dot(d, tensor_f32(w), h) / (float)h;
        backward_row(tensor_f32(dx) + t * h, tensor_f32(dw), d, row, mean, tensor_f32(rstd)[t], tensor_f32(w),
                     shift, h, into);
        if ((t + 1) % batch == 0) stream_poll(stream);
    }
}
