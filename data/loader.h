// SPDX-License-Identifier: Apache-2.0
// Samples by number. Which tokens sample n of a run holds is a closed formula of (configuration, n): no index
// files, no state but n, the same on any number of ranks. See docs/formats.md for the formula.
#pragma once
#include "data/data_config.h"

typedef struct Loader Loader;
typedef struct {
    int stage, source;
    int64_t ordinal; // a number among the source's samples; each is used once, in order but for turns inside
                     // a block
    int64_t epoch;
    int64_t index; // of the sample in the source: tokens index·seq_len … index·seq_len + seq_len
} SampleOrigin;

// Opens the shards and plans the stages; reads no tokens. ERR_CONFIG / ERR_DATA name the source, file and
// remedy.
Status loader_create(Loader **out, const DataConfig *config);
void loader_destroy(Loader *loader);

SampleOrigin loader_origin(const Loader *loader,
                           int64_t sample); // beyond the last stage: the last stage goes on
// tokens (count, seq_len + 1) of samples first …; origin (count) or NULL. ERR_DATA names file, position and
// value of an id ≥ vocab.
Status loader_read(const Loader *loader, int64_t first, int64_t count, int32_t *tokens, SampleOrigin *origin);
// XOR over the samples of a hash of (sample number, source, index, tokens): combine ranks with XOR.
uint64_t loader_stream_hash(const Loader *loader, int64_t first, int64_t count, const int32_t *tokens);

int64_t loader_stage_first_sample(const Loader *loader,
                                  int stage);                   // floor(until of the stage before / seq_len)
int64_t loader_train_samples(const Loader *loader, int source); // per epoch
// Held-out sample i of a source, (seq_len + 1) tokens.
int64_t loader_eval_samples(const Loader *loader, int source);
Status loader_eval_read(const Loader *loader, int source, int64_t i, int32_t *tokens);

// What the plan is made of, as JSON text (owned by the caller): seed, seq_len, sources with their content
// size and held-out share, stages with their exact sample counts and quotas; and a digest of the part that
// decides samples 0 … samples − 1. Two loaders with equal digests give the same samples up to there.
char *loader_plan_json(const Loader *loader);
uint64_t loader_plan_digest(const Loader *loader, int64_t samples);
// ERR_CONFIG names the first difference between a plan as loader_plan_json gave it and this one's part that
// decides samples 0 … samples − 1. A stage counts from its first sample on with all of its settings, and so
// does a source that such a stage mixes in; names of shards do not count.
Status loader_plan_check(const Loader *loader, const char *plan_json, int64_t samples);

int loader_stages(const Loader *loader);
int loader_sources(const Loader *loader);
int loader_unchecked_shards(
    const Loader *loader); // shards without checksums: damage of their tokens is not seen
int64_t loader_seq_len(const Loader *loader);
const char *loader_source_name(const Loader *loader, int source); // borrowed
// Adds up the formula: count[stages][sources] of samples 0 … samples − 1.
void loader_count(const Loader *loader, int64_t samples, int64_t *count);
