// SPDX-License-Identifier: Apache-2.0
// Writing a checkpoint of weights alone, a piece at a time, from one process.
#pragma once
#include "train/checkpoint_internal.h"

typedef struct {
    const char *dir; // where its files go; borrowed
    Part part;
    json_t *files;
    int64_t bytes; // written so far
} WeightsWriter;

// part_bytes: of a data file; 0: 256 MiB. Twice this of memory is needed.
WeightsWriter weights_writer_create(const char *dir, int64_t part_bytes);
void weights_writer_free(WeightsWriter *writer);
// Room for values [first, first + *count) of a weight, *count being at least 1 and at most count; the caller
// fills it before the next call. The weight's name must live until the end.
Status weights_writer_room(WeightsWriter *writer, const Param *param, int64_t first, int64_t count,
                           float **room, int64_t *got);
// Writes what is left and the manifest, and gives the folder its name.
Status weights_writer_commit(WeightsWriter *writer, const ParamTable *params, const json_t *record,
                             const char *path);
