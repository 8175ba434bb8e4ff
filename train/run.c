// SPDX-License-Identifier: Apache-2.0
#include "train/run.h"
#include "core/log.h"
#include "train/canary.h"
#include "train/format.h"
#include "train/loop.h"
#include "train/start_lines.h"
#include "train/watchdog.h"
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef struct {
    const RunRequest *request;
    RunConfig *config;
    ConfigDocument *document;
    char *yaml;       // resolved
    RunFolder folder; // lock: each rank's own share of it
    char run_dir[RUN_PATH_BYTES];
    Mesh *mesh;
    TrainState state;
    Evaluator *evaluator;
    CheckpointWriter *writer;
    Metrics metrics;
    Signals signals;
    Start start;
    int log_fd;
    bool printed;        // what is wrong with the configuration
    int64_t held_before; // memory of this process before the state
    json_t *meta;        // rank 0
} Run;

static bool is_root(void) {
    return comm_world_rank() == 0;
}

// ---- configuration and lock: rank 0 reads, all ranks get the same

static Status broadcast_text(Group *world, char **text) {
    int64_t size = *text ? (int64_t)strlen(*text) + 1 : 0;
    group_broadcast(world, 0, &size, sizeof size);
    if (!is_root()) *text = calloc((size_t)size + 1, 1);
    REQUIRE(*text, "no memory for %lld bytes of configuration", (long long)size);
    group_broadcast(world, 0, *text, (size_t)size);
    return OK;
}

static Status read_config(Run *run, Group *world) {
    const RunRequest *request = run->request;
    Status status = OK;
    if (is_root()) {
        status = config_load(&run->config, &run->document, request->file, request->files, request->override,
                             request->overrides, group_size(world));
        if (status == OK) status = config_need_data(run->config, run->document);
        if (status == OK) run->yaml = config_resolved_yaml(run->document);
    }
    status = group_agree(world, status);
    run->printed = status != OK;
    TRY(status);
    TRY(broadcast_text(world, &run->yaml));
    if (!is_root()) status = config_parse(&run->config, &run->document, run->yaml, "resolved configuration");
    return group_agree(world, status);
}

Status run_folder_open(RunFolder *out, const RunRequest *request) {
    *out = (RunFolder){.lock = {-1}};
    TRY(run_dir_choose(out->path, sizeof out->path, request->run_dir, request->file[request->files - 1]));
    TRY(start_request_check(&request->start, out->path));
    out->made = access(out->path, F_OK) != 0;
    TRY(run_dir_create(out->path));
    return run_lock_take(&out->lock, out->path, 10);
}

void run_folder_close(RunFolder *folder) {
    if (folder->made && folder->lock.fd >= 0) run_dir_remove_unused(folder->path);
    run_lock_release(&folder->lock);
}

// Rank 0 opens the folder unless a front end has; every rank shares the lock.
static Status enter_folder(Run *run, Group *world) {
    const RunRequest *request = run->request;
    Status status = OK;
    if (request->folder_open)
        snprintf(run->run_dir, sizeof run->run_dir, "%s", request->run_dir);
    else if (is_root())
        status = run_folder_open(&run->folder, request);
    TRY(group_agree(world, status));
    if (!request->folder_open) {
        if (is_root()) memcpy(run->run_dir, run->folder.path, sizeof run->run_dir);
        group_broadcast(world, 0, run->run_dir, sizeof run->run_dir);
    }
    if (run->folder.lock.fd < 0) status = run_lock_join(&run->folder.lock, run->run_dir);
    return group_agree(world, status);
}

static Status prepare(Run *run) {
    Mesh *all;
    TRY(mesh_create(&all, 1));
    Group *world = mesh_group(all, AXIS_WORLD);
    Status status = read_config(run, world);
    if (status == OK) status = enter_folder(run, world);
    mesh_destroy(all);
    TRY(status);
    return mesh_create(&run->mesh, run->config->parallel.ep);
}

// ---- meta.json

static json_t *read_starts(const char *run_dir) {
    char path[RUN_PATH_BYTES];
    snprintf(path, sizeof path, "%s/meta.json", run_dir);
    json_t *before = json_load_file(path, 0, NULL), *starts = json_object_get(before, "starts");
    starts = json_is_array(starts) ? json_incref(starts) : json_array();
    json_decref(before);
    return starts;
}

