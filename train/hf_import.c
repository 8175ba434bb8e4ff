// SPDX-License-Identifier: Apache-2.0
#include "train/hf_import.h"
#include "core/log.h"
#include "train/checkpoint_weights.h"
#include "train/hf_config.h"
#include "train/hf_source.h"
#include "train/run_config.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { COMPARED = 1 << 20 }; // elements at a time

typedef struct {
    const HfImportOptions *options;
    HfSource source;
    ModelConfig config, file_config; // of the checkpoint; as config.json has it
    ParamTable params, file_params;  // the same weights in the same order; shapes differ where heads collapse
    HfTensor **tensor;               // of each weight
    WeightsWriter writer;
    int64_t done, total; // elements copied, and to copy
    int not_finite;      // weights
} Import;

#define PROBLEM(import, ...) (log_rank0(LOG_ERROR, __VA_ARGS__), (import)->source.problems++)

// ---- which tensor is which

static void shape_text(char *out, size_t size, int dims, const int64_t dim[]) {
    int at = snprintf(out, size, "[");
    for (int i = 0; i < dims; i++)
        at += snprintf(out + at, size - (size_t)at, "%s%ld", i ? ", " : "", (long)dim[i]);
    snprintf(out + at, size - (size_t)at, "]");
}

static void match_shape(Import *im, int dims, const int64_t dim[], const SafeTensor *t) {
    bool same = t->dims == dims;
    for (int i = 0; same && i < dims; i++) same = t->dim[i] == dim[i];
    if (!same) {
        char is[192], wanted[192];
        shape_text(is, sizeof is, t->dims, t->dim);
        shape_text(wanted, sizeof wanted, dims, dim);
        PROBLEM(im, "%s: %s is %s, config.json makes it %s", im->source.dir, t->name, is, wanted);
    }
    if (!safetensors_converts(t))
        PROBLEM(im, "%s: %s is %s; F32, BF16 and F16 are read: convert the file", im->source.dir, t->name,
                t->dtype);
}

static void match_weight(Import *im, int weight) {
    HfPlace place;
    hf_place(&im->file_config, &im->file_params.param[weight], &place);
    HfTensor *t = hf_source_find(&im->source, place.tensor);
    im->tensor[weight] = t;
    if (t && !t->used) match_shape(im, place.dims, place.dim, hf_source_tensor(&im->source, t));
    if (t) t->used = true;
    // Once for a tensor of several weights; what the index promised has been named already.
    bool named = place.first_row > 0 || json_object_get(im->source.weight_map, place.tensor);
    if (!t && !named) PROBLEM(im, "%s: %s is missing", im->source.dir, place.tensor);
}

// A file may repeat the embedding of a tied model under the output matrix's name.
static Status check_tied_copy(Import *im, HfTensor *copy) {
    const HfTensor *embed = im->tensor[params_find(&im->params, "embed")];
    const Param *p = &im->params.param[params_find(&im->params, "embed")];
    int problems = im->source.problems;
    copy->used = true;
    match_shape(im, p->dims, p->dim, hf_source_tensor(&im->source, copy));
    if (!embed || im->source.problems > problems) return OK;
    HfPlace whole = {.dims = p->dims, .dim = {p->dim[0], p->dim[1]}};
    float *a = malloc(2 * sizeof(float) * COMPARED), *b = a + COMPARED;
    REQUIRE(a, "out of memory: %d elements", 2 * COMPARED);
    Status status = OK;
    for (int64_t at = 0, n; status == OK && at < param_size(p); at += n) {
        n = param_size(p) - at < COMPARED ? param_size(p) - at : COMPARED;
        status = hf_source_read(&im->source, embed, &whole, p->dim[1], at, n, a);
        if (status == OK) status = hf_source_read(&im->source, copy, &whole, p->dim[1], at, n, b);
        if (status != OK || !memcmp(a, b, (size_t)n * sizeof *a)) continue;
        PROBLEM(im, "%s: %s differs from %s, but config.json has tie_word_embeddings = true", im->source.dir,
                copy->name, embed->name);
        break;
    }
    free(a);
    return status;
}

// Old Llama files hold what follows from rope_theta.
static bool is_rotary_buffer(const char *name) {
    static const char end[] = ".rotary_emb.inv_freq";
    size_t length = strlen(name);
    return length > sizeof end && !strcmp(name + length - (sizeof end - 1), end);
}

static Status match_surplus(Import *im) {
    int buffers = 0;
    for (int i = 0; i < im->source.tensors; i++) {
        HfTensor *t = &im->source.tensor[i];
        if (t->used) continue;
        if (im->config.tie_embeddings && !strcmp(t->name, "lm_head.weight"))
            TRY(check_tied_copy(im, t));
        else if (is_rotary_buffer(t->name))
            buffers++;
        else
            PROBLEM(im, "%s: %.200s, in %s, belongs to no part of the model that config.json describes",
                    im->source.dir, t->name, im->source.file_name[t->file]);
    }
    if (buffers)
        log_rank0(LOG_INFO, "ignored in %s: %d tensors ….rotary_emb.inv_freq, which follow from rope_theta",
                  im->source.dir, buffers);
    return OK;
}

