// SPDX-License-Identifier: Apache-2.0
// floe ckpt pin, floe ckpt prune
#include "core/file.h"
#include "core/log.h"
#include "tools/cmd_ckpt.h"
#include "train/checkpoint.h"
#include "train/resume.h"
#include "train/run_config.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

// ---- pin

// Where nothing is ever removed there is nothing to pin.
static Status check_place(const char *dir) {
    size_t length = strlen(dir);
    while (length > 1 && dir[length - 1] == '/') length--;
    size_t name = length;
    while (name > 0 && dir[name - 1] != '/') name--;
    if (strncmp(dir + name, "step-", 5) || strstr(dir, "/abandoned-"))
        FAIL(ERR_CONFIG, "%s: is not among a run's checkpoints; only those are ever removed", dir);
    return OK;
}

static Status pin(const char *spec, bool remove) {
    char dir[FILE_PATH_BYTES];
    int exists;
    TRY(checkpoint_path_resolve(spec, dir, sizeof dir));
    TRY(check_place(dir));
    if (remove)
        TRY(checkpoint_remove_mark(dir, MARK_PINNED));
    else
        TRY(checkpoint_set_mark(dir, MARK_PINNED));
    TRY(file_exists(dir, &exists));
    if (!exists) FAIL(ERR_RUNTIME, "%s: the run has removed it meanwhile", dir);
    printf("%s: %s\n", dir, remove ? "not pinned" : "pinned");
    return OK;
}

int ckpt_pin(const CliArgs *args) {
    Status status = pin(args->argument[0], cli_flag(args, "remove"));
    return status == OK ? OK : cli_failure(status);
}

// ---- prune

static Status read_rules(const char *run_dir, int64_t keep, CheckpointRules *rules) {
    char path[FILE_PATH_BYTES + 16], *yaml;
    size_t bytes;
    int exists;
    RunConfig *config;
    *rules = (CheckpointRules){.keep = keep};
    snprintf(path, sizeof path, "%s/config.yaml", run_dir);
    TRY(file_exists(path, &exists));
    if (!exists && keep < 0) FAIL(ERR_CONFIG, "%s: is not there to say what stays; give --keep N", path);
    if (!exists) return OK;
    TRY(file_read_all(path, &yaml, &bytes));
    Status status = config_parse(&config, NULL, yaml, path);
    free(yaml);
    TRY(status);
    if (keep < 0) rules->keep = config->checkpoint.keep;
    rules->keep_every = config->checkpoint.keep_every;
    config_free(config, NULL);
    return OK;
}

static const char *const fate_text[] = {"goes",
                                        "stays: one of the newest",
                                        "stays: not verified",
                                        "stays: begins a stage",
                                        "stays: a multiple of checkpoint.keep_every",
                                        "stays: pinned",
                                        "stays: damaged"};

static int count_fate(const CheckpointFates *fates, CheckpointFate fate) {
    int count = 0;
    for (int i = 0; i < fates->count; i++) count += fates->entry[i].fate == fate;
    return count;
}

static int64_t newest_unverified(const CheckpointFates *fates) {
    for (int i = fates->count - 1; i >= 0; i--)
        if (fates->entry[i].fate == FATE_UNVERIFIED) return fates->entry[i].step;
    return -1;
}

// Re-reads those among the newest that nobody has verified, so that older ones may go. *moved: how many were
// damaged.
static Status verify_newest(const char *run_dir, const CheckpointRules *rules, int *moved) {
    for (;;) {
        CheckpointFates fates;
        json_t *entry;
        char dir[FILE_PATH_BYTES + 32];
        TRY(checkpoint_fates(run_dir, rules, &fates));
        int64_t step = newest_unverified(&fates);
        checkpoint_fates_free(&fates);
        if (step < 0) return OK;
        TRY(checkpoint_quarantine(run_dir, step, &entry));
        snprintf(dir, sizeof dir, "%s/ckpt/step-%09lld", run_dir, (long long)step);
        if (!entry) TRY(checkpoint_set_mark(dir, MARK_VERIFIED));
        *moved += entry != NULL;
        json_decref(entry);
    }
}

static Status prune(const char *run_dir, int64_t keep, bool dry, int *moved) {
    CheckpointRules rules;
    CheckpointFates fates;
    int64_t removed = 0;
    TRY(read_rules(run_dir, keep, &rules));
    rules.trusting = true;
    TRY(checkpoint_fates(run_dir, &rules, &fates));
    int goes = count_fate(&fates, FATE_GOES);
    if (goes && !dry) {
        checkpoint_fates_free(&fates);
        rules.trusting = false;
        TRY(verify_newest(run_dir, &rules, moved));
        TRY(checkpoint_fates(run_dir, &rules, &fates));
        goes = count_fate(&fates, FATE_GOES);
    }
    for (int i = 0; i < fates.count; i++)
        printf("%9lld  %s\n", (long long)fates.entry[i].step, fate_text[fates.entry[i].fate]);
    int count = fates.count;
    checkpoint_fates_free(&fates);
    if (!dry) TRY(checkpoint_retain(run_dir, &rules, &removed));
    printf("%s: %d checkpoint%s, %d %s\n", run_dir, count, count == 1 ? "" : "s", dry ? goes : (int)removed,
           dry ? "would go, once those that stay are verified" : "removed");
    return OK;
}

static Status prune_run(const CliArgs *args, int *moved) {
    char run_dir[FILE_PATH_BYTES], ckpt[FILE_PATH_BYTES + 8];
    RunLock lock;
    int exists;
    size_t length = strlen(args->argument[0]);
    while (length > 1 && args->argument[0][length - 1] == '/') length--;
    snprintf(run_dir, sizeof run_dir, "%.*s", (int)length, args->argument[0]);
    snprintf(ckpt, sizeof ckpt, "%s/ckpt", run_dir);
    TRY(file_exists(ckpt, &exists));
    if (!exists) FAIL(ERR_CONFIG, "%s: is no run: it has no folder ckpt", run_dir);
    TRY(run_lock_take(&lock, run_dir, 0));
    Status status = prune(run_dir, cli_integer(args, "keep", -1), cli_flag(args, "dry-run"), moved);
    run_lock_release(&lock);
    return status;
}

int ckpt_prune(const CliArgs *args) {
    int moved = 0;
    Status status = prune_run(args, &moved);
    if (status != OK) return cli_failure(status);
    return moved ? ERR_DATA : OK;
}
