// SPDX-License-Identifier: Apache-2.0
// The experts and the two exchanges around them. Rows are multiplied by their gate weight on the expert side,
// so that the way back is a plain sum and the weight's gradient is a dot product of what the expert has at
// hand: out = w·Wd·act, act = φ(Wg x)·(Wu x); dw = ⟨Wdᵀ dy, act⟩.
#include "core/heartbeat.h"
#include "model/internal.h"

// The expert side's buffers of a wave. The first one's are kept for backward, later ones share one set.
typedef struct {
    Tensor rows, gate, up, weight;
} Wave;

static Wave wave_of(const Model *m, const LayerState *l, int wave) {
    const Scratch *s = &m->scratch;
    return wave == 0 ? (Wave){l->rows, l->rows_gate, l->rows_up, l->rows_weight}
                     : (Wave){s->rows, s->rows_gate, s->rows_up, s->rows_weight};
}

static Tensor column(Tensor vector) {
    return tensor_as_matrix(vector, vector.dim[0], 1);
}

static Tensor vector_range(Tensor vector, RowRange range) {
    return tensor_rows(vector, range.first, range.count);
}

// ---- exchanges in flight

static void pending_end(Model *m, int layer, Pending *pending) {
    if (!pending->request) return;
    CommTiming timing;
    heartbeat_at_layer("exchange", layer, pass_name(m->pass));
    comm_end(pending->request, &timing, m->stream);
    LayerTimeline *t = &m->timeline.layer[layer];
    double seconds = timing.done - timing.begun;
    *pending->seconds += seconds;
    t->exchange += seconds;
    t->waited += timing.waited;
    t->bytes += timing.bytes_sent;
    if (pending->again) t->recompute_bytes += timing.bytes_sent;
    pending->request = NULL;
}

// Without overlap each exchange is waited for where it begins; nothing else differs.
static void pending_begin(Model *m, int layer, Pending *pending, Request *request, double *seconds,
                          bool again) {
    *pending = (Pending){request, seconds, again};
    if (!m->run.overlap) pending_end(m, layer, pending);
}

static void dispatch(Model *m, int layer, int wave, int kind, Tensor expert_side, Tensor token_side,
                     bool again) {
    const ExchangePlan *plan = &m->layer[layer].plan;
    for (int c = 0; c < m->run.chunks; c++)
        pending_begin(m, layer, &m->dispatch[c][kind],
                      exchange_dispatch_begin(m->mesh, plan, wave, c, expert_side, token_side, m->stream),
                      &m->timeline.layer[layer].dispatch[m->pass][c], again);
}

static void dispatch_end(Model *m, int layer, int chunk) {
    for (int kind = 0; kind < SENT_KINDS; kind++) pending_end(m, layer, &m->dispatch[chunk][kind]);
}

static void combine(Model *m, int layer, int wave, int chunk, int kind, Tensor token_side,
                    Tensor expert_side) {
    pending_begin(m, layer, &m->combine[chunk][kind],
                  exchange_combine_begin(m->mesh, &m->layer[layer].plan, wave, chunk, token_side, expert_side,
                                         m->stream),
                  &m->timeline.layer[layer].combine[m->pass][chunk], false);
}

static void combine_end(Model *m, int layer) {
    for (int c = 0; c < m->run.chunks; c++)
        for (int kind = 0; kind < BACK_KINDS; kind++) pending_end(m, layer, &m->combine[c][kind]);
}

// The router's input and weights in expert order, on the token side.
static void gather_rows(Model *m, int layer, Tensor send) {
    LayerState *l = &m->layer[layer];
    Tensor row = rows_of(l->row, m->tokens);
    m->kernels->rows_gather(send, rows_of(m->scratch.moe_norm, m->tokens), row, m->stream);
    m->kernels->pairs_gather(m->scratch.send_weight, rows_of(l->weight, m->tokens), row, m->stream);
}

static void send_rows(Model *m, int layer, Tensor send, int wave, bool again) {
    Wave b = wave_of(m, &m->layer[layer], wave);
    dispatch(m, layer, wave, SENT_ROWS, b.rows, send, again);
    dispatch(m, layer, wave, SENT_WEIGHTS, column(b.weight), m->scratch.send_weight, again);
}

// ---- experts on one chunk of a wave

static void gate_and_up(Model *m, int layer, int wave, int chunk) {
    LayerState *l = &m->layer[layer];
    Wave b = wave_of(m, l, wave);
    for (int e = 0; e < m->local_experts; e++) {
        const FfnWeights *w = &m->weights[layer].expert[e];
        RowRange r = exchange_expert_rows(&l->plan, wave, chunk, e);
        if (r.count == 0) continue;
        m->kernels->matmul(range_of(b.gate, r), range_of(b.rows, r), false, w->gate->weight, true, INTO_ZERO,
                           m->stream);
        m->kernels->matmul(range_of(b.up, r), range_of(b.rows, r), false, w->up->weight, true, INTO_ZERO,
                           m->stream);
    }
}

