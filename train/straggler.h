// SPDX-License-Identifier: Apache-2.0
// Ranks whose own time, without waits for others, is more than 1.3 times the median rank's (of an even
// number, the lower one), and more than 2 ms longer, in 20 of the last 50 steps.
#pragma once
#include "train/step.h"

enum { STRAGGLER_DATA = PHASE_COUNT, STRAGGLER_OPTIMIZER, STRAGGLER_REST, STRAGGLER_PHASES };

typedef struct {
    Group *world;
    uint64_t *slow;                 // [ranks]: bit i: in the step i steps ago
    double *ratio;                  // [ranks]: own time over the median's, fading mean
    double spent[STRAGGLER_PHASES]; // seconds of this rank, the same
    int64_t steps;
    int64_t quiet; // steps that are still to pass before the next word
} Stragglers;

typedef struct {
    int rank, slow_steps;
    double ratio, lost; // lost: seconds of a step beyond the median rank, in the phase where they are most
    const char *phase;
    char host[64];
} Straggler;

Stragglers stragglers_create(Group *world);
void stragglers_free(Stragglers *stragglers);
// After each step. true: *out is the slowest of them, at most once in 50 steps. Collective over the world;
// the same on every rank.
bool stragglers_step(Stragglers *stragglers, const StepMetrics *step, Straggler *out);
