// SPDX-License-Identifier: Apache-2.0
// A run from its first step here to its last: steps, evaluations, checkpoints, and what it says about them.
#pragma once
#include "train/evaluate.h"
#include "train/metrics.h"

typedef struct {
    const char *run_dir;
    const char *resolved_yaml, *version; // for the checkpoints' records
    Signals *signals;
    Metrics *metrics;
    int64_t saved_step;       // the one that the run's folder has already; -1: none
    double failed_at;         // UNIX time of the last step before the failure that went before; 0: none
    Evaluator *evaluator;     // NULL where nothing is held out
    CheckpointWriter *writer; // NULL: saves make the training wait
} LoopOptions;

// What the configuration says of saves; those along the way.
CheckpointOptions loop_checkpoint_options(const RunConfig *config);
CheckpointRules loop_checkpoint_rules(const RunConfig *config);

typedef struct {
    int64_t first_step, steps; // first: done before; steps: done here
    double seconds;
    double loss;      // of the last step here
    double best_eval; // NaN where there was no evaluation
    int64_t best_eval_step;
} LoopSummary;

// OK when the last step is done and saved, ERR_TEMPORARY when it was asked to stop and has saved,
// ERR_DIVERGED where the loss is no longer finite, or what went wrong. Collective over the world; the same
// status on every rank.
Status train_loop(TrainState *state, const LoopOptions *options, LoopSummary *out);
