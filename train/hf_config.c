// SPDX-License-Identifier: Apache-2.0
#include "train/hf_config.h"
#include "core/file.h"
#include "core/log.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
    const char *path;
    json_t *json;
    json_t *left; // keys not used yet
    int problems;
} Reader;

static void problem(Reader *r, const char *key, const char *what) {
    char *value =
        json_dumps(json_object_get(r->json, key), JSON_ENCODE_ANY | JSON_COMPACT | JSON_REAL_PRECISION(12));
    log_rank0(LOG_ERROR, "%s: %s = %.200s: %s", r->path, key, value ? value : "(missing)", what);
    free(value);
    r->problems++;
}

// A key that is not there is an error: the class's own default is not what Arctic has.
static json_t *take(Reader *r, const char *key) {
    json_t *value = json_object_get(r->json, key);
    json_object_del(r->left, key);
    if (!value) problem(r, key, "must be stated");
    return value;
}

static int read_size(Reader *r, const char *key) {
    json_t *value = take(r, key);
    int64_t n = json_integer_value(value);
    if (value && (!json_is_integer(value) || n < 1 || n > INT32_MAX))
        problem(r, key, "must be a whole number above 0");
    return n < 1 || n > INT32_MAX ? 1 : (int)n;
}

// Absent or null: what stands in for it.
static int read_size_or(Reader *r, const char *key, int otherwise) {
    json_t *value = json_object_get(r->json, key);
    if (value && !json_is_null(value)) return read_size(r, key);
    json_object_del(r->left, key);
    return otherwise;
}

static double read_number(Reader *r, const char *key, const json_t *value) {
    if (value && !json_is_number(value)) problem(r, key, "must be a number");
    return json_number_value(value);
}

// Newer files keep it in rope_parameters.
static double read_rope_theta(Reader *r) {
    json_t *parameters = json_object_get(r->json, "rope_parameters"),
           *type = json_object_get(parameters, "rope_type");
    json_object_del(r->left, "rope_parameters");
    if (type && (!json_is_string(type) || strcmp(json_string_value(type), "default")))
        problem(r, "rope_parameters", "only rope_type default is known");
    json_t *inner = json_object_get(parameters, "rope_theta");
    if (inner && !json_object_get(r->json, "rope_theta")) return read_number(r, "rope_parameters", inner);
    return read_number(r, "rope_theta", take(r, "rope_theta"));
}

// What floe's Arctic does not have must be absent or plain.
static void refuse_extras(Reader *r) {
    static const struct {
        const char *key, *plain; // JSON
    } extras[] = {{"rope_scaling", "null"},        {"sliding_window", "null"}, {"quantization", "null"},
                  {"quantization_config", "null"}, {"hidden_act", "\"silu\""}, {"attention_bias", "false"},
                  {"mlp_bias", "false"},           {"attention_dropout", "0"}, {"router_jitter_noise", "0"},
                  {"hidden_dropout", "0"},         {"resid_pdrop", "0"},       {"embd_pdrop", "0"}};
    for (size_t i = 0; i < sizeof extras / sizeof *extras; i++) {
        json_t *value = json_object_get(r->json, extras[i].key);
        json_t *plain = json_loads(extras[i].plain, JSON_DECODE_ANY, NULL);
        bool zero = json_is_number(value) && json_is_number(plain) && json_number_value(value) == 0;
        if (value && !json_is_null(value) && !zero && !json_equal(value, plain)) {
            char what[64];
            snprintf(what, sizeof what, "is not supported, only %s", extras[i].plain);
            problem(r, extras[i].key, what);
        }
        json_decref(plain);
        json_object_del(r->left, extras[i].key);
    }
}

static bool is_arctic(const Reader *r) {
    const json_t *architectures = json_object_get(r->json, "architectures");
    const char *first = json_string_value(json_array_get(architectures, 0));
    const char *type = json_string_value(json_object_get(r->json, "model_type"));
    if (architectures) return first && !strcmp(first, "ArcticForCausalLM");
    return type && !strcmp(type, "arctic");
}

