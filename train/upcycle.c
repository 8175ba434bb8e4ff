// SPDX-License-Identifier: Apache-2.0
#include "train/upcycle.h"
#include "core/rng.h"
#include "core/yaml.h"
#include "train/checkpoint_weights.h"
#include "train/resume.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { PIECE = 1 << 18 }; // elements at a time
static const float router_std = 0.02f;

typedef struct {
    const UpcycleOptions *options;
    char dir[FILE_PATH_BYTES]; // the dense checkpoint
    RunConfig *dense, *config; // of it, and of the new one
    ConfigDocument *dense_document, *document;
    CheckpointReader *reader;
    ParamTable params; // the new ones
    double *deviation; // [layers · 3] of the dense FFN's tensors; −1: not known yet
    float *piece;
    char *yaml; // the new record's configuration
    int64_t total, done;
} Upcycle;

// ---- the new configuration

// The map without some of its keys.
static YamlNode *copy_without(const YamlNode *map, const char *const keys[], int count) {
    YamlNode *copy = yaml_map(map->place);
    for (int i = 0; i < map->count; i++) {
        bool left_out = false;
        for (int k = 0; k < count; k++) left_out |= !strcmp(map->child[i]->key, keys[k]);
        if (!left_out) yaml_put(copy, map->child[i]->key, map->child[i]->key_place, yaml_copy(map->child[i]));
    }
    return copy;
}

static void put_number(YamlNode *map, const char *key, int64_t value) {
    char text[32];
    snprintf(text, sizeof text, "%ld", (long)value);
    yaml_put(map, key, map->place, yaml_scalar(text, false, map->place));
}

// The dense model's with experts: mixtral's routing, and the dense width for experts.
static YamlNode *new_model(const Upcycle *u, const YamlNode *model) {
    static const char *const router_keys[] = {"moe_input", "router"};
    int width = u->dense->model.dense_ffn;
    YamlNode *copy = copy_without(model, router_keys, 2);
    yaml_put(copy, "arch", copy->place, yaml_scalar("mixtral", false, copy->place));
    put_number(copy, "dense_ffn", u->options->dense_residual ? width : 0);
    put_number(copy, "experts", u->options->experts);
    put_number(copy, "top_k", u->options->top_k);
    put_number(copy, "expert_ffn", width);
    put_number(copy, "moe_every", 1);
    return copy;
}

static Status make_config(Upcycle *u, const char *text) {
    YamlNode *root = NULL;
    TRY(yaml_parse(&root, text, strlen(text), u->dir));
    YamlNode *model = yaml_child(root, "model");
    if (!model || model->kind != YAML_MAP) {
        yaml_free(root);
        FAIL(ERR_DATA, "%s/MANIFEST.json: its configuration has no model", u->dir);
    }
    yaml_put(root, "model", root->place, new_model(u, model));
    Status status = yaml_set(root, "parallel.ep", root->place, yaml_scalar("1", false, root->place));
    u->yaml = status == OK ? yaml_emit(root, false) : NULL;
    yaml_free(root);
    TRY(status);
    return config_parse(&u->config, &u->document, u->yaml, u->dir);
}

// What the dense model has and mixtral by itself has not must have been stated, or it would be lost.
static Status check_same(const Upcycle *u) {
    const ModelConfig *a = &u->dense->model, *b = &u->config->model;
    if (a->norm == b->norm && a->sandwich_norms == b->sandwich_norms && a->activation == b->activation &&
        a->clip_qkv == b->clip_qkv && a->attn_softcap == b->attn_softcap && a->attn_scale == b->attn_scale &&
        a->embed_scale == b->embed_scale && a->output_scale == b->output_scale)
        return OK;
    FAIL(ERR_CONFIG, "%s: model.arch %s has choices of its own; upcycle a dense model of model.arch llama",
         u->dir, arch_name(a->arch));
}

