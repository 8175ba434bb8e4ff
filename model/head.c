// SPDX-License-Identifier: Apache-2.0
// Token embedding at one end; final norm, output matrix and loss at the other. Logits exist for one chunk of
// tokens at a time; in training the chunk's gradients are taken at once, so that backward starts from the
// last layer's output.
#include "model/internal.h"

static void scale_by(Model *m, Tensor x, double factor) {
    if (factor != 1) m->kernels->scale(x, (float)factor, m->stream);
}

void embed_forward(Model *m, Tensor tokens) {
    double begun = clock_seconds();
    Tensor x = rows_of(m->layer[0].x, m->tokens);
    m->kernels->embedding_forward(x, m->embed->weight, tokens, m->stream);
    scale_by(m, x, m->config.embed_scale);
    phase_end(m, 0, PHASE_HEAD, begun);
}

void embed_backward(Model *m) {
    double begun = clock_seconds();
    scale_by(m, rows_of(m->dout, m->tokens), m->config.embed_scale);
    m->kernels->embedding_backward(m->embed->grad, rows_of(m->dout, m->tokens),
                                   rows_of(m->scratch.inputs, m->tokens), m->stream);
    phase_end(m, 0, PHASE_HEAD, begun);
}

// Loss of rows first … first + count of the normed output n; with training n becomes its own gradient.
static void loss_chunk(Model *m, Tensor n, int64_t first, int64_t count) {
    const Kernels *kernels = m->kernels;
    Tensor rows = tensor_rows(n, first, count), logits = rows_of(m->scratch.logits, count);
    float scale = m->run.training ? m->loss_scale : 0;
    kernels->matmul(logits, rows, false, m->head->weight, true, INTO_ZERO, m->stream);
    kernels->cross_entropy(tensor_rows(m->scratch.logprob, first, count), logits,
                           tensor_rows(m->scratch.targets, first, count), scale, m->stream);
    if (!m->run.training) return;
    kernels->matmul(m->head->grad, logits, true, rows, false, INTO_SUM, m->stream);
    kernels->matmul(rows, logits, false, m->head->weight, false, INTO_ZERO, m->stream);
}

double head_forward(Model *m) {
    double begun = clock_seconds();
    int64_t T = m->tokens, chunk = m->scratch.logits.dim[0];
    Tensor out = rows_of(m->out, T), n = rows_of(m->scratch.norm, T), rstd = rows_of(m->scratch.rstd, T);
    m->norm_forward(n, rstd, out, m->final_norm->weight, (float)m->config.norm_eps, INTO_ZERO, m->stream);
    scale_by(m, n, m->config.output_scale); // the logits' scale, where there are fewer numbers
    for (int64_t first = 0; first < T; first += chunk)
        loss_chunk(m, n, first, T - first < chunk ? T - first : chunk);
    if (m->run.training) {
        scale_by(m, n, m->config.output_scale);
        m->norm_backward(rows_of(m->dout, T), m->final_norm->grad, n, out, m->final_norm->weight, rstd,
                         INTO_ZERO, m->stream);
    }
    double sum = 0;
    for (int64_t t = 0; t < T; t++) sum -= (double)tensor_f32(m->scratch.logprob)[t];
    phase_end(m, 0, PHASE_HEAD, begun);
    return sum;
}

void head_logits(Model *m, Tensor logits) {
    Tensor last = tensor_rows(m->out, m->tokens - 1, 1), n = rows_of(m->scratch.norm, 1);
    m->norm_forward(n, rows_of(m->scratch.rstd, 1), last, m->final_norm->weight, (float)m->config.norm_eps,
                    INTO_ZERO, m->stream);
    scale_by(m, n, m->config.output_scale);
    m->kernels->matmul(logits, n, false, m->head->weight, true, INTO_ZERO, m->stream);
}