static void experts_forward(Model *m, int layer, int wave, int chunk) {
    LayerState *l = &m->layer[layer];
    Wave b = wave_of(m, l, wave);
    gate_and_up(m, layer, wave, chunk);
    for (int e = 0; e < m->local_experts; e++) {
        RowRange r = exchange_expert_rows(&l->plan, wave, chunk, e);
        if (r.count == 0) continue;
        Tensor act = range_of(m->scratch.rows_act, r);
        m->kernels->glu_forward(act, range_of(b.gate, r), range_of(b.up, r), vector_range(b.weight, r),
                                m->config.activation, m->stream);
        m->kernels->matmul(range_of(m->scratch.rows_out, r), act, false,
                           m->weights[layer].expert[e].down->weight, true, INTO_ZERO, m->stream);
    }
}

// Gradients of the rows (scratch.rows_out) and weights; gate and up become their gradients, rows_act the
// activation.
static void experts_dgrad(Model *m, int layer, int wave, int chunk) {
    LayerState *l = &m->layer[layer];
    Scratch *s = &m->scratch;
    Wave b = wave_of(m, l, wave);
    for (int e = 0; e < m->local_experts; e++) {
        const FfnWeights *w = &m->weights[layer].expert[e];
        RowRange r = exchange_expert_rows(&l->plan, wave, chunk, e);
        if (r.count == 0) continue;
        Tensor gate = range_of(b.gate, r), up = range_of(b.up, r), act = range_of(s->rows_act, r);
        Tensor dx = range_of(s->rows_out, r);
        m->kernels->matmul(act, range_of(s->rows_dy, r), false, w->down->weight, false, INTO_ZERO, m->stream);
        m->kernels->glu_backward(gate, up, act, vector_range(s->rows_dweight, r), act, gate, up,
                                 vector_range(b.weight, r), m->config.activation, m->stream);
        m->kernels->matmul(dx, gate, false, w->gate->weight, false, INTO_ZERO, m->stream);
        m->kernels->matmul(dx, up, false, w->up->weight, false, INTO_SUM, m->stream);
    }
}

static void experts_wgrad(Model *m, int layer, int wave, int chunk) {
    LayerState *l = &m->layer[layer];
    Scratch *s = &m->scratch;
    Wave b = wave_of(m, l, wave);
    for (int e = 0; e < m->local_experts; e++) {
        const FfnWeights *w = &m->weights[layer].expert[e];
        RowRange r = exchange_expert_rows(&l->plan, wave, chunk, e);
        if (r.count == 0) continue;
        m->kernels->matmul(w->down->grad, range_of(s->rows_dy, r), true, range_of(s->rows_act, r), false,
                           INTO_SUM, m->stream);
        m->kernels->matmul(w->gate->grad, range_of(b.gate, r), true, range_of(b.rows, r), false, INTO_SUM,
                           m->stream);
        m->kernels->matmul(w->up->grad, range_of(b.up, r), true, range_of(b.rows, r), false, INTO_SUM,
                           m->stream);
    }
}

// Adds the time since begun to a chunk of the experts' phase, and what of it the fullest rank costs beyond
// the mean.
static void experts_end(Model *m, int layer, int chunk, double begun) {
    LayerTimeline *t = &m->timeline.layer[layer];
    const ExchangePlan *plan = &m->layer[layer].plan;
    double seconds = phase_end(m, layer, PHASE_EXPERTS, begun) - begun;
    t->chunk[m->pass][chunk] += seconds;
    int64_t total = 0;
    for (int i = 0; i < plan->ranks * plan->shape.experts; i++) total += plan->counts[i];
    if (plan->received > 0)
        t->lost += seconds * ((double)plan->fullest - (double)total / plan->ranks) / (double)plan->received;
}

// ---- the schedule's steps

void moe_dispatch_begin(Model *m, int layer) {
    LayerState *l = &m->layer[layer];
    LayerTimeline *t = &m->timeline.layer[layer];
    Request *counts = exchange_counts_begin(m->mesh, &l->plan, m->scratch.counts, m->stream);
    double begun = clock_seconds();
    gather_rows(m, layer, m->scratch.send);
    phase_end(m, layer, PHASE_ROUTE, begun);
    CommTiming timing;
    heartbeat_at_layer("exchange", layer, pass_name(m->pass));
    exchange_counts_end(counts, &l->plan, &timing, m->stream);
    t->exchange += timing.done - timing.begun;
    t->waited += timing.waited;
    t->waves += l->plan.waves - 1;
    send_rows(m, layer, m->scratch.send, 0, false);
}

