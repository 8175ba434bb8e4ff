// SPDX-License-Identifier: Apache-2.0
// Saving, by all ranks: every rank snapshots its owned slices part by part and makes each part durable; then
// rank 0 writes the manifest and gives the folder its name.
#include "core/clock.h"
#include "core/log.h"
#include "train/checkpoint_internal.h"
#include <stdlib.h>
#include <string.h>

// Half of it is the snapshot and half the file's image, so a save needs twice this of memory.
static const int64_t default_part_bytes = (int64_t)1 << 30;

typedef struct {
    const CheckpointState *state;
    const CheckpointOptions *options;
    int64_t step;
    Group *world;
    char tmp[FILE_PATH_BYTES];
    json_t *files; // what this rank wrote
    int64_t bytes, raw_bytes;
} Save;

// A walk over the owned slices that stops where a part is full.
typedef struct {
    int slice;
    int64_t done; // elements of it
} Cursor;

static int64_t part_capacity(const Save *save, int states) {
    int64_t bytes = save->options->part_bytes > 0 ? save->options->part_bytes : default_part_bytes;
    int64_t capacity = bytes / (4 * states), owned = 0;
    for (int i = 0; i < save->state->owned_count; i++) owned += save->state->owned[i].count;
    if (capacity > owned) capacity = owned;
    return capacity > 0 ? capacity : 1;
}

static void snapshot(const CheckpointState *state, Cursor *at, Part *part) {
    part_clear(part);
    while (at->slice < state->owned_count && part->elements < part->capacity) {
        const ZeroSlice *s = &state->owned[at->slice];
        const Param *p = &state->params->param[s->param];
        int64_t room = part->capacity - part->elements, left = s->count - at->done;
        int64_t count = left < room ? left : room;
        if (count) {
            int64_t pos = part_add(part, p->name, p->dims, p->dim, s->first + at->done, count);
            const float *source[STATE_KINDS] = {s->master, s->m, s->v};
            for (int k = 0; k < part->states; k++)
                memcpy(part->state[k] + pos, source[k] + at->done, (size_t)count * sizeof(float));
        }
        at->done += count;
        if (at->done == s->count) *at = (Cursor){.slice = at->slice + 1};
    }
    part_seal(part);
}

static Status write_parts(Save *save, Part *part) {
    const CheckpointState *state = save->state;
    int rank = group_rank(save->world), ranks = group_size(save->world);
    Cursor at = {0};
    for (int number = 0;; number++) {
        snapshot(state, &at, part);
        if (number == 0 && rank == 0)
            for (int i = 0; i < state->buffers; i++) part_add_buffer(part, &state->buffer[i]);
        if (!part->elements && !part->buffers) return OK;
        char name[80];
        snprintf(name, sizeof name, "shard_%05d_of_%05d_part%03d.h5", rank, ranks, number);
        PartPlace place = {.dir = save->tmp, .file = name, .step = save->step, .zlib = save->options->zlib};
        json_t *description;
        int64_t bytes;
        TRY(part_write(part, &place, &description, &bytes));
        json_array_append_new(save->files, description);
        save->bytes += bytes;
        save->raw_bytes += 4 * part->elements * part->states;
        if (at.slice == state->owned_count) return OK;
    }
}

// ---- the manifest, on rank 0

typedef struct {
    json_t *tensors, *files;
    bool malformed;
} Gathered;

static void take_description(void *context, int rank, const void *data, size_t bytes) {
    (void)rank;
    Gathered *all = context;
    json_t *message = json_loadb(data, bytes, 0, NULL);
    if (!message)
        all->malformed = true;
    else {
        json_array_extend(all->tensors, json_object_get(message, "tensors"));
        json_array_extend(all->files, json_object_get(message, "files"));
    }
    json_decref(message);
}

