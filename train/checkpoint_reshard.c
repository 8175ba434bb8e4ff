// SPDX-License-Identifier: Apache-2.0
#include "train/checkpoint_reshard.h"
#include "train/checkpoint_internal.h"
#include "train/format.h"
#include "train/resume.h"
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum {
    LEAST_BYTES = 4096,     // of a file's values
    SEGMENT_MOST = 1 << 20, // values that have one checksum: what a load of a few of them must read
};

typedef struct {
    const ReshardOptions *options;
    Manifest source;
    const ManifestSegment **segment; // the source's, as they lie in its files
    bool zlib;
    const char *dir; // where the new files go
    Part part;       // the file that is being filled,
    int number;      // which one that is
    json_t *files;
    int64_t done, total; // values of each state
    int64_t bytes;
} Reshard;

// ---- what can be refused before anything is made

static Status check_files(const Reshard *r, const char *dir) {
    int64_t values = r->total * r->source.states * 4, files = r->options->files;
    int64_t most = values / LEAST_BYTES > 1 ? values / LEAST_BYTES : 1;
    if (files > most)
        FAIL(ERR_CONFIG, "%s: its %s make at most %ld files, not %ld", dir, short_bytes((double)values).text,
             (long)most, (long)files);
    int64_t memory = (int64_t)sysconf(_SC_PHYS_PAGES) * sysconf(_SC_PAGESIZE);
    int64_t all = values * (r->zlib ? 2 : 1), one = all / files;
    if (memory > 0 && one > memory)
        FAIL(ERR_CONFIG,
             "%s: each of %ld files needs %s of memory, and there are %s; give --files %ld or more", dir,
             (long)files, short_bytes((double)one).text, short_bytes((double)memory).text,
             (long)(all / memory + 1));
    return OK;
}

// ---- the new files

// Values of the first `number` files together.
static int64_t values_before(const Reshard *r, int number) {
    int64_t files = r->options->files;
    return r->total / files * number + r->total % files * number / files;
}

static Status take_buffers(Reshard *r) {
    for (int i = 0; i < r->source.buffers; i++) {
        const ManifestBuffer *b = &r->source.buffer[i];
        CheckpointBuffer buffer = {.name = b->name, .dims = b->dims, .dim = {b->dim[0], b->dim[1]}};
        buffer.data = malloc((size_t)checkpoint_elements(b->dims, b->dim) * sizeof(float));
        REQUIRE(buffer.data, "out of memory: buffer %s", b->name);
        DataFile file;
        Status status = data_file_open(&file, &r->source, b->file);
        if (status == OK) {
            status = data_file_buffer(&file, b, buffer.data);
            data_file_close(&file);
        }
        if (status == OK) part_add_buffer(&r->part, &buffer);
        free(buffer.data);
        TRY(status);
    }
    return OK;
}

static Status write_file(Reshard *r) {
    char name[80];
    json_t *description;
    int64_t bytes;
    snprintf(name, sizeof name, "shard_%05d_of_%05d_part000.h5", r->number, r->options->files);
    if (r->number == 0) TRY(take_buffers(r));
    part_seal(&r->part);
    PartPlace place = {.dir = r->dir, .file = name, .step = r->source.step, .zlib = r->zlib};
    TRY(part_write(&r->part, &place, &description, &bytes));
    json_array_append_new(r->files, description);
    r->bytes += bytes;
    r->number++;
    part_clear(&r->part);
    return OK;
}

// Makes room for at most *n values of a tensor: behind those that came last, where they follow them, so that
// what other files had cut is whole again.
static int64_t make_room(Part *part, const ManifestTensor *t, int64_t first, int64_t *n) {
    PartSegment *last = part->segments ? &part->segment[part->segments - 1] : NULL;
    bool follows = last && last->name == t->name && last->first + last->count == first;
    int64_t most = SEGMENT_MOST - (follows ? last->count % SEGMENT_MOST : 0), pos = part->elements;
    if (*n > most) *n = most;
    if (!follows || most == SEGMENT_MOST) return part_add(part, t->name, t->dims, t->dim, first, *n);
    last->count += *n;
    part->elements += *n;
    return pos;
}

