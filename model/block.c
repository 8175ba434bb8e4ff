// SPDX-License-Identifier: Apache-2.0
// One layer, and the schedule that gives the project its name: the exchange of rows with the experts travels
// while everything else computes.
//
// Experts that read the layer's INPUT (Arctic): their rows leave before attention starts.
//   forward   route, permute │ dispatch ∥ attention │ experts by chunks │ combine ∥ dense FFN │ add
//   backward  permute(dy) │ dispatch ∥ FFN backward │ expert dgrad by chunks │ combine ∥ expert wgrad,
//   attention
//             backward │ unpermute, router backward
// Experts that read attention's output (Mixtral, DBRX, Grok): a chunk's exchange travels under other chunks'
// experts, and under the shared experts where there are any.
//   forward   attention │ route, permute │ dispatch c+1 ∥ experts c ∥ combine c−1 │ combine ∥ shared experts
//   │ add backward  permute(dy) │ dispatch ∥ shared backward │ dispatch c+1 ∥ dgrad c │ combine ∥ expert
//   wgrad │ unpermute,
//             router backward │ attention backward
#include "model/internal.h"

typedef struct {
    bool moe, early, late; // experts; that read the layer's input; that read attention's output
    bool dense;
} Branches;

static Branches branches_of(const Model *m, int layer) {
    bool moe = m->weights[layer].expert_group >= 0, input = m->config.moe_input == MOE_READS_LAYER_INPUT;
    return (Branches){moe, moe && input, moe && !input, m->weights[layer].dense.gate != NULL};
}

static void weights_begin(Model *m, int layer) {
    const LayerWeights *w = &m->weights[layer];
    m->access.weights_begin(m->access.context, w->dense_group);
    if (w->expert_group >= 0) m->access.weights_begin(m->access.context, w->expert_group);
}

static void weights_end(Model *m, int layer) {
    const LayerWeights *w = &m->weights[layer];
    if (w->expert_group >= 0) m->access.weights_end(m->access.context, w->expert_group);
    m->access.weights_end(m->access.context, w->dense_group);
}

static void experts_begin(Model *m, int layer) {
    router_forward(m, layer);
    moe_dispatch_begin(m, layer);
}

void block_forward(Model *m, int layer) {
    Branches has = branches_of(m, layer);
    weights_begin(m, layer);
    if (has.early) experts_begin(m, layer);
    attention_forward(m, layer);
    if (has.late) experts_begin(m, layer);
    if (has.moe) moe_experts_forward(m, layer);
    residual_begin(m, layer);
    if (has.dense) dense_forward(m, layer, false);
    if (has.moe) moe_combine_end(m, layer);
    residual_end(m, layer);
    weights_end(m, layer);
}

// Recompute `layer`: what backward reads, again from the layer's input; dispatched again, but nothing is
// combined.
static void block_rebuild(Model *m, int layer) {
    Branches has = branches_of(m, layer);
    if (has.early) moe_rebuild_begin(m, layer);
    attention_forward(m, layer);
    if (has.late) moe_rebuild_begin(m, layer);
    if (has.moe) moe_rebuild_end(m, layer);
    if (has.dense) dense_forward(m, layer, true);
}

static void experts_backward_end(Model *m, int layer) {
    moe_gradient_end(m, layer);
    router_backward(m, layer);
}

void block_backward(Model *m, int layer) {
    Branches has = branches_of(m, layer);
    const LayerWeights *w = &m->weights[layer];
    weights_begin(m, layer);
    m->access.grads_begin(m->access.context, w->dense_group);
    if (has.moe) m->access.grads_begin(m->access.context, w->expert_group);
    if (m->run.recompute == RECOMPUTE_LAYER) block_rebuild(m, layer);
    residual_backward_begin(m, layer);
    if (has.moe) moe_gradient_begin(m, layer);
    residual_backward_end(m);
    if (has.dense) dense_backward(m, layer);
    if (has.moe) {
        moe_experts_backward(m, layer);
        m->access.grads_end(m->access.context, w->expert_group);
    }
    if (has.late) experts_backward_end(m, layer);
    attention_backward(m, layer);
    if (has.early) experts_backward_end(m, layer);
    m->access.grads_end(m->access.context, w->dense_group);
    weights_end(m, layer);
    Tensor done = m->dout; // dx of this layer is dout of the one before
    m->dout = m->dx;
    m->dx = done;
}
