// SPDX-License-Identifier: Apache-2.0
// Sizes and places of what a rank keeps. Backward finishes groups from the last to the first; that order
// decides what shares a pool with what.
#include "optim/internal.h"
#include <stdlib.h>

static int64_t largest_shard(int64_t elements, int ranks) {
    int64_t most = 0, first, count;
    for (int r = 0; r < ranks; r++) {
        shard_range(elements, r, ranks, &first, &count);
        if (count > most) most = count;
    }
    return most;
}

static int64_t staging_of(const GroupState *g) {
    return g->most * (g->ranks - 1);
}

// Travelling groups take the two ends in turn; long-lived ones have a place of their own.
static void plan_pools(Zero *z) {
    int64_t before[2] = {0, 0}, staged[2] = {0, 0};
    int end[2] = {0, 0};
    for (int i = z->params->group_count - 1; i >= 0; i--) {
        GroupState *g = &z->group[i];
        if (g->ranks == 1 || z->params->group[i].long_lived) continue;
        int kind = z->params->group[i].expert;
        Pool *pool = &z->pool[kind];
        int64_t size = z->params->group[i].elements, stage = staging_of(g);
        g->end = end[kind];
        end[kind] = !end[kind];
        if (before[kind] + size > pool->elements) pool->elements = before[kind] + size;
        if (staged[kind] + stage > pool->staging_elements) pool->staging_elements = staged[kind] + stage;
        before[kind] = size;
        staged[kind] = stage;
    }
    for (int kind = 0; kind < 2; kind++) z->pool[kind].user[0] = z->pool[kind].user[1] = -1;
}

static float *floats(Arena *arena, int64_t count) {
    return arena_bytes(arena, (size_t)count * sizeof(float));
}

static void place(Zero *z) {
    for (int kind = 0; kind < 2; kind++) {
        Pool *pool = &z->pool[kind];
        pool->memory = z->stage == 2 ? floats(&z->grads, pool->elements) : NULL;
        pool->staging = floats(&z->staging, pool->staging_elements);
    }
    for (int i = 0; i < z->params->group_count; i++) {
        GroupState *g = &z->group[i];
        int64_t elements = z->params->group[i].elements, states = z->stage == 0 ? elements : g->most;
        g->weights = floats(&z->weights, elements);
        g->grads = g->pooled ? NULL : floats(&z->grads, elements);
        g->shard = g->travels_early ? floats(&z->grads, g->most) : g->grads ? g->grads + g->first : NULL;
        g->m = floats(&z->optimizer, states);
        g->v = floats(&z->optimizer, states);
        if (z->params->group[i].long_lived) g->staging = floats(&z->staging, staging_of(g));
    }
}

// world_rank: whose shards; experts are shared out over ep consecutive ranks.
void zero_layout(Zero *z, int world_rank, int world, int ep) {
    for (int i = 0; i < z->params->group_count; i++) {
        const ParamGroup *group = &z->params->group[i];
        GroupState *g = &z->group[i];
        g->axis = group->expert ? AXIS_REPLICA : AXIS_WORLD;
        g->ranks = group->expert ? world / ep : world;
        shard_range(group->elements, group->expert ? world_rank / ep : world_rank, g->ranks, &g->first,
                    &g->count);
        g->most = largest_shard(group->elements, g->ranks);
        g->travels_early = z->stage == 2 && g->ranks > 1;
        g->pooled = g->travels_early && !group->long_lived;
    }
    plan_pools(z);
    place(z);
}

static Zero counting(const ParamTable *params, int stage) {
    Zero z = {.params = (ParamTable *)params, .stage = stage};
    z.group = calloc((size_t)params->group_count + 1, sizeof *z.group);
    REQUIRE(z.group, "out of memory: %d groups", params->group_count);
    return z;
}

ZeroBytes zero_bytes(const Zero *z) {
    return (ZeroBytes){z->weights.capacity, z->grads.capacity, z->optimizer.capacity, z->staging.capacity};
}

ZeroBytes zero_plan_bytes(const ParamTable *params, int stage, int world, int ep) {
    Zero z = counting(params, stage);
    zero_layout(&z, 0, world, ep);
    free(z.group);
    return (ZeroBytes){z.weights.peak, z.grads.peak, z.optimizer.peak, z.staging.peak};
}
