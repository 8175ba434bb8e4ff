// SPDX-License-Identifier: Apache-2.0
#include "train/step.h"
#include "core/clock.h"
#include "core/heartbeat.h"
#include <string.h>

// What a step adds up on this rank before all ranks' figures are put together.
typedef struct {
    double ce, aux, z, targets, pairs, dropped;
} StepSums;

static Group *world(const TrainState *s) {
    return mesh_group(s->mesh, AXIS_WORLD);
}

// This rank's rows of step t: r·B/R … (r+1)·B/R − 1 of its B samples. The same status on every rank.
static Status read_batch(TrainState *s, int64_t first, int64_t rows, uint64_t *hash) {
    Status status = loader_read(s->loader, first, rows, s->batch_tokens, NULL);
    *hash = status == OK ? loader_stream_hash(s->loader, first, rows, s->batch_tokens) : 0;
    return group_agree(world(s), status);
}

static void run_micro_batches(TrainState *s, int64_t sequences, int64_t rows, StepSums *sums) {
    const RunConfig *c = s->config;
    int64_t micro = c->batch.micro, width = c->batch.seq_len + 1, targets = sequences * c->batch.seq_len;
    int64_t groups = model_balance_groups(s->model, sequences);
    for (int64_t row = 0; row < rows; row += micro) {
        Tensor tokens = tensor_view(s->batch_tokens + row * width, DTYPE_I32, 2, (int64_t[]){micro, width});
        ModelLoss loss = model_forward(s->model, tokens, (Tensor){0}, targets, groups);
        model_backward(s->model);
        sums->ce += loss.ce_sum;
        sums->aux += loss.aux;
        sums->z += loss.z;
        sums->targets += (double)loss.targets;
        sums->pairs += (double)loss.pairs;
        sums->dropped += (double)loss.dropped;
    }
}

// max/mean choices per expert, by layer and for the worst one.
static void measure_imbalance(TrainState *s, StepMetrics *out) {
    const ModelConfig *c = &s->config->model;
    model_take_counts(s->model, s->counts);
    group_sum_i64(world(s), s->counts, model_moe_layers(s->model) * c->experts);
    out->imbalance = 0;
    for (int l = 0, moe = 0; l < c->layers; l++) {
        s->layer_imbalance[l] = 0;
        if (!model_layer_has_experts(c, l)) continue;
        int64_t most = 0, total = 0, *n = s->counts + (int64_t)moe++ * c->experts;
        for (int e = 0; e < c->experts; e++) {
            total += n[e];
            if (n[e] > most) most = n[e];
        }
        s->layer_imbalance[l] = total ? (double)most * c->experts / (double)total : 0;
        if (s->layer_imbalance[l] > out->imbalance) out->imbalance = s->layer_imbalance[l];
    }
    out->layer_imbalance = s->layer_imbalance;
}

static void collect_losses(TrainState *s, const StepSums *sums, StepMetrics *out) {
    double figures[] = {sums->ce, sums->aux, sums->z, sums->targets, sums->pairs, sums->dropped};
    group_sum_f64(world(s), figures, sizeof figures / sizeof *figures);
    out->loss = figures[0] / figures[3];
    out->aux = figures[1];
    out->z = figures[2];
    out->drop = figures[4] > 0 ? figures[5] / figures[4] : 0;
}

// own: of seconds, what this rank did not wait for others.
static void collect_times(TrainState *s, double own, double optim_s, double seconds, StepMetrics *out) {
    LayerTimeline time = timeline_sum(model_timeline(s->model));
    double reduce_s;
    int64_t reduce_bytes;
    zero_take_timing(s->zero, &reduce_s, &reduce_bytes);
    double figures[] = {own,         out->data_s, optim_s,  time.exchange,
                        time.waited, time.lost,   reduce_s, (double)time.recompute_bytes};
    group_sum_f64_each(world(s), figures, sizeof figures / sizeof *figures, s->own_s);
    group_max_f64(world(s), &seconds, 1);
    double ranks = group_size(world(s));
    out->data_s = figures[1] / ranks;
    out->optim_s = figures[2] / ranks;
    out->a2a_s = figures[3] / ranks;
    out->exposed_s = figures[4] / ranks;
    out->lost_s = figures[5] / ranks;
    out->reduce_s = figures[6] / ranks;
    out->recompute_bytes = (int64_t)(figures[7] / ranks);
    out->step_s = seconds;
    out->own_s = s->own_s;
    out->layer = model_timeline(s->model)->layer;
    out->layers = s->config->model.layers;
    measure_imbalance(s, out);
}

