// SPDX-License-Identifier: Apache-2.0
#include "comm/exchange.h"
#include "comm/requests.h"
#include <string.h>

ExchangePlan exchange_plan_layout(const ExchangeShape *shape, int ranks, int rank, Arena *arena) {
    REQUIRE(shape->experts % ranks == 0 && shape->max_rows > 0 && shape->chunks > 0,
            "%d experts over %d ranks, %ld rows at a time in %d pieces", shape->experts, ranks,
            (long)shape->max_rows, shape->chunks);
    ExchangePlan plan = {
        .shape = *shape, .ranks = ranks, .rank = rank, .local_experts = shape->experts / ranks, .waves = 1};
    plan.counts = arena_tensor(arena, DTYPE_I32, 2, (int64_t[]){ranks, shape->experts}).data;
    return plan;
}

static int64_t rows_from(const ExchangePlan *plan, int source, int expert) {
    return plan->counts[(int64_t)source * plan->shape.experts + expert];
}

Request *exchange_counts_begin(Mesh *mesh, ExchangePlan *plan, Tensor own, Stream stream) {
    (void)stream;
    size_t row = (size_t)plan->shape.experts * sizeof *plan->counts;
    int32_t *mine = plan->counts + (int64_t)plan->rank * plan->shape.experts;
    memcpy(mine, own.data, row);
    Request *r = request_begin(mesh, AXIS_EXPERT);
    for (int other = 0; other < plan->ranks; other++)
        if (other != plan->rank)
            request_receive(r, other, plan->counts + (int64_t)other * plan->shape.experts, (int64_t)row,
                            TAG_COUNTS);
    for (int step = 1; step < plan->ranks; step++)
        request_send(r, (plan->rank + step) % plan->ranks, mine, (int64_t)row, TAG_COUNTS);
    request_started(r);
    return r;
}

void exchange_counts_end(Request *request, ExchangePlan *plan, CommTiming *timing, Stream stream) {
    comm_end(request, timing, stream);
    plan->fullest = 0;
    for (int owner = 0; owner < plan->ranks; owner++) {
        int64_t rows = 0;
        for (int source = 0; source < plan->ranks; source++)
            for (int e = 0; e < plan->local_experts; e++)
                rows += rows_from(plan, source, owner * plan->local_experts + e);
        if (rows > plan->fullest) plan->fullest = rows;
        if (owner == plan->rank) plan->received = rows;
    }
    int64_t waves = (plan->fullest + plan->shape.max_rows - 1) / plan->shape.max_rows;
    plan->waves = waves > 1 ? (int)waves : 1;
}

// Rows that come for local expert `expert` of rank `owner` and those before it.
static int64_t rows_before(const ExchangePlan *plan, int owner, int expert) {
    int64_t rows = 0;
    for (int e = 0; e < expert; e++)
        for (int source = 0; source < plan->ranks; source++)
            rows += rows_from(plan, source, owner * plan->local_experts + e);
    return rows;
}

static RowRange overlap(RowRange a, int64_t first, int64_t end) {
    int64_t low = a.first > first ? a.first : first, high = a.first + a.count < end ? a.first + a.count : end;
    return (RowRange){low, high > low ? high - low : 0};
}

// A piece of rank owner's rows, counted from its first row of all waves.
static RowRange piece_of(const ExchangePlan *plan, int owner, int wave, int chunk) {
    int chunks = plan->shape.chunks, local = plan->local_experts;
    int64_t all = rows_before(plan, owner, local), first = wave * plan->shape.max_rows;
    RowRange in_wave = overlap((RowRange){0, all}, first, first + plan->shape.max_rows);
    if (local >= chunks) // experts chunk·local/chunks …
        return overlap(in_wave, rows_before(plan, owner, chunk * local / chunks),
                       rows_before(plan, owner, (chunk + 1) * local / chunks));
    return overlap(in_wave, in_wave.first + in_wave.count * chunk / chunks,
                   in_wave.first + in_wave.count * (chunk + 1) / chunks);
}

RowRange exchange_piece(const ExchangePlan *plan, int wave, int chunk) {
    RowRange piece = piece_of(plan, plan->rank, wave, chunk);
    piece.first = piece.count ? piece.first - wave * plan->shape.max_rows : 0;
    return piece;
}

