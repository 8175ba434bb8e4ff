// SPDX-License-Identifier: Apache-2.0
// The table of published models. What differs between them is a choice of the one block in block.c.
#include "model/model_config.h"

static const struct {
    const char *name, *formula;
    ModelConfig choices;
} family[ARCH_COUNT] = {
    [ARCH_ARCTIC] = {"arctic",
                     "a = x + Attn(N x); a + FFN(N a) + MoE(N x)",
                     {.arch = ARCH_ARCTIC,
                      .experts = 16,
                      .top_k = 2,
                      .dense_ffn = 256,
                      .moe_input = MOE_READS_LAYER_INPUT,
                      .embed_scale = 1,
                      .output_scale = 1,
                      .router.normalize = NORMALIZE_SEVERAL}},
    [ARCH_MIXTRAL] = {"mixtral",
                      "a = x + Attn(N x); a + MoE(N a)",
                      {.arch = ARCH_MIXTRAL,
                       .experts = 8,
                       .top_k = 2,
                       .moe_input = MOE_READS_ATTENTION,
                       .embed_scale = 1,
                       .output_scale = 1,
                       .router.normalize = NORMALIZE_ALWAYS}},
    [ARCH_DBRX] = {"dbrx",
                   "a = x + Attn(N x), q k v clamped; a + MoE(N a); N = LayerNorm",
                   {.arch = ARCH_DBRX,
                    .experts = 16,
                    .top_k = 4,
                    .norm = NORM_LAYER,
                    .moe_input = MOE_READS_ATTENTION,
                    .clip_qkv = 8,
                    .embed_scale = 1,
                    .output_scale = 1,
                    .router.normalize = NORMALIZE_ALWAYS}},
    [ARCH_GROK] = {"grok",
                   "a = x + N Attn(N x), scores capped; a + N MoE(N a), GELU; embedding and output scaled",
                   {.arch = ARCH_GROK,
                    .experts = 8,
                    .top_k = 2,
                    .sandwich_norms = true,
                    .moe_input = MOE_READS_ATTENTION,
                    .activation = ACTIVATION_GELU_TANH,
                    .attn_softcap = 30,
                    .embed_scale = 78.38367176906169,
                    .output_scale = 0.5773502691896257,
                    .tie_embeddings = true,
                    .router.normalize = NORMALIZE_NEVER}},
    [ARCH_LLAMA] = {"llama",
                    "a = x + Attn(N x); a + FFN(N a)",
                    {.arch = ARCH_LLAMA,
                     .top_k = 1,
                     .dense_ffn = 704,
                     .moe_input = MOE_READS_ATTENTION,
                     .embed_scale = 1,
                     .output_scale = 1,
                     .router.normalize = NORMALIZE_ALWAYS}},
};

const ModelConfig *model_family(Arch arch) {
    return &family[arch].choices;
}

const char *arch_name(Arch arch) {
    return family[arch].name;
}

const char *arch_formula(Arch arch) {
    return family[arch].formula;
}
