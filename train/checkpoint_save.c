// SPDX-License-Identifier: Apache-2.0
// Saving, by all ranks: every rank snapshots its owned slices part by part and makes each part durable; then
// rank 0 writes the manifest and gives the folder its name. checkpoint_writer.c does the first half beside
// the training.
#include "core/clock.h"
#include "core/crc32c.h"
#include "core/log.h"
#include "train/checkpoint_internal.h"
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static const int64_t default_part_bytes = (int64_t)1 << 30;

int64_t save_owned_elements(const CheckpointState *state) {
    int64_t owned = 0;
    for (int i = 0; i < state->owned_count; i++) owned += state->owned[i].count;
    return owned;
}

int64_t save_part_elements(int64_t owned, const CheckpointOptions *options) {
    int64_t bytes = options->part_bytes > 0 ? options->part_bytes : default_part_bytes;
    int64_t most = options->zlib ? options->host_bytes / 2 : options->host_bytes; // or the image beside it
    if (most > 0 && bytes > most) bytes = most;
    int64_t capacity = bytes / (4 * STATE_KINDS);
    if (capacity > owned) capacity = owned;
    return capacity > 0 ? capacity : 1;
}

// Copies and checksums in one pass, piece by piece, so that the checksum finds the copy in the cache.
static uint32_t copy_values(float *to, const float *from, int64_t count) {
    enum { PIECE = 1 << 15 };
    uint32_t crc = 0;
    for (int64_t done = 0; done < count; done += PIECE) {
        size_t bytes = (size_t)(count - done < PIECE ? count - done : PIECE) * sizeof(float);
        memcpy(to + done, from + done, bytes);
        crc = crc32c(crc, to + done, bytes);
    }
    return crc;
}

void save_take_part(const Save *save, SaveCursor *at, Part *part) {
    const CheckpointState *state = &save->state;
    bool first = at->slice == 0 && at->done == 0;
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
                part->segment[part->segments - 1].crc[k] =
                    copy_values(part->state[k] + pos, source[k] + at->done, count);
        }
        at->done += count;
        if (at->done == s->count) *at = (SaveCursor){.slice = at->slice + 1};
    }
    if (first && group_rank(save->world) == 0)
        for (int i = 0; i < state->buffers; i++) part_add_buffer(part, &state->buffer[i]);
}

Status save_write_part(Save *save, const Part *part, int number) {
    if (!part->elements && !part->buffers) return OK;
    char name[80];
    snprintf(name, sizeof name, "shard_%05d_of_%05d_part%03d.h5", group_rank(save->world),
             group_size(save->world), number);
    PartPlace place = {.dir = save->tmp, .file = name, .step = save->step, .zlib = save->options.zlib};
    json_t *description;
    int64_t bytes;
    TRY(part_write(part, &place, &description, &bytes));
    json_array_append_new(save->files, description);
    save->bytes += bytes;
    save->raw_bytes += 4 * part->elements * part->states;
    return OK;
}

static Status write_parts(Save *save) {
    TRY(save_make_folder(save));
    int64_t capacity = save_part_elements(save_owned_elements(&save->state), &save->options);
    Part part = part_create(STATE_KINDS, capacity);
    SaveCursor at = {0};
    Status status = OK;
    int number = 0;
    do {
        save_take_part(save, &at, &part);
        status = save_write_part(save, &part, number++);
    } while (status == OK && at.slice < save->state.owned_count);
    part_free(&part);
    return status;
}

// ---- the manifest, on rank 0

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
    const ParamTable *table = save->state.params;
    int rank = group_rank(save->world), ep = group_size(mesh_group(save->state.mesh, AXIS_EXPERT));
    for (int i = 0; i < table->count; i++) {
        const Param *p = &table->param[i];
        if (table->group[p->group].expert ? rank >= ep : rank > 0) continue;
        json_array_append_new(list, manifest_tensor(p->name, p->dims, p->dim));
    }
    return list;
}

void save_gather(Save *save) {
    json_t *message = json_pack("{s:o, s:O}", "tensors", describe_tensors(save), "files", save->files);
    char *text = message ? json_dumps(message, JSON_COMPACT) : NULL;
    REQUIRE(text, "out of memory: description of %zu files", json_array_size(save->files));
    save->all = (Gathered){.tensors = json_array(), .files = json_array()};
    group_gather_each(save->world, 0, text, strlen(text), take_description, &save->all);
    free(text);
    json_decref(message);
}

