// SPDX-License-Identifier: Apache-2.0
// Positions, scale, clamp, activations, optimizer.
#include "tests/kernels_harness.h"

static void sums_squares_in_double(void) {
    for (int64_t n = 0; n < 100000; n = n * 3 + 1) {
        Tensor x = input(n, 0, 3);
        double got = -1, again = -2, want = 0;
        for (int64_t i = 0; i < n; i++) want += (double)tensor_f32(x)[i] * (double)tensor_f32(x)[i];
        kernels->sum_squares(&got, x, stream);
        kernels->sum_squares(&again, x, stream);
        close_to(got, want, 1e-12); // 1e5 roundings of 2⁻⁵³, in another order
        assert_true(got == again);
    }
}

// ---- positions

static void rope_rotates(void) {
    static const int dims[] = {2, 6, 32, 50};
    for (int i = 0; i < 4; i++) {
        RopeShape s = {.heads = 3, .head_dim = dims[i], .seq_len = 5, .first_position = 2};
        int64_t T = 10, d = dims[i], half = d / 2;
        Tensor x = input(T, s.heads * d, 1), y = output_copy(x), c = input(7, half, 1), z = input(7, half, 1);
        for (int64_t j = 0; j < 7 * half; j++) { // unit vectors, so that the inverse is the transpose
            float angle = tensor_f32(c)[j];
            tensor_f32(c)[j] = cosf(angle), tensor_f32(z)[j] = sinf(angle);
        }
        kernels->rope(y, c, z, &s, stream);
        for (int64_t t = 0; t < T; t++)
            for (int64_t h = 0; h < s.heads; h++)
                for (int64_t j = 0; j < half; j++) {
                    int64_t at = (t * s.heads + h) * d + j, table = (2 + t % 5) * half + j;
                    double a = (double)tensor_f32(x)[at], b = (double)tensor_f32(x)[at + half];
                    double cosine = (double)tensor_f32(c)[table], sine = (double)tensor_f32(z)[table];
                    close_to(tensor_f32(y)[at], a * cosine - b * sine, 3e-7);
                    close_to(tensor_f32(y)[at + half], b * cosine + a * sine, 3e-7);
                }
        s.inverse = true;
        kernels->rope(y, c, z, &s, stream);
        for (int64_t j = 0; j < tensor_size(x); j++) close_to(tensor_f32(y)[j], tensor_f32(x)[j], 1e-6);
        harness_end();
    }
}

// ---- scale and clamp

static void scales(void) {
    static const int64_t sizes[] = {0, 1, 33, 70001};
    for (int i = 0; i < 4; i++) {
        Tensor x = input(sizes[i], 0, 1), y = output_copy(x);
        kernels->scale(y, 0.3f, stream);
        for (int64_t j = 0; j < sizes[i]; j++) assert_true(tensor_f32(y)[j] == tensor_f32(x)[j] * 0.3f);
        harness_end();
    }
}

// Values on both sides of the bound, on it, one step beside it, and none of these.
static void clamps(void) {
    static const int64_t widths[] = {1, 31, 32, 33, 64, 101};
    static const float bound = 0.8f;
    const float edges[] = {bound,
                           -bound,
                           nextafterf(bound, 9),
                           nextafterf(-bound, -9),
                           nextafterf(bound, 0),
                           INFINITY,
                           -INFINITY,
                           0,
                           nextafterf(-bound, 0),
                           NAN};
    enum { T = 11, EDGES = sizeof edges / sizeof *edges };
    for (int i = 0; i < 6; i++) {
        int64_t n = widths[i], words = (n + 31) / 32;
        Tensor x = input(T, n, 1), dy = input(T, n, 1), absent = {0};
        for (int64_t t = 0; t < T; t++)
            for (int64_t c = t % 3; c < n; c += 3) tensor_f32(x)[t * n + c] = edges[(t + c) % EDGES];
        Tensor y = output_copy(x), alone = output_copy(x), dx = output_copy(dy),
               inside = output_ints(T, words);
        kernels->clamp_forward(y, inside, bound, stream);
        kernels->clamp_forward(alone, absent, bound, stream);
        kernels->clamp_backward(dx, inside, stream);
        assert_memory_equal(y.data, alone.data, tensor_bytes(y));
        for (int64_t t = 0; t < T; t++)
            for (int64_t c = 0; c < words * 32; c++) {
                int64_t at = t * n + c;
                uint32_t bit = (uint32_t)tensor_i32(inside)[t * words + c / 32] >> c % 32 & 1;
                if (c >= n) {
                    assert_int_equal(bit, 0);
                    continue;
                }
                float from = tensor_f32(x)[at], want = from > bound ? bound : from < -bound ? -bound : from;
                bool in = from >= -bound && from <= bound;
                assert_int_equal(bit, in);
                assert_true(tensor_f32(dx)[at] == (in ? tensor_f32(dy)[at] : 0));
                assert_true(isnan(from) ? isnan(tensor_f32(y)[at]) : tensor_f32(y)[at] == want);
            }
        harness_end();
    }
}

