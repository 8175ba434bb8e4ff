// SPDX-License-Identifier: Apache-2.0
#include "train/hf_config_write.h"
#include "train/hf_names.h"
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void put(json_t *object, const char *key, json_t *value) {
    REQUIRE(json_object_set_new(object, key, value) == 0, "out of memory: %s", key);
}

static json_t *size(int64_t value) {
    return json_integer((json_int_t)value);
}

static json_t *start(const ModelConfig *c, const HfConfigFacts *facts) {
    json_t *object = json_pack("{s:[s], s:s}", "architectures", hf_architecture(c->arch), "model_type",
                               hf_model_type(c->arch));
    put(object, "vocab_size", size(c->vocab));
    put(object, "tie_word_embeddings", json_boolean(c->tie_embeddings));
    put(object, "initializer_range", json_real(c->init_std));
    put(object, "torch_dtype", json_string(facts->dtype));
    put(object, "use_cache", json_true());
    // Ids belong to the tokenizer; the classes' defaults are another one's.
    put(object, "bos_token_id", json_null());
    put(object, "eos_token_id", json_null());
    return object;
}

// What all but DBRX call the same.
static void put_common(json_t *object, const ModelConfig *c, const HfConfigFacts *facts) {
    put(object, "hidden_size", size(c->hidden));
    put(object, "intermediate_size", size(c->experts ? c->expert_ffn : c->dense_ffn));
    put(object, "num_hidden_layers", size(c->layers));
    put(object, "num_attention_heads", size(c->heads));
    put(object, "num_key_value_heads", size(c->kv_heads));
    if (c->heads * (int64_t)c->head_dim != c->hidden) put(object, "head_dim", size(c->head_dim));
    if (facts->positions) put(object, "max_position_embeddings", size(facts->positions));
    put(object, "rms_norm_eps", json_real(c->norm_eps));
}

static void put_silu_rope(json_t *object, const ModelConfig *c) {
    put(object, "hidden_act", json_string("silu"));
    put(object, "rope_theta", json_real(c->rope_theta));
    put(object, "attention_bias", json_false());
    put(object, "attention_dropout", json_real(0));
}

static void put_llama(json_t *object, const ModelConfig *c) {
    put_silu_rope(object, c);
    put(object, "mlp_bias", json_false());
    put(object, "rope_scaling", json_null());
}

static void put_mixtral(json_t *object, const ModelConfig *c) {
    put_silu_rope(object, c);
    put(object, "sliding_window", json_null());
    put(object, "num_local_experts", size(c->experts));
    put(object, "num_experts_per_tok", size(c->top_k));
    put(object, "router_jitter_noise", json_real(0));
    put(object, "output_router_logits", json_false());
}

static void put_arctic(json_t *object, const ModelConfig *c, const HfConfigFacts *facts) {
    bool drops = c->router.capacity_factor > 0, parallel = c->dense_ffn > 0;
    double capacity = drops ? c->router.capacity_factor : 1;
    put_silu_rope(object, c);
    put(object, "sliding_window", json_null());
    if (facts->positions) put(object, "max_sequence_length", size(facts->positions));
    put(object, "num_local_experts", size(c->experts));
    put(object, "num_experts_per_tok", size(c->top_k));
    put(object, "moe_layer_frequency", size(c->moe_every));
    put(object, "parallel_attn_mlp_res", json_boolean(parallel));
    put(object, "use_residual", json_boolean(parallel));
    if (parallel && c->dense_ffn != c->hidden) put(object, "residual_ffn_size", size(c->dense_ffn));
    put(object, "moe_train_capacity_factor", json_real(capacity));
    put(object, "moe_eval_capacity_factor", json_real(capacity));
    put(object, "moe_min_capacity", size(c->router.min_capacity));
    put(object, "moe_token_dropping", json_boolean(drops));
    put(object, "enable_expert_tensor_parallelism", json_false());
    put(object, "quantization", json_null());
}

static void put_grok(json_t *object, const ModelConfig *c) {
    put(object, "num_experts", size(c->experts));
    put(object, "num_experts_per_tok", size(c->top_k));
    put(object, "max_attn_value", json_real(c->attn_softcap));
    put(object, "attn_output_multiplier",
        json_real(c->attn_scale > 0 ? c->attn_scale : 1 / sqrt((double)c->head_dim)));
    put(object, "embedding_multiplier_scale", json_real(c->embed_scale));
    put(object, "output_multiplier_scale", json_real(c->output_scale));
    put(object, "output_router_logits", json_false());
    put(object, "pad_token_id", json_null());
}

static void put_dbrx(json_t *object, const ModelConfig *c, const HfConfigFacts *facts) {
    put(object, "d_model", size(c->hidden));
    put(object, "n_layers", size(c->layers));
    put(object, "n_heads", size(c->heads));
    if (facts->positions) put(object, "max_seq_len", size(facts->positions));
    put(object, "emb_pdrop", json_real(0));
    put(object, "resid_pdrop", json_real(0));
    put(object, "output_router_logits", json_false());
    // Classes that take the base from here do not look into attn_config.
    put(object, "rope_theta", json_real(c->rope_theta));
    json_t *clip = c->clip_qkv > 0 ? json_real(c->clip_qkv) : json_null();
    put(object, "attn_config",
        json_pack("{s:f, s:o, s:i, s:f}", "attn_pdrop", 0.0, "clip_qkv", clip, "kv_n_heads", c->kv_heads,
                  "rope_theta", c->rope_theta));
    put(object, "ffn_config",
        json_pack("{s:{s:s}, s:i, s:i, s:i, s:f, s:f}", "ffn_act_fn", "name", "silu", "ffn_hidden_size",
                  c->expert_ffn, "moe_num_experts", c->experts, "moe_top_k", c->top_k, "moe_jitter_eps", 0.0,
                  "moe_normalize_expert_weights", 1.0));
}

// With no more digits than it takes to read back the same numbers, and a line's end.
static char *dump(json_t *object) {
    for (size_t digits = 7;; digits++) {
        char *text = json_dumps(object, JSON_INDENT(2) | JSON_REAL_PRECISION(digits));
        json_t *again = text ? json_loads(text, 0, NULL) : NULL;
        bool same = json_equal(object, again);
        json_decref(again);
        if (same || digits == 17) {
            size_t length = text ? strlen(text) : 0;
            text = realloc(text, length + 2);
            REQUIRE(text && length, "out of memory: config.json");
            snprintf(text + length, 2, "\n");
            return text;
        }
        free(text);
    }
}

char *hf_config_text(const ModelConfig *c, const HfConfigFacts *facts) {
    json_t *object = start(c, facts);
    if (c->arch != ARCH_DBRX) put_common(object, c, facts);
    switch (c->arch) {
    case ARCH_ARCTIC:
        put_arctic(object, c, facts);
        break;
    case ARCH_MIXTRAL:
        put_mixtral(object, c);
        break;
    case ARCH_DBRX:
        put_dbrx(object, c, facts);
        break;
    case ARCH_GROK:
        put_grok(object, c);
        break;
    default:
        put_llama(object, c);
    }
    char *text = dump(object);
    json_decref(object);
    return text;
}
