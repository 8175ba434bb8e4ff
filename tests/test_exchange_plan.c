// SPDX-License-Identifier: Apache-2.0
// Which rows make up a piece, by hand; and a whole exchange on a world of one, which never starts MPI.
#include "comm/exchange.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

// Two ranks with three experts each; this is rank 1, whose experts 3, 4, 5 get 2 + 3, 0 + 4 and 6 + 1 rows.
static int32_t counts[2][6] = {{5, 0, 0, 2, 0, 6}, {1, 1, 9, 3, 4, 1}};

static ExchangePlan plan_of(int64_t max_rows, int chunks) {
    return (ExchangePlan){.shape = {6, max_rows, chunks},
                          .ranks = 2,
                          .rank = 1,
                          .local_experts = 3,
                          .counts = counts[0],
                          .waves = 1};
}

static void expect(RowRange range, int64_t first, int64_t count) {
    assert_int_equal(range.count, count);
    if (count) assert_int_equal(range.first, first);
}

static void test_cut_between_experts(void **state) {
    (void)state;
    ExchangePlan plan = plan_of(100, 2); // experts 0 | 1, 2 of the rank's three
    expect(exchange_piece(&plan, 0, 0), 0, 5);
    expect(exchange_piece(&plan, 0, 1), 5, 11);
    expect(exchange_expert_rows(&plan, 0, 0, 0), 0, 5);
    expect(exchange_expert_rows(&plan, 0, 0, 1), 0, 0);
    expect(exchange_expert_rows(&plan, 0, 1, 1), 5, 4);
    expect(exchange_expert_rows(&plan, 0, 1, 2), 9, 7);
    plan = plan_of(100, 3);
    expect(exchange_piece(&plan, 0, 0), 0, 5);
    expect(exchange_piece(&plan, 0, 1), 5, 4);
    expect(exchange_piece(&plan, 0, 2), 9, 7);
}

static void test_cut_by_rows(void **state) {
    (void)state;
    ExchangePlan plan = plan_of(100, 4); // 16 rows in four pieces
    for (int c = 0; c < 4; c++) expect(exchange_piece(&plan, 0, c), 4 * c, 4);
    expect(exchange_expert_rows(&plan, 0, 0, 0), 0, 4);
    expect(exchange_expert_rows(&plan, 0, 1, 0), 4, 1);
    expect(exchange_expert_rows(&plan, 0, 1, 1), 5, 3);
    expect(exchange_expert_rows(&plan, 0, 2, 1), 8, 1);
    expect(exchange_expert_rows(&plan, 0, 2, 2), 9, 3);
    expect(exchange_expert_rows(&plan, 0, 3, 2), 12, 4);
}

static void test_waves(void **state) {
    (void)state;
    ExchangePlan plan = plan_of(6, 2); // rows 0 … 5, 6 … 11, 12 … 15
    expect(exchange_piece(&plan, 0, 0), 0, 5);
    expect(exchange_piece(&plan, 0, 1), 5, 1);
    expect(exchange_piece(&plan, 1, 0), 0, 0);
    expect(exchange_piece(&plan, 1, 1), 0, 6);
    expect(exchange_expert_rows(&plan, 1, 1, 1), 0, 3);
    expect(exchange_expert_rows(&plan, 1, 1, 2), 3, 3);
    expect(exchange_piece(&plan, 2, 1), 0, 4);
    expect(exchange_piece(&plan, 3, 1), 0, 0); // waves that only a fuller rank has
    plan = plan_of(6, 4);                      // the last wave's 4 rows, one a piece
    for (int c = 0; c < 4; c++) expect(exchange_piece(&plan, 2, c), c, 1);
}

static void test_counts_beyond_32_bits(void **state) {
    (void)state;
    int32_t many[4] = {2000000000, 2000000000, 2000000000, 2000000000};
    ExchangePlan plan = {
        .shape = {4, INT64_C(3000000000), 2}, .ranks = 1, .local_experts = 4, .counts = many, .waves = 3};
    expect(exchange_piece(&plan, 0, 0), 0, INT64_C(3000000000));
    expect(exchange_piece(&plan, 1, 0), 0, INT64_C(1000000000));
    expect(exchange_piece(&plan, 1, 1), INT64_C(1000000000), INT64_C(2000000000));
    expect(exchange_expert_rows(&plan, 2, 1, 3), 0, INT64_C(2000000000));
}

static void test_world_of_one(void **state) {
    (void)state;
    enum { EXPERTS = 4, COLUMNS = 3, ROWS = 9, MAX_ROWS = 4 };
    int32_t own[EXPERTS] = {2, 0, 6, 1};
    float token[ROWS][COLUMNS], expert[MAX_ROWS][COLUMNS], back[ROWS][COLUMNS];
    for (int i = 0; i < ROWS * COLUMNS; i++) token[i / COLUMNS][i % COLUMNS] = (float)i;
    Mesh *mesh;
    assert_int_equal(mesh_create_self(&mesh), OK);
    Stream stream = stream_create((Device){DEVICE_CPU, 0});
    ExchangeShape shape = {EXPERTS, MAX_ROWS, 2};
    Arena arena = arena_empty(stream->device);
    exchange_plan_layout(&shape, group_size(mesh_group(mesh, AXIS_EXPERT)),
                         group_rank(mesh_group(mesh, AXIS_EXPERT)), &arena);
    arena_commit(&arena);
    ExchangePlan plan = exchange_plan_layout(&shape, group_size(mesh_group(mesh, AXIS_EXPERT)),
                                             group_rank(mesh_group(mesh, AXIS_EXPERT)), &arena);
    CommTiming timing;
    exchange_counts_end(
        exchange_counts_begin(mesh, &plan, tensor_view(own, DTYPE_I32, 1, (int64_t[]){EXPERTS}), stream),
        &plan, &timing, stream);
    assert_int_equal(plan.waves, 3);
    assert_int_equal(plan.received, ROWS);
    assert_int_equal(timing.bytes_sent, 0);
    Tensor t = tensor_matrix(token, ROWS, COLUMNS), x = tensor_matrix(expert, MAX_ROWS, COLUMNS);
    Tensor b = tensor_matrix(back, ROWS, COLUMNS);
    int64_t row = 0; // in expert order: with one rank both sides have the same
    for (int wave = 0; wave < plan.waves; wave++)
        for (int chunk = 0; chunk < shape.chunks; chunk++) {
            RowRange piece = exchange_piece(&plan, wave, chunk);
            comm_end(exchange_dispatch_begin(mesh, &plan, wave, chunk, x, t, stream), NULL, stream);
            assert_memory_equal(expert[piece.first], token[row], sizeof token[0] * (size_t)piece.count);
            comm_end(exchange_combine_begin(mesh, &plan, wave, chunk, b, x, stream), NULL, stream);
            row += piece.count;
        }
    assert_int_equal(row, ROWS);
    assert_memory_equal(back, token, sizeof token);
    arena_free(&arena);
    stream_destroy(stream);
    mesh_destroy(mesh);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_cut_between_experts),
        cmocka_unit_test(test_cut_by_rows),
        cmocka_unit_test(test_waves),
        cmocka_unit_test(test_counts_beyond_32_bits),
        cmocka_unit_test(test_world_of_one),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