static Status read_record(Upcycle *u, const json_t *manifest) {
    const char *text = json_string_value(json_object_get(json_object_get(manifest, "record"), "config"));
    if (!text) FAIL(ERR_DATA, "%s/MANIFEST.json has no configuration", u->dir);
    TRY(config_parse(&u->dense, &u->dense_document, text, u->dir));
    if (u->dense->model.experts)
        FAIL(ERR_CONFIG, "%s: has %d experts already; upcycling starts from a dense model", u->dir,
             u->dense->model.experts);
    TRY(make_config(u, text));
    return check_same(u);
}

// ---- weights

// "layers.3.experts.7.up" comes from "layers.3.dense.up"; "" for a router.
static void source_name(const char *name, char *out, size_t size, int *layer, const char **matrix) {
    int rest = 0, after = 0, expert;
    *matrix = NULL;
    snprintf(out, size, "%s", name);
    if (sscanf(name, "layers.%d.%n", layer, &rest) != 1 || !rest) return;
    if (sscanf(name + rest, "experts.%d.%n", &expert, &after) == 1 && after) {
        *matrix = name + rest + after;
        snprintf(out, size, "layers.%d.dense.%s", *layer, *matrix);
    } else if (!strcmp(name + rest, "moe_norm"))
        snprintf(out, size, "layers.%d.dense_norm", *layer);
    else if (!strcmp(name + rest, "router"))
        out[0] = 0;
}

static Status find_source(const Upcycle *u, const char *name, const Param *p, int *index) {
    for (*index = 0; *index < checkpoint_reader_tensors(u->reader); ++*index) {
        CheckpointTensor t = checkpoint_reader_tensor(u->reader, *index);
        if (strcmp(t.name, name)) continue;
        if (t.dims == p->dims && t.dim[0] == p->dim[0] && (t.dims < 2 || t.dim[1] == p->dim[1])) return OK;
        FAIL(ERR_DATA, "%s: tensor %s has another shape than its configuration needs", u->dir, name);
    }
    FAIL(ERR_DATA, "%s: has no tensor %s, which its configuration needs", u->dir, name);
}

static Status find_deviation(Upcycle *u, int source, int64_t size, double *deviation) {
    double sum = 0, squares = 0;
    if (*deviation >= 0) return OK;
    for (int64_t at = 0; at < size; at += PIECE) {
        int64_t n = size - at < PIECE ? size - at : PIECE;
        TRY(checkpoint_reader_read(u->reader, source, STATE_MASTER, at, n, u->piece));
        for (int64_t i = 0; i < n; i++) {
            sum += u->piece[i];
            squares += (double)u->piece[i] * u->piece[i];
        }
    }
    double variance = squares / (double)size - sum / (double)size * (sum / (double)size);
    *deviation = variance > 0 ? sqrt(variance) : 0;
    return OK;
}

typedef struct {
    int source;       // in the dense checkpoint; −1: a router
    bool zero;        // all values are 0
    double deviation; // of the noise
} Origin;

static Status find_origin(Upcycle *u, const Param *p, Origin *out) {
    char name[PARAM_NAME_BYTES];
    const char *matrix;
    int layer = 0;
    source_name(p->name, name, sizeof name, &layer, &matrix);
    *out = (Origin){.source = -1};
    if (!name[0]) return OK;
    TRY(find_source(u, name, p, &out->source));
    if (!matrix) return OK;
    out->zero = u->options->dense_residual && !strcmp(matrix, "down");
    if (out->zero || u->options->noise == 0) return OK;
    int which = !strcmp(matrix, "gate") ? 0 : !strcmp(matrix, "up") ? 1 : 2;
    double *deviation = &u->deviation[3 * layer + which];
    TRY(find_deviation(u, out->source, param_size(p), deviation));
    out->deviation = u->options->noise * *deviation;
    return OK;
}