// Whether the step may change the weights. The same on every rank.
static bool judge(TrainState *s, StepMetrics *out) {
    int64_t every = s->config->guard.replica_check;
    Tensor bias = model_bias(s->model);
    size_t bytes = tensor_exists(bias) ? tensor_bytes(bias) : 0;
    out->verdict = guard_judge(&s->guard, out->stage, out->loss, out->aux + out->z, out->gnorm);
    if (every > 0 && (out->verdict.bad || out->step % every == 0))
        out->replica = zero_compare_replicas(s->zero, bytes ? tensor_f32(bias) : NULL, bytes);
    return !out->verdict.bad && !out->replica.found;
}

static void update(TrainState *s, const StepMetrics *m) {
    const RunConfig *c = s->config;
    int64_t updates = guard_updates(&s->guard, m->step);
    zero_adamw(s->zero, &c->adamw, m->lr, clip_scale(m->gnorm, c->clip), updates); // optim
    zero_weights_gather(s->zero);                                                  // comm
    model_bias_update(s->model);
}

static void pass_over(TrainState *s, const StepMetrics *m) {
    zero_grads_drop(s->zero);
    model_bias_skip(s->model);
    guard_pass(&s->guard, m->step, m->step);
}

void step_on_batch(TrainState *s, int64_t sequences, StepMetrics *out) {
    double begun = clock_seconds(), waited = heartbeat.waited;
    StepSums sums = {0};
    out->step = s->step + 1;
    out->lr = schedule_lr(&s->config->schedule, out->step);
    timeline_reset(model_timeline(s->model));
    run_micro_batches(s, sequences, sequences / group_size(world(s)), &sums); // model, comm
    zero_grads_end(s->zero);                                                  // comm
    heartbeat_at("optimizer");
    double optimising = clock_seconds(), waited_before = heartbeat.waited;
    out->gnorm = zero_grad_norm(s->zero); // optim
    collect_losses(s, &sums, out);
    if (judge(s, out))
        update(s, out);
    else
        pass_over(s, out);
    s->step = out->step;
    double now = clock_seconds(), own = now - begun - (heartbeat.waited - waited) + out->own_data_s;
    out->own_optim_s = now - optimising - (heartbeat.waited - waited_before);
    heartbeat_at("metrics");
    collect_times(s, own, now - optimising, now - begun + out->data_s, out);
}

Status train_step(TrainState *s, StepMetrics *out) {
    const BatchPlan *plan = &s->config->batch.plan;
    int64_t first = batch_first_sample(plan, s->step + 1), sequences = batch_sequences(plan, s->step + 1);
    int64_t rows = sequences / group_size(world(s)), own = first + rows * group_rank(world(s));
    double begun = clock_seconds(), waited = heartbeat.waited;
    heartbeat_step(s->step + 1);
    heartbeat_at("data");
    *out = (StepMetrics){.samples = first + sequences, .tokens = (first + sequences) * plan->seq_len};
    TRY(read_batch(s, own, rows, &out->stream_hash)); // data
    out->data_s = clock_seconds() - begun;
    out->own_data_s = out->data_s - (heartbeat.waited - waited);
    out->stage = loader_origin(s->loader, first + sequences - 1).stage + 1;
    step_on_batch(s, sequences, out);
    ledger_count(&s->ledger, s->loader, first, sequences);
    group_xor_u64(world(s), &out->stream_hash, 1);
    return OK;
}
