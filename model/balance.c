// SPDX-License-Identifier: Apache-2.0
// Balance loss and router z-loss of a micro-batch, after all layers have routed. For a group of T tokens let
// n_e be how often expert e was chosen, c_e how often first, P_e the mean probability, E experts, k choices,
// L MoE layers:
//   switch Σ_l E·Σ_e n/(kT)·P   megablocks 1/L of it   arctic Σ_l E·Σ n/T·P   hf E·Σ n̄/T·P̄ with means over
//   layers deepspeed Σ_l E·Σ c/T·P (k ≤ 2; switch for more)
// and the mean over groups. Counts are constants for the gradient.
#include "model/internal.h"
#include <string.h>

int balance_group_count(const Model *m) {
    return m->config.router.aux_scope == SCOPE_SEQUENCE ? m->sequences : 1;
}

int64_t model_balance_groups(const Model *m, int64_t sequences) {
    int64_t micro_batches = sequences / m->run.sequences;
    switch (m->config.router.aux_scope) {
    case SCOPE_SEQUENCE:
        return sequences;
    case SCOPE_MICRO_BATCH:
        return micro_batches;
    default:
        return micro_batches / group_size(mesh_group(m->mesh, AXIS_WORLD));
    }
}

// share[g·E + e]: what multiplies P_e in the loss of group g, without E and the coefficient; per token of the
// group.
static double share_of(const Model *m, double chosen, double first, double group_tokens) {
    const ModelConfig *c = &m->config;
    double all = chosen / group_tokens, k = c->top_k;
    switch (c->router.aux_kind) {
    case BALANCE_SWITCH:
        return all / k;
    case BALANCE_MEGABLOCKS:
        return all / (k * m->moe_layers);
    case BALANCE_ARCTIC:
        return all;
    case BALANCE_DEEPSPEED:
        return c->top_k <= 2 ? first / group_tokens : all / k;
    case BALANCE_HF:
        return all / m->moe_layers; // summed over layers below: n̄
    }
    return 0;
}

// share and P (moe layers, G, E) of this micro-batch; with scope global_batch of all ranks' together.
static void gather_statistics(Model *m, double *share, double *mean_prob) {
    const ModelConfig *c = &m->config;
    int groups = balance_group_count(m), E = c->experts, cells = m->moe_layers * groups * E;
    bool global = c->router.aux_scope == SCOPE_GLOBAL_BATCH;
    double *first = m->balance_first, tokens = (double)m->tokens / groups;
    for (int i = 0, moe = 0; i < c->layers; i++) {
        if (!model_layer_has_experts(c, i)) continue;
        const LayerState *l = &m->layer[i];
        for (int j = 0; j < groups * E; j++) {
            share[moe * groups * E + j] = tensor_i32(l->chosen)[j];
            first[moe * groups * E + j] = tensor_i32(l->first_chosen)[j];
            mean_prob[moe * groups * E + j] = (double)tensor_f32(l->prob_sum)[j];
        }
        moe++;
    }
    if (global) {
        Group *world = mesh_group(m->mesh, AXIS_WORLD);
        group_sum_f64(world, share, cells);
        group_sum_f64(world, first, cells);
        group_sum_f64(world, mean_prob, cells);
        tokens *= group_size(world);
    }
    for (int j = 0; j < cells; j++) {
        share[j] = share_of(m, share[j], first[j], tokens);
        mean_prob[j] /= tokens;
    }
}

// hf: the product is taken of means over layers, so every layer's share becomes Σ_l share, and P counts 1/L.
static void average_layers(Model *m, double *share, double *mean_prob) {
    int width = balance_group_count(m) * m->config.experts;
    for (int j = 0; j < width; j++) {
        double n = 0;
        for (int l = 0; l < m->moe_layers; l++) n += share[l * width + j];
        for (int l = 0; l < m->moe_layers; l++) {
            share[l * width + j] = n;
            mean_prob[l * width + j] /= m->moe_layers;
        }
    }
}

static double balance_loss(Model *m, int64_t balance_groups) {
    const ModelConfig *c = &m->config;
    int groups = balance_group_count(m), width = groups * c->experts;
    double *share = m->balance_share, *mean_prob = m->balance_prob;
    gather_statistics(m, share, mean_prob);
    bool hf = c->router.aux_kind == BALANCE_HF;
    if (hf) average_layers(m, share, mean_prob);
    int ranks = c->router.aux_scope == SCOPE_GLOBAL_BATCH ? group_size(mesh_group(m->mesh, AXIS_WORLD)) : 1;
    double scale = c->router.aux_coef * c->experts / (double)balance_groups, loss = 0;
    double group_tokens = (double)m->tokens / groups * ranks, per_layer = hf ? 1.0 / m->moe_layers : 1.0;
    for (int i = 0, moe = 0; i < c->layers; i++) {
        if (!model_layer_has_experts(c, i)) continue;
        float *gradient = tensor_f32(m->layer[i].balance);
        for (int j = 0; j < width; j++) {
            double s = share[moe * width + j];
            loss += scale * s * mean_prob[moe * width + j];
            gradient[j] = (float)(scale * s * per_layer / group_tokens);
        }
        moe++;
    }
    return loss / ranks;
}

RouterLosses balance_finish(Model *m, int64_t balance_groups) {
    const ModelConfig *c = &m->config;
    RouterLosses losses = {0};
    if (!m->moe_layers) return losses;
    losses.aux = balance_loss(m, balance_groups);
    for (int i = 0, moe = 0; i < c->layers; i++) {
        if (!model_layer_has_experts(c, i)) continue;
        double squares = 0;
        if (c->router.z_coef != 0)
            m->kernels->sum_squares(&squares, rows_of(m->layer[i].router_lse, m->tokens), m->stream);
        losses.z += (double)m->z_scale * squares;
        const int32_t *chosen = tensor_i32(m->layer[i].chosen);
        for (int j = 0; j < balance_group_count(m) * c->experts; j++) {
            m->bias_counts[moe * c->experts + j % c->experts] += chosen[j];
            m->metric_counts[moe * c->experts + j % c->experts] += chosen[j];
        }
        moe++;
    }
    return losses;
}

void model_bias_update(Model *m) {
    int E = m->config.experts, cells = m->moe_layers * E;
    if (!m->moe_layers || m->config.router.bias_rate == 0) return;
    group_sum_i64(mesh_group(m->mesh, AXIS_WORLD), m->bias_counts, cells);
    for (int l = 0; l < m->moe_layers; l++) {
        int64_t total = 0, *n = m->bias_counts + (int64_t)l * E;
        for (int e = 0; e < E; e++) total += n[e];
        for (int e = 0; e < E; e++) {
            int64_t above = n[e] * E - total; // sign of n − mean, exactly
            int sign = above < 0 ? 1 : above > 0 ? -1 : 0;
            tensor_f32(m->bias)[l * E + e] += (float)(m->config.router.bias_rate * sign);
        }
    }
    memset(m->bias_counts, 0, (size_t)cells * sizeof *m->bias_counts);
}

void model_bias_skip(Model *m) {
    if (m->moe_layers)
        memset(m->bias_counts, 0, (size_t)(m->moe_layers * m->config.experts) * sizeof *m->bias_counts);
}

void model_take_counts(Model *m, int64_t *counts) {
    size_t bytes = (size_t)m->moe_layers * (size_t)m->config.experts * sizeof *counts;
    memcpy(counts, m->metric_counts, bytes);
    memset(m->metric_counts, 0, bytes);
}
