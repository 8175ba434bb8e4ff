// SPDX-License-Identifier: Apache-2.0
// From a Hugging Face folder to a checkpoint, and what is refused.
#include "core/file.h"
#include "core/log.h"
#include "core/rng.h"
#include "model/model_config.h"
#include "train/checkpoint.h"
#include "train/hf_config.h"
#include "train/hf_import.h"
#include <fcntl.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#define ROOT "test_checkpoint_import.tmp"
#define HF   ROOT "/hf"
#define CKPT ROOT "/ckpt"

// Layers 0 and 2 have no experts; the residual width is not the hidden one; every size is another number.
static const char *const keys =
    "\"architectures\":[\"ArcticForCausalLM\"],\"vocab_size\":31,\"hidden_size\":12,\"intermediate_size\":10,"
    "\"num_hidden_layers\":4,\"num_attention_heads\":3,\"num_key_value_heads\":1,\"num_local_experts\":3,"
    "\"num_experts_per_tok\":2,\"moe_layer_frequency\":2,\"parallel_attn_mlp_res\":true,\"rms_norm_eps\":1e-"
    "06,"
    "\"rope_theta\":5000,\"residual_ffn_size\":14,\"router_aux_loss_coef\":0.5";

static int start(void **state) {
    (void)state;
    return file_remove_tree(ROOT) != OK || file_make_folders(HF) != OK;
}

static int end(void **state) {
    (void)state;
    return file_remove_tree(ROOT);
}

static void write_text(const char *path, const char *text) {
    FILE *file = fopen(path, "wb");
    assert_non_null(file);
    fputs(text, file);
    fclose(file);
}

// The keys with one more, or with one that replaces an earlier one. NULL: as they are.
static void write_config(const char *key, const char *value) {
    json_error_t error;
    char text[2048];
    snprintf(text, sizeof text, "{%s}", keys);
    json_t *config = json_loads(text, 0, &error);
    assert_non_null(config);
    if (key && value)
        json_object_set_new(config, key, json_loads(value, JSON_DECODE_ANY, &error));
    else if (key)
        json_object_del(config, key);
    assert_int_equal(json_dump_file(config, HF "/config.json", 0), 0);
    json_decref(config);
}

typedef struct {
    ParamTable params;
    ModelConfig config;
    const char *skip, *misshapen; // tensors that the file lacks or has in another shape
    const char *surplus;
} Source;

static Source make_source(void) {
    Source s = {0};
    json_t *ignored;
    write_config(NULL, NULL);
    assert_int_equal(hf_config_read(&s.config, &ignored, HF "/config.json"), OK);
    assert_int_equal(json_object_size(ignored), 1);
    json_decref(ignored);
    model_describe(&s.config, 0, s.config.experts, &s.params);
    return s;
}

static float value_of(const char *name, int64_t i) {
    return (float)(rng_u64(3, hash_text(name), (uint64_t)i) % 512) / 256 - 1; // exact in bf16
}

static void add_entry(json_t *header, const char *name, const char *type, json_t *shape, int64_t *at,
                      int64_t bytes) {
    json_object_set_new(header, name,
                        json_pack("{s:s, s:o, s:[I, I]}", "dtype", type, "shape", shape, "data_offsets",
                                  (json_int_t)*at, (json_int_t)(*at + bytes)));
    *at += bytes;
}

// The weights with index % files == number, in F32 or BF16.
static void write_shard(const Source *s, const char *file, int number, int files, bool brain, json_t *map) {
    char path[256];
    json_t *header = json_object();
    int64_t at = 0;
    snprintf(path, sizeof path, HF "/%s", file);
    FILE *out = fopen(path, "wb");
    assert_non_null(out);
    for (int i = number; i < s->params.count; i += files) {
        const Param *p = &s->params.param[i];
        char name[128];
        hf_tensor_name(&s->config, p->name, name, sizeof name);
        if (s->skip && !strcmp(s->skip, name)) continue;
        bool odd = s->misshapen && !strcmp(s->misshapen, name);
        json_t *shape = odd || p->dims == 1
                            ? json_pack("[I]", (json_int_t)param_size(p))
                            : json_pack("[I, I]", (json_int_t)p->dim[0], (json_int_t)p->dim[1]);
        add_entry(header, name, brain ? "BF16" : "F32", shape, &at, param_size(p) * (brain ? 2 : 4));
        json_object_set_new(map, name, json_string(file));
    }
    if (s->surplus && number == 0) add_entry(header, s->surplus, "F32", json_pack("[i]", 0), &at, 0);
    char *text = json_dumps(header, JSON_COMPACT);
    for (int i = 0; i < 8; i++) fputc((int)(strlen(text) >> 8 * i & 255), out);
    fputs(text, out);
    for (int i = number; i < s->params.count; i += files) {
        const Param *p = &s->params.param[i];
        char name[128];
        hf_tensor_name(&s->config, p->name, name, sizeof name);
        if (!json_object_get(header, name)) continue;
        for (int64_t e = 0; e < param_size(p); e++) {
            float value = value_of(name, e);
            fwrite((char *)&value + (brain ? 2 : 0), 1, brain ? 2 : 4, out);
        }
    }
    free(text);
    json_decref(header);
    fclose(out);
}

