// SPDX-License-Identifier: Apache-2.0
// Embedding and cross-entropy.
#include "tests/kernels_harness.h"

static void embeds(void) {
    Tensor table = input(11, 21, 1), tokens = input_ints(40, 0, 11), y = output(40, 21);
    Tensor dtable = output_copy(input(11, 21, 1)), dy = input(40, 21, 1);
    double *want = doubles_of(dtable);
    kernels->embedding_forward(y, table, tokens, stream);
    kernels->embedding_backward(dtable, dy, tokens, stream);
    for (int64_t t = 0; t < 40; t++)
        for (int64_t c = 0; c < 21; c++) {
            int64_t at = tensor_i32(tokens)[t] * 21 + c;
            assert_true(tensor_f32(y)[t * 21 + c] == tensor_f32(table)[at]);
            want[at] += (double)tensor_f32(dy)[t * 21 + c];
        }
    for (int64_t i = 0; i < 11 * 21; i++) close_to(tensor_f32(dtable)[i], want[i], 2e-6);
}

typedef struct {
    int64_t T, V;
    double *logits, scale;
    const int32_t *target;
    double *logprob; // where given
} Loss;

static double loss_reference(const void *context) {
    const Loss *l = context;
    double loss = 0;
    for (int64_t t = 0; t < l->T; t++) {
        double sum = 0, most = -1e300;
        for (int64_t v = 0; v < l->V; v++) most = fmax(most, l->logits[t * l->V + v]);
        for (int64_t v = 0; v < l->V; v++) sum += exp(l->logits[t * l->V + v] - most);
        double logprob = l->logits[t * l->V + l->target[t]] - most - log(sum);
        if (l->logprob) l->logprob[t] = logprob;
        loss -= l->scale * logprob;
    }
    return loss;
}

static void cross_entropy(void) {
    static const int64_t words[] = {1, 5, 131, 1100};
    for (int i = 0; i < 4; i++) {
        int64_t T = 3, V = words[i];
        Tensor given = input(T, V, 3), logits = output_copy(given), targets = input_ints(T, 0, (int32_t)V);
        Tensor logprob = output(T, 0);
        Loss l = {T, V, doubles_of(logits), 0.25, tensor_i32(targets), doubles(T)};
        kernels->cross_entropy(logprob, logits, targets, 0, stream);
        assert_memory_equal(logits.data, given.data, tensor_bytes(given));
        loss_reference(&l);
        for (int64_t t = 0; t < T; t++) close_to(tensor_f32(logprob)[t], l.logprob[t], 1e-6);
        kernels->cross_entropy(logprob, logits, targets, 0.25f, stream);
        for (int64_t t = 0; t < T; t++) close_to(tensor_f32(logprob)[t], l.logprob[t], 1e-6);
        gradient_check(loss_reference, &l, l.logits, logits, 2e-6);
        harness_end();
    }
}

// Large logits: no overflow, and a hopeless target keeps its true, very small probability.
static void cross_entropy_of_large_logits(void) {
    Tensor logits = output_copy(input(2, 40, 0)), targets = input_ints(2, 0, 1), logprob = output(2, 0);
    tensor_f32(logits)[0] = 1e4f;
    tensor_f32(logits)[40] = -500;
    kernels->cross_entropy(logprob, logits, targets, 1, stream);
    close_to(tensor_f32(logprob)[0], 0, 1e-6);
    close_to(tensor_f32(logprob)[1], -500 - log(39), 1e-6);
    close_to(tensor_f32(logits)[40], -1, 1e-6);
    close_to(tensor_f32(logits)[41], 1.0 / 39, 1e-6);
}

EVERY_ISA(embeds)
EVERY_ISA(cross_entropy)
EVERY_ISA(cross_entropy_of_large_logits)

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(embeds_everywhere),
        cmocka_unit_test(cross_entropy_everywhere),
        cmocka_unit_test(cross_entropy_of_large_logits_everywhere),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
