// SPDX-License-Identifier: Apache-2.0
#include "train/hf_names.h"
#include <stdio.h>
#include <string.h>

// What of the file's tensor a weight is.
typedef enum { WHOLE, FUSED_Q, FUSED_K, FUSED_V, STACKED, STACKED_TRANSPOSED } Share;

// L and E stand for the layer's and the expert's number. "plain.L" are layers without experts in a model that
// has experts in others.
typedef struct {
    const char *name, *file;
    Share share;
} Name;

static const Name llama_common[] = {{"embed", "model.embed_tokens.weight", WHOLE},
                                    {"final_norm", "model.norm.weight", WHOLE},
                                    {"head", "lm_head.weight", WHOLE},
                                    {"layers.L.attn_norm", "model.layers.L.input_layernorm.weight", WHOLE},
                                    {"layers.L.attn.q", "model.layers.L.self_attn.q_proj.weight", WHOLE},
                                    {"layers.L.attn.k", "model.layers.L.self_attn.k_proj.weight", WHOLE},
                                    {"layers.L.attn.v", "model.layers.L.self_attn.v_proj.weight", WHOLE},
                                    {"layers.L.attn.o", "model.layers.L.self_attn.o_proj.weight", WHOLE},
                                    {0}};

static const Name llama[] = {{"layers.L.dense_norm", "model.layers.L.post_attention_layernorm.weight", WHOLE},
                             {"layers.L.dense.gate", "model.layers.L.mlp.gate_proj.weight", WHOLE},
                             {"layers.L.dense.up", "model.layers.L.mlp.up_proj.weight", WHOLE},
                             {"layers.L.dense.down", "model.layers.L.mlp.down_proj.weight", WHOLE},
                             {0}};

static const Name mixtral[] = {
    {"layers.L.moe_norm", "model.layers.L.post_attention_layernorm.weight", WHOLE},
    {"layers.L.router", "model.layers.L.block_sparse_moe.gate.weight", WHOLE},
    {"layers.L.experts.E.gate", "model.layers.L.block_sparse_moe.experts.E.w1.weight", WHOLE},
    {"layers.L.experts.E.up", "model.layers.L.block_sparse_moe.experts.E.w3.weight", WHOLE},
    {"layers.L.experts.E.down", "model.layers.L.block_sparse_moe.experts.E.w2.weight", WHOLE},
    {0}};

static const Name arctic[] = {{"layers.L.dense_norm", "model.layers.L.residual_layernorm.weight", WHOLE},
                              {"layers.L.dense.gate", "model.layers.L.residual_mlp.w1.weight", WHOLE},
                              {"layers.L.dense.up", "model.layers.L.residual_mlp.w3.weight", WHOLE},
                              {"layers.L.dense.down", "model.layers.L.residual_mlp.w2.weight", WHOLE},
                              {"plain.L.dense_norm", "model.layers.L.post_attention_layernorm.weight", WHOLE},
                              {"plain.L.dense.gate", "model.layers.L.block_sparse_moe.mlp.w1.weight", WHOLE},
                              {"plain.L.dense.up", "model.layers.L.block_sparse_moe.mlp.w3.weight", WHOLE},
                              {"plain.L.dense.down", "model.layers.L.block_sparse_moe.mlp.w2.weight", WHOLE},
                              {0}};

static const Name dbrx[] = {
    {"embed", "transformer.wte.weight", WHOLE},
    {"final_norm", "transformer.norm_f.weight", WHOLE},
    {"head", "lm_head.weight", WHOLE},
    {"layers.L.attn_norm", "transformer.blocks.L.norm_attn_norm.norm_1.weight", WHOLE},
    {"layers.L.attn.q", "transformer.blocks.L.norm_attn_norm.attn.Wqkv.weight", FUSED_Q},
    {"layers.L.attn.k", "transformer.blocks.L.norm_attn_norm.attn.Wqkv.weight", FUSED_K},
    {"layers.L.attn.v", "transformer.blocks.L.norm_attn_norm.attn.Wqkv.weight", FUSED_V},
    {"layers.L.attn.o", "transformer.blocks.L.norm_attn_norm.attn.out_proj.weight", WHOLE},
    {"layers.L.moe_norm", "transformer.blocks.L.norm_attn_norm.norm_2.weight", WHOLE},
    {"layers.L.router", "transformer.blocks.L.ffn.router.layer.weight", WHOLE},
    {"layers.L.experts.E.gate", "transformer.blocks.L.ffn.experts.mlp.w1", STACKED},
    {"layers.L.experts.E.up", "transformer.blocks.L.ffn.experts.mlp.v1", STACKED},
    {"layers.L.experts.E.down", "transformer.blocks.L.ffn.experts.mlp.w2", STACKED_TRANSPOSED},
    {0}};

