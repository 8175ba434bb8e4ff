// SPDX-License-Identifier: Apache-2.0
// A checkpoint written again as another number of files, by one process.
#pragma once
#include "train/new_folder.h"
#include <stdbool.h>

typedef struct {
    int files;
    enum { RESHARD_AS_BEFORE, RESHARD_PLAIN, RESHARD_ZLIB } compress;
    Watch watch;
} ReshardOptions;

typedef struct {
    int files; // of the source
    int64_t tensors, parameters, bytes;
} ReshardReport;

// spec: a checkpoint, a run's newest one or RUN@STEP. Writes its values, buffers and record to the new folder
// `path` as files of nearly equal size, whole or not at all; every byte of the source is checked. Needs
// memory for one file, with zlib for two. ERR_CONFIG where so many files make no sense or one does not fit in
// memory.
Status checkpoint_reshard(const char *spec, const char *path, const ReshardOptions *options,
                          ReshardReport *report);
