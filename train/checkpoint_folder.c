// SPDX-License-Identifier: Apache-2.0
// RUN/ckpt: which checkpoints there are, how one appears and how one goes.
//   step-%09d/       committed: exists only whole, nothing is added to it later
//   .tmp-step-…      being written       .trash-step-…   being removed
//   abandoned-TIME/  later steps of a run that was resumed further back
//   damaged-step-…/  found damaged by a resume or by the check behind a save: never used, never removed
//   .verified/step-…, .pinned/step-…  what is known about checkpoints (checkpoint_marks.c)
#include "train/checkpoint_internal.h"
#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "core/log.h"

void folder_step_path(const char *run_dir, int64_t step, char *path, size_t size) {
    snprintf(path, size, "%s/ckpt/step-%09lld", run_dir, (long long)step);
}

static bool parse_step(const char *name, int64_t *step) {
    static const char prefix[] = "step-";
    if (strncmp(name, prefix, sizeof prefix - 1)) return false;
    const char *digits = name + sizeof prefix - 1;
    size_t length = strspn(digits, "0123456789");
    if (length < 9 || length > 18 || digits[length]) return false;
    *step = strtoll(digits, NULL, 10);
    return true;
}

static int step_order(const void *a, const void *b) {
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x > y) - (x < y);
}

// Calls visit for every entry of RUN/ckpt; no such folder: none.
static Status each_entry(const char *run_dir,
                         Status (*visit)(void *context, const char *path, const char *name), void *context) {
    char folder[FILE_PATH_BYTES], path[FILE_PATH_BYTES + 256];
    snprintf(folder, sizeof folder, "%s/ckpt", run_dir);
    DIR *dir = opendir(folder);
    if (!dir && errno == ENOENT) return OK;
    if (!dir) FAIL(ERR_RUNTIME, "%s: %s", folder, strerror(errno));
    Status status = OK;
    for (struct dirent *entry; status == OK && (entry = readdir(dir));) {
        if (!strcmp(entry->d_name, ".") || !strcmp(entry->d_name, "..")) continue;
        snprintf(path, sizeof path, "%s/%s", folder, entry->d_name);
        status = visit(context, path, entry->d_name);
    }
    closedir(dir);
    return status;
}

static Status note_step(void *context, const char *path, const char *name) {
    (void)path;
    StepList *list = context;
    int64_t step;
    if (!parse_step(name, &step)) return OK;
    list->step = realloc(list->step, (size_t)(list->count + 1) * sizeof *list->step);
    REQUIRE(list->step, "out of memory: %d checkpoints", list->count);
    list->step[list->count++] = step;
    return OK;
}

Status folder_steps(const char *run_dir, StepList *out) {
    *out = (StepList){0};
    Status status = each_entry(run_dir, note_step, out);
    if (out->count) qsort(out->step, (size_t)out->count, sizeof *out->step, step_order);
    return status;
}

static Status read_at_step(Manifest *m, const char *dir, int64_t step) {
    TRY(manifest_read(m, dir));
    int64_t found = m->step;
    if (found == step) return OK;
    manifest_free(m);
    FAIL(ERR_DATA, "%s: holds step %ld", dir, (long)found);
}

// Where it cannot be moved it is passed over all the same.
static void set_aside(const char *run_dir, int64_t step, const char *dir, Status status,
                      json_t *quarantined) {
    char why[1024];
    json_t *entry;
    snprintf(why, sizeof why, "%s", status_text());
    if (!quarantined || status != ERR_DATA)
        log_rank(LOG_WARN, "%s; passed over: floe ckpt verify %s", why, dir);
    else if (folder_quarantine(run_dir, step, why, &entry) == OK)
        json_array_append_new(quarantined, entry);
    else
        log_rank(LOG_WARN, "%s; passed over: %s", why, status_text());
}

