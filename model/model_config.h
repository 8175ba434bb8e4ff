// SPDX-License-Identifier: Apache-2.0
// What decides the mathematics of a model.
#pragma once
#include "core/params.h"
#include "kernels/kernels.h"

typedef enum { ARCH_ARCTIC, ARCH_COUNT } Arch;
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
} RouterConfig;

typedef struct {
    Arch arch;
    int layers, hidden, heads, kv_heads, head_dim, vocab, dense_ffn, experts, top_k, expert_ffn, moe_every;
    double rope_theta, norm_eps;
    bool tie_embeddings;
    double init_std;
    RouterConfig router;
} ModelConfig;

typedef struct {
    int64_t total, active;  // parameters, embeddings included
    int64_t expert;         // of them in experts, all of them
    double flops_per_token; // training: 6·active matmul parameters + 6·L·S·H·d
} ModelSize;

Status model_config_check(const ModelConfig *config); // ERR_CONFIG says which value breaks which rule
bool model_layer_has_experts(const ModelConfig *config, int layer);
ModelSize model_size(const ModelConfig *config, int64_t seq_len);
// Adds every weight to the table, with experts first_expert … first_expert + experts − 1 of each layer only.
// Groups: "embed", per layer "layers.L" (dense) and "layers.L.experts", "head" (final norm and output
// matrix).
void model_describe(const ModelConfig *config, int first_expert, int experts, ParamTable *table);
