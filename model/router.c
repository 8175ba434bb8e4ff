// SPDX-License-Identifier: Apache-2.0
// Which experts a token goes to, with which weight: softmax, top-k, capacity, renormalisation; and the way
// back.
#include "model/internal.h"

static Tensor bias_of(const Model *m, int layer) {
    int64_t moe_layer = layer / m->config.moe_every;
    return tensor_view(tensor_f32(m->bias) + moe_layer * m->config.experts, DTYPE_F32, 1,
                       (int64_t[]){m->config.experts});
}

// Places of one expert for this rank's tokens: max(min_capacity, ⌈T·k·factor/E⌉), exact for a decimal factor.
static int64_t capacity(const ModelConfig *c, int64_t tokens) {
    int64_t million = 1000000, factor = llround(c->router.capacity_factor * 1e6);
    int64_t places = (tokens * c->top_k * factor + c->experts * million - 1) / (c->experts * million);
    return places > c->router.min_capacity ? places : c->router.min_capacity;
}

Tensor moe_input(const Model *m, int layer) {
    bool early = m->config.moe_input == MOE_READS_LAYER_INPUT;
    return rows_of(early ? m->layer[layer].x : m->layer[layer].a, m->tokens);
}

static Tensor kept_of(const Model *m, const LayerState *l) {
    return tensor_exists(l->kept) ? rows_of(l->kept, m->tokens) : (Tensor){0};
}

void router_forward(Model *m, int layer) {
    double begun = clock_seconds();
    const Kernels *kernels = m->kernels;
    Stream stream = m->stream;
    const ModelConfig *c = &m->config;
    const LayerWeights *w = &m->weights[layer];
    LayerState *l = &m->layer[layer];
    int64_t T = m->tokens;
    Tensor n = rows_of(m->scratch.moe_norm, T), rstd = rows_of(m->scratch.moe_rstd, T);
    Tensor probs = rows_of(l->probs, T), index = rows_of(l->index, T), kept = kept_of(m, l);

    m->norm_forward(n, rstd, moe_input(m, layer), w->moe_norm->weight, (float)c->norm_eps, INTO_ZERO, stream);
    kernels->matmul(probs, n, false, w->router->weight, true, INTO_ZERO, stream);
    kernels->route_scores(probs, rows_of(l->router_lse, T), index, probs, bias_of(m, layer), c->router.scores,
                          stream);
    if (tensor_exists(m->forced_index))
        device_copy(m->device, index.data, m->device, m->forced_index.data, tensor_bytes(index), stream);
    if (tensor_exists(kept))
        kernels->route_capacity(kept, index, probs, capacity(c, T), c->router.drop_policy, stream);
    kernels->route_weights(rows_of(l->weight, T), probs, index, kept, model_normalizes(c), stream);
    kernels->route_sort(rows_of(l->row, T), m->scratch.counts, index, kept, stream);
    int64_t groups = balance_group_count(m);
    kernels->route_stats(rows_of(l->chosen, groups), rows_of(l->first_chosen, groups),
                         rows_of(l->prob_sum, groups), probs, index, c->router.scores, stream);
    phase_end(m, layer, PHASE_ROUTE, begun);
}

void router_backward(Model *m, int layer) {
    double begun = clock_seconds();
    const Kernels *kernels = m->kernels;
    Stream stream = m->stream;
    const LayerWeights *w = &m->weights[layer];
    LayerState *l = &m->layer[layer];
    Scratch *s = &m->scratch;
    int64_t T = m->tokens;
    Tensor x = moe_input(m, layer), n = rows_of(s->moe_norm, T), rstd = rows_of(s->moe_rstd, T);
    Tensor row = rows_of(l->row, T), dweight = rows_of(s->dweight, T), dlogits = rows_of(s->dlogits, T);

    kernels->pairs_scatter(dweight, s->back_weight, row, stream);
    kernels->route_backward(dlogits, dweight, rows_of(l->weight, T), rows_of(l->probs, T),
                            rows_of(l->router_lse, T), rows_of(l->index, T), kept_of(m, l),
                            rows_of(l->balance, balance_group_count(m)), model_normalizes(&m->config),
                            m->config.router.scores, m->z_scale, stream);
    m->norm_forward(n, rstd, x, w->moe_norm->weight, (float)m->config.norm_eps, INTO_ZERO, stream);
    kernels->matmul(w->router->grad, dlogits, true, n, false, INTO_SUM, stream);
    Tensor dn = n;
    kernels->rows_combine(dn, s->back, row, INTO_ZERO, stream);
    kernels->matmul(dn, dlogits, false, w->router->weight, false, INTO_SUM, stream);
    m->norm_backward(rows_of(m->dx, T), w->moe_norm->grad, dn, x, w->moe_norm->weight, rstd, INTO_SUM,
                     stream);
    phase_end(m, layer, PHASE_ROUTE, begun);
}
