// SPDX-License-Identifier: Apache-2.0
// A folder made in one go by an offline command: it has its name only when it is whole, and the work can be
// watched and stopped.
#pragma once
#include "core/file.h"
#include <signal.h>

typedef struct {
    const volatile sig_atomic_t *stop; // NULL, or a signal's number: ends the work, nothing is written then
    void (*progress)(void *context, int64_t done, int64_t total); // bytes; NULL: nobody looks
    void *context;
} Watch;
// Tells how far the work is; ERR_RUNTIME once it is to stop.
Status watch_step(const Watch *watch, int64_t done, int64_t total);

typedef struct {
    char path[FILE_PATH_BYTES];
    char tmp[FILE_PATH_BYTES + 64]; // where it is made, beside its place
} NewFolder;
// Makes folder->tmp. ERR_CONFIG where something has the name already.
Status new_folder_begin(NewFolder *folder, const char *path);
Status new_folder_commit(const NewFolder *folder); // durable with all names in it, then renamed
// Removes tmp; returns the failure, with a message that the folder was not written and why.
Status new_folder_abandon(const NewFolder *folder, Status failure);
