// SPDX-License-Identifier: Apache-2.0
#include "train/hf_export.h"
#include "core/log.h"
#include "core/yaml.h"
#include "train/checkpoint.h"
#include "train/hf_config_write.h"
#include "train/hf_names.h"
#include "train/resume.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { PIECE = 1 << 20 }; // elements read at a time

typedef struct { // one of the model's, as a part of a tensor of the files
    const Param *param;
    int source; // in the checkpoint
    HfPlace place;
} Weight;

typedef struct {
    SafeTensor shape;
    int first, count; // of the weights
    int model_order;  // the first of them in the model
    int shard;
} FileTensor;

typedef struct {
    const HfExportOptions *options;
    char dir[FILE_PATH_BYTES]; // the checkpoint
    RunConfig *config;
    ConfigDocument *document;
    HfConfigFacts facts;
    CheckpointReader *reader;
    ParamTable params;
    Weight *weight;     // sorted by tensor and row
    FileTensor *tensor; // sorted by name
    int tensors, shards;
    int64_t elements, done;
    float *piece;
} Export;

// ---- the checkpoint

static Status read_record(Export *e, const json_t *manifest) {
    const char *text = json_string_value(json_object_get(json_object_get(manifest, "record"), "config"));
    YamlNode *stored = NULL;
    if (!text) FAIL(ERR_DATA, "%s/MANIFEST.json has no configuration", e->dir);
    TRY(config_parse(&e->config, &e->document, text, e->dir));
    TRY(yaml_parse(&stored, text, strlen(text), e->dir));
    // Weights from elsewhere say nothing of their training.
    if (!yaml_is_null(yaml_get(stored, "batch.seq_len"))) e->facts.positions = e->config->batch.seq_len;
    yaml_free(stored);
    return OK;
}

typedef struct {
    const char *name;
    int index;
} Source;

static int source_order(const void *a, const void *b) {
    return strcmp(((const Source *)a)->name, ((const Source *)b)->name);
}

static Status find_source(const Export *e, const Source *sources, int count, Weight *w) {
    const Param *p = w->param;
    const Source *found =
        bsearch(&(Source){.name = p->name}, sources, (size_t)count, sizeof *sources, source_order);
    if (!found) FAIL(ERR_DATA, "%s: has no tensor %s, which its configuration needs", e->dir, p->name);
    CheckpointTensor t = checkpoint_reader_tensor(e->reader, found->index);
    if (t.dims != p->dims || t.dim[0] != p->dim[0] || (t.dims == 2 && t.dim[1] != p->dim[1]))
        FAIL(ERR_DATA, "%s: tensor %s has another shape than its configuration needs", e->dir, p->name);
    w->source = found->index;
    return OK;
}

static Status find_sources(Export *e) {
    int count = checkpoint_reader_tensors(e->reader);
    Source *sources = calloc((size_t)count + 1, sizeof *sources);
    REQUIRE(sources, "out of memory: %d tensors", count);
    for (int i = 0; i < count; i++) sources[i] = (Source){checkpoint_reader_tensor(e->reader, i).name, i};
    qsort(sources, (size_t)count, sizeof *sources, source_order);
    Status status = OK;
    for (int i = 0; status == OK && i < e->params.count; i++)
        status = find_source(e, sources, count, &e->weight[i]);
    free(sources);
    TRY(status);
    if (count != e->params.count)
        FAIL(ERR_DATA, "%s: has %d tensors, its configuration needs %d", e->dir, count, e->params.count);
    return OK;
}

// No file of any family has a place for it, and it changes which experts are chosen.
static Status refuse_bias(const Export *e) {
    for (int i = 0; i < checkpoint_reader_buffers(e->reader); i++) {
        CheckpointTensor b = checkpoint_reader_buffer(e->reader, i);
        int64_t size = b.dim[0] * (b.dims == 2 ? b.dim[1] : 1), used = 0;
        float *values = malloc((size_t)size * sizeof *values + 1);
        REQUIRE(values, "out of memory: buffer %s", b.name);
        Status status = checkpoint_reader_read_buffer(e->reader, i, values);
        for (int64_t k = 0; status == OK && k < size; k++) used += values[k] != 0;
        free(values);
        TRY(status);
        if (used)
            FAIL(ERR_CONFIG,
                 "%s: has a selection bias in its router (model.router.bias_rate), for which Hugging Face "
                 "files "
                 "of %s have no place",
                 e->dir, hf_architecture(e->config->model.arch));
    }
    return OK;
}

// ---- which weight goes where

static int weight_order(const void *a, const void *b) {
    const HfPlace *x = &((const Weight *)a)->place, *y = &((const Weight *)b)->place;
    int names = strcmp(x->tensor, y->tensor);
    return names ? names : (x->first_row > y->first_row) - (x->first_row < y->first_row);
}

static int64_t rows_of(const Weight *w) {
    return w->param->dim[w->place.transposed ? 1 : 0];
}

