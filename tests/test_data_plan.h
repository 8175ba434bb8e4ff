// SPDX-License-Identifier: Apache-2.0
// A three-stage curriculum over three sources that every loader test can change.
#pragma once
#include "data/loader.h"
#include "test_data_fixture.h"

enum { PLAN_L = 8, PLAN_SOURCES = 3, PLAN_STAGES = 3, PLAN_VOCAB = 60000 };

typedef struct {
    DataConfig config;
    DataSource source[PLAN_SOURCES];
    DataStage stage[PLAN_STAGES];
    double weight[PLAN_STAGES][PLAN_SOURCES];
    const char *path[PLAN_SOURCES][2];
    char name[PLAN_SOURCES + 1][128];
} Plan;

// Samples of the sources: 601 (in two shards), 300, 100. Stages end at tokens 8003, 20005 and 32000: at
// samples 1000, 2500 and 4000. The second stage ramps over 4000 tokens.
static inline void plan_make(Plan *plan) {
    static const double weight[PLAN_STAGES][PLAN_SOURCES] = {
        {0.8, 0.15, 0.05}, {0.4, 0.5, 0.1}, {0.2, 0.3, 0.5}};
    static const int64_t until[PLAN_STAGES] = {8003, 20005, 32000}, ramp[PLAN_STAGES] = {0, 4000, 0};
    static const char *const label[PLAN_SOURCES] = {"prose", "code", "sql"};
    static const char *const file[PLAN_SOURCES + 1] = {"prose-0", "code", "sql", "prose-1"};
    memset(plan, 0, sizeof *plan);
    for (int i = 0; i < PLAN_SOURCES + 1; i++)
        snprintf(plan->name[i], sizeof plan->name[i], "%s/%s", test_folder, file[i]);
    make_shard(plan->name[0], 1000, PLAN_VOCAB, 0, 1);
    make_shard(plan->name[3], 3809, PLAN_VOCAB, 1000, 1);
    make_shard(plan->name[1], 2401, PLAN_VOCAB, 10000, 1);
    make_shard(plan->name[2], 808, PLAN_VOCAB, 20000, 1); // 7 tokens more than 100 samples
    memcpy(plan->weight, weight, sizeof weight);
    for (int i = 0; i < PLAN_SOURCES; i++) {
        plan->path[i][0] = plan->name[i];
        plan->source[i] = (DataSource){.name = label[i], .path = plan->path[i], .paths = 1};
    }
    plan->path[0][1] = plan->name[3];
    plan->source[0].paths = 2;
    for (int s = 0; s < PLAN_STAGES; s++) plan->stage[s] = (DataStage){until[s], plan->weight[s], ramp[s]};
    plan->config = (DataConfig){.source = plan->source,
                                .sources = PLAN_SOURCES,
                                .stage = plan->stage,
                                .stages = PLAN_STAGES,
                                .seq_len = PLAN_L,
                                .vocab = PLAN_VOCAB,
                                .holdout = 0.02,
                                .seed = 7};
}

static inline Loader *plan_open(const Plan *plan) {
    Loader *loader;
    Status status = loader_create(&loader, &plan->config);
    if (status != OK) fail_msg("%s", status_text());
    return loader;
}
