// SPDX-License-Identifier: Apache-2.0
// Loading, by all ranks: what a rank holds is intersected with the manifest's segments, whoever wrote them.
#include "core/clock.h"
#include "train/checkpoint_internal.h"
#include <stdlib.h>
#include <string.h>

typedef struct { // elements [first, first + count) of a segment's tensor go to slice
    int segment, slice, file;
    int64_t first, count, pos; // file, pos: where they lie
} Copy;

typedef struct {
    const CheckpointState *state;
    Manifest manifest;
    bool weights_only;
    Copy *copy; // sorted by file
    int copies, capacity;
    int64_t read; // bytes of data files
} Load;

// ---- is it this model?

static void shape_text(int dims, const int64_t dim[], char *out, size_t size) {
    if (dims == 2)
        snprintf(out, size, "[%ld, %ld]", (long)dim[0], (long)dim[1]);
    else
        snprintf(out, size, "[%ld]", (long)dim[0]);
}

static bool same_shape(int dims, const int64_t dim[], int other_dims, const int64_t other[]) {
    return dims == other_dims && dim[0] == other[0] && (dims < 2 || dim[1] == other[1]);
}

// Marks the tensors that this rank has.
static Status match_tensors(const Load *load, int64_t *marked) {
    const ParamTable *table = load->state->params;
    const Manifest *m = &load->manifest;
    for (int i = 0; i < table->count; i++) {
        const Param *p = &table->param[i];
        char here[64], there[64];
        shape_text(p->dims, p->dim, here, sizeof here);
        int t = manifest_find(m, p->name);
        if (t < 0)
            FAIL(ERR_CONFIG,
                 "%s: a checkpoint of another model: it has no tensor %s, %s in this one; see floe ckpt "
                 "inspect",
                 m->dir, p->name, here);
        shape_text(m->tensor[t].dims, m->tensor[t].dim, there, sizeof there);
        if (!same_shape(p->dims, p->dim, m->tensor[t].dims, m->tensor[t].dim))
            FAIL(ERR_CONFIG,
                 "%s: a checkpoint of another model: its tensor %s is %s, in this one %s; see floe ckpt "
                 "inspect",
                 m->dir, p->name, there, here);
        marked[t] = 1;
    }
    return OK;
}

// Collective over the world. Every rank finds its own tensors, and together they leave none over.
static Status match_model(const Load *load, Group *world) {
    const Manifest *m = &load->manifest;
    int64_t *marked = calloc((size_t)m->tensors + 1, sizeof *marked);
    REQUIRE(marked, "out of memory: %d tensors", m->tensors);
    Status status = group_agree(world, match_tensors(load, marked));
    if (status == OK) group_max_i64(world, marked, m->tensors);
    int surplus = 0;
    while (surplus < m->tensors && marked[surplus]) surplus++;
    free(marked);
    TRY(status);
    if (surplus == m->tensors) return OK;
    char there[64];
    shape_text(m->tensor[surplus].dims, m->tensor[surplus].dim, there, sizeof there);
    FAIL(ERR_CONFIG,
         "%s: a checkpoint of another model: its tensor %s, %s, is not in this one; see floe ckpt inspect",
         m->dir, m->tensor[surplus].name, there);
}

static const ManifestBuffer *find_buffer(const Manifest *m, const char *name) {
    for (int i = 0; i < m->buffers; i++)
        if (!strcmp(m->buffer[i].name, name)) return &m->buffer[i];
    return NULL;
}

static Status match_buffers(const Load *load) {
    const Manifest *m = &load->manifest;
    for (int i = 0; i < load->state->buffers; i++) {
        const CheckpointBuffer *b = &load->state->buffer[i];
        const ManifestBuffer *found = find_buffer(m, b->name);
        char here[64], there[64];
        shape_text(b->dims, b->dim, here, sizeof here);
        if (!found && load->weights_only) continue;
        if (!found)
            FAIL(ERR_CONFIG, "%s: a checkpoint of another model: it has no buffer %s, %s in this one", m->dir,
                 b->name, here);
        shape_text(found->dims, found->dim, there, sizeof there);
        if (!same_shape(b->dims, b->dim, found->dims, found->dim))
            FAIL(ERR_CONFIG, "%s: a checkpoint of another model: its buffer %s is %s, in this one %s", m->dir,
                 b->name, there, here);
    }
    return OK;
}

