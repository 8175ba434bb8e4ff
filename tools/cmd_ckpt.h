// SPDX-License-Identifier: Apache-2.0
// The parts of floe ckpt.
#pragma once
#include "tools/cli.h"

int ckpt_list(const CliArgs *args);
int ckpt_inspect(const CliArgs *args);
int ckpt_verify(const CliArgs *args);
int ckpt_pin(const CliArgs *args);
int ckpt_prune(const CliArgs *args);
int ckpt_diff(const CliArgs *args);
int ckpt_import(const CliArgs *args);
int ckpt_export(const CliArgs *args);
int ckpt_upcycle(const CliArgs *args);
int ckpt_reshard(const CliArgs *args);

// Folders of checkpoints at or below a path, in order of their names with numbers as numbers.
typedef struct {
    char **dir;
    int count;
} CkptList;
// all: those of ckpt/abandoned-… and ckpt/damaged-step-… too. ERR_CONFIG where there is none.
Status ckpt_collect(const char *path, bool all, CkptList *out);
bool ckpt_is_quarantined(const char *dir); // by its folder's name
void ckpt_list_free(CkptList *list);
