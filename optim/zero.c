// SPDX-License-Identifier: Apache-2.0
#include "optim/internal.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

void zero_wait(Zero *z, Request *request) {
    CommTiming timing;
    comm_end(request, &timing, z->stream);
    z->seconds += timing.waited;
    z->bytes += timing.bytes_sent;
}

static Tensor vector(float *data, int64_t count) {
    return tensor_view(data, DTYPE_F32, 1, (int64_t[]){count});
}

// ---- set-up

// The part of [first, first + count) of a group's range that belongs to each weight.
static int slices_of(const Zero *z, bool everything, ZeroSlice *out) {
    int found = 0;
    for (int i = 0; i < z->params->count; i++) {
        const Param *p = &z->params->param[i];
        const GroupState *g = &z->group[p->group];
        int64_t low = everything ? 0 : g->first, high = everything ? INT64_MAX : g->first + g->count;
        int64_t from = p->offset > low ? p->offset : low, to = p->offset + param_size(p);
        if (to > high) to = high;
        if (from >= to) continue;
        int64_t state = from - (z->stage == 0 ? 0 : g->first); // m and v start where this rank's states do
        if (out)
            out[found] = (ZeroSlice){.param = i,
                                     .first = from - p->offset,
                                     .count = to - from,
                                     .master = g->weights + from,
                                     .m = g->m ? g->m + state : NULL,
                                     .v = g->v ? g->v + state : NULL};
        found++;
    }
    return found;
}

static ZeroSlice *list_slices(const Zero *z, bool everything, int *count) {
    *count = slices_of(z, everything, NULL);
    ZeroSlice *slices = calloc((size_t)*count + 1, sizeof *slices);
    REQUIRE(slices, "out of memory: %d slices", *count);
    slices_of(z, everything, slices);
    return slices;
}

Status zero_create(Zero **out, ParamTable *params, Mesh *mesh, const Kernels *kernels, int stage,
                   Stream stream) {
    bool training = stage != ZERO_FORWARD_ONLY;
    if (!training) stage = 0;
    if (stage < 0 || stage > 2) FAIL(ERR_CONFIG, "parallel.zero = %d must be 0, 1 or 2", stage);
    Zero *z = calloc(1, sizeof *z);
    REQUIRE(z, "out of memory: the optimizer");
    *z = (Zero){.params = params, .mesh = mesh, .kernels = kernels, .stream = stream, .stage = stage};
    z->group = calloc((size_t)params->group_count + 1, sizeof *z->group);
    REQUIRE(z->group, "out of memory: %d groups", params->group_count);
    z->weights = z->grads = z->optimizer = z->staging = arena_empty(stream->device);
    int rank = group_rank(mesh_group(mesh, AXIS_WORLD)), world = group_size(mesh_group(mesh, AXIS_WORLD));
    int ep = group_size(mesh_group(mesh, AXIS_EXPERT));
    zero_layout(z, rank, world, ep);
    arena_commit(&z->weights);
    if (training) {
        arena_commit(&z->grads);
        arena_commit(&z->optimizer);
        arena_commit(&z->staging);
    }
    zero_layout(z, rank, world, ep);
    for (int i = 0; i < params->group_count; i++) {
        params_place_weights(params, i, z->group[i].weights);
        params_place_grads(params, i, z->group[i].grads);
    }
    z->owned = list_slices(z, false, &z->owned_count);
    z->held = list_slices(z, stage == 0, &z->held_count);
    *out = z;
    return OK;
}

void zero_destroy(Zero *z) {
    if (!z) return;
    free(z->group);
    free(z->owned);
    free(z->held);
    arena_free(&z->weights);
    arena_free(&z->grads);
    arena_free(&z->optimizer);
    arena_free(&z->staging);
    free(z);
}

const ZeroSlice *zero_owned(const Zero *z, int *count) {
    *count = z->owned_count;
    return z->owned;
}

const ZeroSlice *zero_held(const Zero *z, int *count) {
    *count = z->held_count;
    return z->held;
}

// ---- weights

static void gather_all(Zero *z) {
    int groups = z->params->group_count;
    Request **request = calloc((size_t)groups + 1, sizeof(Request *));
    REQUIRE(request, "out of memory: %d requests", groups);
    for (int i = 0; i < groups; i++) {
        GroupState *g = &z->group[i];
        if (g->ranks > 1)
            request[i] = all_gather_begin(z->mesh, g->axis, vector(g->weights, z->params->group[i].elements),
                                          z->stream);
    }
    for (int i = 0; i < groups; i++)
        if (request[i]) zero_wait(z, request[i]);
    free(request);
}

