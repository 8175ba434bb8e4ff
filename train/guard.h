// SPDX-License-Identifier: Apache-2.0
// Bad steps: judged from figures that have the same bits on every rank, before a weight changes. A bad step's
// gradients are dropped: weights, AdamW's moments and the selection bias stay as they were. The step counts,
// its tokens are consumed and the learning rate goes on; AdamW's bias correction counts updates, not steps.
#pragma once
#include "data/data_config.h"
#include <jansson.h>
#include <stdbool.h>

typedef enum { GUARD_STOP, GUARD_SKIP, GUARD_ROLLBACK, GUARD_OFF } GuardAction;
extern const char *const guard_action_name[];

typedef struct {
    GuardAction nonfinite, spike; // OFF: spikes only
    int64_t window;               // good steps looked back on; 0: no spikes
    int64_t max_bad;              // bad steps in a row that end the run
    int64_t replica_check;        // steps between two comparisons of the copies; 0: never
    double z;                     // deviations above the window's mean that make a spike
} GuardConfig;

typedef struct {
    double loss, gnorm;
} GuardStep;
typedef struct {
    int64_t first, last;
} StepRange;

// What the judgement of the next step depends on; part of a checkpoint's record.
typedef struct {
    const GuardConfig *config; // borrowed
    GuardStep *good;   // [config->window] the newest good steps of the stage, oldest first; spikes only
    int64_t count;     // of them
    int stage;         // that they belong to
    int64_t in_row;    // bad steps since the last good one
    StepRange *passed; // ascending: steps that changed nothing, whose samples were passed over
    int ranges, capacity;
    int64_t passed_steps;
} Guard;

typedef struct {
    bool bad;
    GuardAction action; // where bad
    enum { CAUSE_NONFINITE, CAUSE_LOSS, CAUSE_GNORM } cause;
    double value, mean, z; // of a spike: the figure, the window's mean, deviations above it
    int64_t in_row;
} Verdict;

Guard guard_create(const GuardConfig *config);
void guard_free(Guard *guard);
// Judges the step of the stage and counts it. Spikes are looked for once the window is full; it begins anew
// with each stage. A deviation is taken as at least a thousandth of the mean. `aux` only has to be finite,
// the norm's square a float.
Verdict guard_judge(Guard *guard, int stage, double loss, double aux, double gnorm);
void guard_pass(Guard *guard, int64_t first_step, int64_t last_step); // steps that change nothing
int64_t guard_updates(const Guard *guard, int64_t step); // that the optimizer made in steps 1 … step

// Owned by the caller. Steps of passed ranges are given with their samples.
json_t *guard_json(const Guard *guard, const BatchPlan *plan);
// record NULL: of a run that kept none. Only as many good steps stay as the configuration looks back on.
// ERR_DATA where the record is damaged, ERR_CONFIG where the plan gives passed steps other samples.
Status guard_parse(Guard *guard, const json_t *record, const BatchPlan *plan, int64_t step);
