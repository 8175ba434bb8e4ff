// SPDX-License-Identifier: Apache-2.0
// From a Hugging Face folder to a checkpoint, for every family, and which files are refused.
#include "core/file.h"
#include "core/log.h"
#include "hf_folder.h"
#include "train/checkpoint.h"
#include "train/hf_config.h"
#include "train/hf_import.h"
#include <dirent.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <unistd.h>

#include <cmocka.h>

#define ROOT  "test_checkpoint_import.tmp"
#define HF    ROOT "/hf"
#define OUT   ROOT "/out"
#define CKPT  OUT "/ckpt"
#define INDEX HF "/model.safetensors.index.json"

static int start(void **state) {
    (void)state;
    return file_remove_tree(ROOT) != OK || file_make_folders(HF) != OK;
}

static int end(void **state) {
    (void)state;
    return file_remove_tree(ROOT);
}

static void write_config(Arch arch, const char *key, const char *value) {
    json_t *config = hf_config_json(arch, key, value);
    assert_int_equal(json_dump_file(config, HF "/config.json", 0), 0);
    json_decref(config);
}

static void write_folder(const HfFolder *folder) {
    assert_int_equal(file_remove_tree(HF), OK);
    assert_int_equal(file_make_folders(HF), OK);
    write_config(folder->arch, NULL, NULL);
    json_t *index = hf_write_files(folder, HF);
    if (folder->files > 1) assert_int_equal(json_dump_file(index, INDEX, 0), 0);
    json_decref(index);
}

// Changes the index's entry of a tensor (file NULL: removes it).
static void change_index(const char *tensor, const char *file) {
    json_t *index = json_load_file(INDEX, 0, NULL), *map = json_object_get(index, "weight_map");
    if (file)
        json_object_set_new(map, tensor, json_string(file));
    else
        assert_int_equal(json_object_del(map, tensor), 0);
    assert_int_equal(json_dump_file(index, INDEX, 0), 0);
    json_decref(index);
}

static void write_text(const char *path, const char *text) {
    FILE *file = fopen(path, "wb");
    assert_non_null(file);
    fputs(text, file);
    fclose(file);
}

static Status import(int64_t part_bytes, int collapse_kv) {
    HfImportReport report;
    HfImportOptions options = {.part_bytes = part_bytes, .collapse_kv = collapse_kv};
    return hf_import(HF, CKPT, &options, &report);
}

static int64_t elements(const CheckpointTensor *t) {
    return t->dims == 2 ? t->dim[0] * t->dim[1] : t->dim[0];
}

static void assert_weight(CheckpointReader *reader, const HfWeight *w) {
    for (int t = 0; t < checkpoint_reader_tensors(reader); t++) {
        CheckpointTensor tensor = checkpoint_reader_tensor(reader, t);
        if (strcmp(tensor.name, w->weight)) continue;
        float values[1024];
        assert_true(elements(&tensor) <= 1024 && !tensor.moments);
        assert_int_equal(tensor.dims, w->row.dim[1] ? 2 : 1);
        assert_int_equal(checkpoint_reader_read(reader, t, STATE_MASTER, 0, elements(&tensor), values), OK);
        for (int64_t i = 0; i < elements(&tensor); i++)
            if (values[i] != hf_expected(w, tensor.dims == 2 ? tensor.dim[1] : 1, i))
                fail_msg("%s: element %ld is %g", w->weight, (long)i, (double)values[i]);
        return;
    }
    fail_msg("the checkpoint has no %s", w->weight);
}

// Every weight and none more, as the folder has them.
static void assert_imported(Arch arch) {
    CheckpointReader *reader;
    int count;
    HfWeight *all = hf_weights(arch, &count);
    assert_int_equal(checkpoint_verify(CKPT, false), OK);
    assert_int_equal(checkpoint_reader_open(&reader, CKPT), OK);
    assert_int_equal(checkpoint_reader_tensors(reader), count);
    for (int i = 0; i < count; i++) assert_weight(reader, &all[i]);
    checkpoint_reader_close(reader);
    free(all);
}

