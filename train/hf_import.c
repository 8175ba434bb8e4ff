// SPDX-License-Identifier: Apache-2.0
#include "train/hf_import.h"
#include "core/log.h"
#include "core/safetensors.h"
#include "train/checkpoint_internal.h"
#include "train/hf_config.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const int64_t default_part_bytes = (int64_t)256 << 20;

typedef struct {
    const char *name;
    int file, index;
    bool used;
} Found;

typedef struct {
    const char *dir;
    ModelConfig config;
    ParamTable params;
    Safetensors **file;
    char **file_name;
    int files;
    Found *found; // every tensor of every file, sorted by name
    int found_count;
    int *source; // for each weight, its place in found
    int problems;
    Part part;
    json_t *files_json;
    int64_t bytes;
} Import;

#define PROBLEM(import, ...) (log_rank0(LOG_ERROR, __VA_ARGS__), (import)->problems++)

// ---- the files

static Status open_file(Import *im, const char *name) {
    char path[FILE_PATH_BYTES];
    for (int i = 0; i < im->files; i++)
        if (!strcmp(im->file_name[i], name)) return OK;
    if (strchr(name, '/'))
        FAIL(ERR_DATA, "%s: the index names a file outside the folder: %.200s", im->dir, name);
    im->file = realloc(im->file, (size_t)(im->files + 1) * sizeof *im->file);
    im->file_name = realloc(im->file_name, (size_t)(im->files + 1) * sizeof *im->file_name);
    REQUIRE(im->file && im->file_name, "out of memory: %d files", im->files);
    snprintf(path, sizeof path, "%s/%s", im->dir, name);
    TRY(safetensors_open(&im->file[im->files], path));
    im->file_name[im->files++] = strdup(name);
    return OK;
}

static Status open_listed(Import *im, const char *index_path, json_t *index) {
    json_t *map = json_object_get(index, "weight_map"), *value;
    const char *tensor;
    if (!json_is_object(map)) FAIL(ERR_DATA, "%s: has no weight_map", index_path);
    json_object_foreach(map, tensor, value) {
        if (!json_is_string(value))
            FAIL(ERR_DATA, "%s: the file of %.200s is not a text", index_path, tensor);
        TRY(open_file(im, json_string_value(value)));
    }
    return OK;
}

static Status open_shards(Import *im, const char *index_path) {
    char *text;
    size_t bytes;
    json_error_t error;
    TRY(file_read_all(index_path, &text, &bytes));
    json_t *index = json_loadb(text, bytes, JSON_REJECT_DUPLICATES, &error);
    free(text);
    if (!index) FAIL(ERR_DATA, "%s:%d: %s", index_path, error.line, error.text);
    Status status = open_listed(im, index_path, index);
    json_decref(index);
    return status;
}

static Status open_files(Import *im) {
    char single[FILE_PATH_BYTES], index[FILE_PATH_BYTES];
    int has_single, has_index;
    snprintf(single, sizeof single, "%s/model.safetensors", im->dir);
    snprintf(index, sizeof index, "%s/model.safetensors.index.json", im->dir);
    TRY(file_exists(single, &has_single));
    TRY(file_exists(index, &has_index));
    if (has_single) return open_file(im, "model.safetensors");
    if (has_index) return open_shards(im, index);
    FAIL(ERR_DATA, "%s: has neither model.safetensors nor model.safetensors.index.json", im->dir);
}

// ---- which tensor is which

static int found_order(const void *a, const void *b) {
    return strcmp(((const Found *)a)->name, ((const Found *)b)->name);
}

static void list_tensors(Import *im) {
    int total = 0;
    for (int f = 0; f < im->files; f++) total += safetensors_count(im->file[f]);
    im->found = calloc((size_t)total + 1, sizeof *im->found);
    REQUIRE(im->found, "out of memory: %d tensors", total);
    for (int f = 0; f < im->files; f++)
        for (int i = 0; i < safetensors_count(im->file[f]); i++)
            im->found[im->found_count++] =
                (Found){.name = safetensors_tensor(im->file[f], i)->name, .file = f, .index = i};
    qsort(im->found, (size_t)total, sizeof *im->found, found_order);
    for (int i = 1; i < total; i++)
        if (!strcmp(im->found[i - 1].name, im->found[i].name))
            PROBLEM(im, "%s: %s is in %s and in %s", im->dir, im->found[i].name,
                    im->file_name[im->found[i - 1].file], im->file_name[im->found[i].file]);
}

