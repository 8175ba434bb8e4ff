// SPDX-License-Identifier: Apache-2.0
// out = a + FFN(RMSNorm(a)): the dense residual branch, or the only FFN of a layer without experts.
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

    kernels->rmsnorm_forward(n, rstd, a, w->dense_norm->weight, (float)m->config.norm_eps, stream);
    kernels->matmul(gate, n, false, w->dense.gate->weight, true, INTO_ZERO, stream);
    kernels->matmul(up, n, false, w->dense.up->weight, true, INTO_ZERO, stream);
    if (!rebuild) {
        Tensor act = tensor_matrix(m->scratch.ffn.data, T, gate.dim[1]), out = layer_output(m, layer);
        kernels->swiglu_forward(act, gate, up, (Tensor){0}, stream);
        device_copy(m->device, out.data, m->device, a.data, tensor_bytes(a), stream);
        kernels->matmul(out, act, false, w->dense.down->weight, true, INTO_SUM, stream);
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
    Tensor gate = rows_of(l->gate, T), up = rows_of(l->up, T), dout = rows_of(m->dout, T),
           da = rows_of(m->dx, T);
    Tensor dact = tensor_matrix(m->scratch.ffn.data, T, gate.dim[1]);

    kernels->matmul(dact, dout, false, w->dense.down->weight, false, INTO_ZERO, stream);
    kernels->swiglu_backward(gate, up, dact, (Tensor){0}, dact, gate, up, (Tensor){0}, stream);
    Tensor act = dact, dgate = gate, dup = up; // written in place
    kernels->matmul(w->dense.down->grad, dout, true, act, false, INTO_SUM, stream);
    kernels->rmsnorm_forward(n, rstd, a, w->dense_norm->weight, (float)m->config.norm_eps, stream);
    kernels->matmul(w->dense.gate->grad, dgate, true, n, false, INTO_SUM, stream);
    kernels->matmul(w->dense.up->grad, dup, true, n, false, INTO_SUM, stream);
    Tensor dn = n;
    kernels->matmul(dn, dgate, false, w->dense.gate->weight, false, INTO_ZERO, stream);
    kernels->matmul(dn, dup, false, w->dense.up->weight, false, INTO_SUM, stream);
    device_copy(m->device, da.data, m->device, dout.data, tensor_bytes(da), stream);
    kernels->rmsnorm_backward(da, w->dense_norm->grad, dn, a, w->dense_norm->weight, rstd, INTO_SUM, stream);
    phase_end(m, layer, PHASE_DENSE, begun);
}
