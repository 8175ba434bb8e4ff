// SPDX-License-Identifier: Apache-2.0
#include "train/loop.h"
#include "core/clock.h"
#include "core/log.h"
#include "train/bad_step.h"
#include "train/format.h"
#include "train/keeper.h"
#include "train/peak.h"
#include "train/progress_bar.h"
#include "train/resume.h"
#include "train/straggler.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
    TrainState *state;
    const LoopOptions *options;
    Group *world;
    ProgressBar bar;
    HeldOut held_out;
    const char **source;                 // names
    int64_t *src_tokens;                 // [sources] trained on so far
    int64_t steps;                       // of the whole run
    int next_stage;                      // the first one (from 0) that no step has begun
    int64_t saving_step, evaluated_step; // saving: the newest that a save was begun for
    Keeper keeper;
    Stragglers stragglers;
    bool save_due, permanent_due; // put off by bad steps
    double step_seconds;          // moving mean of everything between two steps' ends
    double last_end;
    double peak;    // FLOP/s of all ranks
    Status trouble; // of this rank alone, with writing its records: told at the next poll
    LoopSummary *summary;
} Loop;

static void note(Loop *loop, Status status) {
    if (status != OK) loop->trouble = status;
}

// ---- lines

static double eta(const Loop *loop) {
    return loop->step_seconds * (double)(loop->steps - loop->state->step);
}

// "  120/500": as wide for the last step.
static const char *position(const Loop *loop, int64_t step, char out[48]) {
    char total[24];
    int width = snprintf(total, sizeof total, "%lld", (long long)loop->steps);
    snprintf(out, 48, "%*lld/%s", width > 6 ? width : 6, (long long)step, total);
    return out;
}

static void print_step(Loop *loop, const StepMetrics *m, int64_t step_tokens) {
    char at[48], exchange[48] = "", routing[64] = "";
    const ModelConfig *model = &loop->state->config->model;
    if (loop->state->config->parallel.ep > 1 && m->a2a_s > 0)
        snprintf(exchange, sizeof exchange, " | a2a %s hidden %.0f%%", short_duration(m->a2a_s).text,
                 100 * (1 - m->exposed_s / m->a2a_s));
    if (m->imbalance > 0) {
        int n = snprintf(routing, sizeof routing, " | imb %.2f", m->imbalance);
        if (model->router.capacity_factor > 0)
            snprintf(routing + n, sizeof routing - (size_t)n, " drop %.1f%%", 100 * m->drop);
    }
    log_rank0(LOG_INFO,
              "step %s | loss %.4f | gnorm %.3f | lr %.1e | %s | %s tok/s | sol %.0f%%%s%s | eta %s",
              position(loop, loop->state->step, at), m->loss, m->gnorm, m->lr, short_duration(m->step_s).text,
              short_rate((double)step_tokens / m->step_s).text, 100 * m->sol, exchange, routing,
              short_duration(eta(loop)).text);
}

static void note_stages(Loop *loop, int64_t samples) {
    const TrainState *s = loop->state;
    for (; loop->next_stage < s->config->data.stages; loop->next_stage++) {
        int64_t first = loader_stage_first_sample(s->loader, loop->next_stage);
        if (first >= samples) break;
        int64_t token = first * s->config->batch.seq_len;
        log_rank0(LOG_INFO, "stage %d/%d at token %lld", loop->next_stage + 1, s->config->data.stages,
                  (long long)token);
        json_t *more = json_pack("{s:i, s:I}", "stage", loop->next_stage + 1, "token", (json_int_t)token);
        note(loop, metrics_event(loop->options->metrics, "stage", s->step, more));
    }
}

// ---- one step and what it leaves behind

static void count_tokens(Loop *loop) {
    const Ledger *ledger = &loop->state->ledger;
    for (int source = 0; source < ledger->sources; source++) {
        int64_t samples = 0;
        for (int stage = 0; stage < ledger->stages; stage++)
            samples += ledger->samples[stage * ledger->sources + source];
        loop->src_tokens[source] = samples * loop->state->config->batch.seq_len;
    }
}

