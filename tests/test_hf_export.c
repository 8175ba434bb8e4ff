// SPDX-License-Identifier: Apache-2.0
// Safetensors files as they are written, and checkpoints of every family as Hugging Face folders.
#include "core/rng.h"
#include "core/safetensors_write.h"
#include "train/checkpoint_weights.h"
#include "train/hf_export.h"
#include "train/hf_names.h"
#include "train/run_config.h"
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include <cmocka.h>

#define ROOT "test_hf_export.tmp"
#define CKPT ROOT "/ckpt"
#define HF   ROOT "/hf"

static int start(void **state) {
    (void)state;
    return file_remove_tree(ROOT) != OK || file_make_folders(ROOT) != OK;
}

static int end(void **state) {
    (void)state;
    return file_remove_tree(ROOT);
}

// ---- one file

static const SafeTensor shapes[] = {{.name = "a", .dims = 2, .dim = {2, 3}},
                                    {.name = "b\"c", .dims = 1, .dim = {2}}};
static const float values[8] = {1, -2, 0.5f, 3e38f, -1e-40f, 7, 0, 1.00390625f};

static void write_values(SafetensorsType type) {
    SafetensorsWriter *w;
    assert_int_equal(file_remove_tree(ROOT "/x"), OK);
    assert_int_equal(safetensors_create(&w, ROOT "/x", type, shapes, 2), OK);
    assert_int_equal(safetensors_append(w, values, 5), OK);
    assert_int_equal(safetensors_append(w, values + 5, 3), OK);
    assert_int_equal(safetensors_finish(w), OK);
}

static void writes_the_format(void **state) {
    (void)state;
    char *text;
    size_t bytes;
    static const char header[] = "{\"__metadata__\":{\"format\":\"pt\"},"
                                 "\"a\":{\"dtype\":\"F32\",\"shape\":[2,3],\"data_offsets\":[0,24]},"
                                 "\"b\\\"c\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[24,32]}}";
    size_t padded = (sizeof header - 1 + 7) / 8 * 8;
    write_values(SAFETENSORS_F32);
    assert_int_equal(file_read_all(ROOT "/x", &text, &bytes), OK);
    assert_int_equal(bytes, 8 + padded + 32);
    assert_int_equal((unsigned char)text[0], padded);
    assert_memory_equal(text + 8, header, sizeof header - 1);
    for (size_t i = sizeof header - 1; i < padded; i++) assert_int_equal(text[8 + i], ' ');
    assert_memory_equal(text + 8 + padded, values, sizeof values);
    free(text);
    Safetensors *file;
    assert_int_equal(safetensors_open(&file, ROOT "/x"), OK);
    assert_int_equal(safetensors_count(file), 2);
    safetensors_close(file);
}

static uint16_t as_brain(uint32_t bits) {
    SafetensorsWriter *w;
    char *text;
    size_t bytes;
    float value;
    uint16_t out;
    SafeTensor shape = {.name = "v", .dims = 1, .dim = {1}};
    memcpy(&value, &bits, 4);
    assert_int_equal(file_remove_tree(ROOT "/v"), OK);
    assert_int_equal(safetensors_create(&w, ROOT "/v", SAFETENSORS_BF16, &shape, 1), OK);
    assert_int_equal(safetensors_append(w, &value, 1), OK);
    assert_int_equal(safetensors_finish(w), OK);
    assert_int_equal(file_read_all(ROOT "/v", &text, &bytes), OK);
    memcpy(&out, text + bytes - 2, 2);
    free(text);
    return out;
}

static void rounds_to_nearest_even(void **state) {
    (void)state;
    assert_int_equal(as_brain(0x3f800000), 0x3f80);
    assert_int_equal(as_brain(0x3f807fff), 0x3f80);
    assert_int_equal(as_brain(0x3f808000), 0x3f80); // halfway, down to even
    assert_int_equal(as_brain(0x3f808001), 0x3f81);
    assert_int_equal(as_brain(0x3f818000), 0x3f82); // halfway, up to even
    assert_int_equal(as_brain(0xbf818000), 0xbf82);
    assert_int_equal(as_brain(0x3fffffff), 0x4000); // into the next power of two
    assert_int_equal(as_brain(0x00008001), 0x0001); // subnormal
    assert_int_equal(as_brain(0x80000000), 0x8000);
    assert_int_equal(as_brain(0x7f7fffff), 0x7f80); // the nearest is infinity
    assert_int_equal(as_brain(0xff800000), 0xff80);
    assert_int_equal(as_brain(0x7f800001), 0x7fc0); // NaN, not infinity
    assert_int_equal(as_brain(0xffffffff), 0xffff);
}