static const Name grok[] = {
    {"final_norm", "model.norm.scale", WHOLE},
    {"layers.L.attn_norm", "model.layers.L.pre_attn_norm.scale", WHOLE},
    {"layers.L.attn.q", "model.layers.L.attn.q_proj.weight", WHOLE},
    {"layers.L.attn.k", "model.layers.L.attn.k_proj.weight", WHOLE},
    {"layers.L.attn.v", "model.layers.L.attn.v_proj.weight", WHOLE},
    {"layers.L.attn.o", "model.layers.L.attn.o_proj.weight", WHOLE},
    {"layers.L.attn_out_norm", "model.layers.L.post_attn_norm.scale", WHOLE},
    {"layers.L.moe_norm", "model.layers.L.pre_moe_norm.scale", WHOLE},
    {"layers.L.ffn_out_norm", "model.layers.L.post_moe_norm.scale", WHOLE},
    {"layers.L.router", "model.layers.L.moe_block.gate.weight", WHOLE},
    {"layers.L.experts.E.gate", "model.layers.L.moe_block.experts.E.linear.weight", WHOLE},
    {"layers.L.experts.E.up", "model.layers.L.moe_block.experts.E.linear_v.weight", WHOLE},
    {"layers.L.experts.E.down", "model.layers.L.moe_block.experts.E.linear_1.weight", WHOLE},
    {0}};

static const struct {
    const char *architecture, *model_type;
    const Name *names[3]; // the first that has the name counts
} families[ARCH_COUNT] = {
    [ARCH_ARCTIC] = {"ArcticForCausalLM", "arctic", {arctic, mixtral, llama_common}},
    [ARCH_MIXTRAL] = {"MixtralForCausalLM", "mixtral", {mixtral, llama_common}},
    [ARCH_DBRX] = {"DbrxForCausalLM", "dbrx", {dbrx}},
    [ARCH_GROK] = {"Grok1ModelForCausalLM", "grok-1", {grok, llama_common}},
    [ARCH_LLAMA] = {"LlamaForCausalLM", "llama", {llama, llama_common}},
};

const char *hf_architecture(Arch arch) {
    return families[arch].architecture;
}

const char *hf_model_type(Arch arch) {
    return families[arch].model_type;
}

static const Name *find_name(Arch arch, const char *pattern) {
    for (int i = 0; i < 3 && families[arch].names[i]; i++)
        for (const Name *n = families[arch].names[i]; n->name; n++)
            if (!strcmp(n->name, pattern)) return n;
    return NULL;
}

// "layers.3.experts.12.gate" becomes "layers.L.experts.E.gate", with 3 and 12.
static void split_name(const ModelConfig *config, const char *name, char *pattern, size_t size, int *layer,
                       int *expert) {
    int rest = 0, after = 0;
    *layer = *expert = 0;
    if (sscanf(name, "layers.%d.%n", layer, &rest) != 1 || !rest) {
        snprintf(pattern, size, "%s", name);
        return;
    }
    bool plain = config->experts > 0 && !model_layer_has_experts(config, *layer);
    bool of_expert = sscanf(name + rest, "experts.%d.%n", expert, &after) == 1 && after;
    const char *kind = plain && !strncmp(name + rest, "dense", 5) ? "plain" : "layers";
    snprintf(pattern, size, "%s.L.%s%s", kind, of_expert ? "experts.E." : "", name + rest + after);
}

// L and E between dots become the numbers.
static void fill_name(char *out, size_t size, const char *file, int layer, int expert) {
    size_t at = 0;
    for (const char *c = file; *c && at < size; c++) {
        bool number = c > file && c[-1] == '.' && c[1] == '.' && (*c == 'L' || *c == 'E');
        at += (size_t)(number ? snprintf(out + at, size - at, "%d", *c == 'L' ? layer : expert)
                              : snprintf(out + at, size - at, "%c", *c));
    }
    REQUIRE(at < size, "the name of %s is too long", file);
}

