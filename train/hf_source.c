// SPDX-License-Identifier: Apache-2.0
#include "train/hf_source.h"
#include "core/file.h"
#include "core/log.h"
#include <dirent.h>
#include <stdlib.h>
#include <string.h>

#define PROBLEM(source, ...) (log_rank0(LOG_ERROR, __VA_ARGS__), (source)->problems++)

static const char index_name[] = "model.safetensors.index.json";

// ---- the files

static int find_file(const HfSource *s, const char *name) {
    for (int i = 0; i < s->files; i++)
        if (!strcmp(s->file_name[i], name)) return i;
    return -1;
}

// A file that cannot be opened is a problem, and stays in the list without contents.
static void open_file(HfSource *s, const char *name) {
    char path[FILE_PATH_BYTES];
    int exists = 0;
    s->file = realloc(s->file, (size_t)(s->files + 1) * sizeof *s->file);
    s->file_name = realloc(s->file_name, (size_t)(s->files + 1) * sizeof *s->file_name);
    REQUIRE(s->file && s->file_name && (s->file_name[s->files] = strdup(name)), "out of memory: %d files",
            s->files);
    Safetensors **file = &s->file[s->files++];
    *file = NULL;
    snprintf(path, sizeof path, "%s/%s", s->dir, name);
    if (file_exists(path, &exists) == OK && !exists)
        PROBLEM(s, "%s: is not there, but %s names it; fetch it", path, index_name);
    else if (safetensors_open(file, path) != OK)
        PROBLEM(s, "%s", status_text());
}

static Status open_listed(HfSource *s, const char *path, const json_t *index) {
    const char *tensor;
    json_t *value;
    s->weight_map = json_incref(json_object_get(index, "weight_map"));
    if (!json_is_object(s->weight_map)) FAIL(ERR_DATA, "%s: has no weight_map", path);
    json_object_foreach(s->weight_map, tensor, value) {
        const char *name = json_string_value(value);
        if (!name) FAIL(ERR_DATA, "%s: the file of %.200s is not a text", path, tensor);
        if (strchr(name, '/'))
            FAIL(ERR_DATA, "%s: %.200s would be in a file outside the folder, %.200s", path, tensor, name);
        if (find_file(s, name) < 0) open_file(s, name);
    }
    return OK;
}

static Status open_shards(HfSource *s, const char *path) {
    char *text;
    size_t bytes;
    json_error_t error;
    TRY(file_read_all(path, &text, &bytes));
    json_t *index = json_loadb(text, bytes, JSON_REJECT_DUPLICATES, &error);
    free(text);
    if (!index) FAIL(ERR_DATA, "%s:%d: %s", path, error.line, error.text);
    Status status = open_listed(s, path, index);
    json_decref(index);
    return status;
}

static Status open_files(HfSource *s) {
    char single[FILE_PATH_BYTES], index[FILE_PATH_BYTES];
    int has_single, has_index;
    snprintf(single, sizeof single, "%s/model.safetensors", s->dir);
    snprintf(index, sizeof index, "%s/%s", s->dir, index_name);
    TRY(file_exists(single, &has_single));
    TRY(file_exists(index, &has_index));
    if (has_single)
        open_file(s, "model.safetensors");
    else if (has_index)
        TRY(open_shards(s, index));
    else
        FAIL(ERR_DATA, "%s: has neither model.safetensors nor %s", s->dir, index_name);
    if (s->problems)
        FAIL(ERR_DATA, "%s: %d of its files cannot be read; nothing was written", s->dir, s->problems);
    return OK;
}

// ---- the tensors

static int tensor_order(const void *a, const void *b) {
    return strcmp(((const HfTensor *)a)->name, ((const HfTensor *)b)->name);
}

static void list_tensors(HfSource *s) {
    for (int f = 0; f < s->files; f++) s->tensors += safetensors_count(s->file[f]);
    s->tensor = calloc((size_t)s->tensors + 1, sizeof *s->tensor);
    REQUIRE(s->tensor, "out of memory: %d tensors", s->tensors);
    for (int f = 0, at = 0; f < s->files; f++)
        for (int i = 0; i < safetensors_count(s->file[f]); i++)
            s->tensor[at++] =
                (HfTensor){.name = safetensors_tensor(s->file[f], i)->name, .file = f, .index = i};
    qsort(s->tensor, (size_t)s->tensors, sizeof *s->tensor, tensor_order);
    for (int i = 1; i < s->tensors; i++)
        if (!strcmp(s->tensor[i - 1].name, s->tensor[i].name))
            PROBLEM(s, "%s: %.200s is in %s and in %s", s->dir, s->tensor[i].name,
                    s->file_name[s->tensor[i - 1].file], s->file_name[s->tensor[i].file]);
}

