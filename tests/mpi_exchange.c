// SPDX-License-Identifier: Apache-2.0
// ranks: 1 2 3 4
// Rows to the experts and back, for many routings, numbers of pieces and sizes of the expert side's buffer.
#include "comm/exchange.h"
#include "comm_check.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

typedef enum { RANDOM, SOME_EMPTY, ONE_EXPERT, ONE_SENDER, NOTHING, ROUTINGS } Routing;
enum { COLUMNS = 5, CHUNKS_MOST = 5 };

// Rows that EP rank `source` has for an expert.
static int32_t rows_for(Routing routing, int source, int expert, int experts, int seed) {
    int32_t random = (int32_t)(rng_u64((uint64_t)seed, (uint64_t)source, (uint64_t)expert) % 12);
    switch (routing) {
    case RANDOM:
        return random;
    case SOME_EMPTY:
        return (expert + source) % 3 ? 0 : random;
    case ONE_EXPERT:
        return expert == experts - 1 ? 40 : 0;
    case ONE_SENDER:
        return source == 0 ? random : 0;
    default:
        return 0;
    }
}

// What row `index` of a (source, expert) block holds.
static float cell(int source, int expert, int64_t index, int column) {
    return (float)(source * 100000 + expert * 1000 + (int)index) + 0.125f * (float)column;
}

typedef struct {
    Mesh *mesh;
    Stream stream;
    Arena arena;
    ExchangePlan plan;
    Routing routing;
    int seed;
    int64_t sent;                 // rows of this rank's tokens
    Tensor token, token_weight;   // (sent, COLUMNS), (sent, 1)
    Tensor expert, expert_weight; // (max_rows, …)
    Tensor back, back_weight;
    int64_t *seen; // [ranks * local experts] rows of each block that have come so far
} Exchange;

static int32_t block(const Exchange *x, int source, int expert) {
    return rows_for(x->routing, source, expert, x->plan.shape.experts, x->seed);
}

static void place(Exchange *x, const ExchangeShape *shape) {
    x->plan = exchange_plan_layout(shape, group_size(mesh_group(x->mesh, AXIS_EXPERT)),
                                   group_rank(mesh_group(x->mesh, AXIS_EXPERT)), &x->arena);
    x->sent = 0;
    for (int e = 0; e < shape->experts; e++) x->sent += block(x, x->plan.rank, e);
    x->token = arena_matrix(&x->arena, x->sent, COLUMNS);
    x->token_weight = arena_matrix(&x->arena, x->sent, 1);
    x->back = arena_matrix(&x->arena, x->sent, COLUMNS);
    x->back_weight = arena_matrix(&x->arena, x->sent, 1);
    x->expert = arena_matrix(&x->arena, shape->max_rows + 1, COLUMNS); // and a row that nobody may touch
    x->expert_weight = arena_matrix(&x->arena, shape->max_rows + 1, 1);
    x->seen = arena_bytes(&x->arena, sizeof *x->seen * (size_t)(x->plan.ranks * x->plan.local_experts));
}

static Exchange create(Mesh *mesh, Stream stream, const ExchangeShape *shape, Routing routing, int seed) {
    Exchange x = {.mesh = mesh, .stream = stream, .routing = routing, .seed = seed};
    place(&x, shape);
    arena_commit(&x.arena);
    place(&x, shape);
    int64_t row = 0;
    for (int e = 0; e < shape->experts; e++)
        for (int64_t i = 0; i < block(&x, x.plan.rank, e); i++, row++) {
            for (int c = 0; c < COLUMNS; c++)
                tensor_f32(x.token)[row * COLUMNS + c] = cell(x.plan.rank, e, i, c);
            tensor_f32(x.token_weight)[row] = cell(x.plan.rank, e, i, 7);
        }
    for (int64_t i = 0; i < x.sent * COLUMNS; i++) tensor_f32(x.back)[i] = -1;
    return x;
}

static void exchange_counts(Exchange *x) {
    int experts = x->plan.shape.experts, local = x->plan.local_experts;
    Tensor own = tensor_view(malloc((size_t)experts * 4), DTYPE_I32, 1, (int64_t[]){experts});
    for (int e = 0; e < experts; e++) tensor_i32(own)[e] = block(x, x->plan.rank, e);
    CommTiming timing;
    Request *request = exchange_counts_begin(x->mesh, &x->plan, own, x->stream);
    exchange_counts_end(request, &x->plan, &timing, x->stream);
    free(own.data);
    int64_t fullest = 0, received = 0;
    for (int owner = 0; owner < x->plan.ranks; owner++) {
        int64_t rows = 0;
        for (int source = 0; source < x->plan.ranks; source++)
            for (int e = owner * local; e < (owner + 1) * local; e++) rows += block(x, source, e);
        if (rows > fullest) fullest = rows;
        if (owner == x->plan.rank) received = rows;
    }
    int64_t waves = (int64_t)ceil((double)fullest / (double)x->plan.shape.max_rows);
    CHECK(x->plan.fullest == fullest && x->plan.received == received, "fullest %ld, received %ld",
          (long)x->plan.fullest, (long)x->plan.received);
    CHECK(x->plan.waves == (waves ? waves : 1), "%d waves, %ld expected", x->plan.waves, (long)waves);
}

