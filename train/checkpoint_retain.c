// SPDX-License-Identifier: Apache-2.0
// Which checkpoints of a run stay, and what becomes of one that is found damaged. Nothing here removes a
// checkpoint unless as many as are to stay have been verified after it.
#include "core/log.h"
#include "train/checkpoint_internal.h"
#include <stdlib.h>
#include <string.h>

static CheckpointFate fate_of_older(const Manifest *m, const char *dir, const CheckpointRules *rules) {
    if (m->permanent) return FATE_PERMANENT;
    if (rules->keep_every > 0 && m->step % rules->keep_every == 0) return FATE_EVERY;
    return checkpoint_has_mark(dir, MARK_PINNED) ? FATE_PINNED : FATE_GOES;
}

// *newest: how many of the newest have been found so far, from the newest on.
static CheckpointFate fate_of(const char *dir, int64_t step, const CheckpointRules *rules, int64_t *newest) {
    Manifest m;
    if (manifest_read(&m, dir) != OK) return FATE_DAMAGED;
    CheckpointFate fate;
    if (m.step != step)
        fate = FATE_DAMAGED;
    else if (rules->keep <= 0 || *newest < rules->keep) {
        bool counts = rules->trusting || checkpoint_has_mark(dir, MARK_VERIFIED);
        fate = counts ? FATE_NEWEST : FATE_UNVERIFIED;
        *newest += counts;
    } else
        fate = fate_of_older(&m, dir, rules);
    manifest_free(&m);
    return fate;
}

Status checkpoint_fates(const char *run_dir, const CheckpointRules *rules, CheckpointFates *out) {
    StepList list;
    *out = (CheckpointFates){0};
    TRY(folder_steps(run_dir, &list));
    out->count = list.count;
    out->entry = calloc((size_t)list.count + 1, sizeof *out->entry);
    REQUIRE(out->entry, "out of memory: %d checkpoints", list.count);
    int64_t newest = 0;
    for (int i = list.count - 1; i >= 0; i--) {
        char dir[FILE_PATH_BYTES];
        folder_step_path(run_dir, list.step[i], dir, sizeof dir);
        out->entry[i].step = list.step[i];
        out->entry[i].fate = fate_of(dir, list.step[i], rules, &newest);
    }
    free(list.step);
    return OK;
}

void checkpoint_fates_free(CheckpointFates *fates) {
    free(fates->entry);
    *fates = (CheckpointFates){0};
}

Status checkpoint_retain(const char *run_dir, const CheckpointRules *rules, int64_t *removed) {
    CheckpointFates fates;
    *removed = 0;
    if (rules->keep <= 0) return OK;
    TRY(checkpoint_fates(run_dir, rules, &fates));
    Status status = OK;
    for (int i = 0; status == OK && i < fates.count; i++) {
        char dir[FILE_PATH_BYTES];
        if (fates.entry[i].fate != FATE_GOES) continue;
        folder_step_path(run_dir, fates.entry[i].step, dir, sizeof dir);
        status = folder_remove(dir);
        if (status == OK) status = checkpoint_remove_mark(dir, MARK_VERIFIED);
        *removed += status == OK;
    }
    checkpoint_fates_free(&fates);
    return status;
}

// ---- quarantine

static json_t *describe(int64_t step, const char *to, const char *why) {
    json_t *entry =
        json_pack("{s:I, s:s, s:s}", "damaged_step", (json_int_t)step, "moved_to", to, "message", why);
    // Not UTF-8: damage may show up in a name.
    return entry ? entry : json_pack("{s:I, s:s}", "damaged_step", (json_int_t)step, "moved_to", to);
}

Status folder_quarantine(const char *run_dir, int64_t step, const char *why, json_t **entry) {
    char from[FILE_PATH_BYTES], to[FILE_PATH_BYTES + 64];
    int exists = 1;
    folder_step_path(run_dir, step, from, sizeof from);
    for (int i = 0; exists; i++) {
        int length = snprintf(to, sizeof to, "%s/ckpt/damaged-step-%09lld", run_dir, (long long)step);
        if (i) snprintf(to + length, sizeof to - (size_t)length, "-%d", i);
        TRY(file_exists(to, &exists));
    }
    TRY(file_rename_durable(from, to));
    log_rank0(LOG_WARN, "%s; moved to %s, nothing of it is used", why, to);
    *entry = describe(step, to, why);
    return OK;
}

Status checkpoint_quarantine(const char *run_dir, int64_t step, json_t **entry) {
    char dir[FILE_PATH_BYTES], why[1024];
    *entry = NULL;
    folder_step_path(run_dir, step, dir, sizeof dir);
    Status status = checkpoint_verify(dir, false);
    if (status == OK) return OK;
    if (status != ERR_DATA) return status;
    snprintf(why, sizeof why, "%s", status_text());
    return folder_quarantine(run_dir, step, why, entry);
}
