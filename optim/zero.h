// SPDX-License-Identifier: Apache-2.0
// Who keeps which part of the weights, gradients and optimizer states, and when they travel (ZeRO).
// Each group of the parameter table is cut by shard_range over the world (dense) or over the replica group
// (experts). Stage 0: everything everywhere, gradients all-reduced. 1: optimizer states sharded. 2: gradients
// too, reduce-scattered as soon as a group's backward is done. The sums have the same order in every stage.
#pragma once
#include "comm/mesh.h"
#include "core/params.h"
#include "kernels/kernels.h"

typedef struct Zero Zero;
typedef struct {
    int param;            // index in the table
    int64_t first, count; // elements of the weight
    float *master, *m, *v;
} ZeroSlice;
typedef struct {
    size_t weights, grads, optimizer, staging;
} ZeroBytes;

// Places the table's weights and gradients and this rank's states; with stage ZERO_FORWARD_ONLY the weights
// alone, for a model that is not trained. Collective over the world.
enum { ZERO_FORWARD_ONLY = -1 };
Status zero_create(Zero **out, ParamTable *params, Mesh *mesh, const Kernels *kernels, int stage,
                   Stream stream);
void zero_destroy(Zero *zero);
ParamAccess zero_access(Zero *zero); // for the model
ZeroBytes zero_bytes(const Zero *zero);
// The same numbers without placing anything, for a rank of a world of `world` ranks with `ep`.
ZeroBytes zero_plan_bytes(const ParamTable *params, int stage, int world, int ep);

// Slices that this rank owns: over all ranks, each element of each weight exactly once, whatever the stage.
const ZeroSlice *zero_owned(const Zero *zero, int *count);
// Slices whose states this rank keeps: the owned ones, or everything it holds at stage 0. What a load must
// fill.
const ZeroSlice *zero_held(const Zero *zero, int *count);

void zero_init_weights(Zero *zero,
                       uint64_t seed); // fresh weights, zero m and v; the same for every layout. Collective
void zero_weights_gather(Zero *zero);  // owners' masters become everybody's weights. Collective

// One step: the model's grads_begin/grads_end, then these in order.
void zero_grads_end(
    Zero *zero); // waits for what is in flight; after this the shards hold the step's sums. Collective
double
zero_grad_norm(Zero *zero); // 2-norm over every unique element, in double; the same on all ranks. Collective

typedef struct {
    float beta1, beta2, eps, weight_decay;
    bool decay_embeddings;
} AdamwConfig;
// AdamW over the owned shards (held ones at stage 0), then the gradients are cleared. grad_scale: clipping.
void zero_adamw(Zero *zero, const AdamwConfig *config, double lr, double grad_scale, int64_t step);
void zero_grads_drop(Zero *zero);                // clears the step's sums instead of an update
double clip_scale(double norm, double max_norm); // min(1, max/(norm + 1e-6)); 1 where max_norm is 0

// Compares all ranks' copies of each group's weights by CRC-32C, and `bytes` of `more`, which all ranks have
// alike. Between the update and the next one; from stage 1 on each update replaces all copies by their
// owners' values, so that only what changed since the last one can be seen. The same result on all ranks.
// Collective over the world.
typedef struct {
    bool found;
    int group; // in the table; its group_count: `more`
    int rank,
        other; // of the world: differs from most copies, or (not certain: as many each way) from other's
    int copies;
    bool certain;
} ReplicaFault;
ReplicaFault zero_compare_replicas(Zero *zero, const void *more, size_t bytes);

// Seconds that the gradient reduction and the weight gather took since the last call, and bytes sent.
void zero_take_timing(Zero *zero, double *seconds, int64_t *bytes);