Status save_commit(Save *save) {
    if (save->all.malformed) FAIL(ERR_RUNTIME, "checkpoint: a rank's description of its files is malformed");
    ManifestContent content = {.step = save->step,
                               .permanent = save->options.permanent,
                               .zlib = save->options.zlib,
                               .states = STATE_KINDS,
                               .record = save->record,
                               .tensors = save->all.tensors,
                               .files = save->all.files,
                               .digest = save->digest};
    char dir[FILE_PATH_BYTES], *text;
    size_t bytes;
    TRY(manifest_text(&content, &text, &bytes));
    folder_step_path(save->run_dir, save->step, dir, sizeof dir);
    Status status = folder_commit(save->tmp, dir, text, bytes);
    free(text);
    save->durable = clock_seconds();
    // What an earlier save left where it could not remove it.
    if (status == OK && folder_clear(save->run_dir) != OK) log_rank(LOG_WARN, "%s", status_text());
    return status;
}

// ---- one save

uint64_t save_token(Group *world) {
    uint64_t token = (uint64_t)time(NULL) << 32 | (uint64_t)(getpid() & 0xffff) << 16;
    group_broadcast(world, 0, &token, sizeof token);
    return token;
}

Status save_make_folder(const Save *save) {
    return folder_prepare(save->run_dir, save->tmp);
}

static Status fail(Save *save, Status status) {
    char reason[1024];
    snprintf(reason, sizeof reason, "%s", status_text());
    if (group_rank(save->world) == 0 && folder_clear(save->run_dir) != OK)
        log_rank(LOG_WARN, "%s", status_text());
    FAIL(status, "checkpoint of step %ld was not written, older ones are whole: %s", (long)save->step,
         reason);
}

static void report_sizes(const Save *save, CheckpointReport *report) {
    int64_t totals[2] = {save->bytes, save->raw_bytes};
    double durable = group_rank(save->world) == 0 ? save->durable - save->begun : 0;
    double slowest[4] = {save->copy_seconds, save->write_seconds, save->stall_seconds, durable};
    group_sum_i64(save->world, totals, 2);
    group_max_f64(save->world, slowest, 4);
    report->step = save->step;
    report->bytes = totals[0];
    report->raw_bytes = totals[1];
    report->copy_seconds = slowest[0];
    report->write_seconds = slowest[1];
    report->stall_seconds = slowest[2];
    report->seconds = slowest[3];
    memcpy(report->digest, save->digest, sizeof report->digest);
}

Status save_finish(Save *save, Status status, CheckpointReport *report) {
    double begun = clock_seconds();
    *report = (CheckpointReport){0};
    status = group_agree(save->world, status);
    if (status != OK) return fail(save, status);
    save->stall_seconds += clock_seconds() - begun;
    report_sizes(save, report);
    return OK;
}

Save save_create(const CheckpointState *state, json_t *record, const char *run_dir, int64_t step,
                 const CheckpointOptions *options, uint64_t token) {
    Save save = {.state = *state,
                 .options = *options,
                 .run_dir = strdup(run_dir),
                 .step = step,
                 .world = mesh_group(state->mesh, AXIS_WORLD),
                 .record = json_incref(record),
                 .files = json_array(),
                 .begun = clock_seconds()};
    REQUIRE(save.run_dir && save.files, "out of memory");
    folder_tmp_path(run_dir, step, token, save.tmp, sizeof save.tmp);
    return save;
}

void save_free(Save *save) {
    free(save->run_dir);
    json_decref(save->record);
    json_decref(save->files);
    json_decref(save->all.tensors);
    json_decref(save->all.files);
}

Status checkpoint_save(const CheckpointState *state, json_t *record, const char *run_dir, int64_t step,
                       const CheckpointOptions *options, CheckpointReport *report) {
    uint64_t token = save_token(mesh_group(state->mesh, AXIS_WORLD));
    Save save = save_create(state, record, run_dir, step, options, token);
    Status status = group_agree(save.world, write_parts(&save));
    save.write_seconds = clock_seconds() - save.begun;
    if (status == OK) {
        save_gather(&save);
        if (group_rank(save.world) == 0) status = save_commit(&save);
    }
    save.stall_seconds = clock_seconds() - save.begun;
    status = save_finish(&save, status, report);
    save_free(&save);
    return status;
}
