// SPDX-License-Identifier: Apache-2.0
#include "model/model_config.h"

Status model_config_check(const ModelConfig *c) {
    const struct {
        const char *name;
        int64_t value;
    } positive[] = {{"layers", c->layers},       {"hidden", c->hidden},         {"heads", c->heads},
                    {"kv_heads", c->kv_heads},   {"head_dim", c->head_dim},     {"vocab", c->vocab},
                    {"dense_ffn", c->dense_ffn}, {"expert_ffn", c->expert_ffn}, {"moe_every", c->moe_every}};
    for (size_t i = 0; i < sizeof positive / sizeof *positive; i++)
        if (positive[i].value < 1)
            FAIL(ERR_CONFIG, "model.%s = %ld must be at least 1", positive[i].name, (long)positive[i].value);
    if (c->heads % c->kv_heads)
        FAIL(ERR_CONFIG, "model.kv_heads = %d must divide model.heads = %d", c->kv_heads, c->heads);
    if (c->head_dim % 2)
        FAIL(ERR_CONFIG, "model.head_dim = %d must be even: RoPE rotates pairs", c->head_dim);
    if (c->experts < 0 || c->experts > 4096)
        FAIL(ERR_CONFIG, "model.experts = %d must lie in 0 … 4096 (0: no experts)", c->experts);
    if (c->experts && (c->top_k < 1 || c->top_k > c->experts))
        FAIL(ERR_CONFIG, "model.top_k = %d must lie in 1 … model.experts = %d", c->top_k, c->experts);
    if (c->rope_theta <= 0) FAIL(ERR_CONFIG, "model.rope_theta = %g must be above 0", c->rope_theta);
    if (c->norm_eps < 0) FAIL(ERR_CONFIG, "model.norm_eps = %g must not be negative", c->norm_eps);
    if (c->router.capacity_factor < 0)
        FAIL(ERR_CONFIG, "model.router.capacity_factor = %g must not be negative (0: dropless)",
             c->router.capacity_factor);
    return OK;
}

bool model_layer_has_experts(const ModelConfig *c, int layer) {
    return c->experts > 0 && (layer + 1) % c->moe_every == 0;
}

ModelSize model_size(const ModelConfig *c, int64_t seq_len) {
    int64_t h = c->hidden, heads = c->heads, kv = c->kv_heads, d = c->head_dim;
    int64_t attention = 2 * h * heads * d + 2 * h * kv * d;
    int64_t expert = 3 * h * c->expert_ffn, embed = (int64_t)c->vocab * h;
    ModelSize size = {.total = embed + h + (c->tie_embeddings ? 0 : embed)};
    size.active = size.total;
    int64_t matmul = embed; // the output matrix
    for (int layer = 0; layer < c->layers; layer++) {
        bool moe = model_layer_has_experts(c, layer);
        int64_t dense = attention + 3 * h * (moe ? c->dense_ffn : c->expert_ffn) + (moe ? c->experts * h : 0);
        int64_t norms = (moe ? 3 : 2) * h;
        int64_t all = moe ? c->experts * expert : 0, used = moe ? c->top_k * expert : 0;
        size.total += dense + norms + all;
        size.active += dense + norms + used;
        size.expert += all;
        matmul += dense + used;
    }
    size.flops_per_token =
        6.0 * (double)matmul + 6.0 * (double)c->layers * (double)seq_len * (double)(heads * d);
    return size;
}

// Groups in the order in which the forward pass needs them.
void model_describe(const ModelConfig *c, int first_expert, int experts, ParamTable *table) {
    float std = (float)c->init_std;
    int64_t h = c->hidden, q = (int64_t)c->heads * c->head_dim, kv = (int64_t)c->kv_heads * c->head_dim;
    int embed = params_group(table, 0, "embed");
    table->group[embed].long_lived = c->tie_embeddings;
    params_add(table, c->vocab, h, 0, std, PARAM_DECAY | PARAM_EMBEDDING, "embed");
    for (int l = 0; l < c->layers; l++) {
        bool moe = model_layer_has_experts(c, l);
        int64_t f = moe ? c->dense_ffn : c->expert_ffn, fe = c->expert_ffn;
        params_group(table, 0, "layers.%d", l);
        params_add(table, h, 0, 1, 0, 0, "layers.%d.attn_norm", l);
        params_add(table, q, h, 0, std, PARAM_DECAY, "layers.%d.attn.q", l);
        params_add(table, kv, h, 0, std, PARAM_DECAY, "layers.%d.attn.k", l);
        params_add(table, kv, h, 0, std, PARAM_DECAY, "layers.%d.attn.v", l);
        params_add(table, h, q, 0, std, PARAM_DECAY, "layers.%d.attn.o", l);
        params_add(table, h, 0, 1, 0, 0, "layers.%d.dense_norm", l);
        params_add(table, f, h, 0, std, PARAM_DECAY, "layers.%d.dense.gate", l);
        params_add(table, f, h, 0, std, PARAM_DECAY, "layers.%d.dense.up", l);
        params_add(table, h, f, 0, std, PARAM_DECAY, "layers.%d.dense.down", l);
        if (!moe) continue;
        params_add(table, h, 0, 1, 0, 0, "layers.%d.moe_norm", l);
        params_add(table, c->experts, h, 0, std, PARAM_DECAY, "layers.%d.router", l);
        params_group(table, 1, "layers.%d.experts", l);
        for (int e = first_expert; e < first_expert + experts; e++) {
            params_add(table, fe, h, 0, std, PARAM_DECAY, "layers.%d.experts.%d.gate", l, e);
            params_add(table, fe, h, 0, std, PARAM_DECAY, "layers.%d.experts.%d.up", l, e);
            params_add(table, h, fe, 0, std, PARAM_DECAY, "layers.%d.experts.%d.down", l, e);
        }
    }
    params_group(table, 0, "head");
    params_add(table, h, 0, 1, 0, 0, "final_norm");
    if (!c->tie_embeddings) params_add(table, c->vocab, h, 0, std, PARAM_DECAY, "head");
}
