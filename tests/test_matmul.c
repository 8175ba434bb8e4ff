// SPDX-License-Identifier: Apache-2.0
#include "tests/kernels_harness.h"

typedef struct {
    int64_t M, N, K;
} Size;

static const Size sizes[] = {{1, 1, 1},     {1, 131, 20},  {2, 7, 3},     {13, 16, 64},  {14, 32, 256},
                             {15, 33, 257}, {5, 131, 300}, {31, 20, 1},   {64, 48, 20},  {147, 64, 40},
                             {29, 95, 600}, {7, 17, 520},  {3, 600, 5},   {150, 40, 17}, {0, 5, 3},
                             {5, 0, 3},     {6, 9, 0},     {45, 24, 1100}};
enum { SIZES = sizeof sizes / sizeof *sizes };

static Tensor whole_numbers(int64_t rows, int64_t columns) {
    Tensor t = input(rows, columns ? columns : 1, 1);
    t.dim[1] = columns;
    for (int64_t i = 0; i < tensor_size(t); i++)
        tensor_f32(t)[i] = (float)(rng_u64(7, 8, harness_draws++) % 17) - 8;
    return t;
}

static float at(Tensor t, bool transposed, int64_t i, int64_t j) {
    return transposed ? tensor_f32(t)[j * t.dim[1] + i] : tensor_f32(t)[i * t.dim[1] + j];
}

// Products of whole numbers are exact in any order (|sum| < 2²⁴): every element must have the very bits.
static void check_whole_numbers(Size s, bool ta, bool tb, Into into) {
    Tensor a = ta ? whole_numbers(s.K, s.M) : whole_numbers(s.M, s.K);
    Tensor b = tb ? whole_numbers(s.N, s.K) : whole_numbers(s.K, s.N);
    Tensor before = whole_numbers(s.M, s.N), c = output_copy(before);
    if (into == INTO_ZERO)
        for (int64_t i = 0; i < tensor_size(c); i++) tensor_f32(c)[i] = NAN;
    kernels->matmul(c, a, ta, b, tb, into, stream);
    for (int64_t i = 0; i < s.M; i++)
        for (int64_t j = 0; j < s.N; j++) {
            double sum = into == INTO_SUM ? (double)tensor_f32(before)[i * s.N + j] : 0;
            for (int64_t p = 0; p < s.K; p++) sum += (double)at(a, ta, i, p) * (double)at(b, tb, p, j);
            assert_true(tensor_f32(c)[i * s.N + j] == (float)sum);
        }
}

static void exact_on_whole_numbers(void) {
    for (int i = 0; i < SIZES; i++)
        for (int form = 0; form < 8; form++) {
            check_whole_numbers(sizes[i], form & 1, form & 2, form & 4 ? INTO_SUM : INTO_ZERO);
            harness_end();
        }
}

// A chain of K roundings of 2⁻²⁴ each: far below K · 2⁻²⁴ · Σ|ab| as signs mix; √K is the usual size.
static void close_to_double(void) {
    for (int i = 0; i < SIZES; i++) {
        Size s = sizes[i];
        Tensor a = input(s.M + 1, s.K + 1, 1), b = input(s.N + 1, s.K + 1, 1), c = output(s.M + 1, s.N + 1);
        kernels->matmul(c, a, false, b, true, INTO_ZERO, stream);
        for (int64_t m = 0; m <= s.M; m++)
            for (int64_t n = 0; n <= s.N; n++) {
                double sum = 0, size = 0;
                for (int64_t p = 0; p <= s.K; p++) {
                    double term = (double)at(a, false, m, p) * (double)at(b, true, p, n);
                    sum += term;
                    size += fabs(term);
                }
                double error = fabs((double)at(c, false, m, n) - sum);
                assert_true(error <= 4 * sqrt((double)(s.K + 1)) * 0x1p-24 * size);
            }
        harness_end();
    }
}

// Row i of the result has the same bits whatever rows stand beside it.
static void rows_do_not_depend_on_each_other(void) {
    enum { ROWS = 45, N = 70, K = 555 };
    Tensor a = input(ROWS, K, 1), w = input(N, K, 1), v = input(K, N, 1);
    Tensor nt = output(ROWS, N), nn = output(ROWS, N), tn = output(ROWS, N);
    Tensor at_all = input(K, ROWS, 1);
    kernels->matmul(nt, a, false, w, true, INTO_ZERO, stream);
    kernels->matmul(nn, a, false, v, false, INTO_ZERO, stream);
    kernels->matmul(tn, at_all, true, v, false, INTO_ZERO, stream);
    for (int64_t M = 1; M < ROWS; M++) {
        int64_t first = ROWS - M; // the last rows, so that each one's place in its tile changes
        Tensor some = tensor_rows(a, first, M), c = output(M, N), columns = input(K, M, 1);
        kernels->matmul(c, some, false, w, true, INTO_ZERO, stream);
        assert_memory_equal(c.data, tensor_rows(nt, first, M).data, tensor_bytes(c));
        kernels->matmul(c, some, false, v, false, INTO_ZERO, stream);
        assert_memory_equal(c.data, tensor_rows(nn, first, M).data, tensor_bytes(c));
        for (int64_t p = 0; p < K; p++)
            memcpy(tensor_f32(columns) + p * M, tensor_f32(at_all) + p * ROWS + first,
                   (size_t)M * sizeof(float));
        kernels->matmul(c, columns, true, v, false, INTO_ZERO, stream);
        assert_memory_equal(c.data, tensor_rows(tn, first, M).data, tensor_bytes(c));
    }
}

static void count_call(void *context) {
    ++*(int *)context;
}

// Messages must travel during long products, without changing a bit of them.
static void polls_between_panels(void) {
    enum { M = 300, N = 520, K = 520 };
    Tensor a = input(M, K, 1), b = input(N, K, 1), c = output(M, N), d = output(M, N);
    int calls = 0;
    kernels->matmul(c, a, false, b, true, INTO_ZERO, stream);
    stream->progress = count_call;
    stream->progress_context = &calls;
    kernels->matmul(d, a, false, b, true, INTO_ZERO, stream);
    stream->progress = NULL;
    assert_true(calls >= 8); // 162 MFLOP: 8 calls are 200 µs apart at 100 GFLOP/s
    assert_memory_equal(c.data, d.data, tensor_bytes(c));
}

EVERY_ISA(exact_on_whole_numbers)
EVERY_ISA(close_to_double)
EVERY_ISA(rows_do_not_depend_on_each_other)
EVERY_ISA(polls_between_panels)

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(exact_on_whole_numbers_everywhere),
        cmocka_unit_test(close_to_double_everywhere),
        cmocka_unit_test(rows_do_not_depend_on_each_other_everywhere),
        cmocka_unit_test(polls_between_panels_everywhere),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
