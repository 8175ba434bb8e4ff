// SPDX-License-Identifier: Apache-2.0
// The CUDA attention, emulated on the CPU, in both types against the CPU's.
#include "tests/bf16_harness.h"
#include <stdio.h>
#include <sys/wait.h>
#include <unistd.h>

typedef struct {
    AttentionShape shape;
    DType dtype;
    bool apart; // no row begins at a multiple of 16 bytes
} Case;

// Rows of a cache behind the sequence hold nothing: kernels must not read them.
static void empty_rows(Tensor t, const AttentionShape *s) {
    for (int64_t row = 0; row < t.dim[0]; row++)
        for (int64_t c = 0; c < t.dim[1]; c++)
            if (row % s->kv_stride >= s->kv_len) tensor_f32(t)[row * t.dim[1] + c] = NAN;
}

// Nor write them. Then 0, for comparisons of the rest.
static void empty_rows_are_left(Tensor t, const AttentionShape *s) {
    size_t row_bytes = (size_t)t.dim[1] * dtype_bytes(t.dtype);
    unsigned char *row = t.data;
    for (int64_t i = 0; i < t.dim[0]; i++, row += row_bytes) {
        if (i % s->kv_stride < s->kv_len) continue;
        for (size_t at = 0; at < row_bytes; at++) assert_int_equal(row[at], 0xff);
        memset(row, 0, row_bytes);
    }
}

static void zero_empty_rows(Tensor t, const AttentionShape *s) {
    for (int64_t row = 0; row < t.dim[0]; row++)
        if (row % s->kv_stride >= s->kv_len)
            memset(tensor_f32(t) + row * t.dim[1], 0, (size_t)t.dim[1] * sizeof(float));
}

static Tensor in_f32(Tensor t) {
    Tensor copy = output(t.dim[0], t.dim[1]);
    for (int64_t i = 0; i < tensor_size(t); i++) tensor_f32(copy)[i] = element(t, i);
    return copy;
}

static void check(Case c) {
    const AttentionShape *s = &c.shape;
    int64_t queries = (int64_t)s->batch * s->q_len, keys = s->batch * s->kv_stride;
    int64_t width = s->heads * s->head_dim, kv_width = s->kv_heads * s->head_dim;
    Tensor q = input_exact(queries, width, 1), k = input_exact(keys, kv_width, 1),
           v = input_exact(keys, kv_width, 1), dout = input_exact(queries, width, 1);
    empty_rows(k, s);
    empty_rows(v, s);
    Tensor want = output(queries, width), want_lse = output(s->batch * s->heads, s->q_len);
    Tensor gq = in_type(q, c.dtype, c.apart), gk = in_type(k, c.dtype, c.apart),
           gv = in_type(v, c.dtype, c.apart), gdout = in_type(dout, c.dtype, c.apart);
    Tensor out = output_in_type(queries, width, c.dtype, c.apart), lse = output_copy(want_lse);
    kernels->attention_forward(out, lse, gq, gk, gv, s, stream);
    cpu->attention_forward(want, want_lse, q, k, v, s, stream);
    // Both have scores with errors of 1e-6 (tests/test_kernels_attention.c).
    same_numbers(out, want, 8e-6);
    same_numbers(lse, want_lse, 4e-6);

    // Backward from what the GPU's forward gave, as it was rounded.
    Tensor dq = output_in_type(queries, width, c.dtype, c.apart),
           dk = output_in_type(keys, kv_width, c.dtype, c.apart),
           dv = output_in_type(keys, kv_width, c.dtype, c.apart);
    kernels->attention_backward(dq, dk, dv, gdout, out, lse, gq, gk, gv, s, stream);
    Tensor want_dq = output(queries, width), want_dk = output(keys, kv_width),
           want_dv = output(keys, kv_width);
    cpu->attention_backward(want_dq, want_dk, want_dv, dout, in_f32(out), lse, q, k, v, s, stream);

    Tensor out2 = output_in_type(queries, width, c.dtype, c.apart), lse2 = output_copy(lse);
    Tensor dq2 = output_in_type(queries, width, c.dtype, c.apart),
           dk2 = output_in_type(keys, kv_width, c.dtype, c.apart),
           dv2 = output_in_type(keys, kv_width, c.dtype, c.apart);
    kernels->attention_forward(out2, lse2, gq, gk, gv, s, stream);
    kernels->attention_backward(dq2, dk2, dv2, gdout, out2, lse2, gq, gk, gv, s, stream);
    same_bits(out2, out);
    same_bits(lse2, lse);
    same_bits(dq2, dq);
    same_bits(dk2, dk);
    same_bits(dv2, dv);

    empty_rows_are_left(dk, s);
    empty_rows_are_left(dv, s);
    zero_empty_rows(want_dk, s);
    zero_empty_rows(want_dv, s);
    same_numbers(dq, want_dq, 1e-5);
    same_numbers(dk, want_dk, 2e-5); // sums over all queries of up to 4 heads
    same_numbers(dv, want_dv, 2e-5);
    harness_end();
}