static Status fill(Upcycle *u, const Param *p, const Origin *o, int64_t first, int64_t count, float *out) {
    uint64_t seed = u->config->train.seed;
    Param router = *p;
    router.init_std = router_std;
    if (o->zero) {
        memset(out, 0, (size_t)count * sizeof *out);
        return OK;
    }
    if (o->source < 0) {
        for (int64_t i = 0; i < count; i++) out[i] = param_initial(&router, seed, first + i);
        return OK;
    }
    TRY(checkpoint_reader_read(u->reader, o->source, STATE_MASTER, first, count, out));
    if (o->deviation == 0) return OK;
    uint64_t stream = hash_mix(hash_text("upcycle"), hash_text(p->name));
    for (int64_t i = 0; i < count; i++)
        out[i] += (float)o->deviation * rng_normal(seed, stream, (uint64_t)(first + i));
    return OK;
}

static Status write_weight(Upcycle *u, const Param *p, WeightsWriter *w) {
    Origin origin;
    int64_t size = param_size(p);
    TRY(find_origin(u, p, &origin));
    for (int64_t at = 0, n; at < size; at += n) {
        float *room;
        TRY(watch_step(&u->options->watch, 4 * u->done, 4 * u->total));
        TRY(weights_writer_room(w, p, at, size - at < PIECE ? size - at : PIECE, &room, &n));
        TRY(fill(u, p, &origin, at, n, room));
        u->done += n;
    }
    return OK;
}

static Status write_all(Upcycle *u, const NewFolder *folder, WeightsWriter *w) {
    for (int i = 0; i < u->params.count; i++) TRY(write_weight(u, &u->params.param[i], w));
    TRY(watch_step(&u->options->watch, 1, 1));
    json_t *record =
        json_pack("{s:i, s:i, s:s, s:s}", "step", 0, "tokens", 0, "config", u->yaml, "upcycled_from", u->dir);
    if (!record) FAIL(ERR_CONFIG, "%s: the path is not UTF-8", u->dir);
    Status status = weights_writer_commit(w, &u->params, record, folder->path);
    json_decref(record);
    return status;
}

static Status write_folder(Upcycle *u, const char *dir, int64_t *bytes) {
    NewFolder folder;
    TRY(new_folder_begin(&folder, dir));
    WeightsWriter writer = weights_writer_create(folder.tmp, 0);
    Status status = write_all(u, &folder, &writer);
    *bytes = writer.bytes;
    weights_writer_free(&writer);
    return status == OK ? OK : new_folder_abandon(&folder, status);
}

static Status run(Upcycle *u, const char *spec, const char *dir, int64_t *bytes) {
    json_t *manifest;
    TRY(checkpoint_path_resolve(spec, u->dir, sizeof u->dir));
    TRY(checkpoint_manifest(u->dir, &manifest));
    Status status = read_record(u, manifest);
    json_decref(manifest);
    TRY(status);
    TRY(checkpoint_reader_open(&u->reader, u->dir));
    int layers = u->config->model.layers;
    model_describe(&u->config->model, 0, u->config->model.experts, &u->params);
    for (int i = 0; i < u->params.count; i++) u->total += param_size(&u->params.param[i]);
    u->deviation = malloc(3 * (size_t)layers * sizeof *u->deviation);
    u->piece = malloc(PIECE * sizeof *u->piece);
    REQUIRE(u->deviation && u->piece, "out of memory: %d values", PIECE);
    for (int i = 0; i < 3 * layers; i++) u->deviation[i] = -1;
    return write_folder(u, dir, bytes);
}

Status upcycle(const char *spec, const char *dir, const UpcycleOptions *options, UpcycleReport *report) {
    Upcycle u = {.options = options};
    int64_t bytes = 0;
    Status status = run(&u, spec, dir, &bytes);
    *report = (UpcycleReport){.tensors = u.params.count, .parameters = u.total, .bytes = bytes};
    checkpoint_reader_close(u.reader);
    config_free(u.dense, u.dense_document);
    config_free(u.config, u.document);
    params_free(&u.params);
    free(u.deviation);
    free(u.piece);
    free(u.yaml);
    return status;
}