static void imports(Arch arch) {
    for (int i = 0; i < 4; i++) {
        write_folder(&(HfFolder){.arch = arch, .files = i % 2 ? 3 : 1, .brain = i / 2});
        assert_int_equal(file_remove_tree(OUT), OK);
        // Parts of 100 values: most tensors are cut, and cut within a row.
        HfImportOptions options = {.part_bytes = i % 3 ? 400 : 0};
        HfImportReport report;
        ModelConfig config;
        json_t *ignored;
        if (hf_import(HF, CKPT, &options, &report) != OK) fail_msg("%s", status_text());
        assert_imported(arch);
        assert_int_equal(hf_config_read(&config, &ignored, HF "/config.json"), OK);
        json_decref(ignored);
        assert_int_equal(report.parameters, model_size(&config, 1).total);
        int count;
        free(hf_weights(arch, &count));
        assert_int_equal(report.tensors, count);
    }
    assert_int_equal(import(0, 0), ERR_CONFIG); // is there already
    assert_imported(arch);
}

static void imports_arctic(void **state) {
    (void)state;
    imports(ARCH_ARCTIC);
}

static void imports_mixtral(void **state) {
    (void)state;
    imports(ARCH_MIXTRAL);
}

static void imports_dbrx(void **state) {
    (void)state;
    imports(ARCH_DBRX);
}

static void imports_grok(void **state) {
    (void)state;
    imports(ARCH_GROK);
}

static void imports_llama(void **state) {
    (void)state;
    imports(ARCH_LLAMA);
}

// Nothing of a checkpoint, nor of the folder that it is made in.
static void assert_nothing_left(void) {
    DIR *folder = opendir(OUT);
    for (struct dirent *entry; folder && (entry = readdir(folder));)
        if (strcmp(entry->d_name, ".") && strcmp(entry->d_name, "..")) fail_msg("%s is left", entry->d_name);
    if (folder) closedir(folder);
}

// Runs an import, and returns all that it said.
static char *said_by(Status expected, int collapse_kv) {
    static char text[65536];
    int fd = open(ROOT "/log", O_RDWR | O_CREAT | O_TRUNC, 0666);
    log_copy_to(fd);
    Status status = import(400, collapse_kv);
    log_copy_to(-1);
    ssize_t n = pread(fd, text, sizeof text - 4096, 0);
    close(fd);
    assert_true(n >= 0);
    snprintf(text + n, sizeof text - (size_t)n, "%s", status == OK ? "" : status_text());
    if (status != expected) fail_msg("status %d: %s", (int)status, text);
    if (status != OK) assert_nothing_left();
    return text;
}

static char *said(Status expected) {
    return said_by(expected, 0);
}

static void assert_said(const char *text, const char *expected) {
    if (!strstr(text, expected)) fail_msg("'%s' is not in: %s", expected, text);
}

static void all_wrong_tensors_are_named(void **state) {
    (void)state;
    write_folder(&(HfFolder){.arch = ARCH_ARCTIC,
                             .files = 1,
                             .skip = "model.layers.1.block_sparse_moe.experts.1.w2.weight",
                             .misshapen = "model.layers.0.self_attn.q_proj.weight",
                             .surplus = "model.layers.9.odd"});
    const char *text = said(ERR_DATA);
    assert_said(text, "model.layers.1.block_sparse_moe.experts.1.w2.weight is missing");
    assert_said(text, "model.layers.0.self_attn.q_proj.weight is [12, 1, 12], config.json makes it [12, 12]");
    assert_said(text, "model.layers.9.odd, in model.safetensors, belongs to no part");
    assert_said(text, "3 of its tensors do not fit");
}

// A tensor of many weights is named once.
static void shared_tensors_are_named_once(void **state) {
    (void)state;
    write_folder(&(HfFolder){.arch = ARCH_DBRX,
                             .files = 1,
                             .skip = "transformer.blocks.1.ffn.experts.mlp.w2",
                             .misshapen = "transformer.blocks.0.norm_attn_norm.attn.Wqkv.weight"});
    const char *text = said(ERR_DATA);
    assert_said(text, "transformer.blocks.1.ffn.experts.mlp.w2 is missing");
    assert_said(text, "Wqkv.weight is [24, 1, 12], config.json makes it [24, 12]");
    assert_said(text, "2 of its tensors do not fit");
}

static void other_types_are_refused(void **state) {
    (void)state;
    write_folder(
        &(HfFolder){.arch = ARCH_LLAMA, .files = 1, .misshapen = "model.norm.weight", .type = "I32"});
    assert_said(said(ERR_DATA), "model.norm.weight is I32; F32, BF16 and F16 are read");
}