static void read_keys(Reader *r, ModelConfig *c) {
    refuse_extras(r);
    *c = (ModelConfig){.arch = ARCH_ARCTIC,
                       .vocab = read_size(r, "vocab_size"),
                       .hidden = read_size(r, "hidden_size"),
                       .layers = read_size(r, "num_hidden_layers"),
                       .heads = read_size(r, "num_attention_heads"),
                       .expert_ffn = read_size(r, "intermediate_size"),
                       .experts = read_size(r, "num_local_experts"),
                       .top_k = read_size(r, "num_experts_per_tok"),
                       .moe_every = read_size(r, "moe_layer_frequency"),
                       .rope_theta = read_rope_theta(r),
                       .norm_eps = read_number(r, "rms_norm_eps", take(r, "rms_norm_eps")),
                       .init_std = 0.02};
    c->dense_ffn =
        read_size_or(r, "residual_ffn_size", c->hidden); // an extension; Arctic itself has no such key
    c->head_dim = read_size_or(r, "head_dim", 0);
    json_t *kv = take(r, "num_key_value_heads"), *tied = json_object_get(r->json, "tie_word_embeddings");
    c->kv_heads = kv && json_is_null(kv) ? c->heads : kv ? read_size(r, "num_key_value_heads") : 1;
    if (!c->head_dim && c->hidden % c->heads && !r->problems)
        problem(r, "head_dim", "must be stated: the heads do not divide the width");
    if (!c->head_dim) c->head_dim = c->hidden / c->heads;
    c->tie_embeddings = json_is_true(tied);
    json_object_del(r->left, "tie_word_embeddings");
    if (tied && !json_is_boolean(tied)) problem(r, "tie_word_embeddings", "must be true or false");
    json_t *parallel = take(r, "parallel_attn_mlp_res");
    if (parallel && !json_is_true(parallel))
        problem(r, "parallel_attn_mlp_res",
                "only true, the block with a dense residual beside the experts, is supported");
    if ((int64_t)c->layers * c->experts > 1000000)
        problem(r, "num_hidden_layers", "too many layers with so many experts");
}

static Status read_config(Reader *r, ModelConfig *c) {
    char *text;
    size_t bytes;
    json_error_t error;
    TRY(file_read_all(r->path, &text, &bytes));
    r->json = json_loadb(text, bytes, JSON_REJECT_DUPLICATES, &error);
    free(text);
    if (!json_is_object(r->json))
        FAIL(ERR_CONFIG, "%s:%d: is not a JSON object: %s", r->path, r->json ? 1 : error.line,
             r->json ? "" : error.text);
    if (!is_arctic(r))
        FAIL(ERR_CONFIG, "%s: is not an Arctic model (architectures must be [\"ArcticForCausalLM\"])",
             r->path);
    r->left = json_copy(r->json);
    json_object_del(r->left, "architectures");
    json_object_del(r->left, "model_type");
    read_keys(r, c);
    if (r->problems) FAIL(ERR_CONFIG, "%s: %d problem%s", r->path, r->problems, r->problems > 1 ? "s" : "");
    if (model_config_check(c) != OK) {
        char reason[512];
        snprintf(reason, sizeof reason, "%s", status_text());
        FAIL(ERR_CONFIG, "%s: %s", r->path, reason);
    }
    return OK;
}

Status hf_config_read(ModelConfig *out, json_t **ignored, const char *path) {
    Reader r = {.path = path};
    Status status = read_config(&r, out);
    json_decref(r.json);
    *ignored = r.left;
    if (status == OK) return OK;
    json_decref(r.left);
    *ignored = NULL;
    return status;
}

// The shortest digits that read back as the same number, with a point: YAML takes 1e-05 for a text.
static void number_text(double value, char *out, size_t size) {
    int digits = 1;
    do snprintf(out, size, "%.*e", digits, value);
    while (strtod(out, NULL) != value && ++digits < 17);
}

