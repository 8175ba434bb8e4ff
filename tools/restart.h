// SPDX-License-Identifier: Apache-2.0
// floe train --restarts N: the front end starts the ranks again where a signal or the watchdog has ended
// them.
#pragma once
#include "tools/launch.h"
#include "train/run.h"

typedef struct {
    int most, done;
    const char *run_dir;
    double begun; // of clock_seconds()
    int starts;   // that meta.json had before the first one
} Restarts;

Restarts restarts_create(int most, const char *run_dir);
// After a job: whether there is to be another one; then it has waited for it and told the ranks' environment.
// *exit_code is the job's and becomes the command's.
bool restart_due(Restarts *restarts, const LaunchEnd *end, double max_seconds, int *exit_code);
// In a rank: what its front end has told of this start.
void restart_read(RunRequest *request);
