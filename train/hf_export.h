// SPDX-License-Identifier: Apache-2.0
// From a checkpoint's master weights to a Hugging Face folder: config.json; model.safetensors, or shards and
// their index.
#pragma once
#include "core/safetensors_write.h"
#include "train/new_folder.h"

typedef struct {
    SafetensorsType type;
    int64_t shard_bytes; // most of a file's data, but for a tensor that is larger by itself
    Watch watch;
} HfExportOptions;

typedef struct {
    int64_t tensors, parameters, bytes; // of data
    int files;
} HfExportReport;

// spec: a checkpoint, a run's newest one or RUN@STEP; its own record says what the model is. ERR_CONFIG where
// the files of the model's family cannot express it. dir is there whole or not at all. Memory: one weight at
// most, whatever the model's size.
Status hf_export(const char *spec, const char *dir, const HfExportOptions *options, HfExportReport *report);