static void check_in_both_types(AttentionShape s) {
    for (int i = 0; i < 4; i++)
        check((Case){.shape = s, .dtype = i & 1 ? DTYPE_BF16 : DTYPE_F32, .apart = i & 2});
}

// One query, tiles that are not full, several of them, every count of groups of columns.
static void causal(void) {
    check_in_both_types(shape_of(1, 1, 1, 1, 1, 1, 1));
    check_in_both_types(shape_of(2, 33, 33, 4, 2, 7, 33));
    check_in_both_types(shape_of(1, 70, 70, 4, 1, 64, 70));
    check_in_both_types(shape_of(1, 40, 40, 3, 3, 128, 40));
    check_in_both_types(shape_of(1, 34, 34, 2, 1, 132, 34));
    check_in_both_types(shape_of(1, 35, 35, 1, 1, 255, 35));
    check_in_both_types(shape_of(1, 3, 3, 2, 1, 256, 3));
}

// Earlier rows of a cache with room for more, and keys behind the last query.
static void caches(void) {
    check_in_both_types(shape_of(2, 37, 70, 2, 1, 20, 75));
    check_in_both_types(shape_of(3, 1, 65, 4, 2, 6, 66));
    AttentionShape s = shape_of(2, 40, 110, 2, 2, 12, 111);
    s.q_offset = 5;
    check_in_both_types(s);
}

// Documents that begin inside tiles and with them, so that tiles are left out; in the middle of a softcap.
static void documents(void) {
    enum { LENGTH = 150 };
    AttentionShape s = shape_of(2, LENGTH, LENGTH, 4, 2, 10, LENGTH);
    int32_t start[2 * LENGTH];
    for (int i = 0; i < LENGTH; i++) {
        start[i] = i < 37 ? 0 : i < 128 ? 37 : i < 129 ? 128 : 129;
        start[LENGTH + i] = i < 96 ? 0 : 96;
    }
    s.doc_start = start;
    check_in_both_types(s);
    s.softcap = 1.5f;
    s.scale *= 3;
    check_in_both_types(s);
}

static void softcaps(void) {
    AttentionShape s = shape_of(1, 45, 60, 2, 1, 33, 60);
    s.softcap = 2;
    s.scale *= 2;
    check_in_both_types(s);
    s.softcap = 0.01f; // all scores at either end
    s.scale *= 50;
    check_in_both_types(s);
}

