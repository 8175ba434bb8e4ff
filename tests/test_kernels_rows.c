// SPDX-License-Identifier: Apache-2.0
// Row-wise kernels: a row has the same bits alone, at another address, and among others.
#include "tests/kernels_harness.h"

enum { T = 6, H = 333, E = 37, K = 3 }; // H and E odd: rows begin at all alignments

static void same_row(Tensor some, Tensor all, int64_t row) {
    Tensor want = tensor_rows(all, row, 1);
    assert_memory_equal(some.data, want.data, tensor_bytes(want));
}

// A row of its own, elsewhere in memory.
static Tensor alone(Tensor all, int64_t row) {
    return output_copy(tensor_rows(all, row, 1));
}

static void check_norm(norm_forward_fn *forward, norm_backward_fn *backward, Into into) {
    Tensor x = input(T, H, 1), d = input(T, H, 1), w = input(H, 0, 1), before = input(T, H, 1);
    Tensor y = output_copy(before), rstd = output(T, 0), dx = output_copy(before), dw = output_copy(w);
    forward(y, rstd, x, w, 1e-5f, into, stream);
    backward(dx, dw, d, x, w, rstd, into, stream);
    for (int64_t t = 0; t < T; t++) {
        Tensor xt = alone(x, t), dt = alone(d, t), number = output(1, 0);
        Tensor one = alone(before, t), two = alone(before, t);
        forward(one, number, xt, w, 1e-5f, into, stream);
        same_row(one, y, t), same_row(number, rstd, t);
        backward(two, dw, dt, xt, w, number, into, stream);
        same_row(two, dx, t);
    }
    harness_end();
}

static void norms(void) {
    for (int into = INTO_ZERO; into <= INTO_SUM; into++) {
        check_norm(kernels->rmsnorm_forward, kernels->rmsnorm_backward, (Into)into);
        check_norm(kernels->layernorm_forward, kernels->layernorm_backward, (Into)into);
    }
}

static void gated_linear_units(void) {
    for (int phi = ACTIVATION_SILU; phi <= ACTIVATION_GELU_TANH; phi++) {
        Activation a = (Activation)phi;
        Tensor x = input(T, H, 1), u = input(T, H, 1), d = input(T, H, 1), scale = input(T, 0, 1);
        Tensor act = output(T, H), dgate = output(T, H), dup = output(T, H), again = output(T, H);
        Tensor dscale = output(T, 0), one = output(1, H), two = output(1, H), three = output(1, H),
               number = output(1, 0);
        kernels->glu_forward(act, x, u, scale, a, stream);
        kernels->glu_backward(dgate, dup, again, dscale, d, x, u, scale, a, stream);
        for (int64_t t = 0; t < T; t++) {
            Tensor xt = alone(x, t), ut = alone(u, t), st = alone(scale, t);
            kernels->glu_forward(one, xt, ut, st, a, stream);
            same_row(one, act, t);
            kernels->glu_backward(one, two, three, number, alone(d, t), xt, ut, st, a, stream);
            same_row(one, dgate, t), same_row(two, dup, t), same_row(three, again, t);
            same_row(number, dscale, t);
        }
        harness_end();
    }
}

static void clamps(void) {
    enum { WORDS = (H + 31) / 32 };
    Tensor x = input(T, H, 1), d = input(T, H, 1), y = output_copy(x), dx = output_copy(d);
    Tensor inside = output_ints(T, WORDS), bits = output_ints(1, WORDS);
    kernels->clamp_forward(y, inside, 0.7f, stream);
    kernels->clamp_backward(dx, inside, stream);
    for (int64_t t = 0; t < T; t++) {
        Tensor one = alone(x, t), two = alone(d, t);
        kernels->clamp_forward(one, bits, 0.7f, stream);
        kernels->clamp_backward(two, bits, stream);
        same_row(one, y, t), same_row(bits, inside, t), same_row(two, dx, t);
    }
}

static void cross_entropy(void) {
    Tensor x = input(T, H, 1), loss = output_copy(x), logprob = output(T, 0), targets = input_ints(T, 0, H);
    Tensor number = output(1, 0);
    kernels->cross_entropy(logprob, loss, targets, 0.1f, stream);
    for (int64_t t = 0; t < T; t++) {
        Tensor one = alone(x, t);
        kernels->cross_entropy(number, one, alone(targets, t), 0.1f, stream);
        same_row(one, loss, t), same_row(number, logprob, t);
    }
}

static void routes(void) {
    for (int kind = SCORES_SOFTMAX; kind <= SCORES_SIGMOID; kind++) {
        ScoreKind scores = (ScoreKind)kind;
        Tensor x = input(T, E, 1), dweight = input(T, K, 1), balance = input(1, E, 1), none = {0};
        Tensor probs = output(T, E), lse = output(T, 0), index = output_ints(T, K), weight = output(T, K);
        Tensor dx = output(T, E), one = output(1, E), number = output(1, 0), choice = output_ints(1, K),
               few = output(1, K), two = output(1, E);
        kernels->route_scores(probs, lse, index, x, none, scores, stream);
        kernels->route_weights(weight, probs, index, none, true, stream);
        kernels->route_backward(dx, dweight, weight, probs, lse, index, none, balance, true, scores, 0,
                                stream);
        for (int64_t t = 0; t < T; t++) {
            kernels->route_scores(one, number, choice, alone(x, t), none, scores, stream);
            kernels->route_weights(few, one, choice, none, true, stream);
            kernels->route_backward(two, alone(dweight, t), few, one, number, choice, none, balance, true,
                                    scores, 0, stream);
            same_row(one, probs, t), same_row(number, lse, t), same_row(choice, index, t);
            same_row(few, weight, t), same_row(two, dx, t);
        }
        harness_end();
    }
}

EVERY_ISA(norms)
EVERY_ISA(gated_linear_units)
EVERY_ISA(clamps)
EVERY_ISA(cross_entropy)
EVERY_ISA(routes)

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(norms_everywhere),  cmocka_unit_test(gated_linear_units_everywhere),
        cmocka_unit_test(clamps_everywhere), cmocka_unit_test(cross_entropy_everywhere),
        cmocka_unit_test(routes_everywhere),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
