// SPDX-License-Identifier: Apache-2.0
// A run's folder: config.yaml, config.input.yaml, meta.json, log.txt, metrics.jsonl, ckpt/, ctl/, lock.
#pragma once
#include "core/status.h"
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { RUN_PATH_BYTES = 4096 };

// given, or else $FLOE_RUNS (default runs)/STEM-UTCTIME-HEX with STEM the config file's name.
Status run_dir_choose(char *out, size_t size, const char *given, const char *config_file);
Status run_dir_create(const char *run_dir);      // with ckpt/ and ctl/; one that is there stays as it is
void run_dir_remove_unused(const char *run_dir); // again, where no run has begun in it
bool run_dir_is_used(const char *run_dir);       // a run has begun here: there are metrics or checkpoints
void run_dir_mark_latest(
    const char *run_dir); // the link `latest` beside it; a warning where it cannot be set
Status run_dir_write(const char *run_dir, const char *name, const char *text); // whole or not at all (rename)
// config.input.yaml: the files one after another with a line "# FILE" before each, then the overrides as
// comments.
Status run_dir_write_input(const char *run_dir, const char *const files[], int count,
                           const char *const overrides[], int override_count);
int run_dir_open_log(const char *run_dir);                // log.txt, to append; −1 after a warning
int run_dir_open_rank_log(const char *run_dir, int rank); // log/rank-N.txt, the same

// The lock on a folder: held by every process of the run until the last one has ended, by whatever signal.
typedef struct {
    int fd; // −1: not held
} RunLock;
// Takes it for a new run, waiting up to wait_seconds for the ranks of one that is ending, and says so.
// ERR_RUNTIME names the holder.
Status run_lock_take(RunLock *lock, const char *run_dir, double wait_seconds);
// For further processes of a run whose lock is taken and held.
Status run_lock_join(RunLock *lock, const char *run_dir);
void run_lock_release(RunLock *lock);
