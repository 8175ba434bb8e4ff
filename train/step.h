// SPDX-License-Identifier: Apache-2.0
// The training step: read this one first.
#pragma once
#include "train/state.h"

typedef struct {
    int64_t step, tokens, samples; // after the step
    double loss, aux, z, gnorm, lr, drop;
    uint64_t stream_hash;
    int stage; // from 1: of the step's last sample
    double step_s, data_s, a2a_s, exposed_s, optim_s, reduce_s,
        lost_s;          // means over ranks; step_s is the slowest rank's
    double imbalance;    // max/mean choices per expert, worst layer
    const double *own_s; // [ranks]: each one's time without waiting for others; borrowed like layer
    double own_data_s, own_optim_s; // of this rank, the same
    LayerTimeline *layer;           // [layers], of rank 0; borrowed until the next step
    int layers;
    double *layer_imbalance; // [layers], 0 without experts
    int64_t recompute_bytes; // sent again for recompute, mean of the ranks
    double sol;              // the step's FLOP/s over the peak's (peak.h); set by the loop
    bool saving;             // a checkpoint was being written beside the step; set by the loop
    int64_t save_failures;   // since this start; set by the loop
    Verdict verdict;         // bad: no weight was changed
    ReplicaFault replica;    // found: neither
} StepMetrics;

// One step on the samples that follow state->step: data → model (→ comm) → optim. Collective over the world.
Status train_step(TrainState *state, StepMetrics *out);
// The part after the data: forward, backward, update on this rank's share in state->batch_tokens of a step of
// `sequences` sequences. out->data_s is read. Collective over the world.
void step_on_batch(TrainState *state, int64_t sequences, StepMetrics *out);