static void files_that_cannot_be_written(void **state) {
    (void)state;
    SafetensorsWriter *w;
    int exists;
    write_values(SAFETENSORS_BF16);
    assert_int_equal(safetensors_create(&w, ROOT "/x", SAFETENSORS_F32, shapes, 2), ERR_RUNTIME);
    assert_non_null(strstr(status_text(), ROOT "/x"));
    assert_int_equal(safetensors_create(&w, ROOT "/none/x", SAFETENSORS_F32, shapes, 2), ERR_RUNTIME);
    SafeTensor huge = {.name = "v", .dims = 2, .dim = {1 << 30, 1 << 28}}; // 2^60 bytes: no disk has them
    assert_int_equal(safetensors_create(&w, ROOT "/huge", SAFETENSORS_F32, &huge, 1), ERR_RUNTIME);
    assert_int_equal(file_exists(ROOT "/huge", &exists), OK);
    assert_false(exists);
    assert_int_equal(safetensors_create(&w, ROOT "/half", SAFETENSORS_F32, shapes, 2), OK);
    safetensors_discard(w);
    assert_int_equal(file_exists(ROOT "/half", &exists), OK);
    assert_false(exists);
}

// ---- whole models

static const char *const model_keys = "layers: 2, hidden: 12, heads: 3, kv_heads: 1, head_dim: 4, vocab: 31, "
                                      "rope_theta: 1.0e+4, norm_eps: 1.0e-05";

typedef struct {
    ParamTable params;
    const char *model; // floe's keys beside model_keys
    ModelConfig config;
} Case;

static float value_of(const char *name, int64_t i) {
    return (float)(rng_u64(3, hash_text(name), (uint64_t)i) % 65536) / 1024 - 31;
}

static char *config_text(const char *keys, const char *more) {
    char *text = malloc(1024);
    snprintf(text, 1024, "model: {%s, %s}\n%s", model_keys, keys, more);
    return text;
}

// A checkpoint of weights with known values. skip: a tensor that is left out.
static void write_checkpoint(Case *c, const char *more, int64_t part_bytes, const char *skip) {
    RunConfig *config;
    ConfigDocument *document;
    char *text = config_text(c->model, more);
    assert_int_equal(config_parse(&config, &document, text, "test"), OK);
    c->config = config->model;
    params_free(&c->params);
    model_describe(&c->config, 0, c->config.experts, &c->params);
    if (skip) c->params.count = params_find(&c->params, skip); // it and what follows
    NewFolder folder;
    assert_int_equal(file_remove_tree(CKPT), OK);
    assert_int_equal(new_folder_begin(&folder, CKPT), OK);
    WeightsWriter w = weights_writer_create(folder.tmp, part_bytes);
    for (int i = 0; i < c->params.count; i++) {
        const Param *p = &c->params.param[i];
        for (int64_t at = 0, n; at < param_size(p); at += n) {
            float *room;
            assert_int_equal(weights_writer_room(&w, p, at, param_size(p) - at, &room, &n), OK);
            for (int64_t k = 0; k < n; k++) room[k] = value_of(p->name, at + k);
        }
    }
    json_t *record = json_pack("{s:i, s:i, s:s}", "step", 0, "tokens", 0, "config", text);
    assert_int_equal(weights_writer_commit(&w, &c->params, record, CKPT), OK);
    weights_writer_free(&w);
    json_decref(record);
    config_free(config, document);
    free(text);
}

