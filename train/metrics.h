// SPDX-License-Identifier: Apache-2.0
// RUN/metrics.jsonl: one JSON object a line, each written in one piece. Records of steps have no `event`; all
// others do.
#pragma once
#include "train/step.h"

typedef struct {
    int fd; // −1: this rank writes nothing
    char *path;
    char *held; // what could not be written yet: a full disk costs no records while it lasts
    size_t held_bytes;
} Metrics;

// Opens for appending, after removing a torn last line and all from the first record of a step later than
// `step` on (they go to metrics.abandoned.jsonl). *removed: how many records went, or NULL.
Status metrics_open(Metrics *metrics, const char *run_dir, int64_t step, int64_t *removed);
void metrics_close(Metrics *metrics);

typedef struct {
    const char *const *source; // names
    const int64_t *tokens;     // [sources], of the whole run so far
    int sources;
    int64_t step_tokens; // of this step
} MetricsTokens;

Status metrics_step(Metrics *metrics, const StepMetrics *step, const MetricsTokens *tokens);
// Adds {"event": event, "step": step} before the members of `more`, which is taken over.
Status metrics_event(Metrics *metrics, const char *event, int64_t step, json_t *more);
