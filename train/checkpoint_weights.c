// SPDX-License-Identifier: Apache-2.0
#include "train/checkpoint_weights.h"
#include <stdlib.h>

static const int64_t default_part_bytes = (int64_t)256 << 20;

WeightsWriter weights_writer_create(const char *dir, int64_t part_bytes) {
    return (WeightsWriter){.dir = dir,
                           .part = part_create(1, (part_bytes > 4 ? part_bytes : default_part_bytes) / 4),
                           .files = json_array()};
}

void weights_writer_free(WeightsWriter *w) {
    part_free(&w->part);
    json_decref(w->files);
}

static Status flush(WeightsWriter *w) {
    char name[80];
    json_t *description;
    int64_t bytes;
    snprintf(name, sizeof name, "shard_00000_of_00001_part%03d.h5", (int)json_array_size(w->files));
    part_seal(&w->part);
    TRY(part_write(&w->part, &(PartPlace){.dir = w->dir, .file = name}, &description, &bytes));
    json_array_append_new(w->files, description);
    w->bytes += bytes;
    part_clear(&w->part);
    return OK;
}

Status weights_writer_room(WeightsWriter *w, const Param *p, int64_t first, int64_t count, float **room,
                           int64_t *got) {
    if (w->part.elements == w->part.capacity) TRY(flush(w));
    int64_t left = w->part.capacity - w->part.elements;
    *got = count < left ? count : left;
    *room = w->part.state[STATE_MASTER] + part_add(&w->part, p->name, p->dims, p->dim, first, *got);
    return OK;
}

Status weights_writer_commit(WeightsWriter *w, const ParamTable *params, const json_t *record,
                             const char *path) {
    if (w->part.elements) TRY(flush(w));
    json_t *tensors = json_array();
    for (int i = 0; i < params->count; i++) {
        const Param *p = &params->param[i];
        json_array_append_new(tensors, manifest_tensor(p->name, p->dims, p->dim));
    }
    ManifestContent content = {.states = 1, .record = record, .tensors = tensors, .files = w->files};
    char *text = NULL;
    size_t bytes;
    Status status = manifest_text(&content, &text, &bytes);
    if (status == OK) status = folder_commit(w->dir, path, text, bytes);
    free(text);
    json_decref(tensors);
    return status;
}
