// SPDX-License-Identifier: Apache-2.0
// The CUDA norms, emulated on the CPU, in both types against the CPU's.
#include "tests/bf16_harness.h"

typedef struct {
    bool centered, apart;
    DType dtype;
    int64_t T, h;
} Case;

static norm_forward_fn *forward_of(const Kernels *table, bool centered) {
    return centered ? table->layernorm_forward : table->rmsnorm_forward;
}

static norm_backward_fn *backward_of(const Kernels *table, bool centered) {
    return centered ? table->layernorm_backward : table->rmsnorm_backward;
}

static void check_forward(Case c) {
    Tensor x = input_exact(c.T, c.h, 1), w = input_exact(c.h, 0, 1), before = input_exact(c.T, c.h, 1);
    Tensor want = output(c.T, c.h), want_rstd = output(c.T, 0), want_sum = output_copy(before);
    forward_of(cpu, c.centered)(want, want_rstd, x, w, 1e-3f, INTO_ZERO, stream);
    forward_of(cpu, c.centered)(want_sum, want_rstd, x, w, 1e-3f, INTO_SUM, stream);

    Tensor gx = in_type(x, c.dtype, c.apart), gw = in_type(w, c.dtype, c.apart), rstd = output(c.T, 0);
    Tensor y = output_in_type(c.T, c.h, c.dtype, c.apart), sum = in_type(before, c.dtype, c.apart);
    forward_of(kernels, c.centered)(y, rstd, gx, gw, 1e-3f, INTO_ZERO, stream);
    // Up to 16448 squares in another order: on the CPU each of 8 partial sums has 2000 terms.
    same_numbers(y, want, 1e-5);
    same_numbers(rstd, want_rstd, 1e-5);
    forward_of(kernels, c.centered)(sum, rstd, gx, gw, 1e-3f, INTO_SUM, stream);
    same_numbers(sum, want_sum, 1e-5);
    forward_of(kernels, c.centered)(gx, rstd, gx, gw, 1e-3f, INTO_ZERO, stream);
    same_bits(gx, y);
    harness_end();
}

static void check_backward(Case c) {
    Tensor x = input_exact(c.T, c.h, 1), w = input_exact(c.h, 0, 1), dy = input_exact(c.T, c.h, 1);
    Tensor before = input_exact(c.T, c.h, 1), y = output(c.T, c.h), rstd = output(c.T, 0);
    Tensor want = output(c.T, c.h), want_sum = output_copy(before), dw = input(c.h, 0, 1);
    Tensor want_dw = output_copy(dw), got_dw = output_copy(dw), dw2 = output_copy(dw);
    forward_of(cpu, c.centered)(y, rstd, x, w, 1e-3f, INTO_ZERO, stream);
    backward_of(cpu, c.centered)(want_sum, output_copy(dw), dy, x, w, rstd, INTO_SUM, stream);
    backward_of(cpu, c.centered)(want, want_dw, dy, x, w, rstd, INTO_ZERO, stream);

    Tensor gx = in_type(x, c.dtype, c.apart), gw = in_type(w, c.dtype, c.apart),
           gdy = in_type(dy, c.dtype, c.apart);
    Tensor dx = output_in_type(c.T, c.h, c.dtype, c.apart), sum = in_type(before, c.dtype, c.apart);
    backward_of(kernels, c.centered)(dx, got_dw, gdy, gx, gw, rstd, INTO_ZERO, stream);
    same_numbers(dx, want, 1e-5);
    same_numbers(got_dw, want_dw, 2e-5); // up to 300 terms in another order
    backward_of(kernels, c.centered)(sum, dw2, gdy, gx, gw, rstd, INTO_SUM, stream);
    same_bits(got_dw, dw2);
    same_numbers(sum, want_sum, 1e-5);
    backward_of(kernels, c.centered)(gdy, dw2, gdy, gx, gw, rstd, INTO_ZERO, stream);
    same_bits(gdy, dx);
    harness_end();
}

// Rows of one element and of odd numbers, packs of 16 bytes on and off their boundary, rows that a thread's
// registers do not hold (more than 2048 packs), more rows than blocks that share the weight's gradient.
static void norms(void) {
    static const int64_t shape[][2] = {{5, 1}, {4, 7}, {3, 64}, {300, 40}, {1, 2101}, {1, 16448}};
    for (int i = 0; i < 6 * 8; i++) {
        Case c = {.centered = i & 1,
                  .apart = i >> 1 & 1,
                  .dtype = i & 4 ? DTYPE_BF16 : DTYPE_F32,
                  .T = shape[i / 8][0],
                  .h = shape[i / 8][1]};
        check_forward(c);
        check_backward(c);
    }
}

// No rows: nothing is written, the weight's gradient stays.
static void no_rows(void) {
    Tensor x = output(0, 8), w = input(8, 0, 1), rstd = output(0, 0), dw = input(8, 0, 1),
           same = output_copy(dw);
    kernels->rmsnorm_forward(x, rstd, x, w, 1e-3f, INTO_ZERO, stream);
    kernels->rmsnorm_backward(x, dw, x, x, w, rstd, INTO_ZERO, stream);
    same_bits(dw, same);
}

EVERY_ISA(norms)
EVERY_ISA(no_rows)

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(norms_everywhere),
        cmocka_unit_test(no_rows_everywhere),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
