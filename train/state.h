// SPDX-License-Identifier: Apache-2.0
// Everything that a running job holds.
#pragma once
#include "data/ledger.h"
#include "train/checkpoint.h"
#include "train/run_config.h"

typedef struct {
    const RunConfig *config; // borrowed
    Mesh *mesh;
    const Kernels *kernels;
    Stream stream;
    ParamTable params;
    Zero *zero;
    Model *model;
    Loader *loader; // NULL where the state was created without data
    Ledger ledger;
    Guard guard;
    int64_t step;            // steps done
    int32_t *batch_tokens;   // (sequences of this rank's share of a step, seq_len + 1)
    int64_t *counts;         // [moe layers · experts], for metrics
    double *layer_imbalance; // [layers]
    double *own_s;           // [ranks], for metrics
} TrainState;

// Model, optimizer and (with_data) loader for a run; weights are not set yet: zero_init_weights or
// checkpoint_load then zero_weights_gather. run: the shape to run the model in, train_model_run(config) for
// training. Collective over the world.
Status state_create(TrainState *state, const RunConfig *config, Mesh *mesh, const ModelRun *run,
                    bool with_data);
// The same with kernels of the caller's, for benchmarks that time them.
Status state_create_with(TrainState *state, const RunConfig *config, Mesh *mesh, const ModelRun *run,
                         bool with_data, const Kernels *kernels);
void state_destroy(TrainState *state);
ModelRun train_model_run(const RunConfig *config);
CheckpointState state_checkpoint(TrainState *state,
                                 CheckpointBuffer *bias); // for save and load; bias: room for one
// Bytes on this rank by purpose: weights, grads, optimizer, reduce_staging, activations (kept from forward to
// backward), working (buffers of one layer), tables, kernel_scratch. Owned by the caller.
json_t *state_bytes(const TrainState *state);