// ---- which ranges come from where

static void add_copy(Load *load, int slice, int segment) {
    const ZeroSlice *s = &load->state->held[slice];
    const ManifestSegment *from = &load->manifest.segment[segment];
    int64_t first = from->first > s->first ? from->first : s->first;
    int64_t end = from->first + from->count, slice_end = s->first + s->count;
    if (end > slice_end) end = slice_end;
    if (first >= end) return;
    if (load->copies == load->capacity) {
        load->capacity = 2 * load->capacity + 64;
        load->copy = realloc(load->copy, (size_t)load->capacity * sizeof *load->copy);
        REQUIRE(load->copy, "out of memory: %d ranges", load->capacity);
    }
    load->copy[load->copies++] = (Copy){.segment = segment,
                                        .slice = slice,
                                        .file = from->file,
                                        .first = first,
                                        .count = end - first,
                                        .pos = from->pos + (first - from->first)};
}

// First segment of the tensor that ends after `first`.
static int segment_at(const Manifest *m, const ManifestTensor *t, int64_t first) {
    int low = t->segment, high = t->segment + t->segments;
    while (low < high) {
        int middle = (low + high) / 2;
        if (m->segment[middle].first + m->segment[middle].count <= first)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

static int copy_order(const void *a, const void *b) {
    const Copy *x = a, *y = b;
    if (x->file != y->file) return x->file < y->file ? -1 : 1;
    return (x->pos > y->pos) - (x->pos < y->pos);
}

static void plan_copies(Load *load) {
    const Manifest *m = &load->manifest;
    for (int i = 0; i < load->state->held_count; i++) {
        const ZeroSlice *s = &load->state->held[i];
        const ManifestTensor *t = &m->tensor[manifest_find(m, load->state->params->param[s->param].name)];
        for (int k = segment_at(m, t, s->first);
             k < t->segment + t->segments && m->segment[k].first < s->first + s->count; k++)
            add_copy(load, i, k);
    }
    if (load->copies) qsort(load->copy, (size_t)load->copies, sizeof *load->copy, copy_order);
}

// ---- reading

static int states_read(const Load *load) {
    return load->weights_only ? 1 : STATE_KINDS;
}

// A file of which half or more is wanted is read once from end to end and checked as a whole; of others the
// segments that are wanted, each checked for itself.
static bool wants_all(const Load *load, int first, int end) {
    const Manifest *m = &load->manifest;
    int64_t wanted = 0, segments = 0, bytes = m->file[load->copy[first].file].bytes;
    for (int i = first; i < end; i++) {
        wanted += 4 * states_read(load) * load->copy[i].count;
        segments += 4 * states_read(load) * m->segment[load->copy[i].segment].count;
    }
    return states_read(load) == m->states && !m->zlib && (2 * wanted >= bytes || segments >= bytes);
}

static void find_places(const Load *load, const Copy *c, float *to[STATE_KINDS]) {
    const ZeroSlice *s = &load->state->held[c->slice];
    float *const state[STATE_KINDS] = {s->master, s->m, s->v};
    for (int k = 0; k < states_read(load); k++) to[k] = state[k] + (c->first - s->first);
}

static Status read_copy(const Load *load, DataFile *file, const Copy *c) {
    float *to[STATE_KINDS];
    find_places(load, c, to);
    for (int k = 0; k < states_read(load); k++)
        TRY(data_file_segment(file, &load->manifest.segment[c->segment], (StateKind)k, c->first, c->count,
                              to[k]));
    return OK;
}

// Of a segment that was filled in part the rest is read for its checksum.
static Status confirm_copy(const Load *load, DataFile *file, const Copy *c) {
    const ManifestSegment *segment = &load->manifest.segment[c->segment];
    float *to[STATE_KINDS];
    if (c->count < segment->count) return read_copy(load, file, c);
    find_places(load, c, to);
    for (int k = 0; k < states_read(load); k++) TRY(data_file_confirm(file, segment, (StateKind)k, to[k]));
    return OK;
}

static Status scan_file(const Load *load, DataFile *file, int first, int end) {
    DataRange *range = calloc((size_t)(end - first), sizeof *range);
    REQUIRE(range, "out of memory: %d ranges", end - first);
    for (int i = first; i < end; i++) {
        range[i - first] = (DataRange){.pos = load->copy[i].pos, .count = load->copy[i].count};
        find_places(load, &load->copy[i], range[i - first].to);
    }
    Status status = data_file_scan(file, range, end - first);
    for (int i = first; i < end && status == OK; i++) status = confirm_copy(load, file, &load->copy[i]);
    free(range);
    return status;
}

static Status read_copies(const Load *load, DataFile *file, int first, int end) {
    for (int i = first; i < end; i++) TRY(read_copy(load, file, &load->copy[i]));
    return OK;
}

static Status read_files(Load *load) {
    const Manifest *m = &load->manifest;
    for (int first = 0, end; first < load->copies; first = end) {
        int number = load->copy[first].file;
        for (end = first; end < load->copies && load->copy[end].file == number;) end++;
        DataFile file;
        TRY(data_file_open(&file, m, number));
        Status status = wants_all(load, first, end) ? scan_file(load, &file, first, end)
                                                    : read_copies(load, &file, first, end);
        load->read += file.read;
        data_file_close(&file);
        TRY(status);
    }
    return OK;
}

static Status read_buffers(Load *load) {
    const Manifest *m = &load->manifest;
    for (int i = 0; i < load->state->buffers; i++) {
        const ManifestBuffer *found = find_buffer(m, load->state->buffer[i].name);
        if (!found) continue;
        DataFile file;
        TRY(data_file_open(&file, m, found->file));
        Status status = data_file_buffer(&file, found, load->state->buffer[i].data);
        load->read += file.read;
        data_file_close(&file);
        TRY(status);
    }
    return OK;
}

static void clear_moments(const Load *load) {
    for (int i = 0; i < load->state->held_count; i++) {
        const ZeroSlice *s = &load->state->held[i];
        if (s->m) memset(s->m, 0, (size_t)s->count * sizeof(float));
        if (s->v) memset(s->v, 0, (size_t)s->count * sizeof(float));
    }
}

static Status fill(Load *load) {
    const Manifest *m = &load->manifest;
    if (!load->weights_only && m->states < STATE_KINDS)
        FAIL(ERR_CONFIG, "%s: holds weights alone, no optimizer state; start from it with train.init_from",
             m->dir);
    TRY(match_buffers(load));
    plan_copies(load);
    TRY(read_files(load));
    if (load->weights_only) clear_moments(load);
    return read_buffers(load);
}

static void report(const Load *load, Group *world, double seconds, CheckpointRead *out) {
    *out = (CheckpointRead){.read = load->read, .most = load->read, .seconds = seconds};
    for (int i = 0; i < load->manifest.files; i++) out->held += load->manifest.file[i].bytes;
    group_sum_i64(world, &out->read, 1);
    group_max_i64(world, &out->most, 1);
    group_max_f64(world, &out->seconds, 1);
}

Status checkpoint_load(const CheckpointState *state, const char *dir, bool weights_only, json_t **record,
                       CheckpointRead *read) {
    Group *world = mesh_group(state->mesh, AXIS_WORLD);
    Load load = {.state = state, .weights_only = weights_only};
    double begun = clock_seconds();
    *record = NULL;
    TRY(group_agree(world, manifest_read(&load.manifest, dir)));
    Status status = match_model(&load, world);
    if (status == OK) status = group_agree(world, fill(&load));
    if (status == OK && read) report(&load, world, clock_seconds() - begun, read);
    if (status == OK) *record = json_deep_copy(json_object_get(load.manifest.json, "record"));
    free(load.copy);
    manifest_free(&load.manifest);
    return status;
}
