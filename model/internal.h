// SPDX-License-Identifier: Apache-2.0
// What the files of this room share: the model's weights, kept activations and scratch. T tokens of the
// micro-batch, h hidden, q = heads·head_dim, kv = kv_heads·head_dim, f FFN width, E experts, k choices, R
// received rows at most.
#pragma once
#include "comm/exchange.h"
#include "core/arena.h"
#include "core/clock.h"
#include "model/model.h"
#include <math.h>

typedef struct {
    Param *gate, *up, *down;
} FfnWeights;

typedef struct {
    int dense_group, expert_group; // expert_group −1 where the layer has no experts
    Param *attn_norm, *q, *k, *v, *o, *moe_norm, *router;
    Param *attn_out_norm, *ffn_out_norm; // sandwich norms, or NULL
    Param *dense_norm;         // of the dense branch: its own, or moe_norm where it is the shared experts
    FfnWeights dense, *expert; // dense.gate NULL: no dense branch; expert [local experts]
} LayerWeights;

// What backward needs of forward. Under recompute `layer` every layer shares one set of all but x and the
// routing.
typedef struct {
    Tensor x;                                // (T, h) input of the layer
    Tensor q, k, v, attended, attention_lse; // (T, q) (T, kv) (T, kv) (T, q) (sequences, heads, seq_len)
    Tensor q_inside, k_inside, v_inside;     // where clip_qkv left values as they were (clamp_forward_fn)
    Tensor a, gate, up;                      // (T, h) (T, f) (T, f): after attention; dense branch
    Tensor attn_out, ffn_out;                // (T, h): what sandwich norms read
    Tensor probs, router_lse, index, kept, weight; // (T, E) (T) (T, k) (T, k) (T, k)
    Tensor row;                                    // (T, k) place in expert order
    Tensor chosen, first_chosen, prob_sum;         // (G, E) per balance group
    Tensor balance;                                // (G, E) gradient of the balance loss in each probability
    Tensor rows, rows_gate, rows_up, rows_weight;  // (R, h) (R, f) (R, f) (R): received, first wave
    ExchangePlan plan;
} LayerState;

typedef struct {
    Tensor norm, rstd;                // (T, h) (T): output of the norm at hand
    Tensor moe_norm, moe_rstd;        // (T, h) (T): of the MoE norm, needed across attention
    Tensor ffn;                       // (T, f): activation, or its gradient
    Tensor dbranch;                   // (T, h): gradient of what a sandwich norm read
    Tensor send, send_weight, resend; // (T·k, h) (T·k) (T·k, h): token side rows on their way out
    Tensor back, back_weight;         // (T·k, h) (T·k): token side rows that came back
    Tensor rows_act, rows_out;        // (R, f) (R, h): expert side
    Tensor rows_dy, rows_dweight;     // (R, h) (R): backward
    Tensor rows, rows_gate, rows_up,
        rows_weight;              // (R, …): of waves beyond the first; gate and up of recompute `moe`
    Tensor counts;                // (E) i32 rows per expert of this rank
    Tensor dq, dk, dv, dattended; // backward of attention
    Tensor dlogits, dweight;      // (T, E) (T, k)
    Tensor logits;                // (loss chunk, V)
    Tensor logprob;               // (T)
    Tensor inputs, targets;       // (T) i32
} Scratch;

// An exchange in flight, or none (request NULL).
typedef struct {
    Request *request;
    double *seconds; // where its time is added
    bool again;      // it repeats one of the forward pass
} Pending;
enum { SENT_ROWS, SENT_WEIGHTS, SENT_GRADIENTS, SENT_KINDS, BACK_ROWS = 0, BACK_WEIGHTS, BACK_KINDS };

struct Model {
    ModelConfig config;
    ModelRun run;
    ParamTable *params;
    ParamAccess access;
    Mesh *mesh;
    const Kernels *kernels;
    norm_forward_fn *norm_forward; // of the kernels, the config's kind
    norm_backward_fn *norm_backward;
    Stream stream;
    Device device;

