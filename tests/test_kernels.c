// SPDX-License-Identifier: Apache-2.0
// The tables, norms, positions, activations, optimizer.
#include "tests/kernels_harness.h"
#include <stdio.h>
#include <sys/wait.h>
#include <unistd.h>

static void tables_have_no_holes(void) {
    typedef void any_fn(void);
    assert_int_equal(sizeof(Kernels), KERNEL_COUNT * sizeof(any_fn *));
    const void *const *entry = (const void *const *)kernels;
    for (int i = 0; i < KERNEL_COUNT; i++) {
        assert_non_null(entry[i]);
        for (int j = 0; j < i; j++) assert_ptr_not_equal(entry[i], entry[j]);
    }
}

// 0 where a process with FLOE_ISA set so gets the table `want`; else how it ended.
static int exit_with_isa(const char *isa, const Kernels *want) {
    pid_t child = fork();
    if (child == 0) {
        setenv("FLOE_ISA", isa, 1);
        if (!freopen("/dev/null", "w", stderr)) _exit(99);
        _exit(kernels_for((Device){DEVICE_CPU, 0}) == want ? 0 : 98);
    }
    int status = -1;
    waitpid(child, &status, 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

static void isa_is_chosen_at_run_time(void **state) {
    (void)state;
    unsetenv("FLOE_ISA");
    const Kernels *best = kernels_for((Device){DEVICE_CPU, 0});
    assert_non_null(strstr(kernels_isa(), "x86-64-v"));
    assert_int_equal(exit_with_isa("", best), 0);
    assert_int_equal(exit_with_isa("v2", &cpu_kernels_v2), 0);
    assert_int_equal(exit_with_isa("v3", &cpu_kernels_v3) == 0, best != &cpu_kernels_v2);
    assert_int_equal(exit_with_isa("v4", &cpu_kernels_v4) == 0, best == &cpu_kernels_v4);
    assert_int_not_equal(exit_with_isa("avx2", NULL), 0);
}

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

// ---- norm

typedef struct {
    int64_t T, h;
    double eps, *x, *w, *dy;
} Norm;

static double norm_reference(const void *context) {
    const Norm *n = context;
    double loss = 0;
    for (int64_t t = 0; t < n->T; t++) {
        double mean = 0;
        for (int64_t c = 0; c < n->h; c++) mean += n->x[t * n->h + c] * n->x[t * n->h + c] / (double)n->h;
        for (int64_t c = 0; c < n->h; c++)
            loss += n->x[t * n->h + c] / sqrt(mean + n->eps) * n->w[c] * n->dy[t * n->h + c];
    }
    return loss;
}

static void norms(void) {
    static const int64_t widths[] = {3, 7, 20, 64, 131};
    for (int i = 0; i < 5; i++) {
        int64_t T = 5, h = widths[i];
        Tensor x = input(T, h, 1), w = input(h, 0, 1), dy = input(T, h, 1), before = input(T, h, 1);
        Tensor y = output(T, h), rstd = output(T, 0), same = output_copy(x), dx = output(T, h);
        Tensor added = output_copy(before), dw = output_copy(w), in_place = output_copy(dy),
               dw2 = output_copy(w);
        kernels->rmsnorm_forward(y, rstd, x, w, 1e-3f, stream);
        kernels->rmsnorm_forward(same, rstd, same, w, 1e-3f, stream);
        assert_memory_equal(y.data, same.data, tensor_bytes(y));
        Norm n = {T, h, (double)1e-3f, doubles_of(x), doubles_of(w), doubles_of(dy)};
        for (int64_t t = 0; t < T; t++) {
            double mean = 0;
            for (int64_t c = 0; c < h; c++) mean += n.x[t * h + c] * n.x[t * h + c] / (double)h;
            close_to(tensor_f32(rstd)[t], 1 / sqrt(mean + n.eps), 1e-6);
            for (int64_t c = 0; c < h; c++)
                close_to(tensor_f32(y)[t * h + c], n.x[t * h + c] / sqrt(mean + n.eps) * n.w[c], 1e-6);
        }
        kernels->rmsnorm_backward(dx, dw, dy, x, w, rstd, INTO_ZERO, stream);
        kernels->rmsnorm_backward(added, dw2, dy, x, w, rstd, INTO_SUM, stream);
        assert_memory_equal(dw.data, dw2.data, tensor_bytes(dw));
        kernels->rmsnorm_backward(in_place, dw2, in_place, x, w, rstd, INTO_ZERO, stream);
        assert_memory_equal(dx.data, in_place.data, tensor_bytes(dx));
        for (int64_t c = 0; c < h; c++) tensor_f32(dw)[c] -= tensor_f32(w)[c];
        for (int64_t j = 0; j < T * h; j++) tensor_f32(added)[j] -= tensor_f32(before)[j];
        gradient_check(norm_reference, &n, n.x, dx, 2e-6);
        gradient_check(norm_reference, &n, n.x, added, 4e-6);
        gradient_check(norm_reference, &n, n.w, dw, 4e-6);
        harness_end();
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

// ---- activation

typedef struct {
    int64_t N, f;
    double *gate, *up, *scale, *dact; // scale may be NULL
} Glu;

static double glu_at(const Glu *g, int64_t r, int64_t c) {
    double x = g->gate[r * g->f + c];
    return x / (1 + exp(-x)) * g->up[r * g->f + c] * (g->scale ? g->scale[r] : 1);
}

static double glu_reference(const void *context) {
    const Glu *g = context;
    double loss = 0;
    for (int64_t r = 0; r < g->N; r++)
        for (int64_t c = 0; c < g->f; c++) loss += glu_at(g, r, c) * g->dact[r * g->f + c];
    return loss;
}

static void swiglu(void) {
    static const int64_t widths[] = {1, 9, 33, 600};
    for (int i = 0; i < 8; i++) {
        int64_t N = 3, f = widths[i / 2];
        bool scaled = i % 2;
        Tensor gate = input(N, f, 3), up = input(N, f, 1), dact = input(N, f, 1), none = {0};
        Tensor scale = scaled ? input(N, 0, 1) : none, dscale = scaled ? output(N, 0) : none;
        Tensor act = output(N, f), dgate = output(N, f), dup = output(N, f), again = output(N, f);
        Glu g = {N, f, doubles_of(gate), doubles_of(up), scaled ? doubles_of(scale) : NULL, doubles_of(dact)};
        kernels->swiglu_forward(act, gate, up, scale, stream);
        for (int64_t j = 0; j < N * f; j++) close_to(tensor_f32(act)[j], glu_at(&g, j / f, j % f), 5e-7);
        kernels->swiglu_backward(dgate, dup, again, dscale, dact, gate, up, scale, stream);
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
        kernels->swiglu_backward(gate2, up2, dact2, dscale, dact2, gate2, up2, scale, stream);
        kernels->swiglu_backward(gate3, dact3, third, dscale, dact3, gate3, up, scale, stream);
        assert_memory_equal(gate2.data, dgate.data, tensor_bytes(gate));
        assert_memory_equal(gate3.data, dgate.data, tensor_bytes(gate));
        assert_memory_equal(up2.data, dup.data, tensor_bytes(gate));
        assert_memory_equal(dact3.data, dup.data, tensor_bytes(gate));
        assert_memory_equal(dact2.data, again.data, tensor_bytes(gate));
        assert_memory_equal(third.data, again.data, tensor_bytes(gate));
        kernels->swiglu_forward(gate2, gate, up, scale, stream);
        assert_memory_equal(gate2.data, act.data, tensor_bytes(gate));
        harness_end();
    }
}

// Far out, silu must neither overflow nor turn into NaN.
static void swiglu_saturates(void) {
    static const float ends[] = {-1e30f, -1000, -100, -89, -87.5f, 87.5f, 89, 1000, 1e30f};
    enum { N = sizeof ends / sizeof *ends };
    Tensor gate = input(N, 1, 1), up = input(N, 1, 1), none = {0}, act = output(N, 1), dact = input(N, 1, 1);
    Tensor dgate = output(N, 1), dup = output(N, 1);
    for (int i = 0; i < N; i++) tensor_f32(gate)[i] = ends[i], tensor_f32(up)[i] = tensor_f32(dact)[i] = 1;
    kernels->swiglu_forward(act, gate, up, none, stream);
    for (int i = 0; i < N; i++) close_to(tensor_f32(act)[i], ends[i] > 0 ? (double)ends[i] : 0, 1e-6);
    kernels->swiglu_backward(dgate, dup, act, none, dact, gate, up, none, stream);
    for (int i = 0; i < N; i++) close_to(tensor_f32(dgate)[i], ends[i] > 0 ? 1 : 0, 1e-6);
}

// ---- rows

static void same_row(Tensor some, Tensor all, int64_t row) {
    Tensor want = tensor_rows(all, row, 1);
    assert_memory_equal(some.data, want.data, tensor_bytes(want));
}

// A row has the same bits alone, at another address, and among others.
static void rows_stand_alone(void) {
    enum { T = 6, H = 333, E = 37, K = 3 };
    Tensor x = input(T, H, 1), u = input(T, H, 1), d = input(T, H, 1), w = input(H, 0, 1),
           scale = input(T, 0, 1);
    Tensor y = output(T, H), rstd = output(T, 0), dx = output(T, H), dw = output_copy(w), act = output(T, H);
    Tensor dgate = output(T, H), dup = output(T, H), again = output(T, H), dscale = output(T, 0), none = {0};
    Tensor loss = output_copy(x), logprob = output(T, 0), targets = input_ints(T, 0, H),
           router = input(T, E, 1);
    Tensor probs = output(T, E), lse = output(T, 0), index = output_ints(T, K), one = output(1, H),
           two = output(1, H);
    Tensor three = output(1, H), number = output(1, 0), few = output(1, E), choice = output_ints(1, K);
    kernels->rmsnorm_forward(y, rstd, x, w, 1e-5f, stream);
    kernels->rmsnorm_backward(dx, dw, d, x, w, rstd, INTO_ZERO, stream);
    kernels->swiglu_forward(act, x, u, scale, stream);
    kernels->swiglu_backward(dgate, dup, again, dscale, d, x, u, scale, stream);
    kernels->cross_entropy(logprob, loss, targets, 0.1f, stream);
    kernels->topk_softmax(probs, lse, index, router, none, stream);
    for (int64_t t = 0; t < T; t++) {
        Tensor xt = tensor_rows(x, t, 1), ut = tensor_rows(u, t, 1), dt = tensor_rows(d, t, 1);
        Tensor st = tensor_rows(scale, t, 1);
        kernels->rmsnorm_forward(one, number, xt, w, 1e-5f, stream);
        same_row(one, y, t), same_row(number, rstd, t);
        kernels->rmsnorm_backward(one, dw, dt, xt, w, number, INTO_ZERO, stream);
        same_row(one, dx, t);
        kernels->swiglu_forward(one, xt, ut, st, stream);
        same_row(one, act, t);
        kernels->swiglu_backward(one, two, three, number, dt, xt, ut, st, stream);
        same_row(one, dgate, t), same_row(two, dup, t), same_row(three, again, t),
            same_row(number, dscale, t);
        memcpy(one.data, xt.data, tensor_bytes(one));
        kernels->cross_entropy(number, one, tensor_rows(targets, t, 1), 0.1f, stream);
        same_row(one, loss, t), same_row(number, logprob, t);
        kernels->topk_softmax(few, number, choice, tensor_rows(router, t, 1), none, stream);
        same_row(few, probs, t), same_row(number, lse, t), same_row(choice, index, t);
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

EVERY_ISA(tables_have_no_holes)
EVERY_ISA(sums_squares_in_double)
EVERY_ISA(norms)
EVERY_ISA(rope_rotates)
EVERY_ISA(swiglu)
EVERY_ISA(swiglu_saturates)
EVERY_ISA(rows_stand_alone)
EVERY_ISA(adamw_follows_the_formula)

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(tables_have_no_holes_everywhere),
        cmocka_unit_test(isa_is_chosen_at_run_time),
        cmocka_unit_test(sums_squares_in_double_everywhere),
        cmocka_unit_test(norms_everywhere),
        cmocka_unit_test(rope_rotates_everywhere),
        cmocka_unit_test(swiglu_everywhere),
        cmocka_unit_test(swiglu_saturates_everywhere),
        cmocka_unit_test(rows_stand_alone_everywhere),
        cmocka_unit_test(adamw_follows_the_formula_everywhere),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