static json_t *describe(const Run *run, json_t *memory) {
    const RunConfig *c = run->config;
    char host[256] = "";
    gethostname(host, sizeof host - 1);
    json_t *starts = read_starts(run->run_dir);
    json_t *start = json_pack("{s:s, s:I, s:i, s:s, s:s}", "time", utc_now("%Y-%m-%dT%H:%M:%SZ").text, "step",
                              (json_int_t)run->state.step, "ranks", comm_world_size(), "from",
                              run->start.from, "command", run->request->command);
    if (run->request->restart > 0) json_object_set_new(start, "restart", json_integer(run->request->restart));
    json_array_append_new(starts, start);
    return json_pack("{s:s, s:s, s:s, s:s, s:{s:i, s:i, s:i, s:i}, s:s, s:{s:o}, s:o}", "version",
                     run->request->version, "command", run->request->command, "host", host, "started",
                     utc_now("%Y-%m-%dT%H:%M:%SZ").text, "layout", "ranks", comm_world_size(), "ep",
                     c->parallel.ep, "replicas", comm_world_size() / c->parallel.ep, "zero", c->parallel.zero,
                     "isa", kernels_isa(), "mem_bytes", "plan", memory, "starts", starts);
}

static Status write_meta(const Run *run) {
    char *text = json_dumps(run->meta, JSON_INDENT(2));
    Status status = run_dir_write(run->run_dir, "meta.json", text);
    free(text);
    return status;
}

static json_t *describe_start(const Run *run) {
    static const char *const kind[] = {"fresh", "resumed", "forked", "weights"};
    const Start *start = &run->start;
    json_t *event =
        json_pack("{s:s, s:s, s:i, s:i, s:i}", "kind", kind[start->kind], "from", start->from, "ranks",
                  comm_world_size(), "ep", run->config->parallel.ep, "zero", run->config->parallel.zero);
    if (start->kind != START_FRESH)
        json_object_update_new(event, json_pack("{s:I, s:I, s:I, s:f}", "checkpoint_bytes",
                                                (json_int_t)start->read.held, "read_bytes",
                                                (json_int_t)start->read.read, "rank_read_bytes",
                                                (json_int_t)start->read.most, "read_s", start->read.seconds));
    return event;
}

static Status write_files(Run *run) {
    const RunRequest *request = run->request;
    int64_t removed;
    TRY(metrics_open(&run->metrics, run->run_dir, run->state.step, &removed));
    if (removed > 0)
        log_rank0(LOG_INFO, "metrics   %lld records of later steps moved to metrics.abandoned.jsonl",
                  (long long)removed);
    TRY(run_dir_write(run->run_dir, "config.yaml", run->yaml));
    TRY(run_dir_write_input(run->run_dir, request->file, request->files, request->override,
                            request->overrides));
    TRY(write_meta(run));
    run_dir_mark_latest(run->run_dir);
    watchdog_clear(run->run_dir);
    json_t *entry;
    size_t i;
    json_array_foreach(run->start.quarantined, i, entry)
        TRY(metrics_event(&run->metrics, "quarantine", run->state.step, json_incref(entry)));
    return metrics_event(&run->metrics, "start", run->state.step, describe_start(run));
}

// ---- begin and end

static Status create_evaluator(Run *run) {
    const RunConfig *c = run->config;
    int64_t held_out = 0;
    for (int s = 0; s < c->data.sources; s++) held_out += loader_eval_samples(run->state.loader, s);
    if (held_out == 0)
        log_rank0(LOG_WARN, "no source holds text out (data.holdout); there will be no evaluation");
    if (held_out == 0 || c->eval.sequences <= 0) return OK;
    return evaluator_create(&run->evaluator, &run->state, (int)c->batch.micro, (int)c->batch.seq_len);
}

// The memory it needs, in bytes. Without saves along the way there is none.
static int64_t create_writer(Run *run) {
    const RunConfig *c = run->config;
    CheckpointBuffer bias;
    CheckpointState state = state_checkpoint(&run->state, &bias);
    CheckpointOptions options = loop_checkpoint_options(c);
    if (!c->checkpoint.background || c->checkpoint.every <= 0) return 0;
    int64_t bytes = checkpoint_staging_bytes(&state, &options);
    if (bytes > 0)
        run->writer = checkpoint_writer_create(&state, &options);
    else
        log_rank0(LOG_INFO,
                  "saves     in pieces, and training waits for them: a copy of the state is more than "
                  "checkpoint.host_bytes = %s",
                  short_bytes((double)options.host_bytes).text);
    return bytes;
}

static Status begin(Run *run) {
    const RunRequest *request = run->request;
    TRY(prepare(run));
    Group *world = mesh_group(run->mesh, AXIS_WORLD);
    signals_start(&run->signals, world, run->run_dir, request->max_seconds);
    if (is_root()) run->log_fd = run_dir_open_log(run->run_dir);
    log_copy_to(run->log_fd);
    run->held_before = memory_held();
    ModelRun shape = train_model_run(run->config);
    TRY(state_create(&run->state, run->config, run->mesh, &shape, true));
    start_lines_print(&run->state,
                      &(RunNames){request->version, request->file[request->files - 1], run->run_dir});
    TRY(create_evaluator(run));
    int64_t staging = create_writer(run);
    json_t *memory = memory_plan(&run->state, run->evaluator ? evaluator_bytes(run->evaluator) : 0, staging);
    memory_plan_print(memory);
    Status status = start_state(&run->state, &request->start, run->run_dir, &run->start);
    if (status == OK) start_lines_resume(&run->state, &run->start);
    run->meta = describe(run, memory);
    TRY(status);
    TRY(group_agree(world, is_root() ? write_files(run) : OK));
    if (!is_root()) { // from here on the folder stays
        run->log_fd = run_dir_open_rank_log(run->run_dir, comm_world_rank());
        log_copy_to(run->log_fd);
    }
    return OK;
}

