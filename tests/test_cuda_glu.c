// SPDX-License-Identifier: Apache-2.0
// The CUDA gated linear units, emulated on the CPU, in both types against the CPU's.
#include "tests/bf16_harness.h"

typedef struct {
    Activation activation;
    DType dtype;
    bool apart, scaled;
    int64_t N, f;
} Case;

static Tensor given(Tensor from, Case c) {
    return in_type(from, c.dtype, c.apart);
}

static void check(Case c) {
    Tensor none = {.rank = 0}, gate = input_exact(c.N, c.f, 2), up = input_exact(c.N, c.f, 1);
    Tensor dact = input_exact(c.N, c.f, 1), scale = c.scaled ? input(c.N, 0, 1) : none;
    Tensor want = output(c.N, c.f), dgate = output(c.N, c.f), dup = output(c.N, c.f), act = output(c.N, c.f);
    Tensor dscale = c.scaled ? output(c.N, 0) : none, got_dscale = c.scaled ? output(c.N, 0) : none;
    Tensor dscale2 = c.scaled ? output(c.N, 0) : none;
    cpu->glu_forward(want, gate, up, scale, c.activation, stream);
    cpu->glu_backward(dgate, dup, act, dscale, dact, gate, up, scale, c.activation, stream);

    Tensor g = given(gate, c), u = given(up, c), d = given(dact, c),
           got = output_in_type(c.N, c.f, c.dtype, c.apart);
    Tensor gdg = output_in_type(c.N, c.f, c.dtype, c.apart), gdu = output_in_type(c.N, c.f, c.dtype, c.apart);
    Tensor again = output_in_type(c.N, c.f, c.dtype, c.apart);
    kernels->glu_forward(got, g, u, scale, c.activation, stream);
    kernels->glu_backward(gdg, gdu, again, got_dscale, d, g, u, scale, c.activation, stream);
    same_numbers(got, want, 1e-6);
    same_bits(again, got);
    same_numbers(gdg, dgate, 2e-6);
    same_numbers(gdu, dup, 1e-6);
    if (c.scaled) same_numbers(got_dscale, dscale, 2e-5); // up to 4104 terms in another order

    // In place, in the two ways that the contract allows; then forward over its own input.
    Tensor g2 = given(gate, c), u2 = given(up, c), d2 = given(dact, c), g3 = given(gate, c),
           d3 = given(dact, c);
    Tensor act3 = output_in_type(c.N, c.f, c.dtype, c.apart);
    kernels->glu_backward(g2, u2, d2, dscale2, d2, g2, u2, scale, c.activation, stream);
    same_bits(g2, gdg);
    same_bits(u2, gdu);
    same_bits(d2, got);
    kernels->glu_backward(g3, d3, act3, dscale2, d3, g3, u, scale, c.activation, stream);
    same_bits(g3, gdg);
    same_bits(d3, gdu);
    same_bits(act3, got);
    if (c.scaled) same_bits(dscale2, got_dscale);
    kernels->glu_forward(u, g, u, scale, c.activation, stream);
    same_bits(u, got);
    kernels->glu_forward(g, g, given(up, c), scale, c.activation, stream);
    same_bits(g, got);
    harness_end();
}

static void gated_linear_units(void) {
    static const int64_t shape[][2] = {{3, 1}, {5, 9}, {4, 64}, {2, 520}, {1, 4104}};
    for (int i = 0; i < 5 * 16; i++) {
        Case c = {.activation = i & 1 ? ACTIVATION_GELU_TANH : ACTIVATION_SILU,
                  .dtype = i & 2 ? DTYPE_BF16 : DTYPE_F32,
                  .apart = i >> 2 & 1,
                  .scaled = i >> 3 & 1,
                  .N = shape[i / 16][0],
                  .f = shape[i / 16][1]};
        check(c);
    }
}

EVERY_ISA(gated_linear_units)

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(gated_linear_units_everywhere)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