static Status match_tensors(Import *im) {
    im->tensor = calloc((size_t)im->params.count, sizeof *im->tensor);
    REQUIRE(im->tensor, "out of memory: %d tensors", im->params.count);
    for (int i = 0; i < im->params.count; i++) match_weight(im, i);
    TRY(match_surplus(im));
    if (im->source.problems)
        FAIL(ERR_DATA, "%s: %d of its tensors do not fit; nothing was written", im->source.dir,
             im->source.problems);
    return OK;
}

// ---- equal copies of key/value heads (Arctic's first upload)

// Whether a head of a k or v matrix is bit by bit the one before it. buffer: room for two heads.
static Status equals_previous(const Import *im, int weight, int head, float *buffer, bool *equal) {
    const Param *p = &im->file_params.param[weight];
    int64_t n = im->file_config.head_dim * p->dim[1];
    HfPlace place;
    hf_place(&im->file_config, p, &place);
    TRY(hf_source_read(&im->source, im->tensor[weight], &place, p->dim[1], (head - 1) * n, 2 * n, buffer));
    *equal = !memcmp(buffer, buffer + n, (size_t)n * sizeof *buffer);
    return OK;
}

// differs[head]: the head is another than the one before it in k or v of the layer.
static Status compare_heads(const Import *im, int layer, float *buffer, bool *differs) {
    for (int k = 0; k < 2; k++) {
        char name[PARAM_NAME_BYTES];
        snprintf(name, sizeof name, "layers.%d.attn.%c", layer, "kv"[k]);
        int weight = params_find(&im->file_params, name);
        for (int head = 1; head < im->file_config.heads; head++) {
            bool equal = false;
            TRY(equals_previous(im, weight, head, buffer, &equal));
            differs[head] |= !equal;
            if (equal || !im->options->collapse_kv ||
                head % (im->file_config.heads / im->config.kv_heads) == 0)
                continue;
            FAIL(ERR_DATA,
                 "%s: %s: head %d is not equal to head %d, so its %d heads are not %d copied %d times; "
                 "import it "
                 "without --collapse-kv",
                 im->source.dir, im->tensor[weight]->name, head, head - 1, im->file_config.heads,
                 im->config.kv_heads, im->file_config.heads / im->config.kv_heads);
        }
    }
    return OK;
}

static void note_copies(const Import *im, const bool *differs) {
    int heads = im->file_config.heads;
    for (int kv = 1; kv < heads; kv++) {
        bool copies = heads % kv == 0;
        for (int head = 1; copies && head < heads; head++)
            copies = head % (heads / kv) == 0 || !differs[head];
        if (!copies) continue;
        log_rank0(
            LOG_INFO,
            "%s: the %d key/value heads of layer 0 are %d, copied %d times each: with --collapse-kv %d the "
            "checkpoint holds one of each and computes the same",
            im->source.dir, heads, kv, heads / kv, kv);
        return;
    }
}

static Status check_copies(const Import *im) {
    int heads = im->file_config.heads, collapse = im->options->collapse_kv;
    if (im->config.arch != ARCH_ARCTIC || im->file_config.kv_heads != heads) return OK;
    int64_t head = (int64_t)im->file_config.head_dim * im->file_config.hidden;
    float *buffer = malloc(2 * (size_t)head * sizeof *buffer);
    bool *differs = calloc((size_t)heads, sizeof *differs);
    REQUIRE(buffer && differs, "out of memory: %ld elements", (long)(2 * head));
    Status status = OK;
    for (int layer = 0; status == OK && layer < (collapse ? im->config.layers : 1); layer++) {
        status = watch_step(&im->options->watch, 0, im->total);
        if (status == OK) status = compare_heads(im, layer, buffer, differs);
    }
    if (status == OK && !collapse) note_copies(im, differs);
    free(buffer);
    free(differs);
    return status;
}

static Status collapse_config(Import *im) {
    int kv = im->options->collapse_kv, heads = im->file_config.heads;
    im->config = im->file_config;
    if (!kv) return OK;
    if (im->config.arch != ARCH_ARCTIC || im->file_config.kv_heads != heads)
        FAIL(ERR_CONFIG,
             "--collapse-kv %d is for Arctic's first upload, which has as many key/value heads as heads; %s "
             "is %s's, "
             "with %d for %d",
             kv, im->source.dir, arch_name(im->config.arch), im->file_config.kv_heads, heads);
    if (kv < 1 || heads % kv) FAIL(ERR_CONFIG, "--collapse-kv %d does not divide the %d heads", kv, heads);
    im->config.kv_heads = kv;
    return OK;
}

// ---- the checkpoint