static void match_shape(Import *im, const Param *p, const SafeTensor *t) {
    bool same = t->dims == p->dims;
    for (int i = 0; same && i < p->dims; i++) same = t->dim[i] == p->dim[i];
    char is[160] = "";
    for (int i = 0, at = 0; i < t->dims; i++)
        at += snprintf(is + at, sizeof is - (size_t)at, "%s%ld", i ? ", " : "", (long)t->dim[i]);
    if (!same && p->dims == 2)
        PROBLEM(im, "%s: %s is [%s], config.json makes it [%ld, %ld]", im->dir, t->name, is, (long)p->dim[0],
                (long)p->dim[1]);
    if (!same && p->dims == 1)
        PROBLEM(im, "%s: %s is [%s], config.json makes it [%ld]", im->dir, t->name, is, (long)p->dim[0]);
    if (!safetensors_converts(t))
        PROBLEM(im, "%s: %s is %s; F32, BF16 and F16 are read", im->dir, t->name, t->dtype);
}

// A file may repeat the embedding of a tied model under the output matrix's name.
static bool is_tied_copy(const Import *im, const Found *f) {
    return im->config.tie_embeddings && !strcmp(f->name, "lm_head.weight");
}

static Status match_tensors(Import *im) {
    list_tensors(im);
    im->source = calloc((size_t)im->params.count, sizeof *im->source);
    REQUIRE(im->source, "out of memory: %d tensors", im->params.count);
    for (int i = 0; i < im->params.count; i++) {
        char name[128];
        hf_tensor_name(&im->config, im->params.param[i].name, name, sizeof name);
        Found *f =
            bsearch(&(Found){.name = name}, im->found, (size_t)im->found_count, sizeof *f, found_order);
        if (!f) {
            PROBLEM(im, "%s: %s is missing", im->dir, name);
            continue;
        }
        f->used = true;
        im->source[i] = (int)(f - im->found);
        match_shape(im, &im->params.param[i], safetensors_tensor(im->file[f->file], f->index));
    }
    for (int i = 0; i < im->found_count; i++)
        if (!im->found[i].used && !is_tied_copy(im, &im->found[i]))
            PROBLEM(im, "%s: %.200s, in %s, belongs to no part of the model that config.json describes",
                    im->dir, im->found[i].name, im->file_name[im->found[i].file]);
    if (im->problems)
        FAIL(ERR_DATA, "%s: %d of its tensors do not fit; nothing was written", im->dir, im->problems);
    return OK;
}

// ---- the checkpoint

static Status flush(Import *im, const char *tmp) {
    char name[80];
    json_t *description;
    int64_t bytes;
    snprintf(name, sizeof name, "shard_00000_of_00001_part%03d.h5", (int)json_array_size(im->files_json));
    part_seal(&im->part);
    TRY(part_write(&im->part, &(PartPlace){.dir = tmp, .file = name}, &description, &bytes));
    json_array_append_new(im->files_json, description);
    im->bytes += bytes;
    part_clear(&im->part);
    return OK;
}

static Status copy_tensor(Import *im, int param, const char *tmp) {
    const Param *p = &im->params.param[param];
    const Found *f = &im->found[im->source[param]];
    int64_t size = param_size(p), not_finite = 0;
    for (int64_t done = 0, n; done < size; done += n) {
        if (im->part.elements == im->part.capacity) TRY(flush(im, tmp));
        n = im->part.capacity - im->part.elements;
        if (n > size - done) n = size - done;
        int64_t pos = part_add(&im->part, p->name, p->dims, p->dim, done, n);
        float *to = im->part.state[STATE_MASTER] + pos;
        TRY(safetensors_read_f32(im->file[f->file], f->index, done, n, to));
        for (int64_t i = 0; i < n; i++) not_finite += !isfinite(to[i]);
    }
    if (not_finite)
        log_rank0(LOG_WARN, "%s: %s holds %ld values that are NaN or infinite", im->dir, f->name,
                  (long)not_finite);
    return OK;
}