// Collective where there is one.
static void report_straggler(Loop *loop, const StepMetrics *m) {
    Straggler found;
    if (!stragglers_step(&loop->stragglers, m, &found)) return;
    log_rank0(
        LOG_WARN,
        "rank %d on %s is slow: %.1f times the median rank's own time, more than 1.3 times in %d of the last "
        "50 steps; it loses %s a step in: %s",
        found.rank, found.host, found.ratio, found.slow_steps, short_duration(found.lost).text, found.phase);
    json_t *more =
        json_pack("{s:i, s:s, s:s, s:f, s:f, s:i}", "rank", found.rank, "host", found.host, "phase",
                  found.phase, "ratio", found.ratio, "lost_s", found.lost, "slow_steps", found.slow_steps);
    note(loop, metrics_event(loop->options->metrics, "straggler", m->step, more));
}

static void report_recovery(Loop *loop) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    double seconds = (double)now.tv_sec + 1e-9 * (double)now.tv_nsec - loop->options->failed_at;
    log_rank0(LOG_INFO, "recovery  %s from the last step before the failure to the end of step %lld",
              short_duration(seconds).text, (long long)loop->state->step);
    note(loop, metrics_event(loop->options->metrics, "recovered", loop->state->step,
                             json_pack("{s:f}", "seconds", seconds)));
}

static void record_step(Loop *loop, StepMetrics *m, int64_t samples_before) {
    const TrainState *s = loop->state;
    double now = clock_seconds(), spent = now - loop->last_end;
    loop->step_seconds = loop->step_seconds > 0 ? 0.95 * loop->step_seconds + 0.05 * spent : spent;
    loop->last_end = now;
    count_tokens(loop);
    int64_t step_tokens = (m->samples - samples_before) * s->config->batch.seq_len;
    double work =
        model_size(&s->config->model, s->config->batch.seq_len).flops_per_token * (double)step_tokens;
    m->sol = work / m->step_s / loop->peak;
    MetricsTokens tokens = {loop->source, loop->src_tokens, s->config->data.sources, step_tokens};
    if (log_shows(LOG_INFO)) progress_bar_clear(&loop->bar);
    note_stages(loop, m->samples);
    note(loop, metrics_step(loop->options->metrics, m, &tokens));
    print_step(loop, m, step_tokens);
    report_straggler(loop, m);
    if (loop->options->failed_at > 0 && loop->summary->steps == 0) report_recovery(loop);
    loop->summary->steps++;
    loop->summary->loss = m->loss;
}

// ---- evaluation

static void print_evaluation(Loop *loop, const EvalResult *result) {
    char at[48], sources[1024] = "";
    int n = 0;
    for (int s = 0; s < result->sources && n < (int)sizeof sources; s++)
        n += snprintf(sources + n, sizeof sources - (size_t)n, " %s %.4f", loop->held_out.task.name[s],
                      result->loss[s]);
    log_rank0(LOG_INFO, "eval %s | loss %.4f ppl %.2f |%s | %s", position(loop, loop->state->step, at),
              result->mean, exp(result->mean), sources, short_duration(result->seconds).text);
}

static json_t *finite_or_null(double value) {
    return isfinite(value) ? json_real(value) : json_null();
}

static Status evaluate(Loop *loop) {
    const LoopOptions *options = loop->options;
    EvalResult result;
    if (!options->evaluator || loop->evaluated_step == loop->state->step) return OK;
    TRY(evaluator_run(options->evaluator, &loop->held_out.task, options->signals, &result));
    if (result.stopped) return OK;
    loop->evaluated_step = loop->state->step;
    progress_bar_clear(&loop->bar);
    print_evaluation(loop, &result);
    if (!(result.mean >= loop->summary->best_eval)) {
        loop->summary->best_eval = result.mean;
        loop->summary->best_eval_step = loop->state->step;
    }
    json_t *sources = json_object();
    for (int s = 0; s < result.sources; s++)
        json_object_set_new(sources, loop->held_out.task.name[s], finite_or_null(result.loss[s]));
    json_t *more = json_pack("{s:o, s:o, s:f}", "loss", finite_or_null(result.mean), "sources", sources,
                             "seconds", result.seconds);
    note(loop, metrics_event(options->metrics, "eval", loop->state->step, more));
    return OK;
}