void zero_init_weights(Zero *z, uint64_t seed) {
    for (int i = 0; i < z->owned_count; i++) {
        const ZeroSlice *s = &z->owned[i];
        for (int64_t j = 0; j < s->count; j++)
            s->master[j] = param_initial(&z->params->param[s->param], seed, s->first + j);
    }
    for (int i = 0; i < z->held_count; i++) {
        memset(z->held[i].m, 0, (size_t)z->held[i].count * sizeof(float));
        memset(z->held[i].v, 0, (size_t)z->held[i].count * sizeof(float));
    }
    gather_all(z);
}

// At stage 0 every rank has updated everything itself.
void zero_weights_gather(Zero *z) {
    if (z->stage > 0) gather_all(z);
}

// Up to stage 2 all weights are always there.
static void weights_begin(void *context, int group) {
    Zero *z = context;
    REQUIRE(!z->group[group].weights_open, "weights of %s begin twice", z->params->group[group].name);
    z->group[group].weights_open = true;
}

static void weights_end(void *context, int group) {
    Zero *z = context;
    REQUIRE(z->group[group].weights_open, "weights of %s end before they begin",
            z->params->group[group].name);
    z->group[group].weights_open = false;
}

// ---- gradients

static void finish_reduce(Zero *z, int group) {
    GroupState *g = &z->group[group];
    if (!g->reduce) return;
    zero_wait(z, g->reduce);
    g->reduce = NULL;
    if (g->pooled) z->pool[z->params->group[group].expert].user[g->end] = -1;
}

// The end of a pool, for memory or for staging.
static float *pool_end(float *memory, int64_t capacity, int64_t size, int end) {
    return end == 0 ? memory : memory + capacity - size;
}

static void begin_reduce(Zero *z, int group, bool add) {
    GroupState *g = &z->group[group];
    int64_t elements = z->params->group[group].elements, staging = g->most * (g->ranks - 1);
    Pool *pool = &z->pool[z->params->group[group].expert];
    float *full = g->pooled ? pool_end(pool->memory, pool->elements, elements, g->end) : g->grads;
    float *space = z->params->group[group].long_lived
                       ? g->staging
                       : pool_end(pool->staging, pool->staging_elements, staging, g->end);
    g->reduce = reduce_scatter_begin(z->mesh, g->axis, vector(g->shard, g->count), vector(full, elements),
                                     vector(space, staging), add, z->stream);
}

static void clear(float *memory, int64_t count, Stream stream) {
    enum { PANEL = 1 << 16 };
    for (int64_t at = 0; at < count; at += PANEL) {
        memset(memory + at, 0, (size_t)(count - at < PANEL ? count - at : PANEL) * sizeof(float));
        stream_poll(stream);
    }
}

// Room for a group's gradients at its end of the pool, once those that were there have left. What travels
// from the other end goes on; only at the start of a micro-step, when it is no neighbour, it may have to
// leave too.
static float *borrow(Zero *z, int group) {
    const ParamGroup *self = &z->params->group[group];
    GroupState *g = &z->group[group];
    Pool *pool = &z->pool[self->expert];
    for (int end = 0; end < 2; end++) {
        int other = pool->user[end];
        if (other < 0) continue;
        const GroupState *o = &z->group[other];
        bool fits = end != g->end && z->params->group[other].elements + self->elements <= pool->elements &&
                    (o->most + g->most) * (g->ranks - 1) <= pool->staging_elements;
        if (fits) continue;
        finish_reduce(z, other);
        REQUIRE(pool->user[end] < 0, "gradients of %s begin while those of %s are open", self->name,
                z->params->group[other].name);
    }
    pool->user[g->end] = group;
    return pool_end(pool->memory, pool->elements, self->elements, g->end);
}

static void grads_begin(void *context, int group) {
    Zero *z = context;
    GroupState *g = &z->group[group];
    REQUIRE(!g->grads_open, "gradients of %s begin twice", z->params->group[group].name);
    g->grads_open = true;
    if (!g->travels_early) return;
    finish_reduce(z, group);
    float *memory = g->grads;
    if (g->pooled) {
        memory = borrow(z, group);
        params_place_grads(z->params, group, memory);
    }
    clear(memory, z->params->group[group].elements, z->stream);
}