static json_t *make_record(const Import *im) {
    char *yaml = hf_config_yaml(&im->config);
    json_t *record =
        json_pack("{s:i, s:i, s:s, s:s}", "step", 0, "tokens", 0, "config", yaml, "imported_from", im->dir);
    free(yaml);
    return record;
}

static Status commit(Import *im, const char *tmp, const char *dir) {
    json_t *record = make_record(im), *tensors = json_array();
    if (!record) FAIL(ERR_CONFIG, "%s: the path is not UTF-8", im->dir);
    for (int i = 0; i < im->params.count; i++) {
        const Param *p = &im->params.param[i];
        json_array_append_new(tensors, manifest_tensor(p->name, p->dims, p->dim));
    }
    ManifestContent content = {.states = 1, .record = record, .tensors = tensors, .files = im->files_json};
    char *text = NULL;
    size_t bytes;
    Status status = manifest_text(&content, &text, &bytes);
    if (status == OK) status = folder_commit(tmp, dir, text, bytes);
    free(text);
    json_decref(record);
    json_decref(tensors);
    return status;
}

static Status write_files(Import *im, const char *tmp, const char *dir) {
    TRY(file_make_folders(tmp));
    for (int i = 0; i < im->params.count; i++) TRY(copy_tensor(im, i, tmp));
    if (im->part.elements) TRY(flush(im, tmp));
    return commit(im, tmp, dir);
}

// Written under another name beside the folder, which then takes its name.
static Status write_checkpoint(Import *im, const char *dir, int64_t part_bytes) {
    char path[FILE_PATH_BYTES], tmp[FILE_PATH_BYTES + 64];
    size_t length = strlen(dir);
    while (length > 1 && dir[length - 1] == '/') length--;
    snprintf(path, sizeof path, "%.*s", (int)length, dir);
    const char *slash = strrchr(path, '/');
    int folder = slash ? (int)(slash - path) + 1 : 0;
    snprintf(tmp, sizeof tmp, "%.*s.tmp-%s.%lx", folder, path, path + folder, (long)getpid());
    im->part = part_create(1, part_bytes > 4 ? part_bytes / 4 : default_part_bytes / 4);
    im->files_json = json_array();
    Status status = write_files(im, tmp, path);
    if (status == OK) return OK;
    char reason[1024];
    snprintf(reason, sizeof reason, "%s", status_text());
    if (file_remove_tree(tmp) != OK) log_rank0(LOG_WARN, "%s", status_text());
    FAIL(status, "%s was not written: %s", dir, reason);
}

static void print_ignored(const char *path, const json_t *ignored) {
    char *text = json_dumps(ignored, JSON_COMPACT);
    if (json_object_size(ignored)) log_rank0(LOG_INFO, "ignored in %s: %s", path, text);
    free(text);
}

static Status import(Import *im, const char *dir, int64_t part_bytes) {
    char path[FILE_PATH_BYTES];
    json_t *ignored;
    int exists;
    TRY(file_exists(dir, &exists));
    if (exists) FAIL(ERR_CONFIG, "%s: is there already; choose another -o", dir);
    snprintf(path, sizeof path, "%s/config.json", im->dir);
    TRY(hf_config_read(&im->config, &ignored, path));
    print_ignored(path, ignored);
    json_decref(ignored);
    model_describe(&im->config, 0, im->config.experts, &im->params);
    TRY(open_files(im));
    TRY(match_tensors(im));
    return write_checkpoint(im, dir, part_bytes);
}

Status hf_import(const char *hf_dir, const char *dir, int64_t part_bytes, HfImportReport *report) {
    Import im = {.dir = hf_dir};
    Status status = import(&im, dir, part_bytes);
    *report = (HfImportReport){.tensors = im.params.count, .bytes = im.bytes};
    for (int i = 0; i < im.params.count; i++) report->parameters += param_size(&im.params.param[i]);
    for (int i = 0; i < im.files; i++) {
        safetensors_close(im.file[i]);
        free(im.file_name[i]);
    }
    free(im.file);
    free(im.file_name);
    free(im.found);
    free(im.source);
    part_free(&im.part);
    json_decref(im.files_json);
    params_free(&im.params);
    return status;
}