// Shards that lie beside those of the index.
static void find_unlisted(HfSource *s) {
    DIR *folder = opendir(s->dir);
    if (!folder) return; // its files have just been read: a race, and nothing depends on it
    for (struct dirent *entry; (entry = readdir(folder));) {
        int number, total, end = 0;
        if (sscanf(entry->d_name, "model-%d-of-%d.safetensors%n", &number, &total, &end) == 2 && end &&
            !entry->d_name[end] && find_file(s, entry->d_name) < 0)
            PROBLEM(s, "%s/%s: %s does not name this shard; fetch index and shards of one revision", s->dir,
                    entry->d_name, index_name);
    }
    closedir(folder);
}

static void check_index(HfSource *s) {
    const char *name;
    json_t *value;
    json_object_foreach(s->weight_map, name, value) {
        const HfTensor *t = hf_source_find(s, name);
        const char *file = json_string_value(value);
        if (!t)
            PROBLEM(s, "%s: %.200s is not in %s, where %s has it", s->dir, name, file, index_name);
        else if (strcmp(s->file_name[t->file], file))
            PROBLEM(s, "%s: %.200s is in %s, %s has it in %s", s->dir, name, s->file_name[t->file],
                    index_name, file);
    }
    for (int i = 0; i < s->tensors; i++)
        if (!json_object_get(s->weight_map, s->tensor[i].name))
            PROBLEM(s, "%s: %.200s is in %s, but not in %s", s->dir, s->tensor[i].name,
                    s->file_name[s->tensor[i].file], index_name);
    find_unlisted(s);
}

Status hf_source_open(HfSource *out, const char *dir) {
    *out = (HfSource){.dir = dir};
    TRY(open_files(out));
    list_tensors(out);
    if (out->weight_map) check_index(out);
    return OK;
}

void hf_source_close(HfSource *s) {
    for (int i = 0; i < s->files; i++) {
        safetensors_close(s->file[i]);
        free(s->file_name[i]);
    }
    free(s->file);
    free(s->file_name);
    free(s->tensor);
    json_decref(s->weight_map);
    *s = (HfSource){0};
}

HfTensor *hf_source_find(const HfSource *s, const char *name) {
    return bsearch(&(HfTensor){.name = name}, s->tensor, (size_t)s->tensors, sizeof *s->tensor, tensor_order);
}

const SafeTensor *hf_source_tensor(const HfSource *s, const HfTensor *t) {
    return safetensors_tensor(s->file[t->file], t->index);
}

// Element (r, c) of the weight is element (first_row + c, r) of the tensor. Whole rows are read, as many at a
// time as stay in a near cache.
static Status read_transposed(const Safetensors *file, int index, const HfPlace *place, int64_t columns,
                              int64_t first, int64_t count, float *out) {
    enum { TILE = 1 << 18 };
    int64_t width = place->dim[1], end = first + count, rows = TILE / width > 0 ? TILE / width : 1;
    float *tile = malloc((size_t)(rows * width) * sizeof *tile);
    REQUIRE(tile, "out of memory: %ld elements", (long)(rows * width));
    Status status = OK;
    for (int64_t c0 = 0; status == OK && c0 < columns; c0 += rows) {
        int64_t n = columns - c0 < rows ? columns - c0 : rows;
        status = safetensors_read_f32(file, index, (place->first_row + c0) * width, n * width, tile);
        for (int64_t r = first / columns; status == OK && r * columns < end; r++)
            for (int64_t c = 0; c < n; c++) {
                int64_t at = r * columns + c0 + c;
                if (at >= first && at < end) out[at - first] = tile[c * width + r];
            }
    }
    free(tile);
    return status;
}

Status hf_source_read(const HfSource *s, const HfTensor *t, const HfPlace *place, int64_t columns,
                      int64_t first, int64_t count, float *out) {
    const Safetensors *file = s->file[t->file];
    if (place->transposed) return read_transposed(file, t->index, place, columns, first, count, out);
    return safetensors_read_f32(file, t->index, place->first_row * columns + first, count, out);
}