// ---- checkpoints

// Whether the newest step is the first at or after a switch of stage.
static bool after_switch(const Loop *loop, int64_t samples_before, int64_t samples) {
    const TrainState *s = loop->state;
    for (int stage = 1; stage < s->config->data.stages; stage++) {
        int64_t first = loader_stage_first_sample(s->loader, stage);
        if (first > samples_before && first <= samples) return true;
    }
    return false;
}

CheckpointRules loop_checkpoint_rules(const RunConfig *config) {
    return (CheckpointRules){.keep = config->checkpoint.keep, .keep_every = config->checkpoint.keep_every};
}

CheckpointOptions loop_checkpoint_options(const RunConfig *config) {
    return (CheckpointOptions){.zlib = strcmp(config->checkpoint.compress, "zlib") == 0,
                               .host_bytes = config->checkpoint.host_bytes};
}

static void report_save(Loop *loop, const CheckpointReport *report, bool permanent, bool background) {
    const RunConfig *c = loop->state->config;
    char at[48], keep[48] = "";
    if (permanent)
        snprintf(keep, sizeof keep, " | kept for ever");
    else if (c->checkpoint.keep > 0)
        snprintf(keep, sizeof keep, " | keep %lld", (long long)c->checkpoint.keep);
    double parameters = (double)report->raw_bytes / 12, rate = (double)report->bytes / report->write_seconds;
    progress_bar_clear(&loop->bar);
    log_rank0(LOG_INFO, "save %s | ckpt/step-%09lld %s in %s, stall %s | %.2f B/param | %s/s%s",
              position(loop, report->step, at), (long long)report->step,
              short_bytes((double)report->bytes).text, short_duration(report->seconds).text,
              short_duration(report->stall_seconds).text, (double)report->bytes / parameters,
              short_bytes(rate).text, keep);
    json_t *more = json_pack("{s:I, s:f, s:f, s:f, s:f, s:f, s:f, s:b, s:b}", "bytes",
                             (json_int_t)report->bytes, "seconds", report->seconds, "stall_s",
                             report->stall_seconds, "copy_s", report->copy_seconds, "write_s",
                             report->write_seconds, "bytes_per_param", (double)report->bytes / parameters,
                             "gb_s", rate / 1e9, "background", background, "permanent", permanent);
    note(loop, metrics_event(loop->options->metrics, "save", report->step, more));
}

// Waits for the save in flight, if there is one.
static Status finish_save(Loop *loop) {
    CheckpointReport report;
    if (!checkpoint_writer_busy(loop->options->writer)) return OK;
    TRY(checkpoint_writer_finish(loop->options->writer, &report));
    report_save(loop, &report, false, true);
    keeper_committed(&loop->keeper, &report);
    return OK;
}

// A save along the way that fails (a full disk) is told and tried again at the next occasion; older ones are
// whole.
static void warn_unless_saved(Loop *loop, int64_t step, Status status) {
    if (status == OK) return;
    progress_bar_clear(&loop->bar);
    keeper_failed(&loop->keeper, step);
}

// Waits for what is in flight: a save, then the check of what it wrote; a stop waits for no check.
static void finish_or_warn(Loop *loop) {
    warn_unless_saved(loop, loop->saving_step, finish_save(loop));
    keeper_settle(&loop->keeper, loop->options->signals->stop);
    note(loop, loop->keeper.trouble);
}

static void begin_save(Loop *loop) {
    TrainState *s = loop->state;
    CheckpointBuffer bias;
    CheckpointState part = state_checkpoint(s, &bias);
    json_t *record = start_record(s, loop->options->resolved_yaml, loop->options->version);
    loop->saving_step = s->step;
    checkpoint_writer_begin(loop->options->writer, &part, record, loop->options->run_dir, s->step);
    json_decref(record);
}

