// SPDX-License-Identifier: Apache-2.0
// a = x + Wo·Attention(RoPE(Wq n), RoPE(Wk n), Wv n), n = N(x); q, k and v may be clamped before, Wo's result
// normed after.
#include "model/internal.h"

static RopeShape rope_shape(const Model *m, int heads, bool inverse) {
    return (RopeShape){.heads = heads,
                       .head_dim = m->config.head_dim,
                       .seq_len = m->seq_len,
                       .first_position = m->position,
                       .inverse = inverse};
}

static AttentionShape attention_shape(const Model *m) {
    const ModelConfig *c = &m->config;
    int kv_len = m->position + m->seq_len;
    return (AttentionShape){.batch = m->sequences,
                            .q_len = m->seq_len,
                            .kv_len = kv_len,
                            .heads = c->heads,
                            .kv_heads = c->kv_heads,
                            .head_dim = c->head_dim,
                            .q_offset = m->position,
                            .kv_stride = kv_len,
                            .scale =
                                c->attn_scale > 0 ? (float)c->attn_scale : 1.0f / sqrtf((float)c->head_dim),
                            .softcap = (float)c->attn_softcap};
}

static Tensor lse_view(const Model *m, const LayerState *l) {
    return tensor_view(l->attention_lse.data, DTYPE_F32, 3,
                       (int64_t[]){m->sequences, m->config.heads, m->seq_len});
}

// Keys and values of the sequence so far: where the model extends a text, those of earlier calls stand
// before.
static Tensor seen(const Model *m, Tensor kv) {
    return rows_of(kv, (int64_t)m->sequences * (m->position + m->seq_len));
}

static Tensor newest(const Model *m, Tensor kv) {
    return tensor_rows(kv, m->position, m->tokens);
}

static void clamp(Model *m, Tensor x, Tensor inside) {
    Tensor mask = tensor_exists(inside) ? rows_of(inside, m->tokens) : inside;
    if (m->config.clip_qkv > 0) m->kernels->clamp_forward(x, mask, (float)m->config.clip_qkv, m->stream);
}

static void clamp_gradient(Model *m, Tensor dx, Tensor inside) {
    if (m->config.clip_qkv > 0) m->kernels->clamp_backward(dx, rows_of(inside, m->tokens), m->stream);
}

// a = x + Wo·attended, or x + N(Wo·attended).
static void project_out(Model *m, int layer) {
    const LayerWeights *w = &m->weights[layer];
    LayerState *l = &m->layer[layer];
    int64_t T = m->tokens;
    Tensor x = rows_of(l->x, T), a = rows_of(l->a, T), attended = rows_of(l->attended, T);
    device_copy(m->device, a.data, m->device, x.data, tensor_bytes(a), m->stream);
    if (!w->attn_out_norm) {
        m->kernels->matmul(a, attended, false, w->o->weight, true, INTO_SUM, m->stream);
        return;
    }
    Tensor out = rows_of(l->attn_out, T);
    m->kernels->matmul(out, attended, false, w->o->weight, true, INTO_ZERO, m->stream);
    m->norm_forward(a, rows_of(m->scratch.rstd, T), out, w->attn_out_norm->weight, (float)m->config.norm_eps,
                    INTO_SUM, m->stream);
}

// The gradient of Wo·attended.
static Tensor out_gradient(Model *m, int layer) {
    const Param *norm = m->weights[layer].attn_out_norm;
    int64_t T = m->tokens;
    Tensor da = rows_of(m->dx, T);
    if (!norm) return da;
    Tensor out = rows_of(m->layer[layer].attn_out, T), rstd = rows_of(m->scratch.rstd, T),
           dout = rows_of(m->scratch.dbranch, T);
    m->norm_forward(rows_of(m->scratch.norm, T), rstd, out, norm->weight, (float)m->config.norm_eps,
                    INTO_ZERO, m->stream);
    m->norm_backward(dout, norm->grad, da, out, norm->weight, rstd, INTO_ZERO, m->stream);
    return dout;
}

