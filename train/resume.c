// SPDX-License-Identifier: Apache-2.0
#include "train/resume.h"
#include "core/log.h"
#include "train/format.h"
#include <dirent.h>
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

// ---- what was asked for

static bool parse_step(const char *text, int64_t *step) {
    char *end;
    errno = 0;
    *step = strtoll(text, &end, 10);
    return end != text && !*end && errno == 0 && *step > 0;
}

// RUN or RUN@STEP; step −1 where none is named.
static Status parse_run(const char *spec, char *run, size_t size, int64_t *step) {
    const char *at = strrchr(spec, '@');
    if (at && strchr(at, '/')) at = NULL; // part of a folder's name
    size_t length = at ? (size_t)(at - spec) : strlen(spec);
    *step = -1;
    if (at && !parse_step(at + 1, step))
        FAIL(ERR_CONFIG, "%s: what follows the @ must be a step, as in runs/a@1000", spec);
    if (length == 0 || length >= size) FAIL(ERR_CONFIG, "'%s' does not name a run", spec);
    snprintf(run, size, "%.*s", (int)length, spec);
    return OK;
}

Status start_request_parse(StartRequest *out, const char *resume, const char *fork) {
    *out = (StartRequest){.mode = RESUME_AUTO, .fork_step = -1};
    if (resume && strcmp(resume, "never") == 0)
        out->mode = RESUME_NEVER;
    else if (resume && strcmp(resume, "auto") != 0) {
        out->mode = RESUME_STEP;
        if (!parse_step(resume, &out->step))
            FAIL(ERR_CONFIG, "--resume=%s: must be auto, never or the number of a step", resume);
    }
    if (fork && out->mode == RESUME_STEP)
        FAIL(ERR_CONFIG, "--fork and --resume=%s exclude each other", resume);
    if (fork) TRY(parse_run(fork, out->fork_run, sizeof out->fork_run, &out->fork_step));
    return OK;
}

// The checkpoint of one step, or the newest (step −1); *found = −1 where there is none.
static Status find(const char *run, int64_t step, int64_t *found, char *dir, size_t size) {
    TRY(checkpoint_find(run, step, found, dir, size));
    if (step >= 0 && *found != step) *found = -1;
    return OK;
}

static bool is_checkpoint(const char *path) {
    char manifest[RUN_PATH_BYTES + 16];
    snprintf(manifest, sizeof manifest, "%s/MANIFEST.json", path);
    return access(manifest, F_OK) == 0;
}

static Status find_fork(const StartRequest *request, char *dir, size_t size) {
    int64_t found;
    if (request->fork_step < 0 && is_checkpoint(request->fork_run)) {
        snprintf(dir, size, "%s", request->fork_run);
        return OK;
    }
    TRY(find(request->fork_run, request->fork_step, &found, dir, size));
    if (found >= 0) return OK;
    if (request->fork_step < 0)
        FAIL(ERR_CONFIG, "--fork: there is no checkpoint in %s/ckpt", request->fork_run);
    FAIL(ERR_CONFIG, "--fork: %s/ckpt has no checkpoint of step %lld; see floe ckpt ls %s", request->fork_run,
         (long long)request->fork_step, request->fork_run);
}

Status start_request_check(const StartRequest *request, const char *run_dir) {
    char dir[RUN_PATH_BYTES];
    bool used = run_dir_is_used(run_dir);
    if (request->mode == RESUME_NEVER && used)
        FAIL(ERR_CONFIG,
             "%s already holds a run; choose another folder with -o, or leave out --resume=never to go on "
             "with it",
             run_dir);
    if (request->mode == RESUME_STEP) {
        int64_t found = -1;
        if (used) TRY(find(run_dir, request->step, &found, dir, sizeof dir));
        snprintf(dir, sizeof dir, "%s/ckpt/step-%09lld", run_dir, (long long)request->step);
        if (found < 0 && access(dir, F_OK) == 0)
            FAIL(ERR_DATA, "--resume=%lld: %s is damaged; see floe ckpt verify %s", (long long)request->step,
                 dir, dir);
        if (found < 0)
            FAIL(ERR_CONFIG, "--resume=%lld: %s/ckpt has no checkpoint of that step; see floe ckpt ls %s",
                 (long long)request->step, run_dir, run_dir);
    }
    if (request->fork_run[0]) TRY(find_fork(request, dir, sizeof dir));
    return OK;
}