static void write_model(const Source *s, int files, bool brain) {
    json_t *map = json_object();
    for (int i = 0; i < files; i++) {
        char name[64];
        snprintf(name, sizeof name, files == 1 ? "model.safetensors" : "model-%d.safetensors", i);
        write_shard(s, name, i, files, brain, map);
    }
    json_t *index = json_pack("{s:o}", "weight_map", map);
    if (files > 1) assert_int_equal(json_dump_file(index, HF "/model.safetensors.index.json", 0), 0);
    json_decref(index);
}

static void assert_imported(const Source *s) {
    CheckpointReader *reader;
    json_t *manifest;
    assert_int_equal(checkpoint_verify(CKPT, false), OK);
    assert_int_equal(checkpoint_reader_open(&reader, CKPT), OK);
    assert_int_equal(checkpoint_reader_tensors(reader), s->params.count);
    for (int t = 0; t < s->params.count; t++) {
        CheckpointTensor tensor = checkpoint_reader_tensor(reader, t);
        const Param *p = &s->params.param[params_find(&s->params, tensor.name)];
        float values[512], more;
        char name[128];
        assert_true(param_size(p) <= 512 && tensor.dims == p->dims && !tensor.moments);
        hf_tensor_name(&s->config, p->name, name, sizeof name);
        assert_int_equal(checkpoint_reader_read(reader, t, STATE_MASTER, 0, param_size(p), values), OK);
        for (int64_t i = 0; i < param_size(p); i++) assert_true(values[i] == value_of(name, i));
        assert_int_equal(checkpoint_reader_read(reader, t, STATE_M, 0, 1, &more), ERR_CONFIG);
    }
    checkpoint_reader_close(reader);
    assert_int_equal(checkpoint_manifest(CKPT, &manifest), OK);
    const char *yaml = json_string_value(json_object_get(json_object_get(manifest, "record"), "config"));
    assert_string_equal(yaml, "model:\n  arch: arctic\n  layers: 4\n  hidden: 12\n  heads: 3\n  kv_heads: 1\n"
                              "  head_dim: 4\n  vocab: 31\n  dense_ffn: 14\n  experts: 3\n  top_k: 2\n"
                              "  expert_ffn: 10\n  moe_every: 2\n  rope_theta: 5.0e+03\n  norm_eps: 1.0e-06\n"
                              "  tie_embeddings: false\n");
    json_decref(manifest);
}

static void imports(void **state) {
    (void)state;
    HfImportReport report;
    Source s = make_source();
    for (int i = 0; i < 4; i++) {
        assert_int_equal(file_remove_tree(HF), OK);
        assert_int_equal(file_make_folders(HF), OK);
        assert_int_equal(file_remove_tree(CKPT), OK);
        write_config(NULL, NULL);
        write_model(&s, i % 2 ? 3 : 1, i / 2);
        // Parts of 100 values: most tensors are cut.
        assert_int_equal(hf_import(HF, CKPT, i == 3 ? 400 : 0, &report), OK);
        assert_int_equal(report.tensors, s.params.count);
        assert_int_equal(report.parameters, model_size(&s.config, 1).total);
        assert_imported(&s);
    }
    assert_int_equal(hf_import(HF, CKPT, 0, &report), ERR_CONFIG); // is there already
    assert_imported(&s);
    params_free(&s.params);
}