static json_t *read_json(const char *path) {
    json_error_t error;
    json_t *json = json_load_file(path, JSON_REJECT_DUPLICATES, &error);
    if (!json) fail_msg("%s: %s", path, error.text);
    return json;
}

static const char *file_of(json_t *index, const char *tensor) {
    return index ? json_string_value(json_object_get(json_object_get(index, "weight_map"), tensor))
                 : "model.safetensors";
}

// Every value of every weight is where hf_place says.
static void assert_values(const Case *c, json_t *index) {
    for (int i = 0; i < c->params.count; i++) {
        const Param *p = &c->params.param[i];
        HfPlace place;
        char path[256];
        Safetensors *file;
        hf_place(&c->config, p, &place);
        snprintf(path, sizeof path, HF "/%s", file_of(index, place.tensor));
        assert_int_equal(safetensors_open(&file, path), OK);
        int at = 0;
        while (at < safetensors_count(file) && strcmp(safetensors_tensor(file, at)->name, place.tensor)) at++;
        assert_true(at < safetensors_count(file));
        const SafeTensor *t = safetensors_tensor(file, at);
        assert_true(t->dims == place.dims && t->dim[0] == place.dim[0] &&
                    t->dim[1] == (t->dims == 2 ? place.dim[1] : 0));
        float *all = malloc((size_t)t->elements * sizeof *all);
        assert_int_equal(safetensors_read_f32(file, at, 0, t->elements, all), OK);
        int64_t columns = t->dims == 2 ? t->dim[1] : 1;
        for (int64_t r = 0; r < p->dim[0]; r++)
            for (int64_t k = 0; k < p->dim[1]; k++) {
                int64_t row = place.first_row + (place.transposed ? k : r), column = place.transposed ? r : k;
                assert_true(all[row * columns + column] == value_of(p->name, r * p->dim[1] + k));
            }
        free(all);
        safetensors_close(file);
    }
}

static Case cases[] = {
    {.model = "arch: arctic, experts: 3, top_k: 2, expert_ffn: 10, dense_ffn: 14, moe_every: 2"},
    {.model = "arch: mixtral, experts: 3, top_k: 2, expert_ffn: 10"},
    {.model = "arch: dbrx, experts: 5, top_k: 4, expert_ffn: 10"},
    {.model = "arch: grok, experts: 3, top_k: 2, expert_ffn: 10"},
    {.model = "arch: llama, dense_ffn: 14"},
};

static void exports_every_family(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        Case *c = &cases[i];
        HfExportReport report;
        HfExportOptions options = {.type = SAFETENSORS_F32, .shard_bytes = 5000000000};
        write_checkpoint(c, "", i % 2 ? 400 : 0, NULL); // parts of 100 values: most tensors are cut
        assert_int_equal(file_remove_tree(HF), OK);
        assert_int_equal(hf_export(CKPT, HF, &options, &report), OK);
        assert_int_equal(report.files, 1);
        assert_int_equal(report.parameters, model_size(&c->config, 1).total);
        assert_values(c, NULL);
        json_t *config = read_json(HF "/config.json");
        assert_string_equal(json_string_value(json_array_get(json_object_get(config, "architectures"), 0)),
                            hf_architecture(c->config.arch));
        json_decref(config);
    }
}

