// SPDX-License-Identifier: Apache-2.0
// What the files of this room share.
#pragma once
#include "comm/collective.h"
#include "core/arena.h"
#include "optim/zero.h"

// Gradients of a group at stage 2 live in one of the two ends of a pool, taken in turn: while one group's sum
// travels from one end, the next one's backward writes at the other.
typedef struct {
    float *memory, *staging;
    int64_t elements, staging_elements; // largest sum of two neighbours
    int user[2];                        // group at the low and the high end, −1
} Pool;

typedef struct {
    Axis axis;
    int ranks;
    int64_t first, count, most; // this rank's shard; the largest rank's
    float *weights;             // [elements]
    float *grads;               // [elements]: persistent, NULL where a pool lends them
    float *shard;   // [count] the step's gradient sum for the own range; in grads where those persist
    float *m, *v;   // [count], at stage 0 [elements]
    float *staging; // of the reduction in flight
    Request *reduce;
    int end;                       // of the pool
    bool pooled, travels_early;    // stage 2: lent gradients; reduced at grads_end
    bool weights_open, grads_open; // between the model's begin and end
} GroupState;

struct Zero {
    ParamTable *params;
    Mesh *mesh;
    const Kernels *kernels;
    Stream stream;
    int stage;
    GroupState *group; // [params->group_count]
    Pool pool[2];      // dense, expert
    Arena weights, grads, optimizer, staging;
    ZeroSlice *owned, *held;
    int owned_count, held_count;
    double seconds; // waited for reductions and gathers since zero_take_timing
    int64_t bytes;
};

void zero_layout(Zero *zero, int world_rank, int world, int ep); // counts, then places
void zero_wait(Zero *zero, Request *request);                    // ends it and counts its time
