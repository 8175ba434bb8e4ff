// SPDX-License-Identifier: Apache-2.0
#include "train/step.h"
#include "core/clock.h"
#include <string.h>

// What a step adds up on this rank before all ranks' figures are put together.
typedef struct {
    double ce, aux, z, targets, pairs, dropped, data_s, optim_s;
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

static void collect_metrics(TrainState *s, const StepSums *sums, double seconds, StepMetrics *out) {
    LayerTimeline time = timeline_sum(model_timeline(s->model));
    double reduce_s;
    int64_t reduce_bytes;
    zero_take_timing(s->zero, &reduce_s, &reduce_bytes);
    double figures[] = {sums->ce,
                        sums->aux,
                        sums->z,
                        sums->targets,
                        sums->pairs,
                        sums->dropped,
                        sums->data_s,
                        sums->optim_s,
                        time.exchange,
                        time.waited,
                        time.lost,
                        reduce_s,
                        (double)time.recompute_bytes};
    group_sum_f64(world(s), figures, sizeof figures / sizeof *figures);
    group_max_f64(world(s), &seconds, 1);
    double ranks = group_size(world(s));
    out->loss = figures[0] / figures[3];
    out->aux = figures[1];
    out->z = figures[2];
    out->drop = figures[4] > 0 ? figures[5] / figures[4] : 0;
    out->data_s = figures[6] / ranks;
    out->optim_s = figures[7] / ranks;
    out->a2a_s = figures[8] / ranks;
    out->exposed_s = figures[9] / ranks;
    out->lost_s = figures[10] / ranks;
    out->reduce_s = figures[11] / ranks;
    out->recompute_bytes = (int64_t)(figures[12] / ranks);
    out->step_s = seconds;
    out->layer = model_timeline(s->model)->layer;
    out->layers = s->config->model.layers;
    measure_imbalance(s, out);
}

void step_on_batch(TrainState *s, int64_t sequences, StepMetrics *out) {
    const RunConfig *c = s->config;
    double begun = clock_seconds();
    StepSums sums = {.data_s = out->data_s};
    out->step = s->step + 1;
    timeline_reset(model_timeline(s->model));
    run_micro_batches(s, sequences, sequences / group_size(world(s)), &sums); // model, comm
    zero_grads_end(s->zero);                                                  // comm
    double optimising = clock_seconds();
    out->gnorm = zero_grad_norm(s->zero); // optim
    out->lr = schedule_lr(&c->schedule, out->step);
    zero_adamw(s->zero, &c->adamw, out->lr, clip_scale(out->gnorm, c->clip), out->step);
    zero_weights_gather(s->zero); // comm
    sums.optim_s = clock_seconds() - optimising;
    model_bias_update(s->model);
    s->step = out->step;
    collect_metrics(s, &sums, clock_seconds() - begun + out->data_s, out);
}

Status train_step(TrainState *s, StepMetrics *out) {
    const BatchPlan *plan = &s->config->batch.plan;
    int64_t first = batch_first_sample(plan, s->step + 1), sequences = batch_sequences(plan, s->step + 1);
    int64_t rows = sequences / group_size(world(s)), own = first + rows * group_rank(world(s));
    double begun = clock_seconds();
    *out = (StepMetrics){.samples = first + sequences, .tokens = (first + sequences) * plan->seq_len};
    TRY(read_batch(s, own, rows, &out->stream_hash)); // data
    out->data_s = clock_seconds() - begun;
    step_on_batch(s, sequences, out);
    ledger_count(&s->ledger, s->loader, first, sequences);
    group_xor_u64(world(s), &out->stream_hash, 1);
    out->stage = loader_origin(s->loader, first + sequences - 1).stage + 1;
    return OK;
}
