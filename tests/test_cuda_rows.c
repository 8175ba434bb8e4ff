// SPDX-License-Identifier: Apache-2.0
// Rows to expert order and back in CUDA, emulated on the CPU, in both types against the CPU's, bit for bit: a
// copy is exact, and a sum of f32 in the same order is the same before it is rounded.
#include "tests/bf16_harness.h"

static const Tensor none;

typedef struct {
    bool apart, dropped;
    DType dtype;
    int64_t T, h, k;
} Case;

// Places as the router makes them, among 5 experts; *N rows in all.
static Tensor places(Case c, int64_t *N) {
    Tensor index = input_ints(c.T, c.k, 5), kept = input_ints(c.T, c.k, 2), counts = output_ints(5, 0);
    Tensor row = output_ints(c.T, c.k);
    for (int64_t j = 0; j < c.k && c.T; j++) tensor_i32(kept)[j] = 0; // a token without rows
    cpu->route_sort(row, counts, index, c.dropped ? kept : none, stream);
    *N = 0;
    for (int e = 0; e < 5; e++) *N += tensor_i32(counts)[e];
    return row;
}

static void check_rows(Case c) {
    int64_t N;
    Tensor row = places(c, &N), x = input_exact(c.T, c.h, 1), want = output(N, c.h), y = output(c.T, c.h);
    cpu->rows_gather(want, x, row, stream);
    Tensor rows = output_in_type(N, c.h, c.dtype, c.apart), gx = in_type(x, c.dtype, c.apart);
    kernels->rows_gather(rows, gx, row, stream);
    same_bits(rows, in_type(want, c.dtype, false));

    Tensor from = input_exact(N, c.h, 1), before = input_exact(c.T, c.h, 1), sum = output_copy(before);
    for (int64_t i = 0; i < N * c.h; i += 3) tensor_f32(from)[i] = -0.0f;
    cpu->rows_combine(y, from, row, INTO_ZERO, stream);
    cpu->rows_combine(sum, from, row, INTO_SUM, stream);
    Tensor gfrom = in_type(from, c.dtype, c.apart), got = output_in_type(c.T, c.h, c.dtype, c.apart);
    kernels->rows_combine(got, gfrom, row, INTO_ZERO, stream);
    same_bits(got, in_type(y, c.dtype, false));
    got = in_type(before, c.dtype, c.apart);
    kernels->rows_combine(got, gfrom, row, INTO_SUM, stream);
    same_bits(got, in_type(sum, c.dtype, false));
    harness_end();
}

// Rows of one element and of odd numbers, packs of 16 bytes on and off their boundary, more packs than a
// block has under way, no tokens.
static void rows(void) {
    static const int64_t shape[][3] = {{0, 8, 2},  {1, 1, 1},   {31, 7, 3},   {31, 64, 2},
                                       {9, 40, 8}, {7, 333, 4}, {3, 2101, 2}, {2, 16448, 2}};
    for (int i = 0; i < 8 * 8; i++)
        check_rows((Case){.apart = i & 1,
                          .dropped = i & 2,
                          .dtype = i & 4 ? DTYPE_BF16 : DTYPE_F32,
                          .T = shape[i / 8][0],
                          .h = shape[i / 8][1],
                          .k = shape[i / 8][2]});
}

static void pairs(void) {
    for (int64_t T = 0; T < 1200; T = T * 6 + 1)
        for (int dropped = 0; dropped < 2; dropped++) {
            int64_t N;
            Tensor row = places((Case){.dropped = dropped, .T = T, .k = 3}, &N), value = input(T, 3, 1);
            Tensor there = output(N, 0), back = output(T, 3), want = output(N, 0), want_back = output(T, 3);
            cpu->pairs_gather(want, value, row, stream);
            cpu->pairs_scatter(want_back, want, row, stream);
            kernels->pairs_gather(there, value, row, stream);
            kernels->pairs_scatter(back, there, row, stream);
            same_bits(there, want);
            same_bits(back, want_back);
            harness_end();
        }
}

EVERY_ISA(rows)
EVERY_ISA(pairs)

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(rows_everywhere),
        cmocka_unit_test(pairs_everywhere),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