    int embed_group, head_group;
    Param *embed, *final_norm, *head; // head is embed where tied
    LayerWeights *weights;            // [layers]
    LayerState *layer;                // [layers]
    Scratch scratch;
    Tensor cosine, sine;  // (positions, head_dim / 2)
    Tensor forced_index;  // (T, k) where router.force is set
    Tensor bias;          // (moe layers, E)
    Tensor out, dout, dx; // (T, h): the newest layer output; gradients, swapped from layer to layer
    Arena saved, working, tables;
    int64_t *bias_counts,
        *metric_counts; // [moe layers · E] choices since the last update, since the last take
    double *balance_share, *balance_first, *balance_prob; // [moe layers · G · E], host
    int ep_ranks, local_experts, first_expert, moe_layers;
    int64_t max_rows; // R

    // the micro-batch at hand
    int64_t tokens; // T
    int sequences, seq_len, position;
    Pass pass;
    float loss_scale, z_scale;
    Pending dispatch[TIMELINE_CHUNKS][SENT_KINDS], combine[TIMELINE_CHUNKS][BACK_KINDS];
    Timeline timeline;
    Canary *canary; // while model_canary runs
};

// ---- layout.c
void model_layout(Model *model); // places everything; call on counting arenas, then on committed ones

// ---- attention.c: a = x + Attn(N x), or x + N(Attn(N x))
void attention_forward(Model *model, int layer);
void attention_backward(Model *model, int layer); // dx (gradient of a) becomes the gradient of x

// ---- residual.c: out = a + Σ of the FFN branches, or a + N(Σ). The first branch to be written begins the
// sum.
void residual_begin(Model *model, int layer);
void residual_end(Model *model, int layer);
Tensor residual_sum(const Model *model, int layer); // (T, h): where branches add what they have
Tensor residual_gradient(const Model *model);       // (T, h): of the sum, after residual_backward_begin
void residual_backward_begin(Model *model, int layer);
void residual_backward_end(Model *model); // dx = dout: what did not go through a branch

// ---- dense.c: the dense branch, FFN(N a). rebuild: only what backward reads.
void dense_forward(Model *model, int layer, bool rebuild);
void dense_backward(Model *model, int layer); // adds to dx, the gradient of a

// ---- router.c
void router_forward(Model *model,
                    int layer); // leaves the normalised input in scratch.moe_norm and counts on their way
void router_backward(Model *model, int layer);   // scratch.back, back_weight → adds to dx
Tensor moe_input(const Model *model, int layer); // (T, h): what router and experts read, before its norm

// ---- moe.c: rows to the experts and back. Waves: what does not fit into R received rows at a time.
void moe_dispatch_begin(Model *model, int layer);   // the first wave's rows of scratch.moe_norm leave
void moe_experts_forward(Model *model, int layer);  // experts on all waves; their outputs leave
void moe_combine_end(Model *model, int layer);      // what came back joins the layer's output
void moe_rebuild_begin(Model *model, int layer);    // recompute `layer`: dispatch again
void moe_rebuild_end(Model *model, int layer);      // … and gate and up of the first wave
void moe_gradient_begin(Model *model, int layer);   // the first wave's rows of dout leave
void moe_experts_backward(Model *model, int layer); // all waves; gradients of rows and weights leave
void moe_gradient_end(Model *model, int layer);     // they are in scratch.back and back_weight

void moe_replay(Model *model, int layer); // benchmarks: the layer's exchanges alone

// ---- canary.c: after a layer's combine, before its rows are added
void canary_check(Model *model, int layer);

// ---- balance.c
typedef struct {
    double aux, z;
} RouterLosses;
RouterLosses balance_finish(Model *model,
                            int64_t balance_groups); // after all layers: losses and gradient tables
int balance_group_count(const Model *model);         // G of this micro-batch

// ---- head.c
double head_forward(Model *model); // Σ −log p; with training also dout and the gradients of this end
void head_logits(Model *model, Tensor logits); // (1, V) of the last token
void embed_forward(Model *model, Tensor tokens);
void embed_backward(Model *model); // of dout

// ---- block.c
void block_forward(Model *model, int layer);
void block_backward(Model *model, int layer);

Tensor layer_output(const Model *model, int layer); // (T, h): where the next layer reads its input
static inline Tensor rows_of(Tensor t, int64_t count) {
    return tensor_rows(t, 0, count);
}
static inline Tensor range_of(Tensor t, RowRange range) {
    return tensor_rows(t, range.first, range.count);
}
double phase_end(Model *model, int layer, Phase phase,
                 double begun); // adds the time since begun; returns the clock