static void bad_files_are_refused(void **state) {
    (void)state;
    write_config(ARCH_ARCTIC, NULL, NULL);
    assert_said(said(ERR_DATA), "has neither model.safetensors nor");
    write_folder(&(HfFolder){.arch = ARCH_ARCTIC, .files = 2});
    write_text(INDEX, "{\"weight_map\":{\"a\":\"../../x.safetensors\"}}");
    assert_said(said(ERR_DATA), "outside the folder");
    write_text(INDEX, "{\"weight_map\":{\"a\":7}}");
    assert_said(said(ERR_DATA), "is not a text");
    write_text(INDEX, "{\"weight_map\":[]}");
    assert_said(said(ERR_DATA), "has no weight_map");
    write_text(INDEX, "{\"weight_map\":");
    assert_said(said(ERR_DATA), "index.json:1:");
    write_text(INDEX, "{\"weight_map\":{\"a\":\"b\",\"a\":\"c\"}}");
    assert_said(said(ERR_DATA), "index.json:1: duplicate");
    write_folder(&(HfFolder){.arch = ARCH_ARCTIC, .files = 2});
    assert_int_equal(truncate(HF "/model-00001-of-00002.safetensors", 3000), 0);
    assert_int_equal(unlink(HF "/model-00002-of-00002.safetensors"), 0);
    const char *text = said(ERR_DATA);
    assert_said(text, "model-00001-of-00002.safetensors: tensor ");
    assert_said(text,
                "model-00002-of-00002.safetensors: is not there, but model.safetensors.index.json names it");
    assert_said(text, "2 of its files cannot be read");
}

static void index_and_files_must_agree(void **state) {
    (void)state;
    const char *first = "model-00001-of-00003.safetensors";
    write_folder(&(HfFolder){.arch = ARCH_MIXTRAL, .files = 3, .surplus = "spare"});
    change_index("spare", NULL);
    change_index("lm_head.weight", first);
    change_index("nobody.weight", first);
    change_index("model.norm.weight", NULL);
    const char *text = said(ERR_DATA);
    assert_said(text, "lm_head.weight is in model-0000"); // whichever it is in
    assert_said(text, "model.safetensors.index.json has it in model-00001-of-00003.safetensors");
    assert_said(text, "nobody.weight is not in model-00001-of-00003.safetensors, where");
    assert_said(text, "model.norm.weight is in model-0000");
    assert_said(text, "spare is in model-00001-of-00003.safetensors, but not in");
    assert_said(text, "spare, in model-00001-of-00003.safetensors, belongs to no part");
    assert_said(text, "5 of its tensors do not fit");
    // A promise that is not kept is named once.
    write_folder(&(HfFolder){.arch = ARCH_MIXTRAL, .files = 3, .skip = "lm_head.weight"});
    change_index("lm_head.weight", first);
    text = said(ERR_DATA);
    assert_said(text, "lm_head.weight is not in model-00001-of-00003.safetensors, where");
    assert_said(text, "1 of its tensors do not fit");
}

static void unlisted_shards_are_named(void **state) {
    (void)state;
    write_folder(&(HfFolder){.arch = ARCH_LLAMA, .files = 2});
    assert_int_equal(rename(INDEX, ROOT "/index"), 0);
    write_folder(&(HfFolder){.arch = ARCH_LLAMA, .files = 3});
    assert_int_equal(rename(ROOT "/index", INDEX), 0);
    const char *text = said(ERR_DATA);
    assert_said(text, "model-00001-of-00002.safetensors: is not there");
    write_folder(&(HfFolder){.arch = ARCH_LLAMA, .files = 2});
    write_text(HF "/model-00003-of-00003.safetensors", "");
    write_text(HF "/consolidated.safetensors", ""); // Mistral's own, beside the others
    text = said(ERR_DATA);
    assert_said(text,
                "model-00003-of-00003.safetensors: model.safetensors.index.json does not name this shard");
    assert_said(text, "1 of its tensors do not fit");
}

static void tensors_in_two_files_are_named(void **state) {
    (void)state;
    write_folder(&(HfFolder){.arch = ARCH_LLAMA, .files = 2});
    assert_int_equal(link(HF "/model-00001-of-00002.safetensors", HF "/more.safetensors"), 0);
    change_index("twice", "more.safetensors");
    const char *text = said(ERR_DATA);
    assert_true(strstr(text, "model.embed_tokens.weight is in more.safetensors and in model-00001") ||
                strstr(text, "model.embed_tokens.weight is in model-00001-of-00002.safetensors and in more"));
}

