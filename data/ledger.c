// SPDX-License-Identifier: Apache-2.0
#include "data/ledger.h"
#include "core/log.h"
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

Ledger ledger_create(const Loader *loader) {
    Ledger ledger = {loader_stages(loader), loader_sources(loader), NULL};
    ledger.samples = calloc((size_t)ledger.stages * (size_t)ledger.sources, sizeof *ledger.samples);
    REQUIRE(ledger.samples, "out of memory for the ledger");
    return ledger;
}

void ledger_free(Ledger *ledger) {
    free(ledger->samples);
    *ledger = (Ledger){0};
}

void ledger_count(Ledger *ledger, const Loader *loader, int64_t first_sample, int64_t count) {
    for (int64_t n = first_sample; n < first_sample + count; n++) {
        SampleOrigin origin = loader_origin(loader, n);
        ledger->samples[origin.stage * ledger->sources + origin.source]++;
    }
}

Ledger ledger_expected(const Loader *loader, int64_t samples) {
    Ledger ledger = ledger_create(loader);
    loader_count(loader, samples, ledger.samples);
    return ledger;
}

Status ledger_check(const Ledger *ledger, const Loader *loader, int64_t samples) {
    Ledger expected = ledger_expected(loader, samples);
    Status status = OK;
    for (int i = 0; i < expected.stages * expected.sources && status == OK; i++)
        if (ledger->samples[i] != expected.samples[i])
            status = status_fail(
                ERR_DATA, __FILE__, __LINE__,
                "the ledger says that stage %d took %lld samples of source %s, the plan of the first "
                "%lld samples says %lld: the checkpoint and the configuration are not of one run",
                i / expected.sources + 1, (long long)ledger->samples[i],
                loader_source_name(loader, i % expected.sources), (long long)samples,
                (long long)expected.samples[i]);
    ledger_free(&expected);
    return status;
}

static json_t *stage_json(const Ledger *ledger, const Loader *loader, int s) {
    json_t *tokens = json_object(), *epochs = json_object();
    for (int i = 0; i < ledger->sources; i++) {
        int64_t samples = ledger->samples[s * ledger->sources + i];
        const char *name = loader_source_name(loader, i);
        json_object_set_new(tokens, name, json_integer((json_int_t)(samples * loader_seq_len(loader))));
        json_object_set_new(epochs, name,
                            json_real((double)samples / (double)loader_train_samples(loader, i)));
    }
    return json_pack("{s:i, s:o, s:o}", "stage", s + 1, "tokens", tokens, "epochs", epochs);
}

char *ledger_json(const Ledger *ledger, const Loader *loader) {
    json_t *stages = json_array();
    for (int s = 0; s < ledger->stages; s++) json_array_append_new(stages, stage_json(ledger, loader, s));
    json_t *all = json_pack("{s:o}", "stages", stages);
    char *text = all ? json_dumps(all, JSON_COMPACT) : NULL;
    REQUIRE(text, "out of memory for the ledger");
    json_decref(all);
    return text;
}

static int source_named(const Loader *loader, const char *name) {
    for (int i = 0; i < loader_sources(loader); i++)
        if (strcmp(loader_source_name(loader, i), name) == 0) return i;
    return -1;
}

// Tokens of one stage. A stage or source that the plan no longer knows may stand there as long as it counts
// none.
static Status parse_stage(Ledger *ledger, const Loader *loader, const json_t *record) {
    int64_t stage = json_integer_value(json_object_get(record, "stage")), L = loader_seq_len(loader);
    json_t *tokens = json_object_get(record, "tokens"), *value;
    const char *name;
    if (!json_is_object(tokens))
        FAIL(ERR_DATA, "the stored ledger has a stage without tokens; verify the checkpoint");
    json_object_foreach(tokens, name, value) {
        int64_t count = json_integer_value(value);
        int source = source_named(loader, name);
        if (!json_is_integer(value) || count < 0 || count % L != 0)
            FAIL(ERR_DATA,
                 "the stored ledger has a bad count of source %s in stage %lld; verify the checkpoint", name,
                 (long long)stage);
        if (count == 0) continue;
        if (stage < 1 || stage > ledger->stages || source < 0)
            FAIL(ERR_CONFIG,
                 "the stored ledger counts %lld tokens of source %s in stage %lld, which the configuration "
                 "does not "
                 "have; put the stage and the source back",
                 (long long)count, name, (long long)stage);
        ledger->samples[(stage - 1) * ledger->sources + source] = count / L;
    }
    return OK;
}

Status ledger_parse(Ledger *ledger, const Loader *loader, const char *text) {
    json_error_t error;
    json_t *all = json_loads(text, 0, &error), *record;
    if (!all) FAIL(ERR_DATA, "the stored ledger is not JSON: %s; verify the checkpoint", error.text);
    memset(ledger->samples, 0, (size_t)ledger->stages * (size_t)ledger->sources * sizeof *ledger->samples);
    Status status = OK;
    size_t i;
    json_array_foreach(json_object_get(all, "stages"), i, record) {
        status = parse_stage(ledger, loader, record);
        if (status != OK) break;
    }
    json_decref(all);
    return status;
}

void ledger_print(const Ledger *ledger, const Loader *loader) {
    log_rank0(LOG_INFO, "%-6s %-20s %16s %16s %10s", "stage", "source", "samples", "tokens", "epochs");
    for (int i = 0; i < ledger->stages * ledger->sources; i++) {
        int64_t samples = ledger->samples[i];
        int source = i % ledger->sources;
        if (samples == 0) continue;
        log_rank0(LOG_INFO, "%-6d %-20s %16lld %16lld %10.4f", i / ledger->sources + 1,
                  loader_source_name(loader, source), (long long)samples,
                  (long long)(samples * loader_seq_len(loader)),
                  (double)samples / (double)loader_train_samples(loader, source));
    }
}
