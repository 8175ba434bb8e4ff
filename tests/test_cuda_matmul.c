// SPDX-License-Identifier: Apache-2.0
// The CUDA matmul without cuBLASLt: its column-major products, done one element at a time
// (tests/cuda_emulation_matmul.c), against the CPU's matmul; and the keys and the cache of plans.
#include "kernels/cuda/matmul.h"
#include "tests/bf16_harness.h"
#include <stdio.h>
#include <sys/wait.h>
#include <unistd.h>

typedef struct {
    int64_t M, N, K;
    bool a_transposed, b_transposed;
    DType a, b, c;
    Into into;
} Case;

static Tensor stored(bool transposed, int64_t rows, int64_t columns, bool exact) {
    if (transposed) return stored(false, columns, rows, exact);
    return exact ? input_exact(rows, columns, 1) : input(rows, columns, 1);
}

static void check(Case c) {
    Tensor a = stored(c.a_transposed, c.M, c.K, c.a == DTYPE_BF16),
           b = stored(c.b_transposed, c.K, c.N, c.b == DTYPE_BF16), before = input_exact(c.M, c.N, 1);
    Tensor want = output_copy(before), got = output_in_type(c.M, c.N, c.c, true);
    if (c.into == INTO_SUM) got = in_type(before, c.c, true);
    cpu->matmul(want, a, c.a_transposed, b, c.b_transposed, c.into, stream);
    kernels->matmul(got, in_type(a, c.a, false), c.a_transposed, in_type(b, c.b, true), c.b_transposed,
                    c.into, stream);
    same_numbers(got, want, 4e-6); // up to 70 terms of size 1 in f32
    harness_end();
}

// All that the model asks for: linear layers forward, their gradients, and those of a router, whose logits
// are f32 beside bf16 activations.
static void products(void) {
    static const int64_t shape[][3] = {{1, 1, 1}, {5, 7, 3}, {33, 20, 70}, {2, 64, 1}};
    static const DType types[][3] = {
        {DTYPE_F32, DTYPE_F32, DTYPE_F32},   {DTYPE_BF16, DTYPE_BF16, DTYPE_BF16},
        {DTYPE_BF16, DTYPE_BF16, DTYPE_F32}, {DTYPE_F32, DTYPE_BF16, DTYPE_F32},
        {DTYPE_BF16, DTYPE_F32, DTYPE_F32},  {DTYPE_F32, DTYPE_BF16, DTYPE_BF16}};
    for (int s = 0; s < 4; s++)
        for (int t = 0; t < 6; t++)
            for (int i = 0; i < 8; i++) {
                Case c = {.M = shape[s][0],
                          .N = shape[s][1],
                          .K = shape[s][2],
                          .a_transposed = i & 1,
                          .b_transposed = i & 2,
                          .a = types[t][0],
                          .b = types[t][1],
                          .c = types[t][2],
                          .into = i & 4 ? INTO_SUM : INTO_ZERO};
                if (t == 5 && (c.a_transposed || c.b_transposed)) continue;
                check(c);
            }
}

static void empty_products(void) {
    for (int t = 0; t < 2; t++) {
        DType type = t ? DTYPE_BF16 : DTYPE_F32;
        Tensor before = input_exact(4, 5, 1), c = in_type(before, type, false), a = output(4, 0),
               b = output(0, 5), none = output(0, 5);
        a.rank = b.rank = 2;
        a.dtype = b.dtype = none.dtype = type;
        kernels->matmul(c, a, false, b, false, INTO_SUM, stream);
        same_numbers(c, before, 0);
        kernels->matmul(c, a, false, b, false, INTO_ZERO, stream);
        for (int i = 0; i < 20; i++) assert_true(element(c, i) == 0);
        kernels->matmul(none, none, false, in_type(input(5, 5, 1), type, false), false, INTO_ZERO, stream);
    }
}

