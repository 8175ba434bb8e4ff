// SPDX-License-Identifier: Apache-2.0
// One run's settings, parsed, checked and resolved to plain numbers. The option table in run_options.c is the
// one place where keys, types, defaults and meanings stand.
#pragma once
#include "data/data_config.h"
#include "model/model.h"
#include "optim/schedule.h"
#include "optim/zero.h"
#include "train/guard.h"
#include <jansson.h>

typedef struct {
    ModelConfig model;
    struct {
        int ep, zero, chunks;
        bool overlap;
        Recompute recompute;
        double expert_rows;
    } parallel;
    struct {
        int64_t sequences, seq_len, micro;
        BatchPlan plan;
    } batch;
    AdamwConfig adamw;
    ScheduleConfig schedule;
    double clip;
    struct {
        int64_t steps, tokens; // both resolved: steps·batch tokens = tokens up to the last batch's rounding
        uint64_t seed;
        bool canary;
        const char *init_from; // NULL or a checkpoint
    } train;
    const char *tokenizer; // "bytes", "sentencepiece:FILE" or "hf:FILE"
    DataConfig data;       // sources, stages (until and ramp in tokens), holdout, seed, vocab, seq_len
    struct {
        int64_t every, keep; // steps; every 0 = only at the end
        int64_t keep_every, required_every;
        bool background;
        int64_t host_bytes;
        const char *compress; // "none" or "zlib"
    } checkpoint;
    struct {
        int64_t every, sequences;
    } eval;
    GuardConfig guard;
    double watchdog; // seconds without progress; 0: not watched
} RunConfig;

// Reads `preset:`, then the files left to right, then FLOE_SET ("a=1;b=2"), then overrides ("optim.lr=3e-4")
// in order; checks everything that can be checked without a launch and for `ranks` ranks (0: unknown). Every
// problem is printed to stderr as file:line:col: error: …; ERR_CONFIG then, *out NULL and nothing more to
// print. A file may also be the name of a preset. Strings and document live as long as the RunConfig;
// document may be NULL.
typedef struct ConfigDocument ConfigDocument; // the merged document, with the origin of each value
Status config_load(RunConfig **out, ConfigDocument **document, const char *const files[], int file_count,
                   const char *const overrides[], int override_count, int ranks);
// From a resolved document's text, as stored in run folders and checkpoints: data need not be there.
Status config_parse(RunConfig **out, ConfigDocument **document, const char *yaml, const char *name);
// Commands that read data call this: a configuration without sources is fine for others (data.sources is 0
// then). Prints.
Status config_need_data(const RunConfig *config, const ConfigDocument *document);
void config_free(RunConfig *config, ConfigDocument *document); // both
char *config_resolved_yaml(const ConfigDocument *document); // every key with its value; owned by the caller
// The `model:` part for a model that comes from elsewhere: every key of its shape and mathematics, without
// init_std, the router's losses and its capacity. Owned by the caller.
char *config_model_yaml(const ModelConfig *model);
char *config_show_yaml(const ConfigDocument *document,
                       bool origin);                 // origin: with "# file:line" after each value
json_t *config_json(const ConfigDocument *document); // the same; owned by the caller
// The keys as a table: "json", "markdown" or "text", those that start with prefix ("" = all).
char *config_keys(const char *prefix, const char *format);