void attention_forward(Model *m, int layer) {
    double begun = clock_seconds();
    const Kernels *kernels = m->kernels;
    Stream stream = m->stream;
    const LayerWeights *w = &m->weights[layer];
    LayerState *l = &m->layer[layer];
    int64_t T = m->tokens;
    Tensor x = rows_of(l->x, T), n = rows_of(m->scratch.norm, T), rstd = rows_of(m->scratch.rstd, T);
    Tensor q = rows_of(l->q, T), k = newest(m, l->k), v = newest(m, l->v), attended = rows_of(l->attended, T);
    RopeShape rope_q = rope_shape(m, m->config.heads, false),
              rope_k = rope_shape(m, m->config.kv_heads, false);
    AttentionShape shape = attention_shape(m);

    m->norm_forward(n, rstd, x, w->attn_norm->weight, (float)m->config.norm_eps, INTO_ZERO, stream);
    kernels->matmul(q, n, false, w->q->weight, true, INTO_ZERO, stream);
    kernels->matmul(k, n, false, w->k->weight, true, INTO_ZERO, stream);
    kernels->matmul(v, n, false, w->v->weight, true, INTO_ZERO, stream);
    clamp(m, q, l->q_inside);
    clamp(m, k, l->k_inside);
    clamp(m, v, l->v_inside);
    kernels->rope(q, m->cosine, m->sine, &rope_q, stream);
    kernels->rope(k, m->cosine, m->sine, &rope_k, stream);
    kernels->attention_forward(attended, lse_view(m, l), q, seen(m, l->k), seen(m, l->v), &shape, stream);
    project_out(m, layer);
    phase_end(m, layer, PHASE_ATTENTION, begun);
}

void attention_backward(Model *m, int layer) {
    double begun = clock_seconds();
    const Kernels *kernels = m->kernels;
    Stream stream = m->stream;
    const LayerWeights *w = &m->weights[layer];
    LayerState *l = &m->layer[layer];
    Scratch *s = &m->scratch;
    int64_t T = m->tokens;
    Tensor x = rows_of(l->x, T), n = rows_of(s->norm, T), rstd = rows_of(s->rstd, T), da = rows_of(m->dx, T);
    Tensor q = rows_of(l->q, T), k = rows_of(l->k, T), v = rows_of(l->v, T),
           attended = rows_of(l->attended, T);
    Tensor dq = rows_of(s->dq, T), dk = rows_of(s->dk, T), dv = rows_of(s->dv, T);
    Tensor dattended = rows_of(s->dattended, T);
    RopeShape rope_q = rope_shape(m, m->config.heads, true), rope_k = rope_shape(m, m->config.kv_heads, true);
    AttentionShape shape = attention_shape(m);

    Tensor dout = out_gradient(m, layer);
    kernels->matmul(dattended, dout, false, w->o->weight, false, INTO_ZERO, stream);
    kernels->matmul(w->o->grad, dout, true, attended, false, INTO_SUM, stream);
    kernels->attention_backward(dq, dk, dv, dattended, attended, lse_view(m, l), q, k, v, &shape, stream);
    kernels->rope(dq, m->cosine, m->sine, &rope_q, stream);
    kernels->rope(dk, m->cosine, m->sine, &rope_k, stream);
    clamp_gradient(m, dq, l->q_inside);
    clamp_gradient(m, dk, l->k_inside);
    clamp_gradient(m, dv, l->v_inside);
    m->norm_forward(n, rstd, x, w->attn_norm->weight, (float)m->config.norm_eps, INTO_ZERO, stream);
    kernels->matmul(w->q->grad, dq, true, n, false, INTO_SUM, stream);
    kernels->matmul(w->k->grad, dk, true, n, false, INTO_SUM, stream);
    kernels->matmul(w->v->grad, dv, true, n, false, INTO_SUM, stream);
    Tensor dn = n;
    kernels->matmul(dn, dq, false, w->q->weight, false, INTO_ZERO, stream);
    kernels->matmul(dn, dk, false, w->k->weight, false, INTO_SUM, stream);
    kernels->matmul(dn, dv, false, w->v->weight, false, INTO_SUM, stream);
    m->norm_backward(da, w->attn_norm->grad, dn, x, w->attn_norm->weight, rstd, INTO_SUM, stream);
    phase_end(m, layer, PHASE_ATTENTION, begun);
}
