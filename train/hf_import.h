// SPDX-License-Identifier: Apache-2.0
// From a Hugging Face folder (config.json; model.safetensors, or its shards and their index) to a checkpoint
// of weights.
#pragma once
#include "train/new_folder.h"

typedef struct {
    int64_t part_bytes; // of a file of the checkpoint; 0: 256 MiB
    int collapse_kv; // so many key/value heads are made of the equal copies in the file; 0: as the file has
                     // them
    Watch watch;
} HfImportOptions;

typedef struct {
    int64_t tensors, parameters, bytes; // weights, and bytes written
} HfImportReport;

// Every missing, surplus or misshapen tensor is printed on stderr, and every weight with values that are not
// finite; then ERR_DATA. What of config.json was ignored is printed. Memory: twice part_bytes, whatever the
// model's size. dir: the new checkpoint's folder, there whole or not at all.
Status hf_import(const char *hf_dir, const char *dir, const HfImportOptions *options, HfImportReport *report);