// Tensors of Arctic's own files, by role.
static void names(void **state) {
    (void)state;
    static const char *const pairs[][2] = {
        {"embed", "model.embed_tokens.weight"},
        {"final_norm", "model.norm.weight"},
        {"head", "lm_head.weight"},
        {"layers.1.attn_norm", "model.layers.1.input_layernorm.weight"},
        {"layers.1.attn.o", "model.layers.1.self_attn.o_proj.weight"},
        {"layers.1.dense_norm", "model.layers.1.residual_layernorm.weight"},
        {"layers.1.dense.up", "model.layers.1.residual_mlp.w3.weight"},
        {"layers.1.moe_norm", "model.layers.1.post_attention_layernorm.weight"},
        {"layers.1.router", "model.layers.1.block_sparse_moe.gate.weight"},
        {"layers.1.experts.2.gate", "model.layers.1.block_sparse_moe.experts.2.w1.weight"},
        {"layers.1.experts.2.up", "model.layers.1.block_sparse_moe.experts.2.w3.weight"},
        {"layers.1.experts.2.down", "model.layers.1.block_sparse_moe.experts.2.w2.weight"},
        {"layers.0.dense_norm", "model.layers.0.post_attention_layernorm.weight"},
        {"layers.0.dense.gate", "model.layers.0.block_sparse_moe.mlp.w1.weight"},
        {"layers.0.dense.down", "model.layers.0.block_sparse_moe.mlp.w2.weight"},
    };
    Source s = make_source();
    for (size_t i = 0; i < sizeof pairs / sizeof *pairs; i++) {
        char name[128];
        hf_tensor_name(&s.config, pairs[i][0], name, sizeof name);
        assert_string_equal(name, pairs[i][1]);
    }
    params_free(&s.params);
}

// Runs an import that must fail, and returns all that it said.
static char *said(Status expected) {
    static char text[65536];
    HfImportReport report;
    int fd = open(ROOT "/log", O_RDWR | O_CREAT | O_TRUNC, 0666), exists;
    log_copy_to(fd);
    assert_int_equal(hf_import(HF, CKPT, 0, &report), expected);
    log_copy_to(-1);
    ssize_t n = pread(fd, text, sizeof text - 4096, 0);
    close(fd);
    assert_true(n >= 0);
    snprintf(text + n, sizeof text - (size_t)n, "%s", status_text());
    assert_int_equal(file_exists(CKPT, &exists), OK);
    assert_false(exists);
    return text;
}

static void assert_said(const char *text, const char *expected) {
    if (!strstr(text, expected)) fail_msg("'%s' is not in: %s", expected, text);
}

static void all_wrong_tensors_are_named(void **state) {
    (void)state;
    Source s = make_source();
    s.skip = "model.layers.3.block_sparse_moe.experts.1.w2.weight";
    s.misshapen = "model.layers.0.self_attn.q_proj.weight";
    s.surplus = "model.layers.9.odd";
    write_model(&s, 1, false);
    const char *text = said(ERR_DATA);
    assert_said(text, "model.layers.3.block_sparse_moe.experts.1.w2.weight is missing");
    assert_said(text, "model.layers.0.self_attn.q_proj.weight is [144], config.json makes it [12, 12]");
    assert_said(text, "model.layers.9.odd, in model.safetensors, belongs to no part");
    assert_said(text, "3 of its tensors do not fit");
    params_free(&s.params);
}

static void bad_files_are_refused(void **state) {
    (void)state;
    Source s = make_source();
    assert_said(said(ERR_DATA), "has neither model.safetensors nor");
    write_model(&s, 2, false);
    write_text(HF "/model.safetensors.index.json", "{\"weight_map\":{\"a\":\"../../x.safetensors\"}}");
    assert_said(said(ERR_DATA), "outside the folder");
    write_text(HF "/model.safetensors.index.json", "{\"weight_map\":{\"a\":7}}");
    assert_said(said(ERR_DATA), "is not a text");
    write_text(HF "/model.safetensors.index.json", "{\"weight_map\":");
    assert_said(said(ERR_DATA), "index.json:1:");
    write_text(HF "/model.safetensors.index.json", "{\"weight_map\":{\"a\":\"model-0.safetensors\"}}");
    assert_said(said(ERR_DATA), "is missing"); // the other file's
    assert_int_equal(truncate(HF "/model-0.safetensors", 3000), 0);
    assert_said(said(ERR_DATA), HF "/model-0.safetensors");
    params_free(&s.params);
}

