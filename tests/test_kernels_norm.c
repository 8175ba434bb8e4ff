// SPDX-License-Identifier: Apache-2.0
#include "tests/kernels_harness.h"

typedef struct {
    int64_t T, h;
    bool centered; // LayerNorm
    double eps, *x, *w, *dy;
} Norm;

// y of one row; returns rstd.
static double norm_row(const Norm *n, int64_t t, double *y) {
    const double *x = n->x + t * n->h;
    double mean = 0, squares = 0;
    if (n->centered)
        for (int64_t c = 0; c < n->h; c++) mean += x[c] / (double)n->h;
    for (int64_t c = 0; c < n->h; c++) squares += (x[c] - mean) * (x[c] - mean) / (double)n->h;
    double rstd = 1 / sqrt(squares + n->eps);
    for (int64_t c = 0; c < n->h; c++) y[c] = (x[c] - mean) * rstd * n->w[c];
    return rstd;
}

static double norm_reference(const void *context) {
    const Norm *n = context;
    double loss = 0, y[512];
    for (int64_t t = 0; t < n->T; t++) {
        norm_row(n, t, y);
        for (int64_t c = 0; c < n->h; c++) loss += y[c] * n->dy[t * n->h + c];
    }
    return loss;
}

static norm_forward_fn *forward_of(bool centered) {
    return centered ? kernels->layernorm_forward : kernels->rmsnorm_forward;
}

static void check_forward(bool centered, int64_t T, int64_t h) {
    Tensor x = input(T, h, 1), w = input(h, 0, 1), before = input(T, h, 1);
    for (int64_t i = 0; i < T * h; i++) tensor_f32(x)[i] += 2; // a mean to be taken off
    Tensor y = output(T, h), rstd = output(T, 0), again = output(T, 0), same = output_copy(x),
           sum = output_copy(before);
    forward_of(centered)(y, rstd, x, w, 1e-3f, INTO_ZERO, stream);
    forward_of(centered)(sum, again, x, w, 1e-3f, INTO_SUM, stream);
    assert_memory_equal(rstd.data, again.data, tensor_bytes(rstd));
    forward_of(centered)(same, again, same, w, 1e-3f, INTO_ZERO, stream);
    assert_memory_equal(y.data, same.data, tensor_bytes(y));
    Norm n = {T, h, centered, (double)1e-3f, doubles_of(x), doubles_of(w), NULL};
    for (int64_t t = 0; t < T; t++) {
        double want[512], r = norm_row(&n, t, want);
        // Around a mean of 2 the deviations carry errors of 2⁻²², whatever their size.
        close_to(tensor_f32(rstd)[t] / (float)r, 1, 1e-6);
        for (int64_t c = 0; c < h; c++) {
            close_to(tensor_f32(y)[t * h + c], want[c], 2e-6);
            close_to(tensor_f32(sum)[t * h + c], (double)tensor_f32(before)[t * h + c] + want[c], 2e-6);
        }
    }
    harness_end();
}

static void check_backward(bool centered, int64_t T, int64_t h) {
    norm_backward_fn *backward = centered ? kernels->layernorm_backward : kernels->rmsnorm_backward;
    Tensor x = input(T, h, 1), w = input(h, 0, 1), dy = input(T, h, 1), before = input(T, h, 1);
    if (centered)
        for (int64_t i = 0; i < T * h; i++) tensor_f32(x)[i] += 0.5f;
    Tensor y = output(T, h), rstd = output(T, 0), dx = output(T, h), added = output_copy(before);
    Tensor dw = output_copy(w), in_place = output_copy(dy), dw2 = output_copy(w);
    forward_of(centered)(y, rstd, x, w, 1e-3f, INTO_ZERO, stream);
    backward(dx, dw, dy, x, w, rstd, INTO_ZERO, stream);
    backward(added, dw2, dy, x, w, rstd, INTO_SUM, stream);
    assert_memory_equal(dw.data, dw2.data, tensor_bytes(dw));
    backward(in_place, dw2, in_place, x, w, rstd, INTO_ZERO, stream);
    assert_memory_equal(dx.data, in_place.data, tensor_bytes(dx));
    for (int64_t c = 0; c < h; c++) tensor_f32(dw)[c] -= tensor_f32(w)[c];
    for (int64_t j = 0; j < T * h; j++) tensor_f32(added)[j] -= tensor_f32(before)[j];
    Norm n = {T, h, centered, (double)1e-3f, doubles_of(x), doubles_of(w), doubles_of(dy)};
    gradient_check(norm_reference, &n, n.x, dx, 2e-6);
    gradient_check(norm_reference, &n, n.x, added, 4e-6);
    gradient_check(norm_reference, &n, n.w, dw, 4e-6);
    harness_end();
}

static void norms(void) {
    static const int64_t widths[] = {3, 7, 20, 64, 131, 333};
    for (int i = 0; i < 12; i++) {
        check_forward(i % 2, 5, widths[i / 2]);
        if (i < 10) check_backward(i % 2, 5, widths[i / 2]);
    }
}

// LayerNorm of a far-off row: its deviations are small against its mean, so that mean x² − mean² has no
// digits.
static void layernorm_takes_off_a_large_mean(void) {
    enum { H = 97 };
    Tensor x = input(1, H, 0.5f), w = input(H, 0, 1), y = output(1, H), rstd = output(1, 0);
    for (int c = 0; c < H; c++) tensor_f32(x)[c] += 1000.3f;
    kernels->layernorm_forward(y, rstd, x, w, 0, INTO_ZERO, stream);
    Norm n = {1, H, true, 0, doubles_of(x), doubles_of(w), NULL};
    double want[H], r = norm_row(&n, 0, want);
    // The mean is off by up to a few 1000 · 2⁻²⁴ against deviations of 0.5.
    close_to(tensor_f32(rstd)[0], r, 1e-5);
    for (int c = 0; c < H; c++) close_to(tensor_f32(y)[c], want[c], 1e-3);
}

EVERY_ISA(norms)
EVERY_ISA(layernorm_takes_off_a_large_mean)

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(norms_everywhere),
        cmocka_unit_test(layernorm_takes_off_a_large_mean_everywhere),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
