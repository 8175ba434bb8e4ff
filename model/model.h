// SPDX-License-Identifier: Apache-2.0
// A transformer with expert-parallel Mixture-of-Experts layers: forward and backward of one micro-batch.
#pragma once
#include "comm/mesh.h"
#include "model/model_config.h"
#include "model/timeline.h"

typedef enum { RECOMPUTE_NONE, RECOMPUTE_MOE, RECOMPUTE_LAYER } Recompute;

// How a model runs; none of it changes the mathematics beyond rounding.
typedef struct {
    int sequences, seq_len; // of a micro-batch on this rank
    bool training;          // false: forward only, no gradients, little memory
    bool overlap;
    int chunks;
    double expert_rows; // room for received rows, × tokens·top_k
    Recompute recompute;
} ModelRun;

typedef struct Model Model;
typedef struct {
    double ce_sum; // Σ −log p over this rank's targets
    double aux, z; // this rank's share, weighted; sums over ranks and micro-steps are the step's losses
    int64_t targets;
    int64_t pairs, dropped; // (token, choice) pairs routed, and dropped among them, over layers
} ModelLoss;
typedef struct {
    size_t saved, working,
        tables; // kept from forward to backward; buffers of the layer at hand; routing, RoPE
} ModelBytes;

// params: described by model_describe for this rank's experts. The model keeps pointers to all arguments but
// the configs. Collective over the world.
Status model_create(Model **out, const ModelConfig *config, const ModelRun *run, ParamTable *params,
                    ParamAccess access, Mesh *mesh, const Kernels *kernels, Stream stream);
void model_destroy(Model *model);
ModelBytes model_bytes(const Model *model);
// What model_create will take on a rank of an expert group of ep_ranks, without taking it. The arguments must
// be ones that model_create accepts.
ModelBytes model_plan_bytes(const ModelConfig *config, const ModelRun *run, int ep_ranks);
// For benchmarks: off waits for each exchange where it begins; replay repeats the exchanges of the last
// forward and backward (recompute none) one at a time with nothing over them, into the timeline. Collective
// over the expert group.
void model_set_overlap(Model *model, bool overlap);
void model_replay_exchanges(Model *model);

// tokens (sequences, seq_len + 1) i32 on the device. logprobs (sequences, seq_len) or absent: log-probability
// of each next token. targets_per_step: targets that the whole step has over all ranks; gradients are of the
// mean over them. balance_groups: balance-loss groups of the whole step (sequences, micro-batches or
// micro-steps, as the scope says). With training, gradients of the output matrix are added here. Collective
// over the expert group; where the balance scope is global_batch, over the world.
ModelLoss model_forward(Model *model, Tensor tokens, Tensor logprobs, int64_t targets_per_step,
                        int64_t balance_groups);
void model_backward(Model *model); // of the last forward. Collective over the expert group
// Groups for balance_groups in a step of `sequences` sequences, over all ranks.
int64_t model_balance_groups(const Model *model, int64_t sequences);

// Selection bias (aux-loss-free balance), (moe layers, experts) on the host; updated once a step from the
// choices counted since the last update. Collective over the world.
void model_bias_update(Model *model);
void model_bias_skip(Model *model); // forgets those choices instead
Tensor model_bias(Model *model);    // absent where the config has no experts

// A trial of the exchange before it is trusted: runs the layers forward on tokens (as in model_forward) and
// compares what the experts send back for a few of each rank's tokens with the plain computation: one row at
// a time on the rank that holds the expert, carried by a sum over the group. Leaves nothing behind.
// Collective over the expert group.
typedef struct {
    int64_t rows; // compared on this rank
    double worst; // largest difference of a row, over the largest entry of the expected one
    int layer, expert, source, owner; // of the worst: ranks of the expert group that sent and computed it
} Canary;
Canary model_canary(Model *model, Tensor tokens);

// Choices per (moe layer, expert) of this rank since the last call, for metrics; host array, moe layers ×
// experts.
void model_take_counts(Model *model, int64_t *counts);
int model_moe_layers(const Model *model);
Timeline *model_timeline(Model *model); // where time went since timeline_reset

// Text generation: a model created with training false, sequences 1, on a world of one. tokens (count) follow
// the `position` tokens already seen; logits (1, vocab) of the last one.
void model_extend(Model *model, Tensor tokens, int position, Tensor logits);