static void take_tensor(Export *e, int first) {
    const HfPlace *place = &e->weight[first].place;
    FileTensor *t = &e->tensor[e->tensors++];
    *t = (FileTensor){.shape = {.name = place->tensor, .dims = place->dims}, .first = first};
    t->model_order = (int)(e->weight[first].param - e->params.param);
    t->shape.elements = 1;
    for (int d = 0; d < place->dims; d++) t->shape.elements *= t->shape.dim[d] = place->dim[d];
    int64_t rows = 0;
    for (int i = first; i < e->params.count && !strcmp(e->weight[i].place.tensor, place->tensor); i++) {
        int order = (int)(e->weight[i].param - e->params.param);
        REQUIRE(e->weight[i].place.first_row == rows, "%s: row %ld is not filled", place->tensor, (long)rows);
        if (order < t->model_order) t->model_order = order;
        rows += rows_of(&e->weight[i]);
        t->count++;
    }
    REQUIRE(rows == place->dim[0], "%s: %ld of its %ld rows are filled", place->tensor, (long)rows,
            (long)place->dim[0]);
    e->elements += t->shape.elements;
}

static int model_order(const void *a, const void *b) {
    return (*(FileTensor *const *)a)->model_order - (*(FileTensor *const *)b)->model_order;
}

// Tensors fill the files in the model's order; a file's own tensors are sorted by name.
static void choose_shards(Export *e) {
    FileTensor **order = calloc((size_t)e->tensors + 1, sizeof *order);
    REQUIRE(order, "out of memory: %d tensors", e->tensors);
    for (int i = 0; i < e->tensors; i++) order[i] = &e->tensor[i];
    qsort(order, (size_t)e->tensors, sizeof *order, model_order);
    int64_t bytes = 0;
    for (int i = 0; i < e->tensors; i++) {
        int64_t own = order[i]->shape.elements * safetensors_type_bytes(e->options->type);
        if (!i || bytes + own > e->options->shard_bytes) {
            e->shards++;
            bytes = 0;
        }
        order[i]->shard = e->shards - 1;
        bytes += own;
    }
    free(order);
}

static Status plan(Export *e) {
    const ModelConfig *model = &e->config->model;
    TRY(hf_expressible(model));
    TRY(refuse_bias(e));
    model_describe(model, 0, model->experts, &e->params);
    e->weight = calloc((size_t)e->params.count, sizeof *e->weight);
    e->tensor = calloc((size_t)e->params.count, sizeof *e->tensor);
    REQUIRE(e->weight && e->tensor, "out of memory: %d tensors", e->params.count);
    for (int i = 0; i < e->params.count; i++) {
        e->weight[i].param = &e->params.param[i];
        hf_place(model, e->weight[i].param, &e->weight[i].place);
    }
    TRY(find_sources(e));
    qsort(e->weight, (size_t)e->params.count, sizeof *e->weight, weight_order);
    for (int i = 0; i < e->params.count; i += e->tensor[e->tensors - 1].count) take_tensor(e, i);
    choose_shards(e);
    return OK;
}

// ---- values

static Status read_values(Export *e, const Weight *w, int64_t first, int64_t count, float *out) {
    int64_t bytes = safetensors_type_bytes(e->options->type);
    TRY(watch_step(&e->options->watch, e->done * bytes, e->elements * bytes));
    e->done += count;
    return checkpoint_reader_read(e->reader, w->source, STATE_MASTER, first, count, out);
}

static void count_not_finite(const float *values, int64_t count, int64_t *out) {
    for (int64_t i = 0; i < count; i++) *out += !isfinite(values[i]);
}

static Status copy_rows(Export *e, const Weight *w, SafetensorsWriter *file, int64_t *not_finite) {
    int64_t size = param_size(w->param);
    for (int64_t at = 0; at < size; at += PIECE) {
        int64_t n = size - at < PIECE ? size - at : PIECE;
        TRY(read_values(e, w, at, n, e->piece));
        count_not_finite(e->piece, n, not_finite);
        TRY(safetensors_append(file, e->piece, n));
    }
    return OK;
}

static Status write_columns(const Weight *w, const float *values, float *piece, SafetensorsWriter *file) {
    int64_t rows = w->param->dim[0], columns = w->param->dim[1], together = PIECE / rows;
    REQUIRE(together > 0, "%s: %ld rows are too many", w->param->name, (long)rows);
    for (int64_t c = 0; c < columns; c += together) {
        int64_t n = columns - c < together ? columns - c : together;
        for (int64_t r = 0; r < rows; r++)
            for (int64_t i = 0; i < n; i++) piece[i * rows + r] = values[r * columns + c + i];
        TRY(safetensors_append(file, piece, n * rows));
    }
    return OK;
}

static Status copy_transposed(Export *e, const Weight *w, SafetensorsWriter *file, int64_t *not_finite) {
    int64_t size = param_size(w->param);
    float *values = malloc((size_t)size * sizeof *values);
    REQUIRE(values, "out of memory: %s has %ld values", w->param->name, (long)size);
    Status status = OK;
    for (int64_t at = 0; status == OK && at < size; at += PIECE)
        status = read_values(e, w, at, size - at < PIECE ? size - at : PIECE, values + at);
    if (status == OK) count_not_finite(values, size, not_finite);
    if (status == OK) status = write_columns(w, values, e->piece, file);
    free(values);
    return status;
}