RowRange exchange_expert_rows(const ExchangePlan *plan, int wave, int chunk, int local_expert) {
    RowRange rows =
        overlap(piece_of(plan, plan->rank, wave, chunk), rows_before(plan, plan->rank, local_expert),
                rows_before(plan, plan->rank, local_expert + 1));
    rows.first = rows.count ? rows.first - wave * plan->shape.max_rows : 0;
    return rows;
}

// The rows of one (source, expert) block that belong to a piece: where they lie on either side.
typedef struct {
    int64_t token_row, expert_row, count; // expert_row within the wave's buffer
} Block;

static Block block_of(const ExchangePlan *plan, int owner, int source, int expert, RowRange piece, int wave) {
    int64_t place = rows_before(plan, owner, expert); // of the block among the owner's rows
    int global = owner * plan->local_experts + expert;
    for (int s = 0; s < source; s++) place += rows_from(plan, s, global);
    RowRange rows = overlap(piece, place, place + rows_from(plan, source, global));
    int64_t token_row = 0;
    for (int e = 0; e < global; e++) token_row += rows_from(plan, source, e);
    return (Block){token_row + rows.first - place, rows.first - wave * plan->shape.max_rows, rows.count};
}

static void copy_own(char *to, const char *from, int64_t bytes, Stream stream) {
    enum { PANEL = 256 << 10 };
    for (int64_t at = 0; at < bytes; at += PANEL) {
        memcpy(to + at, from + at, (size_t)(bytes - at < PANEL ? bytes - at : PANEL));
        stream_poll(stream);
    }
}

typedef enum { TO_EXPERTS, TO_TOKENS } Direction;

// Posts every message of a piece. Rows that this rank's experts work on are one side; rows of its tokens the
// other.
static Request *move(Mesh *mesh, const ExchangePlan *plan, int wave, int chunk, Tensor expert_rows,
                     Tensor token_rows, Direction direction, Stream stream) {
    REQUIRE(expert_rows.dim[1] == token_rows.dim[1], "rows of %ld and %ld columns", (long)expert_rows.dim[1],
            (long)token_rows.dim[1]);
    int64_t row = expert_rows.dim[1] * (int64_t)dtype_bytes(expert_rows.dtype);
    Tag tag = direction == TO_EXPERTS ? TAG_DISPATCH : TAG_COMBINE;
    char *at_experts = expert_rows.data, *at_tokens = token_rows.data;
    Request *r = request_begin(mesh, AXIS_EXPERT);
    RowRange own_piece = piece_of(plan, plan->rank, wave, chunk);
    for (int step = 1; step < plan->ranks; step++) {
        int other = (plan->rank + step) % plan->ranks;
        RowRange piece = piece_of(plan, other, wave, chunk);
        for (int e = 0; e < plan->local_experts; e++) {
            Block mine =
                block_of(plan, plan->rank, other, e, own_piece, wave);        // other's rows for my expert e
            Block theirs = block_of(plan, other, plan->rank, e, piece, wave); // my rows for their expert e
            char *expert_side = at_experts + mine.expert_row * row,
                 *token_side = at_tokens + theirs.token_row * row;
            if (direction == TO_EXPERTS) {
                request_receive(r, other, expert_side, mine.count * row, tag);
                request_send(r, other, token_side, theirs.count * row, tag);
            } else {
                request_receive(r, other, token_side, theirs.count * row, tag);
                request_send(r, other, expert_side, mine.count * row, tag);
            }
        }
    }
    request_started(r);
    for (int e = 0; e < plan->local_experts; e++) {
        Block own = block_of(plan, plan->rank, plan->rank, e, own_piece, wave);
        char *expert_side = at_experts + own.expert_row * row, *token_side = at_tokens + own.token_row * row;
        if (direction == TO_EXPERTS)
            copy_own(expert_side, token_side, own.count * row, stream);
        else
            copy_own(token_side, expert_side, own.count * row, stream);
    }
    return r;
}

Request *exchange_dispatch_begin(Mesh *mesh, const ExchangePlan *plan, int wave, int chunk,
                                 Tensor expert_rows, Tensor token_rows, Stream stream) {
    return move(mesh, plan, wave, chunk, expert_rows, token_rows, TO_EXPERTS, stream);
}

Request *exchange_combine_begin(Mesh *mesh, const ExchangePlan *plan, int wave, int chunk, Tensor token_rows,
                                Tensor expert_rows, Stream stream) {
    return move(mesh, plan, wave, chunk, expert_rows, token_rows, TO_TOKENS, stream);
}
