// SPDX-License-Identifier: Apache-2.0
// Where every activation, table and scratch buffer lies. Run once to count and once to place.
#include "model/internal.h"

static Tensor matrix_i32(Arena *arena, int64_t rows, int64_t columns) {
    return arena_tensor(arena, DTYPE_I32, 2, (int64_t[]){rows, columns});
}

static void layout_routing(Model *m, LayerState *l, Arena *arena) {
    int64_t T = m->tokens, E = m->config.experts, k = m->config.top_k, G = balance_group_count(m);
    l->probs = arena_matrix(arena, T, E);
    l->router_lse = arena_vector(arena, T);
    l->index = matrix_i32(arena, T, k);
    l->kept = m->config.router.capacity_factor > 0 ? matrix_i32(arena, T, k) : (Tensor){0};
    l->weight = arena_matrix(arena, T, k);
    l->row = matrix_i32(arena, T, k);
    l->chosen = matrix_i32(arena, G, E);
    l->first_chosen = matrix_i32(arena, G, E);
    l->prob_sum = arena_matrix(arena, G, E);
    l->balance = m->run.training ? arena_matrix(arena, G, E) : (Tensor){0};
    ExchangeShape shape = {.experts = (int)E, .max_rows = m->max_rows, .chunks = m->run.chunks};
    l->plan = exchange_plan_layout(&shape, m->ep_ranks, m->first_expert / m->local_experts, arena);
}

static void layout_rows(Model *m, LayerState *l, Arena *arena) {
    l->rows = arena_matrix(arena, m->max_rows, m->config.hidden);
    l->rows_weight = arena_vector(arena, m->max_rows);
}

static void layout_rows_ffn(Model *m, LayerState *l, Arena *arena) {
    l->rows_gate = arena_matrix(arena, m->max_rows, m->config.expert_ffn);
    l->rows_up = arena_matrix(arena, m->max_rows, m->config.expert_ffn);
}

static Tensor mask(Arena *arena, int64_t rows, int64_t columns) {
    return matrix_i32(arena, rows, (columns + 31) / 32);
}

// Where q, k and v of width q and kv were not clamped.
static void layout_masks(Model *m, LayerState *l, int64_t q, int64_t kv, Arena *arena) {
    if (m->config.clip_qkv == 0 || !m->run.training) return;
    l->q_inside = mask(arena, m->tokens, q);
    l->k_inside = mask(arena, m->tokens, kv);
    l->v_inside = mask(arena, m->tokens, kv);
}

static void layout_keys(Model *m, LayerState *l, Arena *arena) {
    int64_t kv = (int64_t)m->config.kv_heads * m->config.head_dim;
    l->k = arena_matrix(arena, m->tokens, kv);
    l->v = arena_matrix(arena, m->tokens, kv);
}

static void layout_dense(Model *m, LayerState *l, int64_t f, Arena *arena) {
    int64_t T = m->tokens, d = m->config.head_dim, q = m->config.heads * d;
    layout_masks(m, l, q, m->config.kv_heads * d, arena);
    if (m->config.sandwich_norms) l->attn_out = arena_matrix(arena, T, m->config.hidden);
    l->q = arena_matrix(arena, T, q);
    l->attended = arena_matrix(arena, T, q);
    l->attention_lse = arena_vector(arena, T * m->config.heads);
    l->a = arena_matrix(arena, T, m->config.hidden);
    l->gate = arena_matrix(arena, T, f);
    l->up = arena_matrix(arena, T, f);
}

// Of the dense branch, whether its own FFN or the shared experts.
static int64_t dense_width(const ModelConfig *c, int layer) {
    return model_dense_width(c, layer) + model_shared_width(c, layer);
}

static int64_t widest_dense(const ModelConfig *c) {
    int64_t widest = 0;
    for (int i = 0; i < c->layers; i++) widest = dense_width(c, i) > widest ? dense_width(c, i) : widest;
    return widest;
}

// Kept from forward to backward, layer by layer; where nothing is kept, one set that all layers share.
static void layout_layers(Model *m) {
    const ModelConfig *c = &m->config;
    bool training = m->run.training, keep = training && m->run.recompute != RECOMPUTE_LAYER;
    LayerState shared = {0};
    Tensor turn[2] = {{0}};
    if (!keep) layout_dense(m, &shared, widest_dense(c), &m->working);
    if (training && !keep) layout_keys(m, &shared, &m->working);
    if (!keep && m->moe_layers) {
        layout_rows(m, &shared, &m->working);
        layout_rows_ffn(m, &shared, &m->working);
    }
    if (!training) {
        if (m->moe_layers) layout_routing(m, &shared, &m->working);
        for (int i = 0; i < 2; i++) turn[i] = arena_matrix(&m->working, m->tokens, c->hidden);
    }
    for (int i = 0; i < c->layers; i++) {
        LayerState *l = &m->layer[i];
        bool moe = model_layer_has_experts(c, i);
        *l = shared;
        if (!keep) {
            l->gate = tensor_matrix(shared.gate.data, m->tokens, dense_width(c, i));
            l->up = tensor_matrix(shared.up.data, m->tokens, dense_width(c, i));
        }
        l->x = training ? arena_matrix(&m->saved, m->tokens, c->hidden) : turn[i % 2];
        if (!training || keep) layout_keys(m, l, &m->saved);
        if (keep) layout_dense(m, l, dense_width(c, i), &m->saved);
        if (training && moe) layout_routing(m, l, &m->tables);
        if (c->sandwich_norms)
            l->ffn_out = training ? arena_matrix(&m->saved, m->tokens, c->hidden) : m->scratch.dbranch;
        if (keep && moe) layout_rows(m, l, &m->saved);
        if (keep && moe && m->run.recompute == RECOMPUTE_NONE) layout_rows_ffn(m, l, &m->saved);
        if (keep && moe && m->run.recompute == RECOMPUTE_MOE) {
            l->rows_gate = m->scratch.rows_gate;
            l->rows_up = m->scratch.rows_up;
        }
    }
    m->out = training ? arena_matrix(&m->working, m->tokens, c->hidden) : turn[c->layers % 2];
}

