// SPDX-License-Identifier: Apache-2.0
// What the data room needs to know; all lengths in tokens.
#pragma once
#include "core/status.h"
#include <stdint.h>

typedef struct {
    const char *name;
    const char *
        *path; // prefixes of token shards, "data/prose" for data/prose.bin and data/prose.idx; globs expanded
    int paths;
    const char *valid; // NULL, or the prefix of a shard of its own for evaluation (then nothing is held out)
} DataSource;

typedef struct {
    int64_t until;        // tokens seen when the stage ends; increasing
    const double *weight; // [sources], ≥ 0, at least one > 0
    int64_t ramp; // tokens after the stage's start over which weights move from the stage before's to these
} DataStage;

typedef struct {
    const DataSource *source;
    int sources;
    const DataStage *stage;
    int stages;
    int64_t seq_len; // a sample has seq_len + 1 tokens, seq_len of which are targets
    int vocab;       // ids at or above it are an error when read
    double holdout;  // share of each source's samples, its tail, that training never sees
    uint64_t seed;
} DataConfig;

// How many sequences step t = 1, 2, … takes: `sequences`, but ramp[i].sequences while the run has seen fewer
// than ramp[i].until tokens. A step's size is decided at its first token.
typedef struct {
    int64_t until, sequences;
} BatchRamp;
typedef struct {
    int64_t sequences, seq_len;
    const BatchRamp *ramp;
    int ramps;
} BatchPlan;
int64_t batch_first_sample(const BatchPlan *plan,
                           int64_t step); // samples consumed before step t; closed form
int64_t batch_sequences(const BatchPlan *plan, int64_t step);
int64_t batch_steps_for(const BatchPlan *plan,
                        int64_t tokens); // least steps that see at least so many tokens