static void cuts_into_shards(void **state) {
    (void)state;
    HfExportReport report;
    HfExportOptions options = {.type = SAFETENSORS_F32, .shard_bytes = 3000};
    Case *c = &cases[2]; // where tensors are made of several weights
    write_checkpoint(c, "batch: {seq_len: 77}\n", 0, NULL);
    assert_int_equal(file_remove_tree(HF), OK);
    assert_int_equal(hf_export(CKPT, HF, &options, &report), OK);
    json_t *index = read_json(HF "/model.safetensors.index.json"), *config = read_json(HF "/config.json");
    assert_int_equal(json_integer_value(json_object_get(json_object_get(index, "metadata"), "total_size")),
                     report.bytes);
    assert_int_equal(json_object_size(json_object_get(index, "weight_map")), report.tensors);
    assert_values(c, index);
    int64_t tensors = 0;
    for (int i = 0; i < report.files; i++) {
        char path[256];
        Safetensors *file;
        snprintf(path, sizeof path, HF "/model-%05d-of-%05d.safetensors", i + 1, report.files);
        assert_int_equal(safetensors_open(&file, path), OK);
        int count = safetensors_count(file);
        int64_t bytes = 0;
        for (int t = 0; t < count; t++) bytes += 4 * safetensors_tensor(file, t)->elements;
        assert_true(count == 1 || bytes <= 3000);
        for (int t = 1; t < count; t++)
            assert_true(strcmp(safetensors_tensor(file, t - 1)->name, safetensors_tensor(file, t)->name) < 0);
        tensors += count;
        safetensors_close(file);
    }
    assert_int_equal(tensors, report.tensors);
    assert_int_equal(json_integer_value(json_object_get(config, "max_seq_len")), 77);
    // The class of today reads the one, the original the other.
    assert_true(json_number_value(json_object_get(config, "rope_theta")) == 1e4);
    assert_true(json_number_value(json_object_get(json_object_get(config, "attn_config"), "rope_theta")) ==
                1e4);
    json_decref(index);
    json_decref(config);
}

static void assert_refused(Status expected, const char *text, const HfExportOptions *options) {
    HfExportReport report;
    int exists;
    assert_int_equal(file_remove_tree(HF), OK);
    assert_int_equal(hf_export(CKPT, HF, options, &report), expected);
    if (!strstr(status_text(), text)) fail_msg("'%s' is not in: %s", text, status_text());
    assert_int_equal(file_exists(HF, &exists), OK);
    assert_false(exists);
    char command[128];
    snprintf(command, sizeof command, "ls -A " ROOT " | grep -q '^\\.tmp'");
    assert_int_not_equal(system(command), 0); // nothing is left beside it either
}

static void look(void *context, int64_t done, int64_t total) {
    assert_true(done >= 0 && done <= total);
    if (++*(int *)context == 9) raise(SIGTERM);
}

static volatile sig_atomic_t stop;
static void on_signal(int number) {
    stop = number;
}

static void refuses_and_stops(void **state) {
    (void)state;
    HfExportOptions options = {.type = SAFETENSORS_BF16, .shard_bytes = 3000};
    Case odd = {.model = "arch: mixtral, experts: 3, top_k: 2, expert_ffn: 10, dense_ffn: 14"};
    write_checkpoint(&odd, "", 0, NULL);
    assert_refused(ERR_CONFIG, "dense_ffn = 14", &options);
    write_checkpoint(&cases[1], "", 0, "layers.1.attn_norm");
    assert_refused(ERR_DATA, "has no tensor layers.1.attn_norm", &options);
    write_checkpoint(&cases[1], "", 0, NULL);
    int looks = 0;
    signal(SIGTERM, on_signal);
    options.watch = (Watch){.stop = &stop, .progress = look, .context = &looks};
    assert_refused(ERR_RUNTIME, "stopped by SIGTERM", &options);
    assert_int_equal(looks, 9);
    options.watch = (Watch){0};
    struct rlimit limit, before;
    getrlimit(RLIMIT_FSIZE, &before);
    limit = before;
    limit.rlim_cur = 2900; // as a full disk would: in a later file
    signal(SIGXFSZ, SIG_IGN);
    setrlimit(RLIMIT_FSIZE, &limit);
    assert_refused(ERR_RUNTIME, "safetensors: ", &options);
    setrlimit(RLIMIT_FSIZE, &before);
    HfExportReport report;
    assert_int_equal(file_make_folders(HF), OK);
    assert_int_equal(hf_export(CKPT, HF, &options, &report), ERR_CONFIG);
    assert_non_null(strstr(status_text(), "is there already"));
    params_free(&odd.params);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) params_free(&cases[i].params);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(writes_the_format),
        cmocka_unit_test(rounds_to_nearest_even),
        cmocka_unit_test(files_that_cannot_be_written),
        cmocka_unit_test(exports_every_family),
        cmocka_unit_test(cuts_into_shards),
        cmocka_unit_test(refuses_and_stops),
    };
    return cmocka_run_group_tests(tests, start, end);
}