void moe_experts_forward(Model *m, int layer) {
    for (int wave = 0; wave < m->layer[layer].plan.waves; wave++) {
        if (wave > 0) {
            combine_end(m, layer);
            send_rows(m, layer, m->scratch.send, wave, false);
        }
        for (int c = 0; c < m->run.chunks; c++) {
            dispatch_end(m, layer, c);
            double begun = clock_seconds();
            experts_forward(m, layer, wave, c);
            experts_end(m, layer, c, begun);
            combine(m, layer, wave, c, BACK_ROWS, m->scratch.back, m->scratch.rows_out);
        }
    }
}

void moe_combine_end(Model *m, int layer) {
    combine_end(m, layer);
    if (m->canary) canary_check(m, layer);
    double begun = clock_seconds();
    bool first = m->config.sandwich_norms && !m->weights[layer].dense.gate;
    m->kernels->rows_combine(residual_sum(m, layer), m->scratch.back, rows_of(m->layer[layer].row, m->tokens),
                             first ? INTO_ZERO : INTO_SUM, m->stream);
    phase_end(m, layer, PHASE_COMBINE, begun);
}

// The same rows once more, from what the router read.
static void regather_rows(Model *m, int layer, Tensor send) {
    m->norm_forward(rows_of(m->scratch.moe_norm, m->tokens), rows_of(m->scratch.moe_rstd, m->tokens),
                    moe_input(m, layer), m->weights[layer].moe_norm->weight, (float)m->config.norm_eps,
                    INTO_ZERO, m->stream);
    gather_rows(m, layer, send);
}

void moe_rebuild_begin(Model *m, int layer) {
    regather_rows(m, layer, m->scratch.send);
    send_rows(m, layer, m->scratch.send, 0, true);
}

void moe_rebuild_end(Model *m, int layer) {
    for (int c = 0; c < m->run.chunks; c++) {
        dispatch_end(m, layer, c);
        double begun = clock_seconds();
        gate_and_up(m, layer, 0, c);
        experts_end(m, layer, c, begun);
    }
}

void moe_gradient_begin(Model *m, int layer) {
    double begun = clock_seconds();
    m->kernels->rows_gather(m->scratch.send, residual_gradient(m), rows_of(m->layer[layer].row, m->tokens),
                            m->stream);
    phase_end(m, layer, PHASE_COMBINE, begun);
    dispatch(m, layer, 0, SENT_GRADIENTS, m->scratch.rows_dy, m->scratch.send, false);
}

void moe_experts_backward(Model *m, int layer) {
    Scratch *s = &m->scratch;
    int waves = m->layer[layer].plan.waves;
    for (int wave = 0; wave < waves; wave++) {
        if (wave > 0) {
            if (wave == 1) regather_rows(m, layer, s->resend);
            combine_end(m, layer);
            send_rows(m, layer, s->resend, wave, true);
            dispatch(m, layer, wave, SENT_GRADIENTS, s->rows_dy, s->send, false);
        }
        for (int c = 0; c < m->run.chunks; c++) {
            dispatch_end(m, layer, c);
            double begun = clock_seconds();
            if (wave > 0 || m->run.recompute == RECOMPUTE_MOE) gate_and_up(m, layer, wave, c);
            experts_dgrad(m, layer, wave, c);
            experts_end(m, layer, c, begun);
            combine(m, layer, wave, c, BACK_ROWS, s->back, s->rows_out);
            combine(m, layer, wave, c, BACK_WEIGHTS, s->back_weight, column(s->rows_dweight));
        }
        double begun = clock_seconds();
        for (int c = 0; c < m->run.chunks; c++) experts_wgrad(m, layer, wave, c);
        phase_end(m, layer, PHASE_EXPERT_WGRAD, begun);
    }
}

void moe_gradient_end(Model *m, int layer) {
    combine_end(m, layer);
}

// ---- for benchmarks

// Every exchange of the first wave of the last forward and backward once more, one at a time with nothing
// over it. The buffers that they write hold no result any more.
void moe_replay(Model *m, int layer) {
    bool overlap = m->run.overlap;
    m->run.overlap = false;
    m->pass = PASS_FORWARD;
    send_rows(m, layer, m->scratch.send, 0, false);
    for (int c = 0; c < m->run.chunks; c++)
        combine(m, layer, 0, c, BACK_ROWS, m->scratch.back, m->scratch.rows_out);
    m->pass = PASS_BACKWARD;
    dispatch(m, layer, 0, SENT_GRADIENTS, m->scratch.rows_dy, m->scratch.send, false);
    for (int c = 0; c < m->run.chunks; c++) {
        combine(m, layer, 0, c, BACK_ROWS, m->scratch.back, m->scratch.rows_out);
        combine(m, layer, 0, c, BACK_WEIGHTS, m->scratch.back_weight, column(m->scratch.rows_dweight));
    }
    m->run.overlap = overlap;
}
