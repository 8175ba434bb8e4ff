// SPDX-License-Identifier: Apache-2.0
#include "train/state.h"
#include <stdlib.h>
#include <string.h>

ModelRun train_model_run(const RunConfig *config) {
    return (ModelRun){.sequences = (int)config->batch.micro,
                      .seq_len = (int)config->batch.seq_len,
                      .training = true,
                      .overlap = config->parallel.overlap,
                      .chunks = config->parallel.chunks,
                      .expert_rows = config->parallel.expert_rows,
                      .recompute = config->parallel.recompute};
}

// Most sequences that a step of the plan gives to one rank.
static int64_t most_rows(const BatchPlan *plan, int world) {
    int64_t most = plan->sequences;
    for (int i = 0; i < plan->ramps; i++)
        if (plan->ramp[i].sequences > most) most = plan->ramp[i].sequences;
    return (most + world - 1) / world;
}

static Status create(TrainState *s, const RunConfig *config, const ModelRun *run, bool with_data) {
    Group *expert_group = mesh_group(s->mesh, AXIS_EXPERT);
    int local = config->model.experts / group_size(expert_group);
    model_describe(&config->model, group_rank(expert_group) * local, local, &s->params);
    int stage = run->training ? config->parallel.zero : ZERO_FORWARD_ONLY;
    TRY(zero_create(&s->zero, &s->params, s->mesh, s->kernels, stage, s->stream));
    TRY(model_create(&s->model, &config->model, run, &s->params, zero_access(s->zero), s->mesh, s->kernels,
                     s->stream));
    s->counts = calloc((size_t)(model_moe_layers(s->model) * config->model.experts + 1), sizeof *s->counts);
    s->layer_imbalance = calloc((size_t)config->model.layers, sizeof *s->layer_imbalance);
    s->own_s = calloc((size_t)group_size(mesh_group(s->mesh, AXIS_WORLD)), sizeof *s->own_s);
    REQUIRE(s->counts && s->layer_imbalance && s->own_s, "out of memory: metrics of %d layers",
            config->model.layers);
    int64_t rows = most_rows(&config->batch.plan, group_size(mesh_group(s->mesh, AXIS_WORLD)));
    s->batch_tokens = calloc((size_t)(rows * (config->batch.seq_len + 1)), sizeof *s->batch_tokens);
    REQUIRE(s->batch_tokens, "out of memory: tokens of %ld sequences", (long)rows);
    s->guard = guard_create(&config->guard);
    if (!with_data) return OK;
    TRY(loader_create(&s->loader, &config->data));
    s->ledger = ledger_create(s->loader);
    return OK;
}

Status state_create_with(TrainState *s, const RunConfig *config, Mesh *mesh, const ModelRun *run,
                         bool with_data, const Kernels *kernels) {
    *s = (TrainState){.config = config, .mesh = mesh, .kernels = kernels};
    int ep = group_size(mesh_group(mesh, AXIS_EXPERT));
    if (config->model.experts % ep)
        FAIL(ERR_CONFIG, "parallel.ep = %d must divide model.experts = %d", ep, config->model.experts);
    s->stream = stream_create((Device){DEVICE_CPU, 0});
    s->stream->progress = mesh_progress;
    s->stream->progress_context = mesh;
    return group_agree(mesh_group(mesh, AXIS_WORLD), create(s, config, run, with_data));
}

Status state_create(TrainState *s, const RunConfig *config, Mesh *mesh, const ModelRun *run, bool with_data) {
    return state_create_with(s, config, mesh, run, with_data, kernels_for((Device){DEVICE_CPU, 0}));
}

void state_destroy(TrainState *s) {
    free(s->batch_tokens);
    guard_free(&s->guard);
    if (s->loader) ledger_free(&s->ledger);
    loader_destroy(s->loader);
    model_destroy(s->model);
    zero_destroy(s->zero);
    params_free(&s->params);
    stream_destroy(s->stream);
    free(s->counts);
    free(s->layer_imbalance);
    free(s->own_s);
    *s = (TrainState){0};
}

CheckpointState state_checkpoint(TrainState *s, CheckpointBuffer *bias) {
    CheckpointState state = {.params = &s->params, .mesh = s->mesh, .ep = s->config->parallel.ep};
    state.owned = zero_owned(s->zero, &state.owned_count);
    state.held = zero_held(s->zero, &state.held_count);
    Tensor values = model_bias(s->model);
    if (tensor_exists(values)) {
        *bias = (CheckpointBuffer){"router_bias", 2, {values.dim[0], values.dim[1]}, tensor_f32(values)};
        state.buffer = bias;
        state.buffers = 1;
    }
    return state;
}

json_t *state_bytes(const TrainState *s) {
    ZeroBytes zero = zero_bytes(s->zero);
    ModelBytes model = model_bytes(s->model);
    return json_pack("{s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I}", "weights", (json_int_t)zero.weights, "grads",
                     (json_int_t)zero.grads, "optimizer", (json_int_t)zero.optimizer, "reduce_staging",
                     (json_int_t)zero.staging, "activations", (json_int_t)model.saved, "working",
                     (json_int_t)model.working, "tables", (json_int_t)model.tables, "kernel_scratch",
                     (json_int_t)STREAM_SCRATCH_BYTES);
}