// The rows of one expert in a piece: by source, each source's in its order, going on where the last piece
// ended.
static void check_rows(Exchange *x, RowRange rows, int local_expert) {
    int expert = x->plan.rank * x->plan.local_experts + local_expert;
    int source = 0;
    for (int64_t i = 0; i < rows.count; i++) {
        int64_t row = rows.first + i, *seen = &x->seen[local_expert * x->plan.ranks];
        while (source < x->plan.ranks && seen[source] == block(x, source, expert)) source++;
        CHECK(source < x->plan.ranks, "more rows than were sent to expert %d", expert);
        if (source == x->plan.ranks) return;
        float *at = tensor_f32(x->expert) + row * COLUMNS;
        for (int c = 0; c < COLUMNS; c++)
            CHECK(at[c] == cell(source, expert, seen[source], c), "row %ld of expert %d holds %f", (long)row,
                  expert, (double)at[c]);
        CHECK(tensor_f32(x->expert_weight)[row] == cell(source, expert, seen[source], 7), "weight");
        seen[source]++;
    }
}

// What the experts do: checks what came, and answers with −2 times it.
static void work(Exchange *x, int wave, int chunk) {
    RowRange piece = exchange_piece(&x->plan, wave, chunk);
    int64_t at = piece.first;
    for (int e = 0; e < x->plan.local_experts; e++) {
        RowRange rows = exchange_expert_rows(&x->plan, wave, chunk, e);
        if (rows.count == 0) continue;
        CHECK(rows.first == at, "rows of expert %d at %ld, expected at %ld", e, (long)rows.first, (long)at);
        at = rows.first + rows.count;
        check_rows(x, rows, e);
        for (int64_t i = rows.first * COLUMNS; i < at * COLUMNS; i++) tensor_f32(x->expert)[i] *= -2;
        for (int64_t i = rows.first; i < at; i++) tensor_f32(x->expert_weight)[i] *= -2;
    }
    CHECK(at == piece.first + piece.count, "a piece of %ld rows has %ld", (long)piece.count,
          (long)(at - piece.first));
    CHECK(at <= x->plan.shape.max_rows, "a piece ends at row %ld of %ld", (long)at,
          (long)x->plan.shape.max_rows);
}

static void run_wave(Exchange *x, int wave) {
    int chunks = x->plan.shape.chunks;
    Request *rows[CHUNKS_MOST], *weights[CHUNKS_MOST];
    for (int c = 0; c < chunks; c++)
        rows[c] = exchange_dispatch_begin(x->mesh, &x->plan, wave, c, x->expert, x->token, x->stream);
    for (int c = 0; c < chunks; c++)
        weights[c] =
            exchange_dispatch_begin(x->mesh, &x->plan, wave, c, x->expert_weight, x->token_weight, x->stream);
    for (int c = 0; c < chunks; c++) {
        comm_end(rows[c], NULL, x->stream);
        comm_end(weights[c], NULL, x->stream);
        work(x, wave, c);
        rows[c] = exchange_combine_begin(x->mesh, &x->plan, wave, c, x->back, x->expert, x->stream);
        weights[c] =
            exchange_combine_begin(x->mesh, &x->plan, wave, c, x->back_weight, x->expert_weight, x->stream);
        stream_poll(x->stream);
    }
    for (int c = 0; c < chunks; c++) {
        comm_end(weights[c], NULL, x->stream);
        comm_end(rows[c], NULL, x->stream);
    }
}

static void round_trip(Mesh *mesh, Stream stream, ExchangeShape shape, Routing routing, int seed) {
    Exchange x = create(mesh, stream, &shape, routing, seed);
    exchange_counts(&x);
    float *guard = tensor_f32(x.expert) + shape.max_rows * COLUMNS;
    for (int c = 0; c < COLUMNS; c++) guard[c] = 77;
    for (int wave = 0; wave < x.plan.waves; wave++) run_wave(&x, wave);
    for (int c = 0; c < COLUMNS; c++) CHECK(guard[c] == 77, "something was written beyond the buffer");
    for (int e = 0; e < x.plan.local_experts; e++)
        for (int source = 0; source < x.plan.ranks; source++)
            CHECK(x.seen[e * x.plan.ranks + source] ==
                      block(&x, source, x.plan.rank * x.plan.local_experts + e),
                  "expert %d has seen %ld rows of rank %d", e, (long)x.seen[e * x.plan.ranks + source],
                  source);
    int64_t wrong = 0;
    for (int64_t i = 0; i < x.sent * COLUMNS; i++)
        wrong += tensor_f32(x.back)[i] != -2 * tensor_f32(x.token)[i];
    for (int64_t i = 0; i < x.sent; i++)
        wrong += tensor_f32(x.back_weight)[i] != -2 * tensor_f32(x.token_weight)[i];
    CHECK(wrong == 0, "%ld values of %ld rows did not come back (routing %d, %d chunks, %ld rows)",
          (long)wrong, (long)x.sent, (int)routing, shape.chunks, (long)shape.max_rows);
    arena_free(&x.arena);
}

int main(int argc, char **argv) {
    comm_start(&argc, &argv);
    for (int ep = 1; ep <= comm_world_size(); ep++) {
        if (comm_world_size() % ep) continue;
        Mesh *mesh = check_mesh(ep);
        Stream stream = check_stream(mesh);
        for (int local = 1; local <= 4; local += local == 1 ? 1 : 2)
            for (int chunks = 1; chunks <= CHUNKS_MOST; chunks++)
                for (int64_t max_rows = 1; max_rows <= 1000; max_rows *= 10)
                    for (int routing = 0; routing < ROUTINGS; routing++)
                        round_trip(
                            mesh, stream,
                            (ExchangeShape){.experts = ep * local, .max_rows = max_rows, .chunks = chunks},
                            (Routing)routing, 17 * chunks + local);
        stream_destroy(stream);
        mesh_destroy(mesh);
    }
    return check_result();
}