Status checkpoint_find_newest(const char *run_dir, int64_t at_most, json_t *quarantined, int64_t *step,
                              char *dir, size_t dir_size) {
    StepList list;
    *step = -1;
    TRY(folder_steps(run_dir, &list));
    for (int i = list.count - 1; i >= 0 && *step < 0; i--) {
        if (at_most >= 0 && list.step[i] > at_most) continue;
        Manifest m;
        folder_step_path(run_dir, list.step[i], dir, dir_size);
        Status status = read_at_step(&m, dir, list.step[i]);
        if (status != OK)
            set_aside(run_dir, list.step[i], dir, status, quarantined);
        else {
            *step = list.step[i];
            manifest_free(&m);
        }
    }
    free(list.step);
    return OK;
}

Status checkpoint_find(const char *run_dir, int64_t at_most, int64_t *step, char *dir, size_t dir_size) {
    return checkpoint_find_newest(run_dir, at_most, NULL, step, dir, dir_size);
}

// ---- appearing

void folder_tmp_path(const char *run_dir, int64_t step, uint64_t token, char *path, size_t size) {
    snprintf(path, size, "%s/ckpt/.tmp-step-%09lld.%llx", run_dir, (long long)step,
             (unsigned long long)token);
}

Status folder_prepare(const char *run_dir, const char *tmp) {
    TRY(file_make_folders(tmp));
    return file_sync_folder(run_dir);
}

// The folder takes its name; what has it already changes places with it at once and goes then.
static Status take_name(const char *tmp, const char *dir) {
    int exists;
    TRY(file_exists(dir, &exists));
    if (!exists) return file_rename_durable(tmp, dir);
    TRY(file_exchange_durable(tmp, dir));
    if (file_remove_tree(tmp) != OK) log_rank(LOG_WARN, "%s", status_text());
    return OK;
}

Status folder_commit(const char *tmp, const char *dir, const char *manifest, size_t bytes) {
    char path[FILE_PATH_BYTES + 32];
    snprintf(path, sizeof path, "%s/" CHECKPOINT_MANIFEST, tmp);
    TRY(file_write_durable(path, manifest, bytes));
    TRY(file_sync_folder(tmp));
    return take_name(tmp, dir);
}

// ---- going

Status folder_remove(const char *dir) {
    char trash[FILE_PATH_BYTES];
    const char *slash = strrchr(dir, '/');
    REQUIRE(slash, "%s is not a path", dir);
    snprintf(trash, sizeof trash, "%.*s/.trash-%s.%lx", (int)(slash - dir), dir, slash + 1, (long)getpid());
    TRY(file_remove_tree(trash));
    TRY(file_rename_durable(dir, trash));
    return file_remove_tree(trash);
}

static Status remove_leftover(void *context, const char *path, const char *name) {
    (void)context;
    if (strncmp(name, ".tmp-", 5) && strncmp(name, ".trash-", 7)) return OK;
    return file_remove_tree(path);
}

Status folder_clear(const char *run_dir) {
    return each_entry(run_dir, remove_leftover, NULL);
}

static Status abandon_folder(const char *run_dir, char *path, size_t size) {
    int exists = 1;
    for (int i = 0; exists; i++) {
        int length = snprintf(path, size, "%s/ckpt/abandoned-%lld", run_dir, (long long)time(NULL));
        if (i) snprintf(path + length, size - (size_t)length, "-%d", i);
        TRY(file_exists(path, &exists));
    }
    return file_make_folders(path);
}

Status checkpoint_abandon_after(const char *run_dir, int64_t step) {
    char folder[FILE_PATH_BYTES] = "";
    StepList list;
    TRY(folder_clear(run_dir));
    Status status = folder_steps(run_dir, &list);
    // Newest first: a crash in between never leaves a later step behind an earlier gap.
    for (int i = list.count - 1; status == OK && i >= 0 && list.step[i] > step; i--) {
        char from[FILE_PATH_BYTES], to[FILE_PATH_BYTES + 32];
        if (!folder[0]) status = abandon_folder(run_dir, folder, sizeof folder);
        folder_step_path(run_dir, list.step[i], from, sizeof from);
        snprintf(to, sizeof to, "%s/step-%09lld", folder, (long long)list.step[i]);
        if (status == OK) status = file_rename_durable(from, to);
        if (status == OK) status = file_sync_folder(folder);
    }
    free(list.step);
    return status;
}
