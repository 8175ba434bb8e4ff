// SPDX-License-Identifier: Apache-2.0
#include "model/model_config.h"
#include <stdio.h>

Status model_config_check(const ModelConfig *c) {
    const struct {
        const char *name;
        int64_t value;
    } positive[] = {{"layers", c->layers},         {"hidden", c->hidden},      {"heads", c->heads},
                    {"kv_heads", c->kv_heads},     {"head_dim", c->head_dim},  {"vocab", c->vocab},
                    {"expert_ffn", c->expert_ffn}, {"moe_every", c->moe_every}};
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
    if (c->dense_ffn < 0) FAIL(ERR_CONFIG, "model.dense_ffn = %d must not be negative", c->dense_ffn);
    if (!c->experts && !c->dense_ffn)
        FAIL(ERR_CONFIG, "model.dense_ffn = 0 leaves a model without experts without any FFN");
    if (c->shared_experts < 0 || c->shared_experts > 4096)
        FAIL(ERR_CONFIG, "model.shared_experts = %d must lie in 0 … 4096", c->shared_experts);
    if (c->shared_experts && (!c->experts || c->dense_ffn || c->moe_input != MOE_READS_ATTENTION))
        FAIL(ERR_CONFIG,
             "model.shared_experts = %d stand beside experts that read attention's output, without a dense "
             "FFN: set model.dense_ffn to 0 and model.moe_input to attention",
             c->shared_experts);
    if (c->clip_qkv < 0 || c->attn_softcap < 0 || c->attn_scale < 0)
        FAIL(ERR_CONFIG,
             "model.clip_qkv = %g, model.attn_softcap = %g and model.attn_scale = %g must not be negative "
             "(0: off)",
             c->clip_qkv, c->attn_softcap, c->attn_scale);
    if (!(c->embed_scale > 0) || !(c->output_scale > 0))
        FAIL(ERR_CONFIG, "model.embed_scale = %g and model.output_scale = %g must be above 0", c->embed_scale,
             c->output_scale);
    if (c->experts && c->router.scores == SCORES_SIGMOID && c->router.z_coef != 0)
        FAIL(ERR_CONFIG,
             "model.router.z_coef = %g belongs to softmax scores; with sigmoid scores set it to 0",
             c->router.z_coef);
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

int model_dense_width(const ModelConfig *c, int layer) {
    return c->experts == 0 || model_layer_has_experts(c, layer) ? c->dense_ffn : c->expert_ffn;
}

int model_shared_width(const ModelConfig *c, int layer) {
    return model_layer_has_experts(c, layer) ? c->shared_experts * c->expert_ffn : 0;
}

bool model_normalizes(const ModelConfig *c) {
    return c->router.normalize == NORMALIZE_ALWAYS ||
           (c->router.normalize == NORMALIZE_SEVERAL && c->top_k > 1);
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
        int64_t width = model_dense_width(c, layer), shared = model_shared_width(c, layer);
        int64_t dense = attention + 3 * h * (width + shared) + (moe ? c->experts * h : 0);
        int64_t norms = (1 + (width > 0) + moe + (c->sandwich_norms ? 2 : 0)) * h;
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

static void describe_norm(ParamTable *table, int64_t width, int layer, const char *name) {
    params_add(table, width, 0, 1, 0, 0, "layers.%d.%s", layer, name);
}

static void describe_ffn(ParamTable *table, const ModelConfig *c, int64_t width, int layer,
                         const char *name) {
    float std = (float)c->init_std;
    params_add(table, width, c->hidden, 0, std, PARAM_DECAY, "layers.%d.%s.gate", layer, name);
    params_add(table, width, c->hidden, 0, std, PARAM_DECAY, "layers.%d.%s.up", layer, name);
    params_add(table, c->hidden, width, 0, std, PARAM_DECAY, "layers.%d.%s.down", layer, name);
}

static void describe_layer(ParamTable *table, const ModelConfig *c, int l, int first_expert, int experts) {
    float std = (float)c->init_std;
    int64_t h = c->hidden, q = (int64_t)c->heads * c->head_dim, kv = (int64_t)c->kv_heads * c->head_dim;
    int width = model_dense_width(c, l), shared = model_shared_width(c, l);
    bool moe = model_layer_has_experts(c, l);
    params_group(table, 0, "layers.%d", l);
    describe_norm(table, h, l, "attn_norm");
    params_add(table, q, h, 0, std, PARAM_DECAY, "layers.%d.attn.q", l);
    params_add(table, kv, h, 0, std, PARAM_DECAY, "layers.%d.attn.k", l);
    params_add(table, kv, h, 0, std, PARAM_DECAY, "layers.%d.attn.v", l);
    params_add(table, h, q, 0, std, PARAM_DECAY, "layers.%d.attn.o", l);
    if (c->sandwich_norms) describe_norm(table, h, l, "attn_out_norm");
    if (width) {
        describe_norm(table, h, l, "dense_norm");
        describe_ffn(table, c, width, l, "dense");
    }
    if (c->sandwich_norms) describe_norm(table, h, l, "ffn_out_norm");
    if (!moe) return;
    describe_norm(table, h, l, "moe_norm");
    params_add(table, c->experts, h, 0, std, PARAM_DECAY, "layers.%d.router", l);
    if (shared) describe_ffn(table, c, shared, l, "shared");
    params_group(table, 1, "layers.%d.experts", l);
    for (int e = first_expert; e < first_expert + experts; e++) {
        char name[32];
        snprintf(name, sizeof name, "experts.%d", e);
        describe_ffn(table, c, c->expert_ffn, l, name);
    }
}

// Groups in the order in which the forward pass needs them.
void model_describe(const ModelConfig *c, int first_expert, int experts, ParamTable *table) {
    float std = (float)c->init_std;
    int embed = params_group(table, 0, "embed");
    table->group[embed].long_lived = c->tie_embeddings;
    params_add(table, c->vocab, c->hidden, 0, std, PARAM_DECAY | PARAM_EMBEDDING, "embed");
    for (int l = 0; l < c->layers; l++) describe_layer(table, c, l, first_expert, experts);
    params_group(table, 0, "head");
    params_add(table, c->hidden, 0, 1, 0, 0, "final_norm");
    if (!c->tie_embeddings) params_add(table, c->vocab, c->hidden, 0, std, PARAM_DECAY, "head");
}