Status checkpoint_path_resolve(const char *spec, char *dir, size_t size) {
    char run[RUN_PATH_BYTES];
    struct stat info;
    if (strlen(spec) >= sizeof run) FAIL(ERR_CONFIG, "%.80s…: the path is too long", spec);
    if (is_checkpoint(spec)) {
        snprintf(dir, size, "%s", spec);
        return OK;
    }
    int64_t step, found;
    TRY(parse_run(spec, run, sizeof run, &step));
    if (stat(run, &info) != 0) FAIL(ERR_CONFIG, "%s: %s", run, strerror(errno));
    TRY(find(run, step, &found, dir, size));
    if (found < 0 && step >= 0)
        FAIL(ERR_CONFIG, "%s/ckpt has no checkpoint of step %lld; see floe ckpt ls %s", run, (long long)step,
             run);
    if (found < 0) FAIL(ERR_CONFIG, "%s is neither a checkpoint nor a run that has one", run);
    return OK;
}

// ---- the data position: the plan up to here must be the one that the checkpoint's run followed

// Where the digests differ: names the difference.
static Status check_plan(const Loader *loader, json_t *record, const char *digest, int64_t samples) {
    char own[32];
    snprintf(own, sizeof own, "%016llx", (unsigned long long)loader_plan_digest(loader, samples));
    if (strcmp(own, digest) == 0) return OK;
    char *plan = json_dumps(json_object_get(record, "plan"), JSON_COMPACT);
    Status status = loader_plan_check(loader, plan ? plan : "", samples);
    free(plan);
    TRY(status);
    FAIL(ERR_CONFIG,
         "the data plan of the %lld samples already trained on has changed; put data and curriculum back as "
         "they were",
         (long long)samples);
}

static Status take_position(TrainState *state, json_t *record, const char *dir) {
    json_t *step = json_object_get(record, "step"), *samples = json_object_get(record, "samples");
    const char *digest = json_string_value(json_object_get(record, "plan_digest"));
    if (!json_is_integer(step) || !json_is_integer(samples) || !digest)
        FAIL(ERR_CONFIG, "%s holds weights only, no run to go on with; use it through train.init_from", dir);
    int64_t done = json_integer_value(step), seen = json_integer_value(samples);
    const BatchPlan *batches = &state->config->batch.plan;
    TRY(check_plan(state->loader, record, digest, seen));
    if (batch_first_sample(batches, done + 1) != seen)
        FAIL(ERR_CONFIG,
             "%s had consumed %lld samples after step %lld, with these batch settings it would be %lld; "
             "restore "
             "batch.sequences and batch.ramp",
             dir, (long long)seen, (long long)done, (long long)batch_first_sample(batches, done + 1));
    char *ledger = json_dumps(json_object_get(record, "ledger"), JSON_COMPACT);
    if (!ledger) FAIL(ERR_DATA, "%s/MANIFEST.json has no ledger", dir);
    Status status = ledger_parse(&state->ledger, state->loader, ledger);
    free(ledger);
    TRY(status);
    TRY(ledger_check(&state->ledger, state->loader, seen));
    TRY(guard_parse(&state->guard, json_object_get(record, "guard"), batches, done));
    state->step = done;
    return OK;
}

// ---- loading

static int integer(json_t *record, const char *key) {
    return (int)json_integer_value(json_object_get(record, key));
}

static Status load(TrainState *state, const char *dir, bool weights_only, Start *out) {
    Group *world = mesh_group(state->mesh, AXIS_WORLD);
    CheckpointBuffer bias;
    CheckpointState part = state_checkpoint(state, &bias);
    json_t *record = NULL;
    Status status = group_agree(world, checkpoint_load(&part, dir, weights_only, &record, &out->read));
    if (status == OK && !weights_only) status = group_agree(world, take_position(state, record, dir));
    if (status == OK) {
        zero_weights_gather(state->zero);
        out->saved_world = integer(record, "world");
        out->saved_ep = integer(record, "ep");
        out->saved_zero = integer(record, "zero");
        snprintf(out->from, sizeof out->from, "%s", dir);
    }
    json_decref(record);
    return status;
}

typedef struct {
    int64_t step; // −1: none
    char dir[RUN_PATH_BYTES];
} Found;

static void share(TrainState *state, Found *found) {
    group_broadcast(mesh_group(state->mesh, AXIS_WORLD), 0, found, sizeof *found);
}

