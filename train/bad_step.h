// SPDX-License-Identifier: Apache-2.0
// What follows from a step that did not change the weights: what is said and recorded of it, the way back to
// a checkpoint, or the end.
#pragma once
#include "train/metrics.h"

typedef struct {
    TrainState *state;
    const StepMetrics *step; // its verdict is bad or its replica fault found
    Metrics *metrics;
    const char *run_dir;
    int64_t saved_step; // the newest checkpoint's; at most 0: none
} BadStep;

// OK where the run goes on. *trouble: this rank's with writing records, else untouched. Where it goes back,
// no save may be in flight. Collective over the world; the same status on every rank.
Status bad_step_settle(const BadStep *bad, Status *trouble);