// Types that have no product, and shapes that do not fit, end the program.
static void refused(void) {
    for (int i = 0; i < 5; i++) {
        pid_t child = fork();
        if (child == 0) {
            Tensor f = input(4, 4, 1), h = in_type(f, DTYPE_BF16, false), out = in_type(f, DTYPE_BF16, false);
            if (!freopen("/dev/null", "w", stderr)) _exit(0);
            if (i == 0) kernels->matmul(out, f, false, f, false, INTO_ZERO, stream);
            if (i == 1) kernels->matmul(out, f, false, h, true, INTO_ZERO, stream);
            if (i == 2) kernels->matmul(out, h, false, f, false, INTO_ZERO, stream);
            if (i == 3)
                kernels->matmul(output(4, 4), input_ints(4, 4, 9), false, f, false, INTO_ZERO, stream);
            if (i == 4) kernels->matmul(output(4, 5), f, false, f, false, INTO_ZERO, stream);
            _exit(0);
        }
        int status = 0;
        waitpid(child, &status, 0);
        assert_false(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    }
}

// ---- plans

static Tensor at_address(uintptr_t address, DType dtype, int64_t rows, int64_t columns) {
    return tensor_view((void *)address, dtype, 2, (int64_t[]){rows, columns});
}

// y = x Wᵀ of an expert with `rows` rows; x begins `offset` bytes behind a multiple of 16.
static ColumnProduct forward_of(int64_t rows, int64_t in, int64_t out, uintptr_t offset) {
    return column_product(at_address(4096, DTYPE_BF16, rows, out),
                          at_address(8192 + offset, DTYPE_BF16, rows, in), false,
                          at_address(65536, DTYPE_BF16, out, in), true, INTO_ZERO);
}

// dW += dyᵀ x.
static ColumnProduct weight_gradient_of(int64_t rows, int64_t in, int64_t out) {
    return column_product(at_address(4096, DTYPE_F32, out, in), at_address(8192, DTYPE_BF16, rows, out), true,
                          at_address(65536, DTYPE_BF16, rows, in), false, INTO_SUM);
}

static bool same_key(ColumnProduct a, ColumnProduct b) {
    PlanKey x = plan_key(&a, false), y = plan_key(&b, false);
    return memcmp(&x, &y, sizeof x) == 0;
}

static void keys_leave_out_what_changes(void **state) {
    (void)state;
    assert_true(same_key(forward_of(513, 96, 80, 0), forward_of(640, 96, 80, 0)));
    assert_false(same_key(forward_of(512, 96, 80, 0), forward_of(513, 96, 80, 0)));
    assert_true(same_key(forward_of(1, 96, 80, 0), forward_of(16, 96, 80, 0)));
    assert_false(same_key(forward_of(16, 96, 80, 0), forward_of(17, 96, 80, 0)));
    assert_false(same_key(forward_of(512, 96, 80, 0), forward_of(512, 80, 96, 0)));
    assert_true(same_key(forward_of(512, 96, 80, 0), forward_of(512, 96, 80, 64)));
    assert_false(same_key(forward_of(512, 96, 80, 0), forward_of(512, 96, 80, 4)));
    assert_false(same_key(forward_of(512, 96, 80, 2), forward_of(512, 96, 80, 4)));
    assert_true(same_key(weight_gradient_of(513, 96, 80), weight_gradient_of(640, 96, 80)));
    assert_false(same_key(weight_gradient_of(512, 96, 80), weight_gradient_of(513, 96, 80)));
    ColumnProduct p = forward_of(512, 96, 80, 0), q = p;
    q.beta = 1;
    assert_false(same_key(p, q));
    q = p;
    q.result_data = (char *)p.result_data + 2;
    assert_false(same_key(p, q));
    q = p;
    q.left_data = (const char *)p.left_data + 2;
    assert_false(same_key(p, q));
    q = p;
    q.result.dtype = DTYPE_F32;
    assert_false(same_key(p, q));
    q = p;
    q.left.transposed = false;
    assert_false(same_key(p, q));
}

// The bucket's product is the product with more rows: the same strides, no less of anything.
static void buckets_are_products(void **state) {
    (void)state;
    ColumnProduct p = forward_of(700, 96, 80, 0), more = plan_product(&p, false);
    assert_true(more.n == 768 && more.m == 80 && more.k == 96);
    assert_true(more.right.columns == 768 && more.result.columns == 768 && more.left.columns == 80);
    assert_true(more.right.stride == p.right.stride && more.result.stride == p.result.stride);
    ColumnProduct g = weight_gradient_of(700, 96, 80), sum = plan_product(&g, false);
    assert_true(sum.k == 768 && sum.m == 96 && sum.n == 80);
    assert_true(sum.left.columns == 768 && sum.right.columns == 768 && sum.left.stride == g.left.stride);
    ColumnProduct same = plan_product(&p, true);
    assert_true(same.n == 700 && same.right.columns == 700 && same.result.columns == 700);
    PlanKey bucket = plan_key(&p, false), exact = plan_key(&p, true);
    assert_memory_not_equal(&bucket, &exact, sizeof bucket);
    // k is the stride of a weight that is stored the other way round.
    ColumnProduct both =
        column_product(at_address(4096, DTYPE_F32, 80, 96), at_address(8192, DTYPE_BF16, 700, 80), true,
                       at_address(65536, DTYPE_BF16, 96, 700), true, INTO_SUM);
    assert_true(plan_product(&both, false).k == 700);
}

static void plans_are_found_again(void **state) {
    (void)state;
    PlanCache *cache = plan_cache_create();
    for (int round = 0; round < 2; round++)
        for (int64_t i = 0; i < PLAN_CACHE_MOST; i++) {
            ColumnProduct p = forward_of(512, i + 1, 2 * i + 1, 0);
            PlanKey key = plan_key(&p, false);
            Plan *plan = plan_cache_find(cache, &key);
            assert_memory_equal(&plan->key, &key, sizeof key);
            assert_int_equal(plan->made, round);
            plan->made = true;
            if (round) assert_memory_equal(plan->algorithm, &i, sizeof i);
            memcpy(plan->algorithm, &i, sizeof i);
        }
    // One more than it holds: all are forgotten, none is mistaken for another.
    ColumnProduct p = forward_of(512, 7, PLAN_CACHE_MOST, 0), first = forward_of(512, 1, 1, 0);
    PlanKey key = plan_key(&p, false), old = plan_key(&first, false);
    assert_false(plan_cache_find(cache, &key)->made);
    assert_false(plan_cache_find(cache, &old)->made);
    plan_cache_destroy(cache);
}

EVERY_ISA(products)
EVERY_ISA(empty_products)
EVERY_ISA(refused)

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(products_everywhere),  cmocka_unit_test(empty_products_everywhere),
        cmocka_unit_test(refused_everywhere),   cmocka_unit_test(keys_leave_out_what_changes),
        cmocka_unit_test(buckets_are_products), cmocka_unit_test(plans_are_found_again),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