// Elements [first, first + count) of a weight of the checkpoint.
static Status read_weight(const Import *im, int weight, int64_t first, int64_t count, float *out) {
    const Param *p = &im->params.param[weight], *whole = &im->file_params.param[weight];
    int64_t columns = p->dims == 2 ? p->dim[1] : 1, copies = whole->dim[0] / p->dim[0];
    HfPlace place;
    hf_place(&im->file_config, whole, &place);
    if (copies == 1)
        return hf_source_read(&im->source, im->tensor[weight], &place, columns, first, count, out);
    int64_t head = im->config.head_dim * columns; // the first of its copies
    for (int64_t done = 0, n; done < count; done += n) {
        int64_t number = (first + done) / head, within = (first + done) % head;
        n = head - within < count - done ? head - within : count - done;
        TRY(hf_source_read(&im->source, im->tensor[weight], &place, columns, number * copies * head + within,
                           n, out + done));
    }
    return OK;
}

// Once a weight is not finite the others are read only to name those that are not, either.
static Status copy_weight(Import *im, int weight) {
    const Param *p = &im->params.param[weight];
    int64_t size = param_size(p), not_finite = 0;
    for (int64_t done = 0, n; done < size; done += n) {
        float *to;
        TRY(watch_step(&im->options->watch, 4 * im->done, 4 * im->total));
        if (im->not_finite) part_clear(&im->writer.part);
        TRY(weights_writer_room(&im->writer, p, done, size - done, &to, &n));
        TRY(read_weight(im, weight, done, n, to));
        for (int64_t i = 0; i < n; i++) not_finite += !isfinite(to[i]);
        im->done += n;
    }
    if (!not_finite) return OK;
    const HfTensor *t = im->tensor[weight];
    log_rank0(LOG_ERROR, "%s/%s: %s: %ld of the %ld values of %s are NaN or infinite", im->source.dir,
              im->source.file_name[t->file], t->name, (long)not_finite, (long)size, p->name);
    im->not_finite++;
    return OK;
}

static json_t *make_record(const Import *im) {
    char *yaml = config_model_yaml(&im->config);
    json_t *record = json_pack("{s:i, s:i, s:s, s:s}", "step", 0, "tokens", 0, "config", yaml,
                               "imported_from", im->source.dir);
    free(yaml);
    return record;
}

static Status write_files(Import *im, const NewFolder *folder) {
    for (int i = 0; i < im->params.count; i++) TRY(copy_weight(im, i));
    if (im->not_finite)
        FAIL(ERR_DATA, "%s: %d of its weights are not finite; fetch its files again, or choose a sound model",
             im->source.dir, im->not_finite);
    TRY(watch_step(&im->options->watch, 4 * im->done, 4 * im->total));
    json_t *record = make_record(im);
    if (!record) FAIL(ERR_CONFIG, "%s: the path is not UTF-8", im->source.dir);
    Status status = weights_writer_commit(&im->writer, &im->params, record, folder->path);
    json_decref(record);
    return status;
}

static void print_ignored(const char *path, const json_t *ignored) {
    char *text = json_dumps(ignored, JSON_COMPACT);
    if (json_object_size(ignored)) log_rank0(LOG_INFO, "ignored in %s: %s", path, text);
    free(text);
}

static Status read_folder(Import *im, const char *hf_dir) {
    char path[FILE_PATH_BYTES];
    json_t *ignored;
    im->source.dir = hf_dir;
    snprintf(path, sizeof path, "%s/config.json", hf_dir);
    TRY(hf_config_read(&im->file_config, &ignored, path));
    print_ignored(path, ignored);
    json_decref(ignored);
    TRY(collapse_config(im));
    model_describe(&im->config, 0, im->config.experts, &im->params);
    model_describe(&im->file_config, 0, im->config.experts, &im->file_params);
    for (int i = 0; i < im->params.count; i++) im->total += param_size(&im->params.param[i]);
    TRY(hf_source_open(&im->source, hf_dir));
    TRY(match_tensors(im));
    return check_copies(im);
}

static Status import(Import *im, const char *hf_dir, const char *dir) {
    NewFolder folder;
    int exists;
    TRY(file_exists(dir, &exists));
    if (exists) FAIL(ERR_CONFIG, "%s: is there already; choose another -o", dir);
    TRY(read_folder(im, hf_dir));
    TRY(new_folder_begin(&folder, dir));
    im->writer = weights_writer_create(folder.tmp, im->options->part_bytes);
    Status status = write_files(im, &folder);
    return status == OK ? OK : new_folder_abandon(&folder, status);
}

Status hf_import(const char *hf_dir, const char *dir, const HfImportOptions *options,
                 HfImportReport *report) {
    Import im = {.options = options};
    Status status = import(&im, hf_dir, dir);
    *report = (HfImportReport){.tensors = im.params.count, .parameters = im.total, .bytes = im.writer.bytes};
    hf_source_close(&im.source);
    free(im.tensor);
    weights_writer_free(&im.writer);
    params_free(&im.params);
    params_free(&im.file_params);
    return status;
}