static Status save(Loop *loop, bool permanent) {
    TrainState *s = loop->state;
    CheckpointBuffer bias;
    CheckpointReport report;
    finish_or_warn(loop);
    if (loop->keeper.step == s->step) return OK;
    CheckpointState part = state_checkpoint(s, &bias);
    CheckpointOptions options = loop_checkpoint_options(s->config);
    options.permanent = permanent;
    json_t *record = start_record(s, loop->options->resolved_yaml, loop->options->version);
    Status status = checkpoint_save(&part, record, loop->options->run_dir, s->step, &options, &report);
    json_decref(record);
    TRY(group_agree(loop->world, status));
    report_save(loop, &report, permanent, false);
    keeper_committed(&loop->keeper, &report);
    return OK;
}

// What lasts for ever is waited for.
static void save_or_warn(Loop *loop, bool permanent) {
    if (loop->options->writer && !permanent) {
        finish_or_warn(loop);
        begin_save(loop);
    } else
        warn_unless_saved(loop, loop->state->step, save(loop, permanent));
}

static bool is_due(int64_t step, int64_t every) {
    return every > 0 && step % every == 0;
}

static void save_where_due(Loop *loop, int64_t samples_before, int64_t samples) {
    Signals *signals = loop->options->signals;
    bool permanent = after_switch(loop, samples_before, samples);
    bool asked = signals->save;
    signals->save = false;
    permanent |= loop->permanent_due;
    bool due = loop->save_due || is_due(loop->state->step, loop->state->config->checkpoint.every);
    loop->permanent_due = loop->save_due = false;
    if (asked) {
        json_t *more = json_pack("{s:s, s:s}", "reason", signals->reason, "action", "save");
        note(loop, metrics_event(loop->options->metrics, "signal", loop->state->step, more));
    }
    if (loop->state->guard.in_row > 0) { // the weights may be what is bad: not before a good step
        loop->permanent_due = permanent;
        loop->save_due = due || asked;
    } else if (asked || permanent || due)
        save_or_warn(loop, permanent);
}

// Where saves keep failing, the run ends before more than checkpoint.required_every would be lost.
static Status require_save(Loop *loop) {
    const TrainState *s = loop->state;
    const Keeper *keeper = &loop->keeper;
    int64_t most = s->config->checkpoint.required_every, durable = keeper_durable(keeper);
    if (most <= 0 || s->step - durable < most || s->guard.in_row > 0) return OK;
    if (keeper->failures_in_row == 0 && !checkpoint_writer_busy(loop->options->writer)) return OK;
    finish_or_warn(loop);
    if (keeper->failures_in_row == 0) return OK;
    Status status = save(loop, false);
    if (status == OK) return OK;
    char reason[1024];
    snprintf(reason, sizeof reason, "%s", status_text());
    warn_unless_saved(loop, s->step, status);
    log_rank0(
        LOG_ERROR,
        "stopped at step %lld: the newest checkpoint is that of step %lld, checkpoint.required_every = %lld "
        "steps allow no more, and saving fails: %s. Start again when this is put right",
        (long long)s->step, (long long)keeper_durable(keeper), (long long)most, reason);
    FAIL(ERR_TEMPORARY, "%s", reason);
}

static Status stop_early(Loop *loop) {
    const LoopOptions *options = loop->options;
    char at[48];
    json_t *more = json_pack("{s:s, s:s}", "reason", options->signals->reason, "action", "stop");
    progress_bar_clear(&loop->bar);
    note(loop, metrics_event(options->metrics, "signal", loop->state->step, more));
    if (loop->state->step > 0) TRY(save(loop, false));
    log_rank0(LOG_INFO, "stop %s | %s | go on with: floe train %s/config.yaml -o %s -n %d",
              position(loop, loop->state->step, at), options->signals->reason, options->run_dir,
              options->run_dir, group_size(loop->world));
    return ERR_TEMPORARY;
}

// ---- the run

// What follows from a step that did not change the weights.
static Status settle(Loop *loop, const StepMetrics *m) {
    if (!m->verdict.bad && !m->replica.found) return OK;
    if (m->replica.found || m->verdict.action != GUARD_SKIP) finish_or_warn(loop);
    BadStep bad = {loop->state, m, loop->options->metrics, loop->options->run_dir, loop->keeper.step};
    progress_bar_clear(&loop->bar);
    return bad_step_settle(&bad, &loop->trouble);
}