static void grads_end(void *context, int group) {
    Zero *z = context;
    REQUIRE(z->group[group].grads_open, "gradients of %s end before they begin",
            z->params->group[group].name);
    z->group[group].grads_open = false;
    if (!z->group[group].travels_early) return;
    if (z->group[group].pooled) params_place_grads(z->params, group, NULL);
    begin_reduce(z, group, true);
}

ParamAccess zero_access(Zero *z) {
    return (ParamAccess){z, weights_begin, weights_end, grads_begin, grads_end};
}

// Stages 0 and 1: the step's sums travel now, two groups at a time (their staging lies at the two ends of a
// pool).
static void reduce_everything(Zero *z) {
    int before[2] = {-1, -1}, two_before[2] = {-1, -1};
    for (int i = z->params->group_count - 1; i >= 0; i--) {
        int kind = z->params->group[i].expert;
        if (z->group[i].ranks == 1) continue;
        if (two_before[kind] >= 0) finish_reduce(z, two_before[kind]);
        begin_reduce(z, i, false);
        if (z->params->group[i].long_lived) continue;
        two_before[kind] = before[kind];
        before[kind] = i;
    }
}

void zero_grads_end(Zero *z) {
    for (int i = 0; i < z->params->group_count; i++)
        REQUIRE(!z->group[i].grads_open, "gradients of %s are still open", z->params->group[i].name);
    if (z->stage < 2) reduce_everything(z);
    for (int i = z->params->group_count - 1; i >= 0; i--) finish_reduce(z, i);
    if (z->stage > 0) return;
    for (int i = 0; i < z->params->group_count; i++)
        if (z->group[i].ranks > 1)
            zero_wait(z,
                      all_gather_begin(z->mesh, z->group[i].axis,
                                       vector(z->group[i].grads, z->params->group[i].elements), z->stream));
}

// By ownership at every stage, so that all stages have the same bits.
double zero_grad_norm(Zero *z) {
    double total = 0;
    for (int i = 0; i < z->params->group_count; i++) {
        double squares = 0;
        z->kernels->sum_squares(&squares, vector(z->group[i].shard, z->group[i].count), z->stream);
        total += squares;
    }
    group_sum_f64(mesh_group(z->mesh, AXIS_WORLD), &total, 1);
    return sqrt(total);
}

double clip_scale(double norm, double max_norm) {
    return max_norm > 0 ? fmin(1, max_norm / (norm + 1e-6)) : 1;
}

// ---- update

static bool decays(const Param *p, const AdamwConfig *c) {
    return (p->flags & PARAM_DECAY) && (c->decay_embeddings || !(p->flags & PARAM_EMBEDDING));
}

void zero_grads_drop(Zero *z) {
    for (int i = 0; i < z->params->group_count; i++) {
        GroupState *g = &z->group[i];
        if (g->travels_early)
            clear(g->shard, g->count, z->stream);
        else
            clear(g->grads, z->params->group[i].elements, z->stream);
    }
}

void zero_adamw(Zero *z, const AdamwConfig *c, double lr, double grad_scale, int64_t step) {
    for (int i = 0; i < z->held_count; i++) {
        const ZeroSlice *s = &z->held[i];
        const Param *p = &z->params->param[s->param];
        const GroupState *g = &z->group[p->group];
        float *grad =
            g->shard + (p->offset + s->first - g->first); // at stage 0 shard lies inside the full gradients
        AdamwStep update = {.lr = (float)lr,
                            .beta1 = c->beta1,
                            .beta2 = c->beta2,
                            .eps = c->eps,
                            .decay = decays(p, c) ? c->weight_decay : 0,
                            .grad_scale = (float)grad_scale,
                            .step = step};
        Tensor master = vector(s->master, s->count);
        z->kernels->adamw(master, master, vector(s->m, s->count), vector(s->v, s->count),
                          vector(grad, s->count), &update, z->stream);
    }
    zero_grads_drop(z);
}

void zero_take_timing(Zero *z, double *seconds, int64_t *bytes) {
    *seconds = z->seconds;
    *bytes = z->bytes;
    z->seconds = 0;
    z->bytes = 0;
}