static void layout_moe_scratch(Model *m) {
    const ModelConfig *c = &m->config;
    Scratch *s = &m->scratch;
    Arena *arena = &m->working;
    int64_t T = m->tokens, h = c->hidden, pairs = T * c->top_k, R = m->max_rows;
    bool waves = m->max_rows < pairs * m->ep_ranks; // more than one may be needed
    s->moe_norm = arena_matrix(arena, T, h);
    s->moe_rstd = arena_vector(arena, T);
    s->send = arena_matrix(arena, pairs, h);
    s->send_weight = arena_matrix(arena, pairs, 1);
    s->back = arena_matrix(arena, pairs, h);
    s->rows_act = arena_matrix(arena, R, c->expert_ffn);
    s->rows_out = arena_matrix(arena, R, h);
    s->counts = arena_tensor(arena, DTYPE_I32, 1, (int64_t[]){c->experts});
    if (waves) {
        s->rows = arena_matrix(arena, R, h);
        s->rows_weight = arena_vector(arena, R);
    }
    if (waves || (m->run.training && m->run.recompute == RECOMPUTE_MOE)) {
        s->rows_gate = arena_matrix(arena, R, c->expert_ffn);
        s->rows_up = arena_matrix(arena, R, c->expert_ffn);
    }
    if (!m->run.training) return;
    if (waves) s->resend = arena_matrix(arena, pairs, h);
    s->back_weight = arena_matrix(arena, pairs, 1);
    s->rows_dy = arena_matrix(arena, R, h);
    s->rows_dweight = arena_vector(arena, R);
    s->dlogits = arena_matrix(arena, T, c->experts);
    s->dweight = arena_matrix(arena, T, c->top_k);
}

static int64_t loss_chunk(const Model *m) {
    enum { LOGITS = 1 << 21 }; // elements of logits in memory at a time, 32 rows at least
    int64_t rows = LOGITS / m->config.vocab;
    if (rows < 32) rows = 32;
    return rows < m->tokens ? rows : m->tokens;
}

static void layout_scratch(Model *m) {
    const ModelConfig *c = &m->config;
    Scratch *s = &m->scratch;
    Arena *arena = &m->working;
    int64_t T = m->tokens, h = c->hidden;
    int64_t q = (int64_t)c->heads * c->head_dim, kv = (int64_t)c->kv_heads * c->head_dim;
    s->norm = arena_matrix(arena, T, h);
    s->rstd = arena_vector(arena, T);
    s->ffn = arena_matrix(arena, T, widest_dense(c));
    s->logits = arena_matrix(arena, loss_chunk(m), c->vocab);
    s->logprob = arena_vector(arena, T);
    s->inputs = arena_tensor(arena, DTYPE_I32, 1, (int64_t[]){T});
    s->targets = arena_tensor(arena, DTYPE_I32, 1, (int64_t[]){T});
    if (c->sandwich_norms) s->dbranch = arena_matrix(arena, T, h);
    if (m->moe_layers) layout_moe_scratch(m);
    if (!m->run.training) return;
    s->dq = arena_matrix(arena, T, q);
    s->dk = arena_matrix(arena, T, kv);
    s->dv = arena_matrix(arena, T, kv);
    s->dattended = arena_matrix(arena, T, q);
    m->dout = arena_matrix(arena, T, h);
    m->dx = arena_matrix(arena, T, h);
}

void model_layout(Model *m) {
    const ModelConfig *c = &m->config;
    m->cosine = arena_matrix(&m->tables, m->run.seq_len, c->head_dim / 2);
    m->sine = arena_matrix(&m->tables, m->run.seq_len, c->head_dim / 2);
    m->bias = m->moe_layers ? arena_matrix(&m->tables, m->moe_layers, c->experts) : (Tensor){0};
    m->forced_index = m->moe_layers && c->router.force != FORCE_NONE
                          ? matrix_i32(&m->tables, m->tokens, c->top_k)
                          : (Tensor){0};
    layout_scratch(m);
    layout_layers(m);
}