static bool is_root(const TrainState *state) {
    return group_rank(mesh_group(state->mesh, AXIS_WORLD)) == 0;
}

// Whole or not.
static bool has_step_folders(const char *run_dir) {
    char path[RUN_PATH_BYTES];
    snprintf(path, sizeof path, "%s/ckpt", run_dir);
    DIR *folder = opendir(path);
    bool found = false;
    for (struct dirent *entry; folder && !found && (entry = readdir(folder));)
        found = strncmp(entry->d_name, "step-", 5) == 0 || strncmp(entry->d_name, "damaged-step-", 13) == 0;
    if (folder) closedir(folder);
    return found;
}

// After a load that failed: moves the checkpoint away where rank 0 finds the damage too. Where it does not,
// the fault is not in the files.
static Status set_aside(TrainState *state, const char *run_dir, int64_t step, Start *out) {
    Status status = OK;
    json_t *entry = NULL;
    char reason[1024];
    snprintf(reason, sizeof reason, "%s", status_text());
    if (is_root(state)) {
        status = checkpoint_quarantine(run_dir, step, &entry);
        if (entry)
            json_array_append_new(out->quarantined, entry);
        else if (status == OK)
            status =
                status_fail(ERR_DATA, __FILE__, __LINE__,
                            "%s; but rank 0 reads step %lld as it was written: check how the other ranks see "
                            "the files",
                            reason, (long long)step);
        else {
            log_rank0(LOG_WARN, "%s; passed over, for it cannot be moved: %s", reason, status_text());
            status = OK;
        }
    }
    return group_agree(mesh_group(state->mesh, AXIS_WORLD), status);
}

// The newest checkpoint of step ≤ at_most (−1: any) that loads; damaged ones are named and moved away.
// found->step = −1 where the run has none.
static Status load_newest(TrainState *state, const char *run_dir, int64_t at_most, Found *found, Start *out) {
    Group *world = mesh_group(state->mesh, AXIS_WORLD);
    bool any = at_most < 0;
    if (is_root(state) && !out->quarantined) out->quarantined = json_array();
    *found = (Found){.step = -1};
    for (; at_most != 0; at_most = found->step - 1) {
        Status status = OK;
        *found = (Found){.step = -1};
        if (is_root(state))
            status = checkpoint_find_newest(run_dir, at_most, out->quarantined, &found->step, found->dir,
                                            sizeof found->dir);
        TRY(group_agree(world, status));
        share(state, found);
        if (found->step <= 0) break;
        status = load(state, found->dir, false, out);
        if (status != ERR_DATA) return status;
        TRY(set_aside(state, run_dir, found->step, out));
    }
    found->step = -1;
    if (any && group_agree(world, is_root(state) && has_step_folders(run_dir) ? ERR_DATA : OK) != OK)
        FAIL(ERR_DATA,
             "no checkpoint in %s/ckpt can be loaded; see floe ckpt verify --all %s, or start anew with "
             "another -o",
             run_dir, run_dir);
    return OK;
}

static Status load_step(TrainState *state, const char *run_dir, int64_t step, Found *found, Start *out) {
    Status status = OK;
    *found = (Found){.step = -1};
    if (is_root(state)) {
        status = find(run_dir, step, &found->step, found->dir, sizeof found->dir);
        if (status == OK && found->step < 0)
            status = status_fail(ERR_DATA, __FILE__, __LINE__, "%s/ckpt has no whole checkpoint of step %lld",
                                 run_dir, (long long)step);
    }
    TRY(group_agree(mesh_group(state->mesh, AXIS_WORLD), status));
    share(state, found);
    return load(state, found->dir, false, out);
}

static Status load_other(TrainState *state, Status resolved, Found *found, bool weights_only, Start *out) {
    TRY(group_agree(mesh_group(state->mesh, AXIS_WORLD), resolved));
    share(state, found);
    return load(state, found->dir, weights_only, out);
}

static Status abandon_later(TrainState *state, const char *run_dir) {
    Status status = is_root(state) ? checkpoint_abandon_after(run_dir, state->step) : OK;
    return group_agree(mesh_group(state->mesh, AXIS_WORLD), status);
}

