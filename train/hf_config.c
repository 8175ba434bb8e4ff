// SPDX-License-Identifier: Apache-2.0
#include "train/hf_config.h"
#include "core/file.h"
#include "core/log.h"
#include "train/hf_names.h"
#include <math.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { LARGEST = 1 << 24, MOST_EXPERTS = 1000000 }; // of a size; of all layers

typedef struct {
    const char *path;
    Arch arch;
    json_t *json; // flat: "attn_config.clip_qkv"
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

// ---- keys that fill a member

typedef enum { SIZE, NUMBER, FLAG } Kind;

typedef struct {
    const char *key;
    Kind kind;
    size_t member;       // of ModelConfig
    double absent, null; // what stands for it; STATED: it must be there
} Key;

#define STATED       NAN // the class's own default is not what the published model has
#define MEMBER(name) offsetof(ModelConfig, name)

static const Key llama_common[] = {{"vocab_size", SIZE, MEMBER(vocab), STATED, STATED},
                                   {"hidden_size", SIZE, MEMBER(hidden), STATED, STATED},
                                   {"num_hidden_layers", SIZE, MEMBER(layers), STATED, STATED},
                                   {"num_attention_heads", SIZE, MEMBER(heads), STATED, STATED},
                                   {"head_dim", SIZE, MEMBER(head_dim), 0, 0},
                                   {"rms_norm_eps", NUMBER, MEMBER(norm_eps), STATED, STATED},
                                   {0}};

static const Key llama[] = {{"intermediate_size", SIZE, MEMBER(dense_ffn), STATED, STATED},
                            {"num_key_value_heads", SIZE, MEMBER(kv_heads), 0, 0},
                            {"tie_word_embeddings", FLAG, MEMBER(tie_embeddings), 0, STATED},
                            {0}};

static const Key mixtral[] = {{"intermediate_size", SIZE, MEMBER(expert_ffn), STATED, STATED},
                              {"num_key_value_heads", SIZE, MEMBER(kv_heads), STATED, 0},
                              {"tie_word_embeddings", FLAG, MEMBER(tie_embeddings), 0, STATED},
                              {"num_local_experts", SIZE, MEMBER(experts), STATED, STATED},
                              {"num_experts_per_tok", SIZE, MEMBER(top_k), STATED, STATED},
                              {0}};

static const Key arctic[] = {{"moe_layer_frequency", SIZE, MEMBER(moe_every), STATED, STATED},
                             // an extension: Arctic itself has no such key
                             {"residual_ffn_size", SIZE, MEMBER(dense_ffn), 0, 0},
                             {0}};

static const Key grok[] = {{"intermediate_size", SIZE, MEMBER(expert_ffn), STATED, STATED},
                           {"num_key_value_heads", SIZE, MEMBER(kv_heads), STATED, 0},
                           {"tie_word_embeddings", FLAG, MEMBER(tie_embeddings), STATED, STATED},
                           {"num_experts", SIZE, MEMBER(experts), STATED, STATED},
                           {"num_experts_per_tok", SIZE, MEMBER(top_k), STATED, STATED},
                           {"max_attn_value", NUMBER, MEMBER(attn_softcap), STATED, STATED},
                           {"attn_output_multiplier", NUMBER, MEMBER(attn_scale), STATED, STATED},
                           {"embedding_multiplier_scale", NUMBER, MEMBER(embed_scale), STATED, STATED},
                           {"output_multiplier_scale", NUMBER, MEMBER(output_scale), STATED, STATED},
                           {0}};

static const Key dbrx[] = {{"vocab_size", SIZE, MEMBER(vocab), STATED, STATED},
                           {"d_model", SIZE, MEMBER(hidden), STATED, STATED},
                           {"n_layers", SIZE, MEMBER(layers), STATED, STATED},
                           {"n_heads", SIZE, MEMBER(heads), STATED, STATED},
                           {"attn_config.kv_n_heads", SIZE, MEMBER(kv_heads), STATED, STATED},
                           {"attn_config.clip_qkv", NUMBER, MEMBER(clip_qkv), STATED, 0},
                           {"ffn_config.ffn_hidden_size", SIZE, MEMBER(expert_ffn), STATED, STATED},
                           {"ffn_config.moe_num_experts", SIZE, MEMBER(experts), STATED, STATED},
                           {"ffn_config.moe_top_k", SIZE, MEMBER(top_k), STATED, STATED},
                           {0}};

static const Key *const families[ARCH_COUNT][3] = {
    [ARCH_ARCTIC] = {llama_common, mixtral, arctic},
    [ARCH_MIXTRAL] = {llama_common, mixtral},
    [ARCH_DBRX] = {dbrx},
    [ARCH_GROK] = {llama_common, grok},
    [ARCH_LLAMA] = {llama_common, llama},
};

static double read_value(Reader *r, const Key *key, const json_t *value) {
    int64_t n = json_integer_value(value);
    switch (key->kind) {
    case SIZE:
        if (json_is_integer(value) && n >= 1 && n <= LARGEST) return (double)n;
        problem(r, key->key, "must be a whole number from 1 to 16777216");
        return 1;
    case NUMBER:
        if (json_is_number(value) && json_number_value(value) > 0) return json_number_value(value);
        problem(r, key->key, "must be a number above 0");
        return 1;
    case FLAG:
        if (!json_is_boolean(value)) problem(r, key->key, "must be true or false");
        return json_is_true(value);
    }
    DIE("kind %d", (int)key->kind);
}

static void read_key(Reader *r, const Key *key, ModelConfig *c) {
    const json_t *value = json_object_get(r->json, key->key);
    double otherwise = value ? key->null : key->absent, number;
    if (value && !json_is_null(value)) {
        number = read_value(r, key, value);
    } else if (isnan(otherwise)) {
        problem(r, key->key, "must be stated: the class's own default may not be what this model has");
        number = 1;
    } else {
        number = otherwise;
    }
    json_object_del(r->left, key->key);
    void *member = (char *)c + key->member;
    if (key->kind == SIZE)
        *(int *)member = (int)number;
    else if (key->kind == NUMBER)
        *(double *)member = number;
    else
        *(bool *)member = number != 0;
}

// ---- keys that must have one value

static const struct {
    const char *key, *plain; // JSON
    const char *remedy;
} extras[] = {
    {"sliding_window", "null",
     "early Mixtral files state a window that the model does not have; set it to null "
     "only for a model trained without one"},
    {"rope_scaling", "null", "choose the model as it was before its context was extended"},
    {"rope_parameters.rope_type", "\"default\"",
     "choose the model as it was before its context was extended"},
    {"rope_parameters.partial_rotary_factor", "1", "floe rotates whole heads"},
    {"quantization", "null", "export the model in bf16 first"},
    {"quantization_config", "null", "export the model in bf16 first"},
    {"attention_bias", "false", "floe's matrices have no biases"},
    {"mlp_bias", "false", "floe's matrices have no biases"},
    {"attention_dropout", "0", "floe trains without dropout; set it to 0 to take the weights all the same"},
    {"hidden_dropout", "0", "floe trains without dropout; set it to 0 to take the weights all the same"},
    {"resid_pdrop", "0", "floe trains without dropout; set it to 0 to take the weights all the same"},
    {"emb_pdrop", "0", "floe trains without dropout; set it to 0 to take the weights all the same"},
    {"embd_pdrop", "0", "floe trains without dropout; set it to 0 to take the weights all the same"},
    {"attn_config.attn_pdrop", "0",
     "floe trains without dropout; set it to 0 to take the weights all the same"},
    {"router_jitter_noise", "0",
     "floe's router sees its input as it is; set it to 0 to take the weights all the same"},
    {"ffn_config.moe_jitter_eps", "0",
     "floe's router sees its input as it is; set it to 0 to take the weights all the same"},
    {"ffn_config.moe_normalize_expert_weights", "1",
     "floe divides the weights of a DBRX token's experts by their sum"},
    {"ffn_config.uniform_expert_assignment", "false",
     "remove it; model.router.force: balanced is floe's counterpart"},
    {"ffn_config.ffn_act_fn.name", "\"silu\"", "floe's DBRX computes SiLU"},
};

static void refuse(Reader *r, const char *key, const char *plain, const char *remedy) {
    json_t *value = json_object_get(r->json, key), *wanted = json_loads(plain, JSON_DECODE_ANY, NULL);
    bool numbers = json_is_number(value) && json_is_number(wanted);
    bool same = numbers ? json_number_value(value) == json_number_value(wanted) : json_equal(value, wanted);
    // null is "none" where none is the plain value
    bool none = json_is_null(value) && (json_is_false(wanted) || !strcmp(plain, "0"));
    if (value && !same && !none) {
        char what[256];
        snprintf(what, sizeof what, "is not supported, only %s: %s", plain, remedy);
        problem(r, key, what);
    }
    json_decref(wanted);
    json_object_del(r->left, key);
}

static void refuse_extras(Reader *r) {
    for (size_t i = 0; i < sizeof extras / sizeof *extras; i++)
        refuse(r, extras[i].key, extras[i].plain, extras[i].remedy);
    if (r->arch == ARCH_GROK)
        refuse(r, "hidden_act", "\"gelu_pytorch_tanh\"", "Grok-1 computes GELU in its tanh form");
    else
        refuse(r, "hidden_act", "\"silu\"", "the family computes SiLU");
    if (r->arch == ARCH_DBRX) refuse(r, "tie_word_embeddings", "false", "the class refuses a tied DBRX, too");
}

// ---- the base of the rotary angles

static double read_rope_theta(Reader *r) {
    static const char *const keys[] = {"attn_config.rope_theta", "rope_theta", "rope_parameters.rope_theta"};
    double theta = 0;
    for (int i = 0; i < 3; i++) {
        const json_t *value = json_object_get(r->json, keys[i]);
        json_object_del(r->left, keys[i]);
        if (!value) continue;
        double stated = json_number_value(value);
        if (!json_is_number(value) || !(stated > 0))
            problem(r, keys[i], "must be a number above 0");
        else if (theta > 0 && stated != theta)
            problem(r, keys[i], "differs from the rope_theta stated elsewhere in the file; make them equal");
        else
            theta = stated;
    }
    if (r->arch == ARCH_DBRX && !json_object_get(r->json, keys[0]))
        problem(r, keys[0], "must be stated: the class's own default is not DBRX's");
    if (r->arch == ARCH_GROK && theta > 0 && theta != 1e4)
        problem(r, "rope_theta", "is not supported, only 10000: the class does not read it");
    if (theta > 0 || r->arch == ARCH_GROK) return theta > 0 ? theta : 1e4;
    if (r->arch == ARCH_LLAMA) {
        log_rank0(LOG_INFO, "%s: has no rope_theta, as Llama 1 and 2: 10000", r->path);
        return 1e4;
    }
    if (r->arch != ARCH_DBRX && !json_object_get(r->json, "rope_theta"))
        problem(r, "rope_theta", "must be stated: the class's own default may not be what this model has");
    return 1;
}

// ---- what follows from several keys

static void read_parallel(Reader *r, ModelConfig *c) {
    const json_t *parallel = json_object_get(r->json, "parallel_attn_mlp_res");
    json_object_del(r->left, "parallel_attn_mlp_res");
    if (!json_is_boolean(parallel)) problem(r, "parallel_attn_mlp_res", "must be stated, true or false");
    if (json_is_false(parallel)) {
        c->dense_ffn = 0;
        c->moe_input = MOE_READS_ATTENTION;
    } else if (!c->dense_ffn) {
        c->dense_ffn = c->hidden;
    }
}

static void read_keys(Reader *r, ModelConfig *c) {
    *c = *model_family(r->arch);
    c->moe_every = 1;
    c->init_std = 0.02;
    refuse_extras(r);
    for (int i = 0; i < 3 && families[r->arch][i]; i++)
        for (const Key *key = families[r->arch][i]; key->key; key++) read_key(r, key, c);
    c->rope_theta = read_rope_theta(r);
    if (r->arch == ARCH_ARCTIC) read_parallel(r, c);
    if (r->arch == ARCH_DBRX) c->norm_eps = 1e-5; // the class's LayerNorm has no key for it
    if (r->arch == ARCH_LLAMA) c->expert_ffn = c->dense_ffn;
    if (!c->kv_heads) c->kv_heads = c->heads;
    if (!c->head_dim && c->hidden % c->heads && !r->problems)
        problem(r, r->arch == ARCH_DBRX ? "n_heads" : "head_dim",
                "the heads do not divide the width, and no head_dim is stated");
    if (!c->head_dim) c->head_dim = c->hidden / c->heads;
    if ((int64_t)c->layers * c->experts > MOST_EXPERTS)
        problem(r, r->arch == ARCH_DBRX ? "n_layers" : "num_hidden_layers",
                "too many layers with so many experts");
}

// ---- the file

// The keys of the objects that floe looks into stand beside the others: "attn_config.clip_qkv".
static void flatten(Reader *r, json_t *to, const char *prefix, json_t *object) {
    static const char *const inside[] = {"attn_config", "ffn_config", "ffn_config.ffn_act_fn",
                                         "rope_parameters"};
    const char *key;
    json_t *value;
    json_object_foreach(object, key, value) {
        char path[256];
        bool enter = false;
        snprintf(path, sizeof path, "%s%.200s", prefix, key);
        for (size_t i = 0; i < sizeof inside / sizeof *inside; i++) enter |= !strcmp(path, inside[i]);
        if (!enter || json_is_null(value)) {
            json_object_set(to, path, value);
            continue;
        }
        if (!json_is_object(value)) {
            json_object_set(to, path, value);
            problem(r, path, "must be an object");
            continue;
        }
        snprintf(path + strlen(path), sizeof path - strlen(path), ".");
        flatten(r, to, path, value);
    }
}

static Status find_arch(Reader *r, const json_t *json) {
    const json_t *architectures = json_object_get(json, "architectures");
    const char *first = json_string_value(json_array_get(architectures, 0));
    const char *type = json_string_value(json_object_get(json, "model_type"));
    const char *said = architectures ? first : type;
    for (int a = 0; a < ARCH_COUNT; a++) {
        const char *known = architectures ? hf_architecture((Arch)a) : hf_model_type((Arch)a);
        if (!said || strcmp(said, known)) continue;
        r->arch = (Arch)a;
        return OK;
    }
    char list[256] = "";
    for (int a = 0; a < ARCH_COUNT; a++)
        snprintf(list + strlen(list), sizeof list - strlen(list), "%s%s", a ? ", " : "",
                 hf_architecture((Arch)a));
    FAIL(ERR_CONFIG, "%s: %s = %.100s: not a model that floe knows (%s)", r->path,
         architectures ? "architectures" : "model_type", said ? said : "(missing)", list);
}

static Status read_config(Reader *r, json_t **json, ModelConfig *c) {
    char *text;
    size_t bytes;
    json_error_t error;
    TRY(file_read_all(r->path, &text, &bytes));
    *json = json_loadb(text, bytes, JSON_REJECT_DUPLICATES, &error);
    free(text);
    if (!json_is_object(*json))
        FAIL(ERR_CONFIG, "%s:%d: is not a JSON object: %s", r->path, *json ? 1 : error.line,
             *json ? "" : error.text);
    TRY(find_arch(r, *json));
    flatten(r, r->json, "", *json);
    json_object_update(r->left, r->json);
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
    Reader r = {.path = path, .json = json_object(), .left = json_object()};
    json_t *json = NULL;
    Status status = read_config(&r, &json, out);
    json_decref(json);
    json_decref(r.json);
    *ignored = r.left;
    if (status == OK) return OK;
    json_decref(r.left);
    *ignored = NULL;
    return status;
}
