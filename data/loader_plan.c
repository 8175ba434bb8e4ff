// SPDX-License-Identifier: Apache-2.0
#include "core/rng.h"
#include "data/loader_internal.h"
#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

// Ramps are cut at token counts, so such a stage depends on the token at which it starts; 0 for other stages.
static int64_t ramp_start(const Loader *loader, int stage) {
    return loader->ramp[stage] > 0 ? loader->until[stage - 1] : 0;
}

static const int64_t *stage_weights(const Loader *loader, int stage) {
    return loader->curriculum.weight + stage * loader->sources;
}

// Stages that have begun by sample `samples`; what follows the last one counts as part of it.
static int stages_begun(const Loader *loader, int64_t samples) {
    int begun = 0;
    while (begun < loader->curriculum.stages && loader->curriculum.stage_first[begun] < samples) begun++;
    return begun;
}

uint64_t loader_plan_digest(const Loader *loader, int64_t samples) {
    const int64_t *first = loader->curriculum.stage_first;
    uint64_t hash = hash_mix(hash_text(PLAN_ALGORITHM), loader->seed);
    hash = hash_mix(hash, (uint64_t)loader->seq_len);
    for (int s = 0; s < stages_begun(loader, samples); s++) {
        hash = hash_mix(hash_mix(hash, (uint64_t)first[s]), (uint64_t)first[s + 1]);
        hash = hash_mix(hash_mix(hash, (uint64_t)loader->ramp[s]), (uint64_t)ramp_start(loader, s));
        for (int i = 0; i < loader->sources; i++) {
            const LoaderSource *source = &loader->source[i];
            int64_t weight = stage_weights(loader, s)[i];
            if (weight == 0) continue;
            hash = hash_mix(hash_mix(hash, source->uid), (uint64_t)weight);
            hash = hash_mix(hash_mix(hash, corpus_identity(source->corpus)), (uint64_t)source->trained);
        }
    }
    return hash;
}

static json_t *checked(json_t *json) {
    REQUIRE(json, "out of memory for the plan");
    return json;
}

static json_t *source_json(const Loader *loader, int i) {
    const LoaderSource *source = &loader->source[i];
    char identity[20];
    snprintf(identity, sizeof identity, "%016" PRIx64, corpus_identity(source->corpus));
    return checked(json_pack("{s:s, s:I, s:s, s:I, s:I, s:I}", "name", source->name, "tokens",
                             (json_int_t)corpus_tokens(source->corpus), "content", identity, "samples",
                             (json_int_t)source->samples, "trained", (json_int_t)source->trained, "eval",
                             (json_int_t)loader_eval_samples(loader, i)));
}

static json_t *stage_json(const Loader *loader, int s, const int64_t *quota) {
    json_t *mix = checked(json_array());
    for (int i = 0; i < loader->sources; i++)
        if (stage_weights(loader, s)[i] > 0)
            json_array_append_new(mix, checked(json_pack("{s:s, s:I, s:I}", "source", loader->source[i].name,
                                                         "weight", (json_int_t)stage_weights(loader, s)[i],
                                                         "samples", (json_int_t)quota[i])));
    const int64_t *first = loader->curriculum.stage_first;
    return checked(json_pack("{s:i, s:I, s:I, s:I, s:I, s:I, s:o}", "stage", s + 1, "until",
                             (json_int_t)loader->until[s], "ramp", (json_int_t)loader->ramp[s], "ramp_start",
                             (json_int_t)ramp_start(loader, s), "first_sample", (json_int_t)first[s],
                             "samples", (json_int_t)(first[s + 1] - first[s]), "mix", mix));
}

static json_t *plan_json(const Loader *loader) {
    int stages = loader->curriculum.stages;
    int64_t *quota = calloc((size_t)stages * (size_t)loader->sources, sizeof *quota);
    REQUIRE(quota, "out of memory");
    loader_count(loader, loader_stage_first_sample(loader, stages), quota);
    json_t *source_list = checked(json_array()), *stage_list = checked(json_array());
    for (int i = 0; i < loader->sources; i++) json_array_append_new(source_list, source_json(loader, i));
    for (int s = 0; s < stages; s++)
        json_array_append_new(stage_list, stage_json(loader, s, quota + s * loader->sources));
    free(quota);
    return checked(json_pack("{s:s, s:I, s:I, s:o, s:o}", "algorithm", PLAN_ALGORITHM, "seed",
                             (json_int_t)loader->seed, "seq_len", (json_int_t)loader->seq_len, "sources",
                             source_list, "stages", stage_list));
}