// Every tensor is named once over all ranks: dense ones by rank 0, experts by the first expert group.
static json_t *describe_tensors(const Save *save) {
    json_t *list = json_array();
    const ParamTable *table = save->state->params;
    int rank = group_rank(save->world), ep = group_size(mesh_group(save->state->mesh, AXIS_EXPERT));
    for (int i = 0; i < table->count; i++) {
        const Param *p = &table->param[i];
        if (table->group[p->group].expert ? rank >= ep : rank > 0) continue;
        json_array_append_new(list, manifest_tensor(p->name, p->dims, p->dim));
    }
    return list;
}

static void gather(const Save *save, Gathered *all) {
    json_t *message = json_pack("{s:o, s:O}", "tensors", describe_tensors(save), "files", save->files);
    char *text = message ? json_dumps(message, JSON_COMPACT) : NULL;
    REQUIRE(text, "out of memory: description of %zu files", json_array_size(save->files));
    group_gather_each(save->world, 0, text, strlen(text), take_description, all);
    free(text);
    json_decref(message);
}

static Status commit(const Save *save, const Gathered *all, const json_t *record, const char *run_dir) {
    if (all->malformed) FAIL(ERR_RUNTIME, "checkpoint: a rank's description of its files is malformed");
    ManifestContent content = {.step = save->step,
                               .permanent = save->options->permanent,
                               .zlib = save->options->zlib,
                               .states = STATE_KINDS,
                               .record = record,
                               .tensors = all->tensors,
                               .files = all->files};
    char dir[FILE_PATH_BYTES], *text;
    size_t bytes;
    TRY(manifest_text(&content, &text, &bytes));
    folder_step_path(run_dir, save->step, dir, sizeof dir);
    Status status = folder_commit(save->tmp, dir, text, bytes);
    free(text);
    return status;
}

// Collective, like all of it: every rank goes on to the next stage only where every rank is done with the
// last.
static Status save_all(Save *save, const char *run_dir, const json_t *record, double *gather_seconds) {
    int root = group_rank(save->world) == 0;
    Status status = root ? folder_prepare(run_dir, save->step, save->tmp, sizeof save->tmp) : OK;
    TRY(group_agree(save->world, status));
    group_broadcast(save->world, 0, save->tmp, sizeof save->tmp);
    Part part = part_create(STATE_KINDS, part_capacity(save, STATE_KINDS));
    status = write_parts(save, &part);
    part_free(&part);
    TRY(group_agree(save->world, status));
    double begun = clock_seconds();
    Gathered all = {.tensors = json_array(), .files = json_array()};
    gather(save, &all);
    *gather_seconds = clock_seconds() - begun;
    status = root ? commit(save, &all, record, run_dir) : OK;
    json_decref(all.tensors);
    json_decref(all.files);
    return group_agree(save->world, status);
}

Status checkpoint_save(const CheckpointState *state, const json_t *record, const char *run_dir, int64_t step,
                       const CheckpointOptions *options, CheckpointReport *report) {
    double begun = clock_seconds();
    Save save = {.state = state,
                 .options = options,
                 .step = step,
                 .world = mesh_group(state->mesh, AXIS_WORLD),
                 .files = json_array()};
    int root = group_rank(save.world) == 0;
    *report = (CheckpointReport){0};
    Status status = save_all(&save, run_dir, record, &report->gather_seconds);
    json_decref(save.files);
    if (status != OK) {
        char reason[1024];
        snprintf(reason, sizeof reason, "%s", status_text());
        if (root && save.tmp[0] && file_remove_tree(save.tmp) != OK) log_rank(LOG_WARN, "%s", status_text());
        FAIL(status, "checkpoint of step %ld was not written, older ones are whole: %s", (long)step, reason);
    }
    if (root && folder_retain(run_dir, options->keep) != OK) log_rank(LOG_WARN, "%s", status_text());
    int64_t totals[2] = {save.bytes, save.raw_bytes};
    group_sum_i64(save.world, totals, 2);
    report->bytes = totals[0];
    report->raw_bytes = totals[1];
    report->seconds = clock_seconds() - begun;
    return OK;
}