static Status take_segment(Reshard *r, DataFile *file, const ManifestSegment *s) {
    for (int64_t taken = 0, n; taken < s->count; taken += n) {
        int64_t room = values_before(r, r->number + 1) - r->done;
        n = s->count - taken < room ? s->count - taken : room;
        int64_t pos = make_room(&r->part, &r->source.tensor[s->tensor], s->first + taken, &n);
        for (int k = 0; k < r->source.states; k++)
            TRY(data_file_read(file, (StateKind)k, s->pos + taken, n, r->part.state[k] + pos));
        r->done += n;
        if (n == room) TRY(write_file(r));
        TRY(watch_step(&r->options->watch, 4 * r->source.states * r->done, 4 * r->source.states * r->total));
    }
    return OK;
}

// One file of the source; *at: its first segment, then the next file's.
static Status take_file(Reshard *r, int number, int *at) {
    DataFile file;
    TRY(data_file_open(&file, &r->source, number));
    Status status = data_file_check(&file);
    while (status == OK && *at < r->source.segments && r->segment[*at]->file == number)
        status = take_segment(r, &file, r->segment[(*at)++]);
    data_file_close(&file);
    return status;
}

// ---- the whole

static int place_order(const void *a, const void *b) {
    const ManifestSegment *x = *(const ManifestSegment *const *)a, *y = *(const ManifestSegment *const *)b;
    if (x->file != y->file) return x->file < y->file ? -1 : 1;
    return (x->pos > y->pos) - (x->pos < y->pos);
}

static Status commit(Reshard *r, const char *path) {
    const Manifest *m = &r->source;
    char before[CHECKPOINT_DIGEST_BYTES], after[CHECKPOINT_DIGEST_BYTES], *text = NULL;
    json_t *tensors = json_array();
    size_t bytes;
    for (int i = 0; i < m->tensors; i++)
        json_array_append_new(tensors,
                              manifest_tensor(m->tensor[i].name, m->tensor[i].dims, m->tensor[i].dim));
    ManifestContent content = {.step = m->step,
                               .permanent = m->permanent,
                               .zlib = r->zlib,
                               .states = m->states,
                               .record = json_object_get(m->json, "record"),
                               .tensors = tensors,
                               .files = r->files,
                               .digest = after};
    Status status = manifest_text(&content, &text, &bytes);
    checkpoint_digest(json_object_get(m->json, "digest"), before);
    if (status == OK && strcmp(before, after))
        status = status_fail(ERR_DATA, __FILE__, __LINE__, "%s: its digest is %s, that of what was read %s",
                             m->dir, before, after);
    if (status == OK) status = folder_commit(r->dir, path, text, bytes);
    free(text);
    json_decref(tensors);
    return status;
}

static Status write_all(Reshard *r, const char *path) {
    const Manifest *m = &r->source;
    r->part = part_create(m->states, r->total / r->options->files + 1);
    int at = 0;
    for (int i = 0; i < m->files; i++) TRY(take_file(r, i, &at));
    return commit(r, path);
}

static void sort_segments(Reshard *r) {
    const Manifest *m = &r->source;
    r->segment = malloc(((size_t)m->segments + 1) * sizeof *r->segment);
    REQUIRE(r->segment, "out of memory: %d segments", m->segments);
    for (int i = 0; i < m->segments; i++) {
        r->segment[i] = &m->segment[i];
        r->total += m->segment[i].count;
    }
    qsort(r->segment, (size_t)m->segments, sizeof *r->segment, place_order);
}

static Status reshard(Reshard *r, const char *path) {
    NewFolder folder;
    TRY(check_files(r, r->source.dir));
    TRY(new_folder_begin(&folder, path));
    r->dir = folder.tmp;
    Status status = write_all(r, folder.path);
    return status == OK ? OK : new_folder_abandon(&folder, status);
}

Status checkpoint_reshard(const char *spec, const char *path, const ReshardOptions *options,
                          ReshardReport *report) {
    char dir[FILE_PATH_BYTES];
    Reshard r = {.options = options, .files = json_array()};
    TRY(checkpoint_path_resolve(spec, dir, sizeof dir));
    TRY(manifest_read(&r.source, dir));
    r.zlib = options->compress == RESHARD_AS_BEFORE ? r.source.zlib : options->compress == RESHARD_ZLIB;
    sort_segments(&r);
    Status status = reshard(&r, path);
    *report = (ReshardReport){
        .files = r.source.files, .tensors = r.source.tensors, .parameters = r.total, .bytes = r.bytes};
    part_free(&r.part);
    json_decref(r.files);
    free(r.segment);
    manifest_free(&r.source);
    return status;
}
