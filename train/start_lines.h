// SPDX-License-Identifier: Apache-2.0
// What a run says of itself before its first step, and how much memory it plans and takes.
#pragma once
#include "train/resume.h"

typedef struct {
    const char *version, *config_name, *run_dir;
} RunNames;

// "floe …", machine, mpi, model, data, batch. Rank 0 prints. Collective over the world.
void start_lines_print(const TrainState *state, const RunNames *names);
void start_lines_resume(const TrainState *state, const Start *start);

// {"weights": …, …, "total": …}: the most that any rank plans, by purpose; of the evaluation model and of
// checkpoints' copies as given. Owned by the caller. Collective over the world.
json_t *memory_plan(const TrainState *state, int64_t evaluation, int64_t checkpoints);
void memory_plan_print(const json_t *plan);
// Private memory of this process, in bytes: what it holds now.
int64_t memory_held(void);
// {"held": …, "peak_resident": …}: the most of any rank; held: grown since `before`. Owned by the caller.
// Collective.
json_t *memory_measured(const TrainState *state, int64_t before);
