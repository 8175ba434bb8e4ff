// SPDX-License-Identifier: Apache-2.0
// From a Hugging Face folder (config.json; model.safetensors, or its shards and their index) to a checkpoint
// of weights.
#pragma once
#include "core/status.h"
#include <stdint.h>

typedef struct {
    int64_t tensors, parameters, bytes;
} HfImportReport;

// Every missing, surplus or misshapen tensor is printed on stderr; then nothing is written and ERR_DATA
// returned. What of config.json was ignored is printed. Memory: twice part_bytes (0: 256 MiB), whatever the
// model's size. dir: the new checkpoint's folder.
Status hf_import(const char *hf_dir, const char *dir, int64_t part_bytes, HfImportReport *report);