static void other_mathematics_is_refused(void **state) {
    (void)state;
    static const struct {
        const char *key, *value, *expected;
    } bad[] = {
        {"sliding_window", "4096", "sliding_window = 4096: is not supported, only null"},
        {"attention_dropout", "0.1", "attention_dropout = 0.1"},
        {"hidden_act", "\"gelu\"", "hidden_act = \"gelu\""},
        {"rope_scaling", "{\"type\":\"yarn\"}", "rope_scaling"},
        {"quantization", "{\"q_bits\":8}", "quantization"},
        {"parallel_attn_mlp_res", "false", "parallel_attn_mlp_res = false"},
        {"parallel_attn_mlp_res", NULL, "parallel_attn_mlp_res = (missing): must be stated"},
        {"num_local_experts", NULL, "num_local_experts = (missing)"},
        {"num_key_value_heads", NULL, "num_key_value_heads = (missing)"},
        {"moe_layer_frequency", NULL, "moe_layer_frequency = (missing)"},
        {"rope_theta", NULL, "rope_theta = (missing)"},
        {"hidden_size", "0", "hidden_size = 0"},
        {"hidden_size", "\"12\"", "hidden_size = \"12\""},
        {"hidden_size", "13", "head_dim"},
        {"num_hidden_layers", "2000000000", "num_hidden_layers"},
        {"num_experts_per_tok", "4", "top_k = 4"},
        {"architectures", "[\"MixtralForCausalLM\"]", "is not an Arctic model"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        write_config(bad[i].key, bad[i].value);
        assert_said(said(ERR_CONFIG), bad[i].expected);
    }
    write_text(HF "/config.json", "[]");
    said(ERR_CONFIG);
    write_text(HF "/config.json", "{\"a\":1,\"a\":2}");
    said(ERR_CONFIG);
    unlink(HF "/config.json");
    assert_said(said(ERR_DATA), HF "/config.json");
}

static void newer_spellings(void **state) {
    (void)state;
    ModelConfig config;
    json_t *ignored;
    write_text(HF "/config.json",
               "{\"model_type\":\"arctic\",\"vocab_size\":31,\"hidden_size\":12,\"intermediate_size\":10,"
               "\"num_hidden_layers\":4,\"num_attention_heads\":3,\"num_key_value_heads\":null,"
               "\"num_local_experts\":3,\"num_experts_per_tok\":1,\"moe_layer_frequency\":1,"
               "\"parallel_attn_mlp_res\":true,\"rms_norm_eps\":1e-5,\"sliding_window\":null,\"attention_"
               "dropout\":0.0,"
               "\"rope_parameters\":{\"rope_type\":\"default\",\"rope_theta\":1e4},\"head_dim\":6}");
    assert_int_equal(hf_config_read(&config, &ignored, HF "/config.json"), OK);
    assert_int_equal(json_object_size(ignored), 0);
    assert_true(config.kv_heads == 3 && config.head_dim == 6 && config.dense_ffn == 12 &&
                config.rope_theta == 1e4);
    json_decref(ignored);
}

static void values_that_are_not_finite(void **state) {
    (void)state;
    Source s = make_source();
    write_model(&s, 1, false);
    FILE *file = fopen(HF "/model.safetensors", "r+b");
    fseek(file, -4, SEEK_END);
    fwrite(&(float){NAN}, 4, 1, file);
    fclose(file);
    HfImportReport report;
    int fd = open(ROOT "/log", O_RDWR | O_CREAT | O_TRUNC, 0666);
    char text[65536] = "";
    log_copy_to(fd);
    assert_int_equal(hf_import(HF, CKPT, 0, &report), OK);
    log_copy_to(-1);
    assert_true(pread(fd, text, sizeof text - 1, 0) > 0);
    close(fd);
    assert_said(text, "holds 1 values that are NaN or infinite");
    params_free(&s.params);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(imports, start, end),
        cmocka_unit_test_setup_teardown(names, start, end),
        cmocka_unit_test_setup_teardown(all_wrong_tensors_are_named, start, end),
        cmocka_unit_test_setup_teardown(bad_files_are_refused, start, end),
        cmocka_unit_test_setup_teardown(other_mathematics_is_refused, start, end),
        cmocka_unit_test_setup_teardown(newer_spellings, start, end),
        cmocka_unit_test_setup_teardown(values_that_are_not_finite, start, end),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
