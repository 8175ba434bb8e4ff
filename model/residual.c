// SPDX-License-Identifier: Apache-2.0
// The sum that ends a layer: out = a + Σ branches; with sandwich norms out = a + N(Σ branches), where the sum
// is kept for backward.
#include "model/internal.h"

Tensor residual_sum(const Model *m, int layer) {
    return m->config.sandwich_norms ? rows_of(m->layer[layer].ffn_out, m->tokens) : layer_output(m, layer);
}

Tensor residual_gradient(const Model *m) {
    return rows_of(m->config.sandwich_norms ? m->scratch.dbranch : m->dout, m->tokens);
}

static void output_becomes_a(Model *m, int layer) {
    Tensor out = layer_output(m, layer), a = rows_of(m->layer[layer].a, m->tokens);
    device_copy(m->device, out.data, m->device, a.data, tensor_bytes(a), m->stream);
}

void residual_begin(Model *m, int layer) {
    if (!m->config.sandwich_norms) output_becomes_a(m, layer);
}

void residual_end(Model *m, int layer) {
    if (!m->config.sandwich_norms) return;
    double begun = clock_seconds();
    output_becomes_a(m, layer);
    m->norm_forward(layer_output(m, layer), rows_of(m->scratch.rstd, m->tokens), residual_sum(m, layer),
                    m->weights[layer].ffn_out_norm->weight, (float)m->config.norm_eps, INTO_SUM, m->stream);
    phase_end(m, layer, PHASE_COMBINE, begun);
}

void residual_backward_begin(Model *m, int layer) {
    if (!m->config.sandwich_norms) return;
    double begun = clock_seconds();
    const Param *norm = m->weights[layer].ffn_out_norm;
    Tensor sum = residual_sum(m, layer), rstd = rows_of(m->scratch.rstd, m->tokens);
    m->norm_forward(rows_of(m->scratch.norm, m->tokens), rstd, sum, norm->weight, (float)m->config.norm_eps,
                    INTO_ZERO, m->stream);
    m->norm_backward(residual_gradient(m), norm->grad, rows_of(m->dout, m->tokens), sum, norm->weight, rstd,
                     INTO_ZERO, m->stream);
    phase_end(m, layer, PHASE_COMBINE, begun);
}

void residual_backward_end(Model *m) {
    Tensor dx = rows_of(m->dx, m->tokens);
    device_copy(m->device, dx.data, m->device, m->dout.data, tensor_bytes(dx), m->stream);
}