static Status copy_tensor(Export *e, const FileTensor *t, SafetensorsWriter *file) {
    int64_t not_finite = 0;
    for (int i = t->first; i < t->first + t->count; i++) {
        const Weight *w = &e->weight[i];
        TRY(w->place.transposed ? copy_transposed(e, w, file, &not_finite)
                                : copy_rows(e, w, file, &not_finite));
    }
    if (not_finite)
        log_rank0(LOG_WARN, "%s: %s holds %ld values that are NaN or infinite", e->dir, t->shape.name,
                  (long)not_finite);
    return OK;
}

// ---- the folder

static void shard_name(const Export *e, int shard, char *name, size_t size) {
    if (e->shards == 1)
        snprintf(name, size, "model.safetensors");
    else
        snprintf(name, size, "model-%05d-of-%05d.safetensors", shard + 1, e->shards);
}

static Status write_shard(Export *e, int shard, const char *dir) {
    char name[64], path[FILE_PATH_BYTES + 128];
    SafetensorsWriter *file;
    SafeTensor *shapes = calloc((size_t)e->tensors + 1, sizeof *shapes);
    REQUIRE(shapes, "out of memory: %d tensors", e->tensors);
    int count = 0;
    for (int i = 0; i < e->tensors; i++)
        if (e->tensor[i].shard == shard) shapes[count++] = e->tensor[i].shape;
    shard_name(e, shard, name, sizeof name);
    snprintf(path, sizeof path, "%s/%s", dir, name);
    Status status = safetensors_create(&file, path, e->options->type, shapes, count);
    free(shapes);
    TRY(status);
    for (int i = 0; status == OK && i < e->tensors; i++)
        if (e->tensor[i].shard == shard) status = copy_tensor(e, &e->tensor[i], file);
    if (status == OK) return safetensors_finish(file);
    safetensors_discard(file);
    return status;
}

static Status write_text(const char *dir, const char *name, char *text) {
    char path[FILE_PATH_BYTES + 128];
    REQUIRE(text, "out of memory: %s", name);
    snprintf(path, sizeof path, "%s/%s", dir, name);
    Status status = file_write_durable(path, text, strlen(text));
    free(text);
    return status;
}

static Status write_index(const Export *e, const char *dir) {
    json_t *map = json_object();
    for (int i = 0; i < e->tensors; i++) {
        char name[64];
        shard_name(e, e->tensor[i].shard, name, sizeof name);
        json_object_set_new(map, e->tensor[i].shape.name, json_string(name));
    }
    json_t *index =
        json_pack("{s:{s:I}, s:o}", "metadata", "total_size",
                  (json_int_t)(e->elements * safetensors_type_bytes(e->options->type)), "weight_map", map);
    char *text = json_dumps(index, JSON_INDENT(2));
    json_decref(index);
    return write_text(dir, "model.safetensors.index.json", text);
}

static Status write_files(Export *e, const char *dir) {
    for (int s = 0; s < e->shards; s++) TRY(write_shard(e, s, dir));
    if (e->shards > 1) TRY(write_index(e, dir));
    return write_text(dir, "config.json", hf_config_text(&e->config->model, &e->facts));
}

static Status write_folder(Export *e, const char *dir) {
    NewFolder folder;
    TRY(new_folder_begin(&folder, dir));
    e->piece = malloc(PIECE * sizeof *e->piece);
    REQUIRE(e->piece, "out of memory: %d values", PIECE);
    Status status = write_files(e, folder.tmp);
    if (status == OK) status = watch_step(&e->options->watch, 1, 1);
    if (status == OK) status = new_folder_commit(&folder);
    return status == OK ? OK : new_folder_abandon(&folder, status);
}

static Status export(Export *e, const char *spec, const char *dir) {
    json_t *manifest;
    TRY(checkpoint_path_resolve(spec, e->dir, sizeof e->dir));
    TRY(checkpoint_manifest(e->dir, &manifest));
    Status status = read_record(e, manifest);
    json_decref(manifest);
    TRY(status);
    TRY(checkpoint_reader_open(&e->reader, e->dir));
    TRY(plan(e));
    return write_folder(e, dir);
}

Status hf_export(const char *spec, const char *dir, const HfExportOptions *options, HfExportReport *report) {
    Export e = {.options = options};
    e.facts.dtype = options->type == SAFETENSORS_F32 ? "float32" : "bfloat16";
    Status status = export(&e, spec, dir);
    *report = (HfExportReport){.tensors = e.tensors,
                               .parameters = e.elements,
                               .bytes = e.elements * safetensors_type_bytes(options->type),
                               .files = e.shards};
    checkpoint_reader_close(e.reader);
    config_free(e.config, e.document);
    params_free(&e.params);
    free(e.weight);
    free(e.tensor);
    free(e.piece);
    return status;
}
