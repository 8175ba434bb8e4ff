// SPDX-License-Identifier: Apache-2.0
#include "train/bad_step.h"
#include "core/log.h"
#include "train/resume.h"
#include <math.h>
#include <stdio.h>
#include <unistd.h>

static void record(const BadStep *bad, const char *event, json_t *more, Status *trouble) {
    Status status = metrics_event(bad->metrics, event, bad->step->step, more);
    if (status != OK) *trouble = status;
}

static const char *figure_name(const Verdict *v) {
    return v->cause == CAUSE_GNORM ? "gradient norm" : "loss";
}

typedef struct {
    char text[160];
} Cause;

static Cause cause(const StepMetrics *m, int64_t window) {
    const Verdict *v = &m->verdict;
    Cause out;
    if (v->cause == CAUSE_NONFINITE)
        snprintf(out.text, sizeof out.text, "loss %g, gradient norm %g", fabs(m->loss), fabs(m->gnorm));
    else
        snprintf(out.text, sizeof out.text, "%s %.4f is %.1f deviations above the last %lld good steps' %.4f",
                 figure_name(v), v->value, v->z, (long long)window, v->mean);
    return out;
}

static void record_bad(const BadStep *bad, GuardAction action, int64_t back_to, Status *trouble) {
    const Verdict *v = &bad->step->verdict;
    static const char *const reason[] = {"nonfinite", "loss", "gnorm"};
    json_t *more = json_pack("{s:s, s:s, s:I}", "reason", reason[v->cause], "action",
                             guard_action_name[action], "in_row", (json_int_t)v->in_row);
    bool spike = v->cause != CAUSE_NONFINITE;
    json_object_set_new(more, "value", spike ? json_real(v->value) : json_null());
    json_object_set_new(more, "z", spike ? json_real(v->z) : json_null());
    if (action == GUARD_ROLLBACK) json_object_set_new(more, "back_to", json_integer((json_int_t)back_to));
    record(bad, "bad_step", more, trouble);
}

// ---- the end

static Status stop(const BadStep *bad, Status *trouble) {
    const StepMetrics *m = bad->step;
    const Verdict *v = &m->verdict;
    const GuardConfig *guard = &bad->state->config->guard;
    char why[96] = "training has diverged", saved[96] = " before the first checkpoint";
    if (v->in_row >= guard->max_bad)
        snprintf(why, sizeof why, "bad step number %lld in a row (guard.max_bad)", (long long)v->in_row);
    else if (v->cause != CAUSE_NONFINITE)
        snprintf(why, sizeof why, "stopped by guard.spike");
    record_bad(bad, GUARD_STOP, -1, trouble);
    if (v->cause == CAUSE_NONFINITE) record(bad, "diverged", NULL, trouble);
    if (bad->saved_step > 0)
        snprintf(saved, sizeof saved, "; nothing was saved after step %lld", (long long)bad->saved_step);
    FAIL(ERR_DIVERGED, "step %lld: %s: %s%s. %s", (long long)m->step, cause(m, guard->window).text, why,
         saved,
         bad->saved_step > 0
             ? "Go on from an earlier checkpoint (--resume=STEP) with a smaller optim.lr, or with "
               "guard.nonfinite and guard.spike = rollback"
             : "Try a smaller optim.lr or a longer optim.warmup");
}

static Status stop_differing(const BadStep *bad, Status *trouble) {
    const TrainState *s = bad->state;
    const StepMetrics *m = bad->step;
    const ReplicaFault *f = &m->replica;
    Group *world = mesh_group(s->mesh, AXIS_WORLD);
    // The last comparison saw the weights that its step began with, and that step may have been saved.
    int64_t every = s->config->guard.replica_check, compared = (m->step - 1) / every * every;
    const char *group = f->group < s->params.group_count ? s->params.group[f->group].name : "router_bias";
    char host[256] = "", than[96];
    gethostname(host, sizeof host - 1);
    group_broadcast(world, f->rank, host, sizeof host);
    snprintf(than, sizeof than,
             f->certain ? "those of most of the %d ranks" : "rank %d's; which is right is open",
             f->certain ? f->copies : f->other);
    record(bad, "replica_mismatch",
           json_pack("{s:i, s:s, s:s, s:i, s:b}", "rank", f->rank, "host", host, "group", group, "other",
                     f->other, "certain", f->certain),
           trouble);
    FAIL(ERR_DATA,
         "step %lld: the weights of %s on rank %d (%s) differ from %s (guard.replica_check): memory, a "
         "processor or the network is faulty. Nothing of this step was saved; checkpoints from step %lld on "
         "may hold it: go on from an earlier one (--resume=STEP) without that machine",
         (long long)m->step, group, f->rank, host, than, (long long)(compared > 0 ? compared : 1));
}

// ---- on with it

static Status go_back(const BadStep *bad, const char *what, Status *trouble) {
    const StepMetrics *m = bad->step;
    int64_t back_to;
    json_t *quarantined, *entry;
    size_t i;
    Status status = resume_roll_back(bad->state, bad->run_dir, &back_to, &quarantined);
    json_array_foreach(quarantined, i, entry) record(bad, "quarantine", json_incref(entry), trouble);
    json_decref(quarantined);
    if (status == ERR_DIVERGED) return stop(bad, trouble);
    TRY(status);
    record_bad(bad, GUARD_ROLLBACK, back_to, trouble);
    log_rank0(LOG_WARN,
              "step %lld is bad: %s | back to the weights of step %lld, the data of steps %lld to %lld is "
              "passed over | %lld of %lld in a row",
              (long long)m->step, what, (long long)back_to, (long long)back_to + 1, (long long)m->step,
              (long long)m->verdict.in_row, (long long)bad->state->config->guard.max_bad);
    return OK;
}

Status bad_step_settle(const BadStep *bad, Status *trouble) {
    const StepMetrics *m = bad->step;
    const GuardConfig *guard = &bad->state->config->guard;
    if (m->replica.found) return stop_differing(bad, trouble);
    if (m->verdict.action == GUARD_STOP) return stop(bad, trouble);
    Cause what = cause(m, guard->window);
    if (m->verdict.action == GUARD_ROLLBACK) return go_back(bad, what.text, trouble);
    record_bad(bad, GUARD_SKIP, -1, trouble);
    log_rank0(LOG_WARN, "step %lld is bad: %s | its update is dropped | %lld of %lld in a row",
              (long long)m->step, what.text, (long long)m->verdict.in_row, (long long)guard->max_bad);
    return OK;
}