static void tied_models(void **state) {
    (void)state;
    HfFolder folder = {
        .arch = ARCH_GROK, .files = 1, .copy = "lm_head.weight", .copy_of = "model.embed_tokens.weight"};
    write_folder(&folder);
    said(OK);
    assert_imported(ARCH_GROK);
    assert_int_equal(file_remove_tree(OUT), OK);
    FILE *file = fopen(HF "/model.safetensors", "r+b"); // the copy comes last
    fseek(file, -1, SEEK_END);
    fputc('x', file);
    fclose(file);
    assert_said(said(ERR_DATA), "lm_head.weight differs from model.embed_tokens.weight");
    folder.misshapen = folder.copy;
    write_folder(&folder);
    assert_said(said(ERR_DATA), "lm_head.weight is [19, 1, 8], config.json makes it [19, 8]");
    write_folder(&(HfFolder){.arch = ARCH_GROK, .files = 1});
    write_config(ARCH_GROK, "tie_word_embeddings", "false");
    assert_said(said(ERR_DATA), "lm_head.weight is missing");
}

static void rotary_buffers_are_ignored(void **state) {
    (void)state;
    write_folder(&(HfFolder){
        .arch = ARCH_LLAMA, .files = 1, .surplus = "model.layers.0.self_attn.rotary_emb.inv_freq"});
    assert_said(said(OK), "1 tensors ….rotary_emb.inv_freq");
    assert_imported(ARCH_LLAMA);
}

static void values_that_are_not_finite(void **state) {
    (void)state;
    write_folder(&(HfFolder){
        .arch = ARCH_DBRX, .files = 2, .brain = true, .spoilt = "transformer.blocks.1.ffn.experts.mlp.w2"});
    const char *text = said(ERR_DATA);
    assert_said(text, ".safetensors: transformer.blocks.1.ffn.experts.mlp.w2: 2 of the 84 values of "
                      "layers.1.experts.0.down are NaN or infinite");
    assert_said(text, "1 of its weights are not finite");
    write_folder(&(HfFolder){.arch = ARCH_LLAMA, .files = 1, .spoilt = "model.norm.weight"});
    assert_said(said(ERR_DATA), HF "/model.safetensors: model.norm.weight: 2 of the 12 values");
}

// A key/value head of the checkpoint, of 2 rows of 12, is the first of its copies in the file.
static void assert_head(CheckpointReader *reader, const char *weight, const char *tensor, int copies) {
    for (int t = 0; t < checkpoint_reader_tensors(reader); t++) {
        CheckpointTensor found = checkpoint_reader_tensor(reader, t);
        float values[144];
        if (strcmp(found.name, weight)) continue;
        assert_int_equal(found.dim[0], 12 / copies);
        assert_int_equal(checkpoint_reader_read(reader, t, STATE_MASTER, 0, elements(&found), values), OK);
        for (int64_t i = 0; i < elements(&found); i++)
            assert_true(values[i] == hf_value(tensor, i / 24 * copies * 24 + i % 24));
        return;
    }
    fail_msg("the checkpoint has no %s", weight);
}

static void write_copied(const HfFolder *folder) {
    write_folder(folder);
    json_t *config = hf_config_json(ARCH_ARCTIC, "num_key_value_heads", "6");
    json_object_set_new(config, "num_attention_heads", json_integer(6));
    assert_int_equal(json_dump_file(config, HF "/config.json", 0), 0);
    json_decref(config);
}