// ---- activation

typedef struct {
    int64_t N, f;
    double *gate, *up, *scale, *dact; // scale may be NULL
    Activation activation;
} Glu;

static double glu_at(const Glu *g, int64_t r, int64_t c) {
    double x = g->gate[r * g->f + c];
    double phi = g->activation == ACTIVATION_SILU
                     ? x / (1 + exp(-x))
                     : x * (1 + tanh(sqrt(2 / acos(-1)) * (x + 0.044715 * x * x * x))) / 2;
    return phi * g->up[r * g->f + c] * (g->scale ? g->scale[r] : 1);
}

static double glu_reference(const void *context) {
    const Glu *g = context;
    double loss = 0;
    for (int64_t r = 0; r < g->N; r++)
        for (int64_t c = 0; c < g->f; c++) loss += glu_at(g, r, c) * g->dact[r * g->f + c];
    return loss;
}

static void check_glu(int64_t f, bool scaled, Activation phi) {
    int64_t N = 3;
    Tensor gate = input(N, f, 3), up = input(N, f, 1), dact = input(N, f, 1), none = {0};
    Tensor scale = scaled ? input(N, 0, 1) : none, dscale = scaled ? output(N, 0) : none;
    Tensor act = output(N, f), dgate = output(N, f), dup = output(N, f), again = output(N, f);
    Glu g = {N,  f, doubles_of(gate), doubles_of(up), scaled ? doubles_of(scale) : NULL, doubles_of(dact),
             phi};
    kernels->glu_forward(act, gate, up, scale, phi, stream);
    for (int64_t j = 0; j < N * f; j++) close_to(tensor_f32(act)[j], glu_at(&g, j / f, j % f), 5e-7);
    kernels->glu_backward(dgate, dup, again, dscale, dact, gate, up, scale, phi, stream);
    for (int64_t j = 0; j < N * f; j++) close_to(tensor_f32(again)[j], tensor_f32(act)[j], 1e-6);
    if (f < 100) {
        gradient_check(glu_reference, &g, g.gate, dgate, 1e-6);
        gradient_check(glu_reference, &g, g.up, dup, 1e-6);
    }
    if (scaled) gradient_check(glu_reference, &g, g.scale, dscale, 2e-6);
    // In place, as the contract allows: dgate on gate, dup on up, act on dact; and dup on dact.
    Tensor gate2 = output_copy(gate), up2 = output_copy(up), dact2 = output_copy(dact),
           dact3 = output_copy(dact);
    Tensor third = output(N, f), gate3 = output_copy(gate);
    kernels->glu_backward(gate2, up2, dact2, dscale, dact2, gate2, up2, scale, phi, stream);
    kernels->glu_backward(gate3, dact3, third, dscale, dact3, gate3, up, scale, phi, stream);
    assert_memory_equal(gate2.data, dgate.data, tensor_bytes(gate));
    assert_memory_equal(gate3.data, dgate.data, tensor_bytes(gate));
    assert_memory_equal(up2.data, dup.data, tensor_bytes(gate));
    assert_memory_equal(dact3.data, dup.data, tensor_bytes(gate));
    assert_memory_equal(dact2.data, again.data, tensor_bytes(gate));
    assert_memory_equal(third.data, again.data, tensor_bytes(gate));
    kernels->glu_forward(gate2, gate, up, scale, phi, stream);
    assert_memory_equal(gate2.data, act.data, tensor_bytes(gate));
    harness_end();
}

static void gated_linear_units(void) {
    static const int64_t widths[] = {1, 9, 33, 600};
    for (int i = 0; i < 8; i++) {
        check_glu(widths[i / 2], i % 2, ACTIVATION_SILU);
        check_glu(widths[i / 2], i % 2, ACTIVATION_GELU_TANH);
    }
}

