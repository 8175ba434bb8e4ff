// SPDX-License-Identifier: Apache-2.0
#include "kernels/cpu/vec.h"

void KERNEL(rmsnorm_forward)(Tensor y, Tensor rstd, Tensor x, Tensor w, float eps, Stream stream) {
    int64_t T = x.dim[0], h = x.dim[1], batch = poll_rows(h);
    REQUIRE(y.dim[0] == T && y.dim[1] == h && w.dim[0] == h && rstd.dim[0] == T,
            "rmsnorm: x (%ld, %ld), y (%ld, %ld), w (%ld), rstd (%ld)", (long)T, (long)h, (long)y.dim[0],
            (long)y.dim[1], (long)w.dim[0], (long)rstd.dim[0]);
    const float *weight = tensor_f32(w);
    for (int64_t t = 0; t < T; t++) {
        const float *from = tensor_f32(x) + t * h;
        float *to = tensor_f32(y) + t * h;
        float r = 1.0f / sqrtf(dot(from, from, h) / (float)h + eps);
        tensor_f32(rstd)[t] = r;
        SIMD for (int64_t c = 0; c < h; c++) to[c] = from[c] * r * weight[c];
        if ((t + 1) % batch == 0) stream_poll(stream);
    }
}

// Σ_c dy·w·x
static float dot3(const float *dy, const float *w, const float *x, int64_t h) {
    Vec sum = {0};
    int64_t c = 0;
    for (; c + LANES <= h; c += LANES)
        sum += *(const Vec *)(dy + c) * *(const Vec *)(w + c) * *(const Vec *)(x + c);
    float tail = 0;
    for (; c < h; c++) tail += dy[c] * w[c] * x[c];
    return vec_total(sum) + tail;
}

void KERNEL(rmsnorm_backward)(Tensor dx, Tensor dw, Tensor dy, Tensor x, Tensor w, Tensor rstd, Into into,
                              Stream stream) {
    int64_t T = x.dim[0], h = x.dim[1], batch = poll_rows(2 * h);
    REQUIRE(dy.dim[0] == T && dy.dim[1] == h && dx.dim[0] == T && dx.dim[1] == h && dw.dim[0] == h &&
                w.dim[0] == h && rstd.dim[0] == T,
            "rmsnorm backward: x (%ld, %ld), dy (%ld, %ld), w (%ld), rstd (%ld)", (long)T, (long)h,
            (long)dy.dim[0], (long)dy.dim[1], (long)w.dim[0], (long)rstd.dim[0]);
    const float *weight = tensor_f32(w);
    float *dweight = tensor_f32(dw);
    for (int64_t t = 0; t < T; t++) {
        const float *row = tensor_f32(x) + t * h, *d = tensor_f32(dy) + t * h;
        float *to = tensor_f32(dx) + t * h, r = tensor_f32(rstd)[t];
        float mean = dot3(d, weight, row, h) * r / (float)h;
        if (into == INTO_SUM) {
            SIMD for (int64_t c = 0; c < h; c++) {
                float hat = row[c] * r, g = d[c];
                dweight[c] += g * hat;
                to[c] += r * (g * weight[c] - hat * mean);
            }
        } else {
            SIMD for (int64_t c = 0; c < h; c++) {
                float hat = row[c] * r, g = d[c];
                dweight[c] += g * hat;
                to[c] = r * (g * weight[c] - hat * mean);
            }
        }
        if ((t + 1) % batch == 0) stream_poll(stream);
    }
}