void hf_place(const ModelConfig *c, const Param *p, HfPlace *out) {
    char pattern[128];
    int layer, expert;
    split_name(c, p->name, pattern, sizeof pattern, &layer, &expert);
    const Name *n = find_name(c->arch, pattern);
    REQUIRE(n, "weight %s has no place in %s's files", p->name, hf_architecture(c->arch));
    *out = (HfPlace){.dims = p->dims, .dim = {p->dim[0], p->dim[1]}};
    fill_name(out->tensor, sizeof out->tensor, n->file, layer, expert);
    int64_t q = (int64_t)c->heads * c->head_dim, kv = (int64_t)c->kv_heads * c->head_dim;
    switch (n->share) {
    case WHOLE:
        return;
    case FUSED_Q:
    case FUSED_K:
    case FUSED_V:
        out->dim[0] = q + 2 * kv;
        out->first_row = n->share == FUSED_Q ? 0 : n->share == FUSED_K ? q : q + kv;
        return;
    case STACKED:
    case STACKED_TRANSPOSED:
        out->dim[0] = (int64_t)c->experts * c->expert_ffn;
        out->dim[1] = c->hidden;
        out->first_row = (int64_t)expert * c->expert_ffn;
        out->transposed = n->share == STACKED_TRANSPOSED;
        return;
    }
}

// ---- what the files cannot say

#define CANNOT(c, condition, ...)                                                                            \
    do {                                                                                                     \
        if (condition) {                                                                                     \
            char what[128];                                                                                  \
            snprintf(what, sizeof what, __VA_ARGS__);                                                        \
            FAIL(ERR_CONFIG, "%s: Hugging Face files of %s cannot hold that", what,                          \
                 hf_architecture((c)->arch));                                                                \
        }                                                                                                    \
    } while (0)

static Status check_experts(const ModelConfig *c, const ModelConfig *f) {
    bool arctic = c->arch == ARCH_ARCTIC;
    if (c->arch == ARCH_LLAMA) {
        CANNOT(c, c->experts, "model.experts = %d", c->experts);
        return OK;
    }
    CANNOT(c, !c->experts, "model.experts = 0");
    CANNOT(c, c->shared_experts, "model.shared_experts = %d", c->shared_experts);
    CANNOT(c, c->dense_ffn && !arctic, "model.dense_ffn = %d beside experts", c->dense_ffn);
    CANNOT(c, c->moe_every != 1 && !arctic, "model.moe_every = %d", c->moe_every);
    CANNOT(c, c->router.scores != f->router.scores, "model.router.scores other than softmax");
    ModelConfig published = *f;
    published.top_k = c->top_k;
    CANNOT(c, model_normalizes(c) != model_normalizes(&published), "model.router.normalize %s for top_k %d",
           model_normalizes(c) ? "on" : "off", c->top_k);
    // Arctic's parallel_attn_mlp_res decides both.
    MoeInput input = arctic && !c->dense_ffn ? MOE_READS_ATTENTION : f->moe_input;
    CANNOT(c, c->moe_input != input, "model.moe_input %s with model.dense_ffn = %d",
           c->moe_input == MOE_READS_ATTENTION ? "attention" : "layer", c->dense_ffn);
    return OK;
}

static Status check_numbers(const ModelConfig *c, const ModelConfig *f) {
    bool is_grok = c->arch == ARCH_GROK, is_dbrx = c->arch == ARCH_DBRX;
    CANNOT(c, c->clip_qkv != 0 && !is_dbrx, "model.clip_qkv = %g", c->clip_qkv);
    CANNOT(c, (c->attn_softcap != 0) != is_grok, "model.attn_softcap = %g", c->attn_softcap);
    CANNOT(c, c->attn_scale != 0 && !is_grok, "model.attn_scale = %g", c->attn_scale);
    CANNOT(c, c->embed_scale != f->embed_scale && !is_grok, "model.embed_scale = %g", c->embed_scale);
    CANNOT(c, c->output_scale != f->output_scale && !is_grok, "model.output_scale = %g", c->output_scale);
    CANNOT(c, is_grok && c->rope_theta != 1e4, "model.rope_theta = %g, not 10000", c->rope_theta);
    CANNOT(c, is_dbrx && c->norm_eps != 1e-5, "model.norm_eps = %g, not 1e-5", c->norm_eps);
    CANNOT(c, is_dbrx && (int64_t)c->heads * c->head_dim != c->hidden,
           "model.head_dim = %d, not model.hidden / model.heads", c->head_dim);
    CANNOT(c, is_dbrx && c->tie_embeddings, "model.tie_embeddings true");
    return OK;
}

Status hf_expressible(const ModelConfig *c) {
    const ModelConfig *f = model_family(c->arch);
    CANNOT(c, c->norm != f->norm, "model.norm %s", c->norm == NORM_LAYER ? "layer" : "rms");
    CANNOT(c, c->sandwich_norms != f->sandwich_norms, "model.sandwich_norms %s",
           c->sandwich_norms ? "true" : "false");
    CANNOT(c, c->activation != f->activation, "model.activation %s",
           c->activation == ACTIVATION_GELU_TANH ? "gelu_tanh" : "silu");
    TRY(check_experts(c, f));
    return check_numbers(c, f);
}
