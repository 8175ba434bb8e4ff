// SPDX-License-Identifier: Apache-2.0
// What decides the mathematics of a model.
#pragma once
#include "core/params.h"
#include "kernels/kernels.h"

typedef enum { ARCH_ARCTIC, ARCH_MIXTRAL, ARCH_DBRX, ARCH_GROK, ARCH_LLAMA, ARCH_COUNT } Arch;

// The choices of the block. With N a norm, x the layer's input and a = x + Attn(N x), a layer's output is
//   a + MoE(N' x or N' a) + dense FFN(N'' a) + shared FFN(N' a), of which any but the first may be missing;
// sandwich norms go around each branch: a = x + N(Attn(N x)), out = a + N(MoE(…) + …).
typedef enum { NORM_RMS, NORM_LAYER } NormKind;                       // LayerNorm without bias
typedef enum { MOE_READS_LAYER_INPUT, MOE_READS_ATTENTION } MoeInput; // x, a
typedef enum {
    NORMALIZE_NEVER,
    NORMALIZE_SEVERAL, // where a token has more than one expert
    NORMALIZE_ALWAYS,
} Normalize; // the weights of a token's experts are divided by their sum
typedef enum {
    BALANCE_SWITCH,
    BALANCE_MEGABLOCKS,
    BALANCE_HF,
    BALANCE_ARCTIC,
    BALANCE_DEEPSPEED
} BalanceKind;
typedef enum { SCOPE_SEQUENCE, SCOPE_MICRO_BATCH, SCOPE_GLOBAL_BATCH } BalanceScope;
typedef enum {
    FORCE_NONE,
    FORCE_BALANCED, // choice j of the token at position t of its sequence is expert (t·k + j) mod E
    FORCE_ONE,      // choice j of every token is expert j
} RouterForce;

typedef struct {
    double capacity_factor; // 0: dropless
    int min_capacity;
    DropPolicy drop_policy;
    BalanceKind aux_kind;
    BalanceScope aux_scope;
    double aux_coef, z_coef, bias_rate;
    RouterForce force;
    ScoreKind scores;
    Normalize normalize;
} RouterConfig;

typedef struct {
    Arch arch;
    int layers, hidden, heads, kv_heads, head_dim, vocab, dense_ffn, experts, top_k, expert_ffn, moe_every;
    double rope_theta, norm_eps;
    bool tie_embeddings;
    double init_std;
    NormKind norm;
    bool sandwich_norms;
    MoeInput moe_input;
    Activation activation;
    int shared_experts;  // that every token goes to, weight 1; one FFN of shared_experts·expert_ffn
    double clip_qkv;     // bound of q, k and v before RoPE; 0: none
    double attn_softcap; // of attention scores; 0: none
    double attn_scale;   // of attention scores; 0: 1/√head_dim
    double embed_scale, output_scale; // of the embedded tokens, and of the logits
    RouterConfig router;
} ModelConfig;

// The published models, one row each: the choices that make the block theirs. Other members are 0.
const ModelConfig *model_family(Arch arch);
const char *arch_name(Arch arch); // "arctic"
// The formula of a layer with experts, for people.
const char *arch_formula(Arch arch);

typedef struct {
    int64_t total, active;  // parameters, embeddings included
    int64_t expert;         // of them in experts, all of them
    double flops_per_token; // training: 6·active matmul parameters + 6·L·S·H·d
} ModelSize;

Status model_config_check(const ModelConfig *config); // ERR_CONFIG says which value breaks which rule
bool model_layer_has_experts(const ModelConfig *config, int layer);
// Inner width of a layer's dense FFN, 0 where it has none: dense_ffn beside experts and in models without
// any; expert_ffn in the layers between (moe_every).
int model_dense_width(const ModelConfig *config, int layer);
int model_shared_width(const ModelConfig *config, int layer); // of the shared experts together
bool model_normalizes(const ModelConfig *config);             // the weights of a token's experts
ModelSize model_size(const ModelConfig *config, int64_t seq_len);
// Adds every weight to the table, with experts first_expert … first_expert + experts − 1 of each layer only.
// Groups: "embed", per layer "layers.L" (dense) and "layers.L.experts", "head" (final norm and output
// matrix).
void model_describe(const ModelConfig *config, int first_expert, int experts, ParamTable *table);
