// SPDX-License-Identifier: Apache-2.0
// Re-reads a committed checkpoint beside the training. A thread of each rank reads every world-th file from
// the disk, not from the cache, and compares it with the manifest; it calls neither MPI nor HDF5.
#include "core/background.h"
#include "core/clock.h"
#include "train/checkpoint_internal.h"
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

typedef enum { CHECK_IDLE, CHECK_RUNNING, CHECK_DONE } CheckStage;

struct CheckpointCheck {
    Group *world;
    char dir[FILE_PATH_BYTES];
    pthread_t thread;
    bool started;
    atomic_int stage;
    atomic_bool cancel;
    bool complete; // of the thread, like the rest
    Status status;
    char reason[1024];
    double begun, seconds;
    int64_t bytes;
};

CheckpointCheck *checkpoint_check_create(Group *world) {
    CheckpointCheck *check = calloc(1, sizeof *check);
    REQUIRE(check, "out of memory");
    check->world = world;
    return check;
}

void checkpoint_check_destroy(CheckpointCheck *check) {
    if (!check) return;
    REQUIRE(!checkpoint_check_busy(check), "a check is in flight");
    free(check);
}

// ---- the thread

static Status read_file(CheckpointCheck *check, const Manifest *m, int number) {
    DataFile file;
    TRY(data_file_open(&file, m, number));
    posix_fadvise(file.fd, 0, 0, POSIX_FADV_DONTNEED); // what was just written is still in memory
    Status status = data_file_checksum(&file);
    check->bytes += m->file[number].bytes;
    data_file_close(&file);
    return status;
}

static Status read_share(CheckpointCheck *check) {
    Manifest m;
    int rank = group_rank(check->world), ranks = group_size(check->world), i = rank;
    TRY(manifest_read(&m, check->dir));
    Status status = OK;
    for (; status == OK && i < m.files && !atomic_load(&check->cancel); i += ranks)
        status = read_file(check, &m, i);
    check->complete = i >= m.files;
    manifest_free(&m);
    return status;
}

static void *run_check(void *context) {
    CheckpointCheck *check = context;
    check->status = read_share(check);
    if (check->status != OK) snprintf(check->reason, sizeof check->reason, "%s", status_text());
    check->seconds = clock_seconds() - check->begun;
    atomic_store(&check->stage, CHECK_DONE);
    return NULL;
}

// ---- the main thread

void checkpoint_check_begin(CheckpointCheck *check, const char *dir) {
    REQUIRE(!checkpoint_check_busy(check), "a check is in flight");
    snprintf(check->dir, sizeof check->dir, "%s", dir);
    check->complete = false;
    check->status = OK;
    check->bytes = 0;
    check->begun = clock_seconds();
    atomic_store(&check->cancel, false);
    atomic_store(&check->stage, CHECK_RUNNING);
    check->started = background_start(&check->thread, run_check, check) == 0;
    if (!check->started) atomic_store(&check->stage, CHECK_DONE); // not complete: it stays unverified
}

bool checkpoint_check_busy(const CheckpointCheck *check) {
    return atomic_load(&check->stage) != CHECK_IDLE;
}

bool checkpoint_check_running(const CheckpointCheck *check) {
    return atomic_load(&check->stage) == CHECK_RUNNING;
}

void checkpoint_check_cancel(CheckpointCheck *check) {
    atomic_store(&check->cancel, true);
}

Status checkpoint_check_finish(CheckpointCheck *check, CheckpointChecked *out) {
    REQUIRE(checkpoint_check_busy(check), "no check is in flight");
    if (check->started) pthread_join(check->thread, NULL);
    atomic_store(&check->stage, CHECK_IDLE);
    int64_t incomplete = !check->complete, bytes = check->bytes;
    double seconds = check->seconds;
    group_max_i64(check->world, &incomplete, 1);
    group_sum_i64(check->world, &bytes, 1);
    group_max_f64(check->world, &seconds, 1);
    *out = (CheckpointChecked){.complete = !incomplete, .seconds = seconds, .bytes = bytes};
    Status status = check->status;
    if (status != OK) status_fail(status, __FILE__, __LINE__, "%s", check->reason);
    return group_agree(check->world, status);
}
