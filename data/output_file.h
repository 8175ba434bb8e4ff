// SPDX-License-Identifier: Apache-2.0
// A file that appears under its name only when it is whole: written as PATH.tmp, synced, renamed.
#pragma once
#include "core/status.h"
#include <stdint.h>
#include <stdio.h>

typedef struct {
    char *path, *tmp;
    FILE *file;
} OutputFile;

Status output_open(OutputFile *out, const char *path); // makes missing folders
Status output_write(OutputFile *out, const void *data, int64_t bytes);
Status output_sync(OutputFile *out);   // everything written is on disk
Status output_commit(OutputFile *out); // syncs, closes, renames
void output_cancel(OutputFile *out);   // removes the .tmp; nothing after a commit
