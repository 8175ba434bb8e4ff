// SPDX-License-Identifier: Apache-2.0
// The CUDA kernels for positions, scale, clamp, sum of squares and AdamW, emulated on the CPU, in both types
// against the CPU's. Sizes that are and are not whole packs of 16 bytes, on and off their boundary.
#include "tests/bf16_harness.h"

// Four ways in which a tensor may lie: f32 or bf16, on or off a multiple of 16 bytes.
enum { LAYOUTS = 4 };
static DType type_of(int layout) {
    return layout & 1 ? DTYPE_BF16 : DTYPE_F32;
}
static bool apart_of(int layout) {
    return layout >> 1;
}

static void check_rope(int layout, RopeShape shape, int64_t T) {
    int64_t half = shape.head_dim / 2, width = shape.heads * shape.head_dim;
    Tensor x = input_exact(T, width, 1), cosine = input(40, half, 1), sine = input(40, half, 1);
    Tensor want = output_copy(x), got = in_type(x, type_of(layout), apart_of(layout));
    cpu->rope(want, cosine, sine, &shape, stream);
    kernels->rope(got, cosine, sine, &shape, stream);
    same_numbers(got, want, 1e-6);
    harness_end();
}

static void rotates(void) {
    static const int dims[] = {2, 10, 16, 64};
    for (int i = 0; i < 4 * LAYOUTS; i++) {
        RopeShape shape = {
            .heads = 3, .head_dim = dims[i / LAYOUTS], .seq_len = 5, .first_position = 3, .inverse = i & 1};
        check_rope(i % LAYOUTS, shape, 13);
        shape.heads = 20; // more than the threads of a block
        check_rope(i % LAYOUTS, shape, 2);
    }
}

static void scales(void) {
    static const int64_t sizes[] = {1, 7, 8, 2051, 4096};
    for (int i = 0; i < 5 * LAYOUTS; i++) {
        Tensor x = input_exact(sizes[i / LAYOUTS], 0, 1), want = output_copy(x);
        Tensor got = in_type(x, type_of(i % LAYOUTS), apart_of(i % LAYOUTS));
        cpu->scale(want, 0.3f, stream);
        kernels->scale(got, 0.3f, stream);
        same_numbers(got, want, 0);
        harness_end();
    }
}

static void clamps(void) {
    static const int64_t widths[] = {1, 8, 40, 63, 64, 1000, 2504};
    for (int i = 0; i < 7 * LAYOUTS; i++) {
        int64_t T = 3, n = widths[i / LAYOUTS];
        Tensor x = input_exact(T, n, 1), dy = input_exact(T, n, 1), none = {.rank = 0};
        tensor_f32(x)[0] = 0.75f;
        tensor_f32(x)[n - 1] = -0.75f;
        tensor_f32(x)[n] = NAN;
        tensor_f32(x)[2 * n] = -INFINITY;
        Tensor want = output_copy(x), dwant = output_copy(dy), mask = output_ints(T, (n + 31) / 32);
        Tensor got = in_type(x, type_of(i % LAYOUTS), apart_of(i % LAYOUTS)), alone = output_copy(got);
        Tensor dgot = in_type(dy, type_of(i % LAYOUTS), apart_of(i % LAYOUTS)), inside = output_copy(mask);
        memcpy(alone.data, got.data, tensor_bytes(got));
        cpu->clamp_forward(want, mask, 0.75f, stream);
        cpu->clamp_backward(dwant, mask, stream);
        kernels->clamp_forward(got, inside, 0.75f, stream);
        kernels->clamp_forward(alone, none, 0.75f, stream);
        kernels->clamp_backward(dgot, inside, stream);
        same_bits(inside, mask);
        same_bits(alone, got);
        for (int64_t e = 0; e < T * n; e++) {
            assert_true(isnan(element(want, e)) ? isnan(element(got, e))
                                                : element(got, e) == element(want, e));
            assert_true(element(dgot, e) == element(dwant, e));
        }
        harness_end();
    }
}

static void sums_squares(void) {
    static const int64_t sizes[] = {0, 1, 7, 8, 4099, 70000};
    for (int i = 0; i < 6 * LAYOUTS; i++) {
        Tensor x = input_exact(sizes[i / LAYOUTS], 0, 1);
        Tensor same = in_type(x, type_of(i % LAYOUTS), apart_of(i % LAYOUTS));
        double got = -1, again = -2, want = -3;
        cpu->sum_squares(&want, x, stream);
        kernels->sum_squares(&got, same, stream);
        kernels->sum_squares(&again, same, stream);
        close_to(got, want, 1e-13); // sums of squares of bf16 numbers are nearly exact in double
        assert_true(got == again);
        harness_end();
    }
}

// More elements than the threads of the largest grid take at once: 1024 blocks of 256 threads.
static void sums_many_squares(void) {
    Tensor x = input(3 * 1024 * 256 + 5, 0, 0);
    for (int64_t i = 0; i < tensor_size(x); i++) tensor_f32(x)[i] = (float)(i % 7);
    double got = -1, want = 0;
    for (int64_t i = 0; i < tensor_size(x); i++) want += (double)(i % 7 * (i % 7));
    kernels->sum_squares(&got, in_type(x, DTYPE_F32, true), stream);
    assert_true(got == want);
}

static void adamw(void) {
    static const int64_t sizes[] = {1, 7, 8, 2051, 4096};
    AdamwStep step = {
        .lr = 1e-3f, .beta1 = 0.9f, .beta2 = 0.95f, .eps = 1e-8f, .decay = 0.1f, .grad_scale = 0.5f};
    for (int i = 0; i < 5 * LAYOUTS; i++) {
        int64_t n = sizes[i / LAYOUTS];
        bool apart = apart_of(i % LAYOUTS);
        Tensor w = input(n, 0, 1), m = input(n, 0, 0), v = input(n, 0, 0), grad = input(n, 0, 1);
        Tensor want = output(n, 0), gw = in_type(w, DTYPE_F32, apart), gm = in_type(m, DTYPE_F32, apart);
        Tensor gv = in_type(v, DTYPE_F32, apart), got = output_in_type(n, 0, type_of(i % LAYOUTS), apart);
        Tensor own = output_copy(w), om = output_copy(m), ov = output_copy(v);
        for (step.step = 1; step.step < 4; step.step++) {
            cpu->adamw(want, w, m, v, grad, &step, stream);
            kernels->adamw(got, gw, gm, gv, grad, &step, stream);
            kernels->adamw(own, own, om, ov, grad, &step, stream);
        }
        same_numbers(got, want, 1e-6);
        same_numbers(gw, w, 1e-6);
        same_numbers(gm, m, 1e-6);
        same_numbers(gv, v, 1e-6);
        for (int64_t e = 0; e < n; e++) {
            assert_true(tensor_f32(own)[e] == tensor_f32(gw)[e]);
            float rounded =
                got.dtype == DTYPE_BF16 ? bf16_value(bf16_bits(tensor_f32(gw)[e])) : tensor_f32(gw)[e];
            assert_true(element(got, e) == rounded);
        }
        harness_end();
    }
}

EVERY_ISA(rotates)
EVERY_ISA(scales)
EVERY_ISA(clamps)
EVERY_ISA(sums_squares)
EVERY_ISA(sums_many_squares)
EVERY_ISA(adamw)

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(rotates_everywhere),
        cmocka_unit_test(scales_everywhere),
        cmocka_unit_test(clamps_everywhere),
        cmocka_unit_test(sums_squares_everywhere),
        cmocka_unit_test(sums_many_squares_everywhere),
        cmocka_unit_test(adamw_everywhere),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
