// SPDX-License-Identifier: Apache-2.0
// FFN(N a): the dense branch beside the experts, the shared experts (then N is the experts' norm), or the
// only FFN of a layer without experts.
#include "model/internal.h"

void dense_forward(Model *m, int layer, bool rebuild) {
    double begun = clock_seconds();
    const Kernels *kernels = m->kernels;
    Stream stream = m->stream;
    const LayerWeights *w = &m->weights[layer];
    LayerState *l = &m->layer[layer];
    int64_t T = m->tokens;
    Tensor a = rows_of(l->a, T), n = rows_of(m->scratch.norm, T), rstd = rows_of(m->scratch.rstd, T);
    Tensor gate = rows_of(l->gate, T), up = rows_of(l->up, T);

    m->norm_forward(n, rstd, a, w->dense_norm->weight, (float)m->config.norm_eps, INTO_ZERO, stream);
    kernels->matmul(gate, n, false, w->dense.gate->weight, true, INTO_ZERO, stream);
    kernels->matmul(up, n, false, w->dense.up->weight, true, INTO_ZERO, stream);
    if (!rebuild) {
        Tensor act = tensor_matrix(m->scratch.ffn.data, T, gate.dim[1]);
        kernels->glu_forward(act, gate, up, (Tensor){0}, m->config.activation, stream);
        kernels->matmul(residual_sum(m, layer), act, false, w->dense.down->weight, true,
                        m->config.sandwich_norms ? INTO_ZERO : INTO_SUM, stream);
    }
    phase_end(m, layer, PHASE_DENSE, begun);
}

void dense_backward(Model *m, int layer) {
    double begun = clock_seconds();
    const Kernels *kernels = m->kernels;
    Stream stream = m->stream;
    const LayerWeights *w = &m->weights[layer];
    LayerState *l = &m->layer[layer];
    int64_t T = m->tokens;
    Tensor a = rows_of(l->a, T), n = rows_of(m->scratch.norm, T), rstd = rows_of(m->scratch.rstd, T);
    Tensor gate = rows_of(l->gate, T), up = rows_of(l->up, T), dout = residual_gradient(m),
           da = rows_of(m->dx, T);
    Tensor dact = tensor_matrix(m->scratch.ffn.data, T, gate.dim[1]);

    kernels->matmul(dact, dout, false, w->dense.down->weight, false, INTO_ZERO, stream);
    kernels->glu_backward(gate, up, dact, (Tensor){0}, dact, gate, up, (Tensor){0}, m->config.activation,
                          stream);
    Tensor act = dact, dgate = gate, dup = up; // written in place
    kernels->matmul(w->dense.down->grad, dout, true, act, false, INTO_SUM, stream);
    m->norm_forward(n, rstd, a, w->dense_norm->weight, (float)m->config.norm_eps, INTO_ZERO, stream);
    kernels->matmul(w->dense.gate->grad, dgate, true, n, false, INTO_SUM, stream);
    kernels->matmul(w->dense.up->grad, dup, true, n, false, INTO_SUM, stream);
    Tensor dn = n;
    kernels->matmul(dn, dgate, false, w->dense.gate->weight, false, INTO_ZERO, stream);
    kernels->matmul(dn, dup, false, w->dense.up->weight, false, INTO_SUM, stream);
    m->norm_backward(da, w->dense_norm->grad, dn, a, w->dense_norm->weight, rstd, INTO_SUM, stream);
    phase_end(m, layer, PHASE_DENSE, begun);
}