// Arctic's first upload: as many key/value heads as heads, copies in groups. Here 6, of which 2 differ.
static void copied_heads(void **state) {
    (void)state;
    static const char *const k = "model.layers.1.self_attn.k_proj.weight";
    HfFolder folder = {
        .arch = ARCH_ARCTIC, .files = 1, .brain = true, .kv_rows = 12, .equal_rows = 2, .equal_group = 3};
    write_copied(&folder);
    assert_said(said(OK),
                "the 6 key/value heads of layer 0 are 2, copied 3 times each: with --collapse-kv 2");
    assert_int_equal(file_remove_tree(OUT), OK);
    said_by(OK, 2);
    CheckpointReader *reader;
    json_t *manifest;
    assert_int_equal(checkpoint_verify(CKPT, false), OK);
    assert_int_equal(checkpoint_reader_open(&reader, CKPT), OK);
    assert_head(reader, "layers.0.attn.k", "model.layers.0.self_attn.k_proj.weight", 3);
    assert_head(reader, "layers.1.attn.v", "model.layers.1.self_attn.v_proj.weight", 3);
    assert_head(reader, "layers.1.attn.q", "model.layers.1.self_attn.q_proj.weight", 1);
    checkpoint_reader_close(reader);
    assert_int_equal(checkpoint_manifest(CKPT, &manifest), OK);
    assert_said(json_string_value(json_object_get(json_object_get(manifest, "record"), "config")),
                "kv_heads: 2\n");
    json_decref(manifest);
    assert_int_equal(file_remove_tree(OUT), OK);
    // 3 groups of 2 would put heads 1 and 2 into different ones, but 3 and 2 too.
    assert_said(said_by(ERR_DATA, 3),
                "model.layers.0.self_attn.k_proj.weight: head 3 is not equal to head 2");
    assert_said(said_by(ERR_CONFIG, 4), "--collapse-kv 4 does not divide the 6 heads");
    folder.changed = k;
    folder.changed_at = 5 * 24 + 23;
    write_copied(&folder);
    assert_said(
        said_by(ERR_DATA, 2),
        "model.layers.1.self_attn.k_proj.weight: head 5 is not equal to head 4, so its 6 heads are not 2 "
        "copied 3 times");
    write_folder(&(HfFolder){.arch = ARCH_ARCTIC, .files = 1});
    assert_said(said_by(ERR_CONFIG, 1), "--collapse-kv 1 is for Arctic's first upload");
}

typedef struct {
    sig_atomic_t stop;
    int calls, stop_at;
    int64_t done, total;
} Watcher;

static void look(void *context, int64_t done, int64_t total) {
    Watcher *w = context;
    assert_true(done >= w->done && done <= total);
    w->done = done;
    w->total = total;
    if (++w->calls == w->stop_at) w->stop = SIGTERM;
}

static void stops_and_leaves_nothing(void **state) {
    (void)state;
    write_folder(&(HfFolder){.arch = ARCH_MIXTRAL, .files = 1});
    HfImportReport report;
    int calls = 1;
    for (int at = 1; at <= calls; at += calls > 1 ? calls / 5 : 1) {
        Watcher watcher = {.stop_at = at};
        HfImportOptions options = {.part_bytes = 400,
                                   .watch = {.stop = &watcher.stop, .progress = look, .context = &watcher}};
        assert_int_equal(hf_import(HF, CKPT, &options, &report), ERR_RUNTIME);
        assert_non_null(strstr(status_text(), "stopped by SIGTERM"));
        assert_nothing_left();
        if (calls > 1) continue;
        watcher = (Watcher){0};
        assert_int_equal(hf_import(HF, CKPT, &options, &report), OK);
        assert_int_equal(watcher.done, 4 * report.parameters);
        assert_int_equal(watcher.done, watcher.total);
        assert_int_equal(file_remove_tree(OUT), OK);
        calls = watcher.calls - 1; // the last is after the last chance
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(imports_arctic, start, end),
        cmocka_unit_test_setup_teardown(imports_mixtral, start, end),
        cmocka_unit_test_setup_teardown(imports_dbrx, start, end),
        cmocka_unit_test_setup_teardown(imports_grok, start, end),
        cmocka_unit_test_setup_teardown(imports_llama, start, end),
        cmocka_unit_test_setup_teardown(all_wrong_tensors_are_named, start, end),
        cmocka_unit_test_setup_teardown(shared_tensors_are_named_once, start, end),
        cmocka_unit_test_setup_teardown(other_types_are_refused, start, end),
        cmocka_unit_test_setup_teardown(bad_files_are_refused, start, end),
        cmocka_unit_test_setup_teardown(index_and_files_must_agree, start, end),
        cmocka_unit_test_setup_teardown(unlisted_shards_are_named, start, end),
        cmocka_unit_test_setup_teardown(tensors_in_two_files_are_named, start, end),
        cmocka_unit_test_setup_teardown(tied_models, start, end),
        cmocka_unit_test_setup_teardown(rotary_buffers_are_ignored, start, end),
        cmocka_unit_test_setup_teardown(values_that_are_not_finite, start, end),
        cmocka_unit_test_setup_teardown(copied_heads, start, end),
        cmocka_unit_test_setup_teardown(stops_and_leaves_nothing, start, end),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