Status start_state(TrainState *state, const StartRequest *request, const char *run_dir, Start *out) {
    Found found = {.step = -1};
    Status status = OK;
    *out = (Start){.kind = START_RESUMED};
    if (request->mode == RESUME_AUTO) TRY(load_newest(state, run_dir, -1, &found, out));
    if (request->mode == RESUME_STEP) TRY(load_step(state, run_dir, request->step, &found, out));
    if (found.step >= 0) return abandon_later(state, run_dir);
    zero_init_weights(state->zero, state->config->train.seed);
    if (request->fork_run[0]) {
        out->kind = START_FORKED;
        if (is_root(state)) status = find_fork(request, found.dir, sizeof found.dir);
        TRY(load_other(state, status, &found, false, out));
    } else if (state->config->train.init_from) {
        out->kind = START_WEIGHTS;
        if (is_root(state))
            status = checkpoint_path_resolve(state->config->train.init_from, found.dir, sizeof found.dir);
        TRY(load_other(state, status, &found, true, out));
    } else
        out->kind = START_FRESH;
    return abandon_later(state, run_dir);
}

// Of this rank's weights and moments.
static bool is_finite(const TrainState *state) {
    int held;
    const ZeroSlice *slice = zero_held(state->zero, &held);
    for (int i = 0; i < held; i++)
        for (int64_t j = 0; j < slice[i].count; j++)
            if (!isfinite(slice[i].master[j]) || !isfinite(slice[i].m[j]) || !isfinite(slice[i].v[j]))
                return false;
    return true;
}

// The newest checkpoint of finite weights: those of an update that went wrong are seen in the step behind it
// only, when they may have been saved.
static Status load_finite(TrainState *state, const char *run_dir, Found *found, Start *out) {
    for (int64_t at_most = -1;; at_most = found->step - 1) {
        TRY(load_newest(state, run_dir, at_most, found, out));
        if (found->step < 0) FAIL(ERR_DIVERGED, "%s/ckpt has no checkpoint to go back to", run_dir);
        int64_t bad = !is_finite(state);
        group_max_i64(mesh_group(state->mesh, AXIS_WORLD), &bad, 1);
        if (!bad) return OK;
        log_rank0(LOG_WARN,
                  "the weights or moments that were saved at step %lld are not finite; further back",
                  (long long)found->step);
    }
}

Status resume_roll_back(TrainState *state, const char *run_dir, int64_t *back_to, json_t **quarantined) {
    const BatchPlan *batches = &state->config->batch.plan;
    int64_t step = state->step, in_row = state->guard.in_row;
    Found found;
    Start from = {0};
    Status status = load_finite(state, run_dir, &found, &from);
    *quarantined = from.quarantined;
    TRY(status);
    int64_t first = batch_first_sample(batches, state->step + 1), end = batch_first_sample(batches, step + 1);
    ledger_count(&state->ledger, state->loader, first, end - first);
    *back_to = state->step;
    guard_pass(&state->guard, state->step + 1, step);
    state->guard.in_row = in_row;
    state->step = step;
    return OK;
}

json_t *start_record(const TrainState *state, const char *resolved_yaml, const char *version) {
    const RunConfig *c = state->config;
    int64_t samples = batch_first_sample(&c->batch.plan, state->step + 1);
    char digest[32], *plan = loader_plan_json(state->loader),
                     *ledger = ledger_json(&state->ledger, state->loader);
    snprintf(digest, sizeof digest, "%016llx",
             (unsigned long long)loader_plan_digest(state->loader, samples));
    json_t *record = json_pack(
        "{s:I, s:I, s:I, s:s, s:o, s:s, s:o, s:o, s:i, s:i, s:i, s:I, s:s, s:s}", "step",
        (json_int_t)state->step, "samples", (json_int_t)samples, "tokens",
        (json_int_t)(samples * c->batch.seq_len), "config", resolved_yaml, "plan", json_loads(plan, 0, NULL),
        "plan_digest", digest, "ledger", json_loads(ledger, 0, NULL), "guard",
        guard_json(&state->guard, &c->batch.plan), "world", group_size(mesh_group(state->mesh, AXIS_WORLD)),
        "ep", c->parallel.ep, "zero", c->parallel.zero, "seed", (json_int_t)c->train.seed, "version", version,
        "created", utc_now("%Y-%m-%dT%H:%M:%SZ").text);
    REQUIRE(record, "plan or ledger is not JSON: %s | %s", plan, ledger);
    free(plan);
    free(ledger);
    return record;
}
