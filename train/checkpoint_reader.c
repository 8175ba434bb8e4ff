// SPDX-License-Identifier: Apache-2.0
// A checkpoint's tensors for offline tools. A file is checked whole when it is first read from.
#include "train/checkpoint_internal.h"
#include <stdlib.h>

struct CheckpointReader {
    Manifest manifest;
    DataFile file; // the one read from last
    bool open;
    bool *checked; // [files]
};

Status checkpoint_reader_open(CheckpointReader **out, const char *dir) {
    CheckpointReader *r = calloc(1, sizeof *r);
    REQUIRE(r, "out of memory");
    Status status = manifest_read(&r->manifest, dir);
    if (status == OK) {
        r->checked = calloc((size_t)r->manifest.files + 1, sizeof *r->checked);
        REQUIRE(r->checked, "out of memory");
    } else {
        free(r);
        r = NULL;
    }
    *out = r;
    return status;
}

void checkpoint_reader_close(CheckpointReader *r) {
    if (!r) return;
    if (r->open) data_file_close(&r->file);
    manifest_free(&r->manifest);
    free(r->checked);
    free(r);
}

int checkpoint_reader_tensors(const CheckpointReader *r) {
    return r->manifest.tensors;
}

CheckpointTensor checkpoint_reader_tensor(const CheckpointReader *r, int index) {
    const ManifestTensor *t = &r->manifest.tensor[index];
    return (CheckpointTensor){.name = t->name,
                              .dims = t->dims,
                              .dim = {t->dim[0], t->dim[1]},
                              .moments = r->manifest.states == STATE_KINDS};
}

static Status turn_to(CheckpointReader *r, int file) {
    if (r->open && r->file.file == file) return OK;
    if (r->open) data_file_close(&r->file);
    r->open = false;
    TRY(data_file_open(&r->file, &r->manifest, file));
    r->open = true;
    // A compressed file is checked anew at each opening: the library opens it by name.
    if (r->checked[file] && !r->manifest.zlib) r->file.checked = true;
    TRY(data_file_check(&r->file));
    r->checked[file] = true;
    return OK;
}

Status checkpoint_reader_read(CheckpointReader *r, int index, StateKind kind, int64_t first, int64_t count,
                              float *out) {
    const ManifestTensor *t = &r->manifest.tensor[index];
    REQUIRE(first >= 0 && count <= checkpoint_elements(t->dims, t->dim) - first, "%s: elements %ld + %ld",
            t->name, (long)first, (long)count);
    if ((int)kind >= r->manifest.states)
        FAIL(ERR_CONFIG, "%s: holds weights alone, no %s", r->manifest.dir, checkpoint_state_name(kind));
    for (int i = t->segment; i < t->segment + t->segments; i++) {
        const ManifestSegment *s = &r->manifest.segment[i];
        int64_t from = first > s->first ? first : s->first, end = first + count;
        if (end > s->first + s->count) end = s->first + s->count;
        if (from >= end) continue;
        TRY(turn_to(r, s->file));
        TRY(data_file_read(&r->file, kind, s->pos + (from - s->first), end - from, out + (from - first)));
    }
    return OK;
}

int checkpoint_reader_buffers(const CheckpointReader *r) {
    return r->manifest.buffers;
}

CheckpointTensor checkpoint_reader_buffer(const CheckpointReader *r, int index) {
    const ManifestBuffer *b = &r->manifest.buffer[index];
    return (CheckpointTensor){.name = b->name, .dims = b->dims, .dim = {b->dim[0], b->dim[1]}};
}

Status checkpoint_reader_read_buffer(CheckpointReader *r, int index, float *out) {
    const ManifestBuffer *b = &r->manifest.buffer[index];
    TRY(turn_to(r, b->file));
    return data_file_buffer(&r->file, b, out);
}
