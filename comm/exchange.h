// SPDX-License-Identifier: Apache-2.0
// Rows of tokens to the ranks that hold their experts, and back. One plan per MoE layer and micro-step serves
// forward and backward.
//
// Token side: rows in expert order (route_sort), `tokens·k` at most. Expert side: rows sorted by (local
// expert, source rank, source order), received in place. At most max_rows of them at a time: what is beyond
// travels in further waves, cut by row position. Each wave is cut into `chunks` pieces that travel and are
// worked on separately: between local experts where there are at least `chunks` of them, else by rows. Every
// rank derives the same plan from the count matrix.
#pragma once
#include "comm/collective.h"
#include "core/arena.h"

typedef struct {
    int experts;      // over the whole EP group; a multiple of its size
    int64_t max_rows; // of the expert side buffer, one wave
    int chunks;       // pieces per wave
} ExchangeShape;

typedef struct {
    ExchangeShape shape;
    int ranks, rank, local_experts;
    int32_t *counts;  // [ranks][experts]: rows that EP rank s sends to expert e; filled by exchange_counts_*
    int waves;        // the same on all EP ranks, ≥ 1
    int64_t received; // rows for this rank's experts, all waves
    int64_t fullest;  // most rows that any EP rank receives
} ExchangePlan;

// Places the count matrix in the arena, for one rank of an expert group.
ExchangePlan exchange_plan_layout(const ExchangeShape *shape, int ranks, int rank, Arena *arena);

// Tells every EP rank how many rows each rank has for each expert. own (experts) i32.
Request *exchange_counts_begin(Mesh *mesh, ExchangePlan *plan, Tensor own, Stream stream);
void exchange_counts_end(Request *request, ExchangePlan *plan, CommTiming *timing,
                         Stream stream); // fills the plan

// Rows of one piece on the expert side, relative to the wave's buffer; and of each local expert within it.
typedef struct {
    int64_t first, count;
} RowRange;
RowRange exchange_piece(const ExchangePlan *plan, int wave, int chunk);
RowRange exchange_expert_rows(const ExchangePlan *plan, int wave, int chunk,
                              int local_expert); // also wave-relative

// Moves one piece. dispatch: token side → expert side; combine: back. Rows have any width (columns of both
// tensors, which must agree); f32. The sent side must stay unchanged, and the received ranges unread, until
// comm_end.
Request *exchange_dispatch_begin(Mesh *mesh, const ExchangePlan *plan, int wave, int chunk,
                                 Tensor expert_rows, Tensor token_rows, Stream stream);
Request *exchange_combine_begin(Mesh *mesh, const ExchangePlan *plan, int wave, int chunk, Tensor token_rows,
                                Tensor expert_rows, Stream stream);
