// SPDX-License-Identifier: Apache-2.0
// Loss on text that training does not see. Which sequences a rank computes together depends on their numbers
// alone, so the result is the same on any number of ranks up to the rounding of the model itself.
#pragma once
#include "train/signals.h"
#include "train/state.h"

// What to evaluate: sequences 0 … sequences[s] − 1 of each source s.
typedef struct {
    int sources;
    const char *const *name;
    const int64_t *sequences;
    void *context;
    Status (*read)(void *context, int source, int64_t i, int32_t *tokens); // (seq_len + 1)
    // NULL, or called on rank 0 with the log-probability of each next token, (sequences, seq_len), in order.
    Status (*take)(void *take_context, const float *logprobs, int64_t sequences);
    void *take_context;
} EvalTask;

typedef struct {
    int sources;
    double *loss; // [sources], mean over the source's targets
    double mean;  // over all targets
    double seconds;
    bool stopped; // signals asked to stop before the end: there is no result
} EvalResult;

typedef struct Evaluator Evaluator;
// A model that only runs forward, beside the state's own and on the same weights. sequences: of a micro-batch
// on each rank. Collective over the world.
Status evaluator_create(Evaluator **out, TrainState *state, int sequences, int seq_len);
void evaluator_destroy(Evaluator *evaluator);
int64_t evaluator_bytes(const Evaluator *evaluator);
// signals may be NULL. The result's arrays belong to the evaluator, until the next run. Collective over the
// world.
Status evaluator_run(Evaluator *evaluator, const EvalTask *task, Signals *signals, EvalResult *out);

// The held-out sequences of each source of the state's loader, `most` at most; sources without any are left
// out.
typedef struct {
    EvalTask task;
    const Loader *loader;
    int *source;        // numbers of the loader's sources
    const char **names; // and the lists that task points to
    int64_t *counts;
} HeldOut;
void held_out_create(HeldOut *out, const Loader *loader, const DataConfig *data, int64_t most);
void held_out_free(HeldOut *held_out);
