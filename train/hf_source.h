// SPDX-License-Identifier: Apache-2.0
// The safetensors files of a Hugging Face folder, model.safetensors or the shards that
// model.safetensors.index.json names, as one set of tensors.
#pragma once
#include "core/safetensors.h"
#include "train/hf_names.h"
#include <jansson.h>

typedef struct {
    const char *name;
    int file, index;
    bool used; // the caller's mark
} HfTensor;

typedef struct {
    const char *dir; // borrowed
    Safetensors **file;
    char **file_name;
    int files;
    HfTensor *tensor; // of every file, sorted by name
    int tensors;
    json_t *weight_map; // the index's; NULL: one file
    int problems;       // printed on stderr
} HfSource;

// Every file that is missing or malformed is printed; ERR_DATA then. Names that occur twice, and where index
// and files contradict each other, are printed too and counted in problems; OK then.
Status hf_source_open(HfSource *out, const char *dir);
void hf_source_close(HfSource *source);
HfTensor *hf_source_find(const HfSource *source, const char *name); // NULL: there is none
const SafeTensor *hf_source_tensor(const HfSource *source, const HfTensor *tensor);
// Values [first, first + count) of a weight of `columns` columns (one per row for vectors) that stands at
// `place` of the tensor, which must have place's shape and a type that converts.
Status hf_source_read(const HfSource *source, const HfTensor *tensor, const HfPlace *place, int64_t columns,
                      int64_t first, int64_t count, float *out);
