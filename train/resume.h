// SPDX-License-Identifier: Apache-2.0
// Where a run starts from: nothing, its own checkpoints, another run's state, or another model's weights.
#pragma once
#include "train/run_dir.h"
#include "train/state.h"

typedef enum { RESUME_AUTO, RESUME_NEVER, RESUME_STEP } ResumeMode;
typedef struct {
    ResumeMode mode;
    int64_t step;                  // of RESUME_STEP: the state after that step
    char fork_run[RUN_PATH_BYTES]; // or a checkpoint's folder; "": no fork
    int64_t fork_step;             // −1: the newest
} StartRequest;

// resume: NULL, auto, never or a step; fork: NULL, RUN, RUN@STEP or a checkpoint's folder. ERR_CONFIG
// explains.
Status start_request_parse(StartRequest *out, const char *resume, const char *fork);
// What can be refused before any rank starts. Not collective.
Status start_request_check(const StartRequest *request, const char *run_dir);

typedef struct {
    char from[RUN_PATH_BYTES]; // the checkpoint; "" where the run is fresh
    enum { START_FRESH, START_RESUMED, START_FORKED, START_WEIGHTS } kind;
    int saved_world, saved_ep, saved_zero;
    CheckpointRead read;
    json_t *quarantined; // on rank 0: an array of what checkpoint_find_newest says of damaged ones; owned by
                         // the caller
} Start;

// Fills weights, optimizer, data position and ledger. Collective over the world; the same status on every
// rank.
Status start_state(TrainState *state, const StartRequest *request, const char *run_dir, Start *out);

// Weights and optimizer go back to the newest checkpoint that loads and is finite, while step, data position
// and ledger stay: the steps between are passed over. ERR_DIVERGED where there is no such checkpoint.
// *quarantined: as in Start. Collective over the world; the same status on every rank.
Status resume_roll_back(TrainState *state, const char *run_dir, int64_t *back_to, json_t **quarantined);

// The facts that a checkpoint of the state keeps. Owned by the caller.
json_t *start_record(const TrainState *state, const char *resolved_yaml, const char *version);

// SPEC is a checkpoint's folder, a run (its newest checkpoint) or RUN@STEP.
Status checkpoint_path_resolve(const char *spec, char *dir, size_t size);
