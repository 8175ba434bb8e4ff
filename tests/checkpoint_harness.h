// SPDX-License-Identifier: Apache-2.0
// A small model's states whose every value is known from its tensor's name, sharded in any way, for tests of
// checkpoints.
#pragma once
#include "core/rng.h"
#include "model/model_config.h"
#include "train/checkpoint.h"
#include <stdlib.h>
#include <string.h>

typedef struct {
    int world, ep, rank, stage;
} Layout;

enum { HARNESS_LAYERS = 3, HARNESS_EXPERTS = 12 };

typedef struct {
    ParamTable params;
    ZeroSlice *owned, *held;
    int owned_count, held_count;
    float *memory;
    float bias[HARNESS_LAYERS * HARNESS_EXPERTS];
    CheckpointBuffer buffer;
} Shards;

static inline ModelConfig harness_config(void) {
    return (ModelConfig){.layers = HARNESS_LAYERS,
                         .hidden = 24,
                         .heads = 4,
                         .kv_heads = 2,
                         .head_dim = 6,
                         .vocab = 61,
                         .dense_ffn = 20,
                         .experts = HARNESS_EXPERTS,
                         .top_k = 2,
                         .expert_ffn = 10,
                         .moe_every = 1,
                         .rope_theta = 1e4,
                         .norm_eps = 1e-5,
                         .init_std = 0.02,
                         .embed_scale = 1,
                         .output_scale = 1};
}

static inline float harness_value(const char *name, int kind, int64_t i, int64_t step) {
    return rng_normal(hash_text(name), (uint64_t)(10 * step + kind), (uint64_t)i);
}

// The parts of a group's weights that lie in its elements [first, end).
static inline void harness_cut(const ParamTable *params, int group, int64_t first, int64_t end,
                               ZeroSlice *slice, int *count) {
    const ParamGroup *g = &params->group[group];
    for (int i = g->first; i < g->first + g->count; i++) {
        const Param *p = &params->param[i];
        int64_t from = first > p->offset ? first : p->offset, to = p->offset + param_size(p);
        if (to > end) to = end;
        if (from < to)
            slice[(*count)++] = (ZeroSlice){.param = i, .first = from - p->offset, .count = to - from};
    }
}

// Each group cut over its ranks, at places that fall anywhere; at stage 0 all of it is held.
static inline void harness_slices(Shards *s, Layout l, bool held) {
    for (int g = 0; g < s->params.group_count; g++) {
        int expert = s->params.group[g].expert;
        int64_t ranks = expert ? l.world / l.ep : l.world, rank = expert ? l.rank / l.ep : l.rank;
        int64_t n = s->params.group[g].elements;
        if (held && l.stage == 0) ranks = 1, rank = 0;
        if (held)
            harness_cut(&s->params, g, n * rank / ranks, n * (rank + 1) / ranks, s->held, &s->held_count);
        else
            harness_cut(&s->params, g, n * rank / ranks, n * (rank + 1) / ranks, s->owned, &s->owned_count);
    }
}

static inline void harness_place(Shards *s) {
    int64_t total = 0;
    for (int i = 0; i < s->held_count; i++) total += s->held[i].count;
    float *at = s->memory = calloc((size_t)(3 * total + 1), sizeof *at);
    for (int i = 0; i < s->held_count; i++) {
        ZeroSlice *h = &s->held[i];
        h->master = at;
        h->m = at + h->count;
        h->v = at + 2 * h->count;
        at += 3 * h->count;
        for (int k = 0; k < s->owned_count; k++) {
            ZeroSlice *o = &s->owned[k];
            if (o->param != h->param || o->first < h->first || o->first + o->count > h->first + h->count)
                continue;
            o->master = h->master + (o->first - h->first);
            o->m = h->m + (o->first - h->first);
            o->v = h->v + (o->first - h->first);
        }
    }
}

// All values 0.
static inline Shards *harness_create(const ModelConfig *config, Layout l) {
    Shards *s = calloc(1, sizeof *s);
    int local = config->experts / l.ep;
    model_describe(config, l.rank % l.ep * local, local, &s->params);
    s->owned = calloc((size_t)s->params.count, sizeof *s->owned);
    s->held = calloc((size_t)s->params.count, sizeof *s->held);
    harness_slices(s, l, false);
    harness_slices(s, l, true);
    harness_place(s);
    s->buffer = (CheckpointBuffer){"router_bias", 2, {config->layers, config->experts}, s->bias};
    return s;
}

static inline void harness_free(Shards *s) {
    params_free(&s->params);
    free(s->owned);
    free(s->held);
    free(s->memory);
    free(s);
}

static inline CheckpointState harness_state(Shards *s, Layout l, Mesh *mesh) {
    return (CheckpointState){.params = &s->params,
                             .owned = s->owned,
                             .held = s->held,
                             .owned_count = s->owned_count,
                             .held_count = s->held_count,
                             .buffer = &s->buffer,
                             .buffers = 1,
                             .ep = l.ep,
                             .mesh = mesh};
}

static inline void harness_fill(Shards *s, int64_t step) {
    for (int i = 0; i < s->held_count; i++) {
        ZeroSlice *h = &s->held[i];
        float *to[3] = {h->master, h->m, h->v};
        for (int k = 0; k < 3; k++)
            for (int64_t e = 0; e < h->count; e++)
                to[k][e] = harness_value(s->params.param[h->param].name, k, h->first + e, step);
    }
    for (int64_t e = 0; e < s->buffer.dim[0] * s->buffer.dim[1]; e++)
        s->bias[e] = harness_value("router_bias", 3, e, step);
}

// Held values that are not, to the bit, those of the step. moments false: m and v must be 0.
static inline int64_t harness_wrong(const Shards *s, int64_t step, bool moments) {
    int64_t wrong = 0;
    for (int i = 0; i < s->held_count; i++) {
        const ZeroSlice *h = &s->held[i];
        const float *is[3] = {h->master, h->m, h->v};
        for (int k = 0; k < 3; k++)
            for (int64_t e = 0; e < h->count; e++) {
                float value = harness_value(s->params.param[h->param].name, k, h->first + e, step);
                if (k && !moments) value = 0;
                wrong += memcmp(&value, &is[k][e], sizeof value) != 0;
            }
    }
    for (int64_t e = 0; e < s->buffer.dim[0] * s->buffer.dim[1]; e++) {
        float value = harness_value("router_bias", 3, e, step);
        wrong += memcmp(&value, &s->bias[e], sizeof value) != 0;
    }
    return wrong;
}