char *loader_plan_json(const Loader *loader) {
    json_t *plan = plan_json(loader);
    char *text = json_dumps(plan, JSON_COMPACT);
    json_decref(plan);
    REQUIRE(text, "out of memory for the plan");
    return text;
}

typedef struct {
    const json_t *old, *now;
    int64_t samples;
} Comparison;

static Status differs(const Comparison *plans, const char *what, const json_t *old, const json_t *now) {
    char *was = json_dumps(old, JSON_ENCODE_ANY | JSON_COMPACT),
         *is = json_dumps(now, JSON_ENCODE_ANY | JSON_COMPACT);
    Status status = status_fail(ERR_CONFIG, __FILE__, __LINE__,
                                "the data plan of the %lld samples already trained on has changed: %s was "
                                "%.200s and is %.200s; put it back "
                                "(stages that have not begun may change)",
                                (long long)plans->samples, what, was ? was : "absent", is ? is : "absent");
    free(was);
    free(is);
    return status;
}

static Status same_fields(const Comparison *plans, const char *where, const json_t *old, const json_t *now,
                          const char *const fields[]) {
    for (; *fields; fields++) {
        const json_t *a = json_object_get(old, *fields), *b = json_object_get(now, *fields);
        char what[256];
        snprintf(what, sizeof what, "%s%s", where, *fields);
        if (!a || !json_equal(a, b)) return differs(plans, what, a, b);
    }
    return OK;
}

static const json_t *source_named(const json_t *plan, const char *name) {
    size_t i;
    json_t *source;
    json_array_foreach(json_object_get(plan, "sources"), i, source) {
        const char *own = json_string_value(json_object_get(source, "name"));
        if (own && name && strcmp(own, name) == 0) return source;
    }
    return NULL;
}

static Status same_source(const Comparison *plans, const char *name) {
    char where[160];
    snprintf(where, sizeof where, "source %.100s: ", name);
    return same_fields(plans, where, source_named(plans->old, name), source_named(plans->now, name),
                       (const char *const[]){"tokens", "content", "samples", "trained", NULL});
}

static Status same_stage(const Comparison *plans, const json_t *old, const json_t *now) {
    char where[64];
    snprintf(where, sizeof where,
             "curriculum stage %d: ", (int)json_integer_value(json_object_get(now, "stage")));
    TRY(same_fields(plans, where, old, now,
                    (const char *const[]){"first_sample", "samples", "ramp", "ramp_start", "mix", NULL}));
    size_t i;
    json_t *part;
    json_array_foreach(json_object_get(now, "mix"), i, part)
        TRY(same_source(plans, json_string_value(json_object_get(part, "source"))));
    return OK;
}

static size_t begun(const json_t *stages, int64_t samples) {
    size_t count = 0;
    while (count < json_array_size(stages) &&
           json_integer_value(json_object_get(json_array_get(stages, count), "first_sample")) < samples)
        count++;
    return count;
}

static Status compare(const Comparison *plans) {
    TRY(same_fields(plans, "", plans->old, plans->now,
                    (const char *const[]){"algorithm", "seed", "seq_len", NULL}));
    const json_t *old = json_object_get(plans->old, "stages"), *now = json_object_get(plans->now, "stages");
    size_t old_begun = begun(old, plans->samples), now_begun = begun(now, plans->samples);
    for (size_t s = 0; s < old_begun && s < now_begun; s++)
        TRY(same_stage(plans, json_array_get(old, s), json_array_get(now, s)));
    if (old_begun == now_begun) return OK;
    json_t *a = json_integer((json_int_t)old_begun), *b = json_integer((json_int_t)now_begun);
    Status status = differs(plans, "the number of stages begun", a, b);
    json_decref(a);
    json_decref(b);
    return status;
}

Status loader_plan_check(const Loader *loader, const char *text, int64_t samples) {
    json_error_t error;
    json_t *old = json_loads(text, 0, &error);
    if (!old)
        FAIL(ERR_DATA, "the data plan stored with the checkpoint is not JSON: %s; verify the checkpoint",
             error.text);
    json_t *now = plan_json(loader);
    Status status = compare(&(Comparison){old, now, samples});
    json_decref(old);
    json_decref(now);
    return status;
}