static void start(Loop *loop) {
    TrainState *s = loop->state;
    const DataConfig *data = &s->config->data;
    loop->source = calloc((size_t)data->sources, sizeof *loop->source);
    loop->src_tokens = calloc((size_t)data->sources, sizeof *loop->src_tokens);
    REQUIRE(loop->source && loop->src_tokens, "no memory for %d sources", data->sources);
    for (int i = 0; i < data->sources; i++) loop->source[i] = data->source[i].name;
    held_out_create(&loop->held_out, s->loader, data, s->config->eval.sequences);
    int64_t samples = batch_first_sample(&s->config->batch.plan, s->step + 1);
    loop->next_stage = 1;
    while (loop->next_stage < data->stages &&
           loader_stage_first_sample(s->loader, loop->next_stage) < samples)
        loop->next_stage++;
    loop->stragglers = stragglers_create(loop->world);
    loop->peak = peak_measure(s);
    loop->bar = progress_bar_create(group_rank(loop->world) == 0);
    loop->last_end = clock_seconds();
}

// What others ask, and whether the save or check in flight is ready on all ranks.
static Status poll(Loop *loop) {
    Signals *signals = loop->options->signals;
    CheckpointWriter *writer = loop->options->writer;
    checkpoint_writer_news(writer, signals->carried);
    signals->carried[0] |= keeper_running(&loop->keeper); // a save and a check are never in flight together
    TRY(signals_poll(signals, loop->trouble));
    if (checkpoint_writer_advance(writer, signals->carried))
        warn_unless_saved(loop, loop->saving_step, finish_save(loop));
    else if (keeper_checking(&loop->keeper) && !signals->carried[0])
        keeper_advance(&loop->keeper);
    note(loop, loop->keeper.trouble);
    return OK;
}

// What the run was for: read again before it is called done.
static Status save_last(Loop *loop) {
    for (int tries = 0; tries < 2; tries++) {
        TRY(save(loop, false));
        if (keeper_settle(&loop->keeper, false)) return OK;
    }
    FAIL(ERR_RUNTIME,
         "the checkpoint of the last step was damaged twice on its way to the disk: check the disk");
}

static Status run(Loop *loop) {
    TrainState *s = loop->state;
    StepMetrics metrics;
    while (s->step < loop->steps) {
        int64_t before = batch_first_sample(&s->config->batch.plan, s->step + 1);
        TRY(poll(loop));
        if (loop->options->signals->stop) return stop_early(loop);
        TRY(train_step(s, &metrics));
        metrics.saving = checkpoint_writer_busy(loop->options->writer);
        metrics.save_failures = loop->keeper.failures;
        record_step(loop, &metrics, before);
        TRY(settle(loop, &metrics));
        if (is_due(s->step, s->config->eval.every)) TRY(evaluate(loop));
        save_where_due(loop, before, metrics.samples);
        TRY(require_save(loop));
        progress_bar_draw(&loop->bar, s->step, loop->steps, metrics.loss, eta(loop));
    }
    TRY(evaluate(loop));
    TRY(save_last(loop));
    return group_agree(loop->world, loop->trouble);
}

Status train_loop(TrainState *state, const LoopOptions *options, LoopSummary *out) {
    Loop loop = {.state = state,
                 .options = options,
                 .world = mesh_group(state->mesh, AXIS_WORLD),
                 .steps = state->config->train.steps,
                 .evaluated_step = -1,
                 .summary = out};
    *out = (LoopSummary){.first_step = state->step, .loss = NAN, .best_eval = NAN};
    double begun = clock_seconds();
    CheckpointRules rules = loop_checkpoint_rules(state->config);
    keeper_start(&loop.keeper, loop.world, options->run_dir, &rules, options->metrics, state->step,
                 options->saved_step == state->step);
    start(&loop);
    Status status = run(&loop);
    char reason[2048];
    snprintf(reason, sizeof reason, "%s", status_text());
    finish_or_warn(&loop);
    if (status != OK) status_fail(status, __FILE__, __LINE__, "%s", reason);
    progress_bar_clear(&loop.bar);
    keeper_end(&loop.keeper);
    out->seconds = clock_seconds() - begun;
    held_out_free(&loop.held_out);
    stragglers_free(&loop.stragglers);
    free(loop.source);
    free(loop.src_tokens);
    return status;
}
