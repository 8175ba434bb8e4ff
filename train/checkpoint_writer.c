// SPDX-License-Identifier: Apache-2.0
// A save beside the training. The main thread copies the owned slices to staging memory; a thread of this
// rank makes the files of it; the main thread commits. Only the main thread talks to other ranks.
#include "core/background.h"
#include "core/clock.h"
#include "train/checkpoint_internal.h"
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

// Writing, on all ranks, then committing, on rank 0; each on a thread. Failed: the thread's work, for the
// reason given.
typedef enum { WRITER_IDLE, WRITER_BUSY, WRITER_DONE, WRITER_FAILED } WriterStage;

struct CheckpointWriter {
    CheckpointOptions options;
    uint64_t token;
    Part *part; // the staging memory: all of this rank's state
    int parts;
    Save save; // the thread's while it runs, else the main thread's
    bool committing;
    pthread_t thread;
    bool started;
    atomic_int stage;
    atomic_bool cancel; // another rank has failed: the rest need not be written
    Status status;      // of the thread, with its text
    char reason[1024];
};

// ---- memory

int64_t checkpoint_plan_bytes(int64_t owned, const CheckpointOptions *options) {
    int64_t image = options->zlib ? save_part_elements(owned, options) : 0;
    int64_t bytes = 4 * STATE_KINDS * (owned + image);
    return options->host_bytes > 0 && bytes > options->host_bytes ? 0 : bytes;
}

int64_t checkpoint_staging_bytes(const CheckpointState *state, const CheckpointOptions *options) {
    int64_t bytes = checkpoint_plan_bytes(save_owned_elements(state), options), none = bytes == 0;
    group_max_i64(mesh_group(state->mesh, AXIS_WORLD), &none, 1);
    return none ? 0 : bytes;
}

CheckpointWriter *checkpoint_writer_create(const CheckpointState *state, const CheckpointOptions *options) {
    CheckpointWriter *writer = calloc(1, sizeof *writer);
    int64_t owned = save_owned_elements(state), capacity = save_part_elements(owned, options);
    REQUIRE(writer, "out of memory");
    writer->options = *options;
    writer->token = save_token(mesh_group(state->mesh, AXIS_WORLD));
    writer->parts = owned ? (int)((owned + capacity - 1) / capacity) : 1;
    writer->part = calloc((size_t)writer->parts, sizeof *writer->part);
    REQUIRE(writer->part, "out of memory: %d parts", writer->parts);
    for (int i = 0; i < writer->parts; i++) {
        int64_t left = owned - i * capacity;
        writer->part[i] = part_create(STATE_KINDS, left > capacity ? capacity : left);
        // Touched now: the first copy would wait for every page.
        for (int k = 0; k < STATE_KINDS; k++)
            memset(writer->part[i].state[k], 0, (size_t)writer->part[i].capacity * sizeof(float));
    }
    return writer;
}

void checkpoint_writer_destroy(CheckpointWriter *writer) {
    if (!writer) return;
    REQUIRE(!checkpoint_writer_busy(writer), "a save is in flight");
    for (int i = 0; i < writer->parts; i++) part_free(&writer->part[i]);
    free(writer->part);
    free(writer);
}

// ---- the thread

static void end(CheckpointWriter *writer, Status status) {
    writer->status = status;
    if (status != OK) snprintf(writer->reason, sizeof writer->reason, "%s", status_text());
    atomic_store(&writer->stage, status == OK ? WRITER_DONE : WRITER_FAILED);
}

static void *write_parts(void *context) {
    CheckpointWriter *writer = context;
    double begun = clock_seconds();
    Status status = save_make_folder(&writer->save);
    for (int i = 0; status == OK && i < writer->parts && !atomic_load(&writer->cancel); i++)
        status = save_write_part(&writer->save, &writer->part[i], i);
    writer->save.write_seconds = clock_seconds() - begun;
    end(writer, status);
    return NULL;
}

static void *commit(void *context) {
    CheckpointWriter *writer = context;
    end(writer, save_commit(&writer->save));
    return NULL;
}

// ---- the main thread

static void start(CheckpointWriter *writer, void *(*work)(void *)) {
    atomic_store(&writer->stage, WRITER_BUSY);
    int failed = background_start(&writer->thread, work, writer);
    writer->started = !failed;
    if (failed)
        end(writer,
            status_fail(ERR_RUNTIME, __FILE__, __LINE__, "cannot start a thread: %s", strerror(failed)));
}

static void join(CheckpointWriter *writer) {
    if (writer->started) pthread_join(writer->thread, NULL);
    writer->started = false;
}

static void take_state(CheckpointWriter *writer) {
    Save *save = &writer->save;
    double begun = clock_seconds();
    SaveCursor at = {0};
    int64_t taken = 0;
    for (int i = 0; i < writer->parts; i++) {
        save_take_part(save, &at, &writer->part[i]);
        taken += writer->part[i].elements;
    }
    REQUIRE(taken == save_owned_elements(&save->state), "step %ld: the state has grown", (long)save->step);
    save->copy_seconds = clock_seconds() - begun;
}

void checkpoint_writer_begin(CheckpointWriter *writer, const CheckpointState *state, json_t *record,
                             const char *run_dir, int64_t step) {
    REQUIRE(!checkpoint_writer_busy(writer), "a save is in flight");
    Save *save = &writer->save;
    *save = save_create(state, record, run_dir, step, &writer->options, writer->token++);
    take_state(writer);
    writer->committing = false;
    atomic_store(&writer->cancel, false);
    start(writer, write_parts);
    save->stall_seconds = clock_seconds() - save->begun;
}

bool checkpoint_writer_busy(const CheckpointWriter *writer) {
    return writer && atomic_load(&writer->stage) != WRITER_IDLE;
}

void checkpoint_writer_news(CheckpointWriter *writer, int64_t news[2]) {
    int stage = writer ? atomic_load(&writer->stage) : WRITER_IDLE;
    news[0] = stage == WRITER_BUSY;
    news[1] = stage == WRITER_FAILED;
}

// All ranks have written.
static void begin_commit(CheckpointWriter *writer) {
    double begun = clock_seconds();
    join(writer);
    save_gather(&writer->save);
    writer->committing = true;
    if (group_rank(writer->save.world) == 0) start(writer, commit);
    writer->save.stall_seconds += clock_seconds() - begun;
}

bool checkpoint_writer_advance(CheckpointWriter *writer, const int64_t most[2]) {
    if (!checkpoint_writer_busy(writer)) return false;
    if (most[1]) atomic_store(&writer->cancel, true);
    if (most[0]) return false;
    if (writer->committing || most[1]) return true;
    begin_commit(writer);
    return false;
}

Status checkpoint_writer_finish(CheckpointWriter *writer, CheckpointReport *report) {
    REQUIRE(checkpoint_writer_busy(writer), "no save is in flight");
    Save *save = &writer->save;
    double begun = clock_seconds();
    join(writer);
    Status status = writer->status;
    if (status != OK) status_fail(status, __FILE__, __LINE__, "%s", writer->reason);
    if (!writer->committing && (status = group_agree(save->world, status)) == OK) {
        begin_commit(writer);
        join(writer);
        status = writer->status;
        if (status != OK) status_fail(status, __FILE__, __LINE__, "%s", writer->reason);
    }
    atomic_store(&writer->stage, WRITER_IDLE);
    save->stall_seconds += clock_seconds() - begun;
    status = save_finish(save, status, report);
    save_free(save);
    return status;
}
