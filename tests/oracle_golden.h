// SPDX-License-Identifier: Apache-2.0
// Reading tests/golden: cases with their settings, arrays, and weights under their Hugging Face names.
#pragma once
#include "core/npy.h"
#include "core/safetensors.h"
#include "train/hf_config.h"
#include "train/hf_source.h"
#include <stdio.h>
#include <string.h>

#define GOLDEN TESTS_DIR "/golden/"

// Ends all ranks where the failure text says so: a golden file that cannot be read is a broken checkout.
#define MUST(call) REQUIRE((call) == OK, "%s", status_text())

static inline json_t *golden_get(const json_t *object, const char *key) {
    json_t *value = json_object_get(object, key);
    REQUIRE(value, "tests/golden/cases.json: a case has no %s", key);
    return value;
}

static inline double golden_number(const json_t *object, const char *key) {
    return json_number_value(golden_get(object, key));
}

static inline const char *golden_text(const json_t *object, const char *key) {
    return json_string_value(golden_get(object, key));
}

// Index of a text among count words.
static inline int golden_word(const json_t *object, const char *key, const char *const words[], int count) {
    const char *text = golden_text(object, key);
    for (int i = 0; i < count; i++)
        if (!strcmp(words[i], text)) return i;
    DIE("tests/golden/cases.json: %s is %s", key, text);
}

static inline NpyArray golden_array(const char *name, const char *descr) {
    char path[1024];
    NpyArray array;
    snprintf(path, sizeof path, GOLDEN "%s", name);
    MUST(npy_read(&array, path));
    REQUIRE(!strcmp(array.descr, descr), "%s holds %s, not %s", path, array.descr, descr);
    return array;
}

static inline Safetensors *golden_tensors(const char *name) {
    char path[1024];
    Safetensors *file;
    snprintf(path, sizeof path, GOLDEN "%s", name);
    MUST(safetensors_open(&file, path));
    return file;
}

// Elements [first, first + count) of a weight, from where it stands in the file.
static inline void golden_read(Safetensors *file, const ModelConfig *config, const Param *param,
                               int64_t first, int64_t count, float *out) {
    HfPlace place;
    hf_place(config, param, &place);
    for (int i = 0; i < safetensors_count(file); i++) {
        const SafeTensor *tensor = safetensors_tensor(file, i);
        if (strcmp(tensor->name, place.tensor)) continue;
        for (int d = 0; d < place.dims; d++)
            REQUIRE(tensor->dims == place.dims && tensor->dim[d] == place.dim[d], "%s has another shape",
                    place.tensor);
        HfSource source = {.dir = GOLDEN, .file = &file, .files = 1};
        HfTensor found = {.name = tensor->name, .file = 0, .index = i};
        MUST(
            hf_source_read(&source, &found, &place, param->dims == 2 ? param->dim[1] : 1, first, count, out));
        return;
    }
    DIE("tests/golden has no %s", place.tensor);
}

// A weight's name in cases.json: the tensor's, with the first row where it is a part of the tensor.
static inline void golden_name(const HfPlace *place, const Param *param, char *out, size_t size) {
    int64_t elements = place->dim[0] * (place->dims == 2 ? place->dim[1] : 1);
    if (elements == param_size(param))
        snprintf(out, size, "%s", place->tensor);
    else
        snprintf(out, size, "%s@%lld", place->tensor, (long long)place->first_row);
}

static inline RouterConfig golden_router(const json_t *router) {
    static const char *const policies[] = {"position", "probs"};
    static const char *const kinds[] = {"switch", "megablocks", "hf", "arctic", "deepspeed"};
    static const char *const scopes[] = {"sequence", "micro_batch", "global_batch"};
    return (RouterConfig){.capacity_factor = golden_number(router, "capacity_factor"),
                          .min_capacity = (int)golden_number(router, "min_capacity"),
                          .drop_policy = (DropPolicy)golden_word(router, "drop_policy", policies, 2),
                          .aux_kind = (BalanceKind)golden_word(router, "aux_kind", kinds, 5),
                          .aux_scope = (BalanceScope)golden_word(router, "aux_scope", scopes, 3),
                          .aux_coef = golden_number(router, "aux_coef"),
                          .z_coef = golden_number(router, "z_coef"),
                          .bias_rate = json_number_value(json_object_get(router, "bias_rate"))};
}

static inline ModelConfig golden_model(const json_t *item) {
    char path[1024];
    ModelConfig config;
    json_t *ignored;
    snprintf(path, sizeof path, GOLDEN "%s/config.json", golden_text(item, "model"));
    MUST(hf_config_read(&config, &ignored, path));
    json_decref(ignored);
    RouterConfig router = golden_router(golden_get(item, "router"));
    router.scores = config.router.scores;
    router.normalize = config.router.normalize;
    config.router = router;
    return config;
}

static inline Safetensors *golden_weights(const json_t *item) {
    char name[256];
    snprintf(name, sizeof name, "%s/model.safetensors", golden_text(item, "model"));
    return golden_tensors(name);
}
