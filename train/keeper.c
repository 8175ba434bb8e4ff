// SPDX-License-Identifier: Apache-2.0
#include "train/keeper.h"
#include "core/background.h"
#include "core/log.h"
#include "train/format.h"
#include "train/run_dir.h"
#include <stdio.h>
#include <string.h>

static void record(Keeper *keeper, const char *event, int64_t step, json_t *more) {
    Status status = metrics_event(keeper->metrics, event, step, more);
    if (status != OK) keeper->trouble = status;
}

static void step_dir(const Keeper *keeper, int64_t step, char dir[RUN_PATH_BYTES]) {
    snprintf(dir, RUN_PATH_BYTES, "%s/ckpt/step-%09lld", keeper->run_dir, (long long)step);
}

static bool is_root(const Keeper *keeper) {
    return group_rank(keeper->world) == 0;
}

// The checkpoint that the run goes on from: what it holds, and whether somebody has verified it. Where stops
// break off every check, it is here that old ones come to go.
static void look_at_first(Keeper *keeper) {
    char dir[RUN_PATH_BYTES];
    json_t *manifest;
    int64_t unverified = 0;
    step_dir(keeper, keeper->step, dir);
    if (is_root(keeper) && checkpoint_manifest(dir, &manifest) == OK) {
        checkpoint_digest(json_object_get(manifest, "digest"), keeper->digest);
        json_decref(manifest);
        unverified = !checkpoint_has_mark(dir, MARK_VERIFIED);
    }
    group_max_i64(keeper->world, &unverified, 1);
    if (unverified) checkpoint_check_begin(keeper->check, dir);
}

void keeper_start(Keeper *keeper, Group *world, const char *run_dir, const CheckpointRules *rules,
                  Metrics *metrics, int64_t step, bool saved) {
    *keeper = (Keeper){.world = world,
                       .run_dir = run_dir,
                       .rules = *rules,
                       .metrics = metrics,
                       .check = checkpoint_check_create(world),
                       .start = step,
                       .step = saved ? step : -1,
                       .previous = -1};
    if (saved) look_at_first(keeper);
}

void keeper_end(Keeper *keeper) {
    checkpoint_check_destroy(keeper->check);
    keeper->check = NULL;
}

int64_t keeper_durable(const Keeper *keeper) {
    return keeper->step > keeper->start ? keeper->step : keeper->start;
}

void keeper_failed(Keeper *keeper, int64_t step) {
    keeper->failures++;
    keeper->failures_in_row++;
    log_rank0(LOG_WARN, "step %lld was not saved: %s; training goes on", (long long)step, status_text());
    record(keeper, "save_failed", step,
           json_pack("{s:s, s:I}", "message", status_text(), "save_failures", (json_int_t)keeper->failures));
}

// Two saves of one state: nothing was learned between them, or what is saved is not what is trained.
static void compare_digests(Keeper *keeper, const CheckpointReport *report) {
    if (keeper->digest[0] && keeper->step >= 0 && strcmp(keeper->digest, report->digest) == 0) {
        log_rank0(LOG_WARN,
                  "the state saved at step %lld is that of step %lld, bit for bit: no step between them has "
                  "changed "
                  "anything",
                  (long long)report->step, (long long)keeper->step);
        record(keeper, "stale_save", report->step,
               json_pack("{s:I, s:s}", "same_as", (json_int_t)keeper->step, "digest", report->digest));
    }
    memcpy(keeper->digest, report->digest, sizeof keeper->digest);
}

void keeper_committed(Keeper *keeper, const CheckpointReport *report) {
    char dir[RUN_PATH_BYTES];
    if (is_root(keeper)) compare_digests(keeper, report);
    keeper->previous = keeper->step;
    keeper->step = report->step;
    keeper->failures_in_row = 0;
    step_dir(keeper, report->step, dir);
    checkpoint_check_begin(keeper->check, dir);
}

bool keeper_checking(const Keeper *keeper) {
    return checkpoint_check_busy(keeper->check) || keeper->conclusion.open;
}

bool keeper_running(const Keeper *keeper) {
    return checkpoint_check_running(keeper->check) || atomic_load(&keeper->conclusion.running);
}

// ---- the conclusion, where all is whole

static void *conclude(void *context) {
    Keeper *keeper = context;
    Conclusion *c = &keeper->conclusion;
    int64_t removed;
    c->status = checkpoint_set_mark(c->dir, MARK_VERIFIED);
    if (c->status == OK) c->status = checkpoint_retain(keeper->run_dir, &keeper->rules, &removed);
    if (c->status != OK) snprintf(c->reason, sizeof c->reason, "%s", status_text());
    atomic_store(&c->running, false);
    return NULL;
}

static void begin_conclusion(Keeper *keeper, const CheckpointChecked *checked) {
    Conclusion *c = &keeper->conclusion;
    c->open = true;
    c->checked = *checked;
    if (!is_root(keeper)) return;
    step_dir(keeper, keeper->step, c->dir);
    atomic_store(&c->running, true);
    c->started = background_start(&c->thread, conclude, keeper) == 0;
    if (!c->started) conclude(keeper);
}

static void end_conclusion(Keeper *keeper) {
    Conclusion *c = &keeper->conclusion;
    c->open = false;
    if (!is_root(keeper)) return;
    if (c->started) pthread_join(c->thread, NULL);
    if (c->status != OK) log_rank0(LOG_WARN, "%s; older checkpoints stay", c->reason);
    record(keeper, "verified", keeper->step,
           json_pack("{s:f, s:I}", "seconds", c->checked.seconds, "bytes", (json_int_t)c->checked.bytes));
}

// On rank 0. Whether it is damaged indeed, and was moved: a rank that cannot read it has found no damage.
static bool quarantine(Keeper *keeper) {
    char reason[1024];
    json_t *entry = NULL;
    snprintf(reason, sizeof reason, "%s", status_text());
    Status status = checkpoint_quarantine(keeper->run_dir, keeper->step, &entry);
    if (status != OK)
        log_rank0(LOG_WARN, "%s; it could not be moved: %s", reason, status_text());
    else if (!entry)
        log_rank0(LOG_WARN, "%s; rank 0 reads it as it was written: step %lld stays, unverified", reason,
                  (long long)keeper->step);
    else
        record(keeper, "quarantine", keeper->step, entry);
    return status != OK || entry;
}

static bool end_check(Keeper *keeper, bool cut) {
    CheckpointChecked checked;
    if (cut) checkpoint_check_cancel(keeper->check);
    Status status = checkpoint_check_finish(keeper->check, &checked);
    int64_t lost = 0;
    if (status == OK && checked.complete) begin_conclusion(keeper, &checked);
    if (status != OK) {
        if (is_root(keeper)) lost = quarantine(keeper);
        group_max_i64(keeper->world, &lost, 1);
    }
    if (!lost) return true;
    keeper->failures++;
    keeper->failures_in_row++;
    keeper->step = keeper->previous;
    keeper->previous = -1;
    keeper->digest[0] = 0;
    return false;
}

bool keeper_advance(Keeper *keeper) {
    if (checkpoint_check_busy(keeper->check)) return end_check(keeper, false);
    if (keeper->conclusion.open) end_conclusion(keeper);
    return true;
}

bool keeper_settle(Keeper *keeper, bool cut) {
    bool whole = !checkpoint_check_busy(keeper->check) || end_check(keeper, cut);
    if (keeper->conclusion.open) end_conclusion(keeper);
    return whole;
}
