// SPDX-License-Identifier: Apache-2.0
// One layer, and the schedule that gives the project its name: the exchange of rows with the experts travels
// while the dense part computes. The MoE branch reads the layer's INPUT, so its rows can leave before
// attention starts.
//
//   forward   route, permute │ dispatch ∥ attention │ experts by chunks │ combine ∥ dense FFN │ unpermute +
//   add backward  permute(dy) │ dispatch ∥ FFN backward │ expert dgrad by chunks │ combine ∥ expert wgrad,
//   attention
//             backward │ unpermute, router backward
#include "model/internal.h"

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

void block_forward(Model *m, int layer) {
    bool moe = m->weights[layer].expert_group >= 0;
    weights_begin(m, layer);
    if (moe) {
        router_forward(m, layer);
        moe_dispatch_begin(m, layer);
    }
    attention_forward(m, layer);
    if (moe) moe_experts_forward(m, layer);
    dense_forward(m, layer, false);
    if (moe) moe_combine_end(m, layer);
    weights_end(m, layer);
}

// Recompute `layer`: what backward reads, again from the layer's input; dispatched again, but nothing is
// combined.
static void block_rebuild(Model *m, int layer) {
    bool moe = m->weights[layer].expert_group >= 0;
    if (moe) moe_rebuild_begin(m, layer);
    attention_forward(m, layer);
    if (moe) moe_rebuild_end(m, layer);
    dense_forward(m, layer, true);
}

void block_backward(Model *m, int layer) {
    const LayerWeights *w = &m->weights[layer];
    bool moe = w->expert_group >= 0;
    weights_begin(m, layer);
    m->access.grads_begin(m->access.context, w->dense_group);
    if (moe) m->access.grads_begin(m->access.context, w->expert_group);
    if (m->run.recompute == RECOMPUTE_LAYER) block_rebuild(m, layer);
    if (moe) moe_gradient_begin(m, layer);
    dense_backward(m, layer);
    if (moe) {
        moe_experts_backward(m, layer);
        m->access.grads_end(m->access.context, w->expert_group);
    }
    attention_backward(m, layer);
    if (moe) {
        moe_gradient_end(m, layer);
        router_backward(m, layer);
    }
    m->access.grads_end(m->access.context, w->dense_group);
    weights_end(m, layer);
    Tensor done = m->dout; // dx of this layer is dout of the one before
    m->dout = m->dx;
    m->dx = done;
}
