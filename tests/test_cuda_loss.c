// SPDX-License-Identifier: Apache-2.0
// The CUDA embedding and cross-entropy, emulated on the CPU, in both types against the CPU's.
#include "tests/bf16_harness.h"
#include <stdio.h>
#include <sys/wait.h>
#include <unistd.h>

static void check_embedding(DType dtype, bool apart, int64_t T, int64_t h, int32_t words) {
    Tensor table = input_exact(words, h, 1), dy = input_exact(T, h, 1), tokens = input_ints(T, 0, words);
    Tensor y = output_in_type(T, h, dtype, apart), dtable = input(words, h, 1), want_y = output(T, h);
    Tensor want = output_copy(dtable), got = output_copy(dtable);
    if (T > 2) tensor_i32(tokens)[T - 1] = tensor_i32(tokens)[0];
    kernels->embedding_forward(y, in_type(table, dtype, apart), tokens, stream);
    cpu->embedding_forward(want_y, table, tokens, stream);
    same_numbers(y, want_y, 0);
    cpu->embedding_backward(want, dy, tokens, stream);
    kernels->embedding_backward(got, in_type(dy, dtype, apart), tokens, stream);
    same_bits(got, want); // token by token, as on the CPU
    harness_end();
}

static void embeds(void) {
    static const int64_t shape[][2] = {{1, 1}, {40, 21}, {700, 16}, {5, 1032}};
    for (int i = 0; i < 4 * 4; i++)
        for (int32_t words = 1; words < 300; words = words * 16 + 1)
            check_embedding(i & 1 ? DTYPE_BF16 : DTYPE_F32, i >> 1 & 1, shape[i / 4][0], shape[i / 4][1],
                            words);
}

static void check_loss(DType dtype, bool apart, int64_t T, int64_t V) {
    Tensor logits = input_exact(T, V, 3), targets = input_ints(T, 0, (int32_t)V), want = output_copy(logits);
    Tensor want_logprob = output(T, 0), logprob = output(T, 0), got = in_type(logits, dtype, apart);
    Tensor still = in_type(logits, dtype, apart), again = output(T, 0);
    kernels->cross_entropy(again, still, targets, 0, stream);
    same_numbers(still, logits, 0);
    cpu->cross_entropy(want_logprob, want, targets, 0.25f, stream);
    kernels->cross_entropy(logprob, got, targets, 0.25f, stream);
    same_numbers(logprob, want_logprob, 3e-6);
    same_bits(logprob, again);
    same_numbers(got, want, 1e-6);
    harness_end();
}

// The widest have more packs than the registers of a block hold.
static void cross_entropy(void) {
    static const int64_t shape[][2] = {{3, 1}, {3, 5}, {4, 136}, {2, 5001}, {1, 20000}, {1, 40000}};
    for (int i = 0; i < 6 * 4; i++)
        check_loss(i & 1 ? DTYPE_BF16 : DTYPE_F32, i >> 1 & 1, shape[i / 4][0], shape[i / 4][1]);
}

// A token that the table lacks stops the kernel instead of reading elsewhere.
static void tokens_out_of_range(void) {
    for (int i = 0; i < 6; i++) {
        Tensor table = output_copy(input(4, 8, 1)), y = output(2, 8), tokens = input_ints(2, 0, 1);
        tensor_i32(tokens)[1] = i & 1 ? 4 : -1;
        pid_t child = fork();
        if (child == 0) {
            if (!freopen("/dev/null", "w", stderr)) _exit(0);
            if (i < 2)
                kernels->embedding_forward(y, table, tokens, stream);
            else if (i < 4)
                kernels->embedding_backward(table, y, tokens, stream);
            else
                kernels->cross_entropy(output(2, 0), tensor_rows(table, 0, 2), tokens, 1, stream);
            _exit(0);
        }
        int status = 0;
        waitpid(child, &status, 0);
        if (i >= 4 && (i & 1))
            assert_int_equal(status, 0); // token 4 of 8 logits is one
        else
            assert_false(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    }
}

EVERY_ISA(embeds)
EVERY_ISA(cross_entropy)
EVERY_ISA(tokens_out_of_range)

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(embeds_everywhere),
        cmocka_unit_test(cross_entropy_everywhere),
        cmocka_unit_test(tokens_out_of_range_everywhere),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
