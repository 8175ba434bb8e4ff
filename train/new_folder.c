// SPDX-License-Identifier: Apache-2.0
#include "train/new_folder.h"
#include "core/log.h"
#include <stdio.h>
#include <string.h>
#include <unistd.h>

Status watch_step(const Watch *watch, int64_t done, int64_t total) {
    if (watch->stop && *watch->stop)
        FAIL(ERR_RUNTIME, "stopped by %s", *watch->stop == SIGINT ? "SIGINT" : "SIGTERM");
    if (watch->progress) watch->progress(watch->context, done, total);
    return OK;
}

Status new_folder_begin(NewFolder *folder, const char *path) {
    size_t length = strlen(path);
    int exists;
    while (length > 1 && path[length - 1] == '/') length--;
    if (length >= sizeof folder->path) FAIL(ERR_CONFIG, "%.80s…: the path is too long", path);
    snprintf(folder->path, sizeof folder->path, "%.*s", (int)length, path);
    TRY(file_exists(folder->path, &exists));
    if (exists) FAIL(ERR_CONFIG, "%s: is there already; choose another -o", folder->path);
    const char *slash = strrchr(folder->path, '/');
    int parent = slash ? (int)(slash - folder->path) + 1 : 0;
    snprintf(folder->tmp, sizeof folder->tmp, "%.*s.tmp-%s.%lx", parent, folder->path, folder->path + parent,
             (long)getpid());
    return file_make_folders(folder->tmp);
}

Status new_folder_commit(const NewFolder *folder) {
    TRY(file_sync_folder(folder->tmp));
    return file_rename_durable(folder->tmp, folder->path);
}

Status new_folder_abandon(const NewFolder *folder, Status failure) {
    char reason[1024];
    snprintf(reason, sizeof reason, "%s", status_text());
    if (file_remove_tree(folder->tmp) != OK) log_rank0(LOG_WARN, "%s", status_text());
    FAIL(failure, "%s was not written: %s", folder->path, reason);
}