// A query alone has the bits that it has among others, also where these see other documents.
static void places_do_not_matter(void) {
    enum { LENGTH = 100 };
    AttentionShape s = shape_of(1, LENGTH, LENGTH, 2, 1, 24, LENGTH), one = s;
    int32_t start[LENGTH];
    for (int i = 0; i < LENGTH; i++) start[i] = i < 45 ? 0 : i < 80 ? 45 : i % 2 ? 3 : 9;
    s.doc_start = start;
    Tensor q = input(LENGTH, 48, 1), k = input(LENGTH, 24, 1), v = input(LENGTH, 24, 1);
    Tensor out = output(LENGTH, 48), lse = output(2, LENGTH), row = output(1, 48), row_lse = output(2, 1);
    kernels->attention_forward(out, lse, q, k, v, &s, stream);
    one.q_len = 1;
    for (int i = 0; i < LENGTH; i++) {
        one.q_offset = i;
        one.doc_start = start + i;
        kernels->attention_forward(row, row_lse, tensor_rows(q, i, 1), k, v, &one, stream);
        same_bits(row, tensor_rows(out, i, 1));
    }
}

// A number that is none shows in every row that sees it, and in no other.
static void nan_shows(void) {
    AttentionShape s = shape_of(1, 50, 50, 1, 1, 8, 50);
    Tensor q = input(50, 8, 1), k = input(50, 8, 1), v = input(50, 8, 1), out = output(50, 8);
    Tensor lse = output(1, 50);
    tensor_f32(k)[40 * 8] = NAN;
    kernels->attention_forward(out, lse, q, k, v, &s, stream);
    for (int i = 0; i < 50; i++) assert_int_equal(!isnan(element(out, i * 8)), i < 40);
    for (int i = 0; i < 8 * 50; i++) tensor_f32(k)[i] = NAN;
    kernels->attention_forward(out, lse, q, k, v, &s, stream);
    for (int i = 0; i < 50; i++) assert_true(isnan(element(out, i * 8)) && isnan(tensor_f32(lse)[i]));
}

// A document that starts behind its query stops the kernel.
static void late_documents(void) {
    AttentionShape s = shape_of(1, 40, 40, 1, 1, 8, 40);
    int32_t start[40] = {[36] = 37};
    s.doc_start = start;
    Tensor q = input(40, 8, 1), k = input(40, 8, 1), v = input(40, 8, 1), out = output(40, 8);
    pid_t child = fork();
    if (child == 0) {
        if (!freopen("/dev/null", "w", stderr)) _exit(0);
        kernels->attention_forward(out, output(1, 40), q, k, v, &s, stream);
        _exit(0);
    }
    int status = 0;
    waitpid(child, &status, 0);
    assert_false(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

// No queries and no sequences: dk and dv of keys that nobody sees are 0.
static void nothing_to_see(void) {
    AttentionShape s = shape_of(1, 0, 40, 2, 1, 8, 40);
    Tensor q = output(0, 16), k = input(40, 8, 1), v = input(40, 8, 1);
    Tensor dk = output(40, 8), dv = output(40, 8), zero = output(40, 8);
    memset(zero.data, 0, tensor_bytes(zero));
    kernels->attention_forward(q, q, q, k, v, &s, stream);
    kernels->attention_backward(q, dk, dv, q, q, q, q, k, v, &s, stream);
    same_bits(dk, zero);
    same_bits(dv, zero);
    s.batch = s.q_offset = 0;
    s.kv_len = 0;
    kernels->attention_forward(q, q, q, q, q, &s, stream);
    kernels->attention_backward(q, q, q, q, q, q, q, q, q, &s, stream);
}

EVERY_ISA(causal)
EVERY_ISA(caches)
EVERY_ISA(documents)
EVERY_ISA(softcaps)
EVERY_ISA(places_do_not_matter)
EVERY_ISA(nan_shows)
EVERY_ISA(late_documents)
EVERY_ISA(nothing_to_see)

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(causal_everywhere),
        cmocka_unit_test(caches_everywhere),
        cmocka_unit_test(documents_everywhere),
        cmocka_unit_test(softcaps_everywhere),
        cmocka_unit_test(places_do_not_matter_everywhere),
        cmocka_unit_test(nan_shows_everywhere),
        cmocka_unit_test(late_documents_everywhere),
        cmocka_unit_test(nothing_to_see_everywhere),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