char *hf_config_yaml(const ModelConfig *c) {
    char *text = NULL, theta[40], eps[40];
    size_t bytes;
    FILE *out = open_memstream(&text, &bytes);
    REQUIRE(out, "out of memory");
    number_text(c->rope_theta, theta, sizeof theta);
    number_text(c->norm_eps, eps, sizeof eps);
    fprintf(
        out,
        "model:\n  arch: arctic\n  layers: %d\n  hidden: %d\n  heads: %d\n  kv_heads: %d\n  head_dim: %d\n",
        c->layers, c->hidden, c->heads, c->kv_heads, c->head_dim);
    fprintf(out,
            "  vocab: %d\n  dense_ffn: %d\n  experts: %d\n  top_k: %d\n  expert_ffn: %d\n  moe_every: %d\n",
            c->vocab, c->dense_ffn, c->experts, c->top_k, c->expert_ffn, c->moe_every);
    fprintf(out, "  rope_theta: %s\n  norm_eps: %s\n  tie_embeddings: %s\n", theta, eps,
            c->tie_embeddings ? "true" : "false");
    REQUIRE(fclose(out) == 0, "out of memory");
    return text;
}

// ---- names

typedef struct {
    const char *name, *file;
} NamePair;

static const NamePair top_names[] = {
    {"embed", "model.embed_tokens.weight"}, {"final_norm", "model.norm.weight"}, {"head", "lm_head.weight"}};

static const NamePair layer_names[] = {
    {"attn_norm", "input_layernorm.weight"},   {"attn.q", "self_attn.q_proj.weight"},
    {"attn.k", "self_attn.k_proj.weight"},     {"attn.v", "self_attn.v_proj.weight"},
    {"attn.o", "self_attn.o_proj.weight"},     {"moe_norm", "post_attention_layernorm.weight"},
    {"router", "block_sparse_moe.gate.weight"}};

static const NamePair residual_names[] = {{"dense_norm", "residual_layernorm.weight"},
                                          {"dense.gate", "residual_mlp.w1.weight"},
                                          {"dense.up", "residual_mlp.w3.weight"},
                                          {"dense.down", "residual_mlp.w2.weight"}};

// Of a layer without experts.
static const NamePair plain_names[] = {{"dense_norm", "post_attention_layernorm.weight"},
                                       {"dense.gate", "block_sparse_moe.mlp.w1.weight"},
                                       {"dense.up", "block_sparse_moe.mlp.w3.weight"},
                                       {"dense.down", "block_sparse_moe.mlp.w2.weight"}};

static const char *lookup(const NamePair *pairs, size_t count, const char *name) {
    for (size_t i = 0; i < count; i++)
        if (!strcmp(pairs[i].name, name)) return pairs[i].file;
    return NULL;
}
#define LOOKUP(pairs, name) lookup(pairs, sizeof(pairs) / sizeof *(pairs), name)

void hf_tensor_name(const ModelConfig *config, const char *name, char *out, size_t size) {
    int layer, expert, rest = 0;
    char role[16];
    const char *file = LOOKUP(top_names, name);
    if (file) {
        snprintf(out, size, "%s", file);
        return;
    }
    REQUIRE(sscanf(name, "layers.%d.%n", &layer, &rest) == 1 && rest, "weight %s is not Arctic's", name);
    if (sscanf(name + rest, "experts.%d.%15s", &expert, role) == 2) {
        const char *matrix = !strcmp(role, "gate") ? "w1" : !strcmp(role, "up") ? "w3" : "w2";
        snprintf(out, size, "model.layers.%d.block_sparse_moe.experts.%d.%s.weight", layer, expert, matrix);
        return;
    }
    file = LOOKUP(layer_names, name + rest);
    if (!file && model_layer_has_experts(config, layer))
        file = LOOKUP(residual_names, name + rest);
    else if (!file)
        file = LOOKUP(plain_names, name + rest);
    REQUIRE(file, "weight %s is not Arctic's", name);
    snprintf(out, size, "model.layers.%d.%s", layer, file);
}
