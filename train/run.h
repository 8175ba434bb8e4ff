// SPDX-License-Identifier: Apache-2.0
// `floe train` as the ranks see it: from a configuration to the last line.
#pragma once
#include "train/resume.h"

typedef struct {
    const char *const *file, *const *override;
    int files, overrides;
    const char *run_dir; // as wished; NULL: a new one is chosen
    StartRequest start;
    double max_seconds; // 0: no limit
    const char *version;
    const char *command; // as typed, for meta.json
    int restart;         // how often this command has started its ranks again
    double failed_at;    // with restart: UNIX time of the last record before
    bool folder_open;    // run_folder_open was called for these ranks: run_dir exists and is locked
} RunRequest;

// The folder of a run that may begin: chosen or made, and locked. Nothing is made where the request is
// refused.
typedef struct {
    char path[RUN_PATH_BYTES];
    RunLock lock;
    bool made;
} RunFolder;
Status run_folder_open(RunFolder *out, const RunRequest *request);
void run_folder_close(RunFolder *folder); // removes a folder that was made and in which no run has begun

// Call between comm_start and comm_finish. Of failures the text is in status_text(), unless *printed: what is
// wrong with the configuration has been said already. Collective over all ranks; the same status on each.
Status run_train(const RunRequest *request, bool *printed);