static void print_done(const Run *run, const LoopSummary *summary, const json_t *measured) {
    const RunConfig *c = run->config;
    const char *dir = run->run_dir;
    int64_t last = summary->first_step + summary->steps;
    if (summary->steps == 0) {
        log_rank0(LOG_INFO, "done      all %lld steps were done before", (long long)last);
        return;
    }
    double tokens = (double)(batch_first_sample(&c->batch.plan, last + 1) -
                             batch_first_sample(&c->batch.plan, summary->first_step + 1)) *
                    (double)c->batch.seq_len;
    double plan = (double)json_integer_value(
        json_object_get(json_object_get(json_object_get(run->meta, "mem_bytes"), "plan"), "total"));
    double held = (double)json_integer_value(json_object_get(measured, "held"));
    char best[64] = "";
    if (isfinite(summary->best_eval))
        snprintf(best, sizeof best, ", best eval %.4f @ %lld", summary->best_eval,
                 (long long)summary->best_eval_step);
    log_rank0(
        LOG_INFO,
        "done      %lld steps, %s tokens in %s | loss %.4f%s | %s tok/s mean | memory %s/rank (plan %s)",
        (long long)summary->steps, short_count(tokens).text, short_duration(summary->seconds).text,
        summary->loss, best, short_rate(tokens / summary->seconds).text, short_bytes(held).text,
        short_bytes(plan).text);
    log_rank0(LOG_INFO, "files     %s/metrics.jsonl  %s/ckpt/step-%09lld", dir, dir, (long long)last);
    log_rank0(LOG_INFO, "next      floe generate %s -p \"To be\"", dir);
}

// What the run leaves, however it ended.
static Status finish(Run *run, Status ended, const LoopSummary *summary) {
    json_t *measured = memory_measured(&run->state, run->held_before);
    if (ended == OK && is_root()) {
        ledger_print(&run->state.ledger, run->state.loader);
        print_done(run, summary, measured);
    }
    json_object_set_new(json_object_get(run->meta, "mem_bytes"), "measured", measured);
    json_object_set_new(run->meta, "ended", json_string(utc_now("%Y-%m-%dT%H:%M:%SZ").text));
    json_object_set_new(run->meta, "exit_code", json_integer(ended));
    return is_root() ? write_meta(run) : OK;
}

static Status go(Run *run) {
    LoopSummary summary = {0};
    TRY(begin(run));
    Watchdog *watchdog =
        watchdog_start(run->run_dir, comm_world_rank(), comm_world_size(), run->config->watchdog);
    LoopOptions options = {.run_dir = run->run_dir,
                           .resolved_yaml = run->yaml,
                           .version = run->request->version,
                           .signals = &run->signals,
                           .metrics = &run->metrics,
                           .saved_step = run->start.kind == START_RESUMED ? run->state.step : -1,
                           .failed_at = run->request->failed_at,
                           .evaluator = run->evaluator,
                           .writer = run->writer};
    Status ended = run->config->train.canary ? canary_run(&run->state) : OK;
    if (ended == OK) ended = train_loop(&run->state, &options, &summary);
    char text[2048];
    snprintf(text, sizeof text, "%s", status_text());
    Status written = group_agree(mesh_group(run->mesh, AXIS_WORLD), finish(run, ended, &summary));
    watchdog_stop(watchdog);
    if (ended == OK) return written;
    return status_fail(ended, __FILE__, __LINE__, "%s", text);
}

Status run_train(const RunRequest *request, bool *printed) {
    Run run = {.request = request, .folder = {.lock = {-1}}, .metrics = {.fd = -1}, .log_fd = -1};
    Status status = go(&run);
    if (status != OK && status != ERR_TEMPORARY && run.log_fd >= 0)
        dprintf(run.log_fd, "error: %s\n", status_text());
    log_copy_to(-1);
    if (run.log_fd >= 0) close(run.log_fd);
    metrics_close(&run.metrics);
    json_decref(run.meta);
    json_decref(run.start.quarantined);
    evaluator_destroy(run.evaluator);
    checkpoint_writer_destroy(run.writer);
    if (run.state.config) state_destroy(&run.state);
    if (run.mesh) mesh_destroy(run.mesh);
    run_folder_close(&run.folder);
    free(run.yaml);
    if (run.config) config_free(run.config, run.document);
    *printed = run.printed;
    return status;
}