// Far out, the activation must neither overflow nor turn into NaN.
static void activations_saturate(void) {
    static const float ends[] = {-1e30f, -1000, -100, -89, -87.5f, 87.5f, 89, 1000, 1e30f};
    enum { N = sizeof ends / sizeof *ends };
    for (int phi = ACTIVATION_SILU; phi <= ACTIVATION_GELU_TANH; phi++) {
        Tensor gate = input(N, 1, 1), up = input(N, 1, 1), none = {0}, act = output(N, 1);
        Tensor dact = input(N, 1, 1), dgate = output(N, 1), dup = output(N, 1);
        for (int i = 0; i < N; i++)
            tensor_f32(gate)[i] = ends[i], tensor_f32(up)[i] = tensor_f32(dact)[i] = 1;
        kernels->glu_forward(act, gate, up, none, (Activation)phi, stream);
        for (int i = 0; i < N; i++) close_to(tensor_f32(act)[i], ends[i] > 0 ? (double)ends[i] : 0, 1e-6);
        kernels->glu_backward(dgate, dup, act, none, dact, gate, up, none, (Activation)phi, stream);
        for (int i = 0; i < N; i++) close_to(tensor_f32(dgate)[i], ends[i] > 0 ? 1 : 0, 1e-6);
    }
}

// ---- optimizer

static void adamw_follows_the_formula(void) {
    enum { N = 101 };
    Tensor w = output_copy(input(N, 0, 1)), m = output_copy(input(N, 0, 0)), v = output_copy(input(N, 0, 0));
    Tensor copy = output(N, 0);
    double *x = doubles_of(w), *first = doubles(N), *second = doubles(N);
    for (int64_t t = 1; t <= 30; t++) {
        Tensor grad = input(N, 0, 0.1f);
        AdamwStep s = {.lr = 1e-2f,
                       .beta1 = 0.9f,
                       .beta2 = 0.95f,
                       .eps = 1e-6f,
                       .decay = 0.1f,
                       .grad_scale = 0.5f,
                       .step = t};
        kernels->adamw(copy, w, m, v, grad, &s, stream);
        double lr = (double)s.lr, b1 = (double)s.beta1, b2 = (double)s.beta2;
        for (int i = 0; i < N; i++) {
            double g = (double)tensor_f32(grad)[i] * 0.5;
            first[i] = b1 * first[i] + (1 - b1) * g;
            second[i] = b2 * second[i] + (1 - b2) * g * g;
            x[i] -= lr * (double)s.decay * x[i];
            x[i] -= lr * (first[i] / (1 - pow(b1, (double)t))) /
                    (sqrt(second[i] / (1 - pow(b2, (double)t))) + (double)s.eps);
            close_to(tensor_f32(w)[i], x[i], 2e-6); // 30 roundings
        }
        assert_memory_equal(copy.data, w.data, tensor_bytes(w));
    }
    uint16_t half[N];
    Tensor rounded = tensor_view(half, DTYPE_BF16, 1, (int64_t[]){N}), still = input(N, 0, 0);
    AdamwStep rest = {.lr = 0, .beta1 = 0.9f, .beta2 = 0.95f, .eps = 1e-6f, .grad_scale = 1, .step = 31};
    kernels->adamw(rounded, w, m, v, still, &rest, stream);
    for (int i = 0; i < N; i++) {
        uint32_t bits = (uint32_t)half[i] << 16;
        float back;
        memcpy(&back, &bits, sizeof back);
        assert_true(fabsf(back - tensor_f32(w)[i]) <= fabsf(tensor_f32(w)[i]) * 0x1p-8f);
    }
}

EVERY_ISA(sums_squares_in_double)
EVERY_ISA(rope_rotates)
EVERY_ISA(scales)
EVERY_ISA(clamps)
EVERY_ISA(gated_linear_units)
EVERY_ISA(activations_saturate)
EVERY_ISA(adamw_follows_the_formula)

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(sums_squares_in_double_everywhere),
        cmocka_unit_test(rope_rotates_everywhere),
        cmocka_unit_test(scales_everywhere),
        cmocka_unit_test(clamps_everywhere),
        cmocka_unit_test(gated_linear_units_everywhere),
        cmocka_unit_test(activations_saturate_everywhere),
        cmocka_unit_test(adamw_follows_the_formula_everywhere),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
