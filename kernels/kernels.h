// SPDX-License-Identifier: Apache-2.0
// Every arithmetic kernel: one function type with its contract, one table per backend.
//
// Conventions. Tensors are row-major, contiguous, f32 unless said otherwise. T rows (tokens), h hidden width,
// f FFN width, E experts, k choices per token, N rows in expert order. Gradients into activations are WRITTEN
// (or go where an Into argument says), gradients into weights are ADDED. Outputs do not alias inputs unless
// said. Results do not depend on what the progress callback does, nor on how many other rows a row-wise
// kernel is given: a row of matmul's result is the same bits whatever the number of rows. Sums have a fixed
// order: a kernel run twice gives equal bits. Wrong shapes end the program (REQUIRE).
//
// Types. The CPU's kernels know f32 alone. On a GPU weights, activations and their gradients are f32 or bf16,
// all of a call alike; arithmetic is f32. f32 everywhere: gradients of weights, lse, rstd, logprob, cosine
// and sine, the scale of a gated linear unit, pairs_*, all that route_* takes besides integers, and AdamW's
// master, m, v and grad. GPU kernels are enqueued on their stream and have not run when the call returns,
// except sum_squares; a token or target out of range, or a document that starts behind its query, stops the
// GPU's kernel, which shows at a later call. There the bits of a row of matmul's result may depend on the
// number of rows, and cuBLASLt's and cuDNN's sums keep their order only for the same shapes on the same kind
// of GPU with the same libraries. matmul takes a and b alike into f32, or bf16 into bf16; one f32 and one
// bf16 into f32; into bf16 only an a of f32 and neither transposed.
#pragma once
#include "core/device.h"
#include "core/tensor.h"
#include <stdbool.h>
#ifdef __cplusplus
extern "C" {
#endif

typedef enum { INTO_ZERO, INTO_SUM } Into; // c = …, c += …

// ---- dense algebra

// c (M, N) = or += op(a) op(b); op(a) is (M, K), op(b) is (K, N); a is stored (K, M) where a_transposed, b is
// stored (N, K) where b_transposed. Linear layers: y = x Wᵀ (false, true); dx = dy W (false, false); dW +=
// dyᵀ x (true, false). M, N or K may be 0.
typedef void matmul_fn(Tensor c, Tensor a, bool a_transposed, Tensor b, bool b_transposed, Into into,
                       Stream stream);

// *out = Σ x², summed in double in a fixed order, on the host when the call returns.
typedef void sum_squares_fn(double *out, Tensor x, Stream stream);

// ---- norms, positions, activations

// y[t,c] = or += (x[t,c] − μ[t]) · rstd[t] · w[c]. RMSNorm: μ = 0, rstd[t] = 1/√(mean_c x[t,c]² + eps).
// LayerNorm without bias: μ[t] = mean_c x[t,c], rstd[t] = 1/√(mean_c (x[t,c] − μ[t])² + eps). x, y (T, h), w
// (h), rstd (T). y may be x (INTO_ZERO).
typedef void norm_forward_fn(Tensor y, Tensor rstd, Tensor x, Tensor w, float eps, Into into, Stream stream);
// With x̂ = (x − μ)·rstd: dx = or += rstd (dy·w − x̂ mean_c(dy·w·x̂)), LayerNorm also − rstd mean_c(dy·w);
// dw[c] += Σ_t dy·x̂. dx may be dy (INTO_ZERO).
typedef void norm_backward_fn(Tensor dx, Tensor dw, Tensor dy, Tensor x, Tensor w, Tensor rstd, Into into,
                              Stream stream);

// Rotates the pairs (j, j + d/2) of every head in place. x (T, heads·d); cosine, sine (positions, d/2); row t
// stands at position first_position + t mod seq_len. inverse: the transpose, for gradients.
typedef struct {
    int heads, head_dim, seq_len, first_position;
    bool inverse;
} RopeShape;
typedef void rope_fn(Tensor x, Tensor cosine, Tensor sine, const RopeShape *shape, Stream stream);

// x ← x·factor.
typedef void scale_fn(Tensor x, float factor, Stream stream);

// x ← min(max(x, −bound), bound); x (T, n). inside (T, ⌈n/32⌉) i32 or absent: bit c mod 32 of word c/32 of a
// row is set where |x| ≤ bound before, equality included, as in torch.clamp; unused bits are 0.
typedef void clamp_forward_fn(Tensor x, Tensor inside, float bound, Stream stream);
typedef void clamp_backward_fn(Tensor dx, Tensor inside, Stream stream); // dx ← 0 where not inside

// Gated linear units: act[r,c] = φ(gate)·up·scale[r]; φ(z) = z·sigmoid(z), or GELU in its tanh form
// z·(1 + tanh(√(2/π)(z + 0.044715 z³)))/2. gate, up, act (N, f); scale (N) or absent (1). act may be gate or
// up.
typedef enum { ACTIVATION_SILU, ACTIVATION_GELU_TANH } Activation;
typedef void glu_forward_fn(Tensor act, Tensor gate, Tensor up, Tensor scale, Activation activation,
                            Stream stream);
// Given dact (N, f), the gradient of act above: writes dgate, dup, act again (for the weight gradient of the
// next matrix), and dscale[r] = Σ_c dact·φ(gate)·up where scale is there. dgate may be gate, dup may be up
// or dact; act may be dact only if dup is not.
typedef void glu_backward_fn(Tensor dgate, Tensor dup, Tensor act, Tensor dscale, Tensor dact, Tensor gate,
                             Tensor up, Tensor scale, Activation activation, Stream stream);

// ---- attention

// Causal grouped-query attention without an S × S matrix in memory. Query row i of a sequence stands at
// position q_offset + i and sees key rows 0 … q_offset + i, but none before doc_start[row of q] where that is
// given. Query head i reads key/value head i / (heads / kv_heads).
typedef struct {
    int batch, q_len, kv_len, heads, kv_heads, head_dim, q_offset;
    int64_t
        kv_stride; // rows between the sequences of k and v: their capacity (kv_len unless they are a cache)
    float scale;   // of the scores, 1/√head_dim unless the model says otherwise
    float softcap; // 0: none; else scaled scores s become softcap·tanh(s/softcap)
    const int32_t *doc_start; // NULL, or (batch · q_len): first key row that the query may see
} AttentionShape;
// out (batch·q_len, heads·d); lse (batch, heads, q_len) log-sum-exp of the scores, kept for backward;
// q (batch·q_len, heads·d); k, v (batch·kv_stride, kv_heads·d).
typedef void attention_forward_fn(Tensor out, Tensor lse, Tensor q, Tensor k, Tensor v,
                                  const AttentionShape *shape, Stream stream);
typedef void attention_backward_fn(Tensor dq, Tensor dk, Tensor dv, Tensor dout, Tensor out, Tensor lse,
                                   Tensor q, Tensor k, Tensor v, const AttentionShape *shape, Stream stream);

// ---- embedding and loss

// y[t] = table[tokens[t]]; tokens (T) i32, y (T, h). Ids must be below the rows of table.
typedef void embedding_forward_fn(Tensor y, Tensor table, Tensor tokens, Stream stream);
typedef void embedding_backward_fn(Tensor dtable, Tensor dy, Tensor tokens,
                                   Stream stream); // dtable[tokens[t]] += dy[t]

// logprob[t] = logits[t, target[t]] − lse(logits[t]); then logits become grad_scale · (softmax − onehot), the
// gradient of grad_scale · Σ_t −logprob[t], unless grad_scale is 0, which leaves them. logits (T, V), targets
// (T) i32.
typedef void cross_entropy_fn(Tensor logprob, Tensor logits, Tensor targets, float grad_scale, Stream stream);

// ---- routing

// probs = softmax(logits) or sigmoid(logits) (T, E), lse (T) log-sum-exp of the logits, index (T, k) i32: the
// k experts of largest probs + bias, best first, ties to the lower expert. bias (E) or absent. probs may be
// logits.
typedef enum { SCORES_SOFTMAX, SCORES_SIGMOID } ScoreKind;
typedef void route_scores_fn(Tensor probs, Tensor lse, Tensor index, Tensor logits, Tensor bias,
                             ScoreKind scores, Stream stream);

// kept (T, k) i32: 1 for the first `capacity` (token, choice) pairs of each expert in priority order, else 0.
// By position: all first choices in token order, then all second ones, … By probability: the largest probs
// first, then the lower token, then the earlier choice.
typedef enum { DROP_POSITION, DROP_PROBS } DropPolicy;
typedef void route_capacity_fn(Tensor kept, Tensor index, Tensor probs, int64_t capacity, DropPolicy policy,
                               Stream stream);

// weight[t,j] = probs[t, index[t,j]] · kept[t,j]; where renormalize, divided by max(Σ_j, 2⁻²³). kept or
// absent (all 1).
typedef void route_weights_fn(Tensor weight, Tensor probs, Tensor index, Tensor kept, bool renormalize,
                              Stream stream);

// Stable counting sort of the kept pairs by expert: row (T, k) i32 = place of the pair in expert order
// (token-major within an expert: by token, then choice), −1 where dropped; counts (E) i32 rows per expert.
typedef void route_sort_fn(Tensor row, Tensor counts, Tensor index, Tensor kept, Stream stream);

// Per group of T/G consecutive tokens: chosen (G, E) i32 how often each expert was chosen (dropped choices
// included), first (G, E) i32 how often as first choice, prob_sum (G, E) Σ_t probs; with sigmoid scores
// Σ_t probs/max(Σ_e probs, FLT_MIN).
typedef void route_stats_fn(Tensor chosen, Tensor first, Tensor prob_sum, Tensor probs, Tensor index,
                            ScoreKind scores, Stream stream);

// dlogits (T, E), the gradient through weights, balance loss and z-loss:
//   dp[t,e] = Σ_j [index[t,j] = e] · (gradient of weight[t,j] for dweight, through the renormalisation)
//   softmax: dlogits = probs[t,e]·(dp + b − Σ_e' probs·(dp + b)) + z_scale·2·lse[t]·probs[t,e]
//   sigmoid: dlogits = probs·(1 − probs)·(dp[t,e] + (b[e] − Σ_e' b·probs/S)/S), z_scale must be 0
// with b = balance[g(t)] and S = max(Σ_e' probs, FLT_MIN).
// balance (G, E) is already scaled; absent = 0. kept as in route_weights. dlogits may not be probs.
typedef void route_backward_fn(Tensor dlogits, Tensor dweight, Tensor weight, Tensor probs, Tensor lse,
                               Tensor index, Tensor kept, Tensor balance, bool renormalize, ScoreKind scores,
                               float z_scale, Stream stream);

// ---- rows to expert order and back (row as in route_sort)

// rows[row[t,j]] = x[t] for every pair with row ≥ 0. rows (N, h), x (T, h).
typedef void rows_gather_fn(Tensor rows, Tensor x, Tensor row, Stream stream);
// y[t] = or += Σ_j rows[row[t,j]], in the order of j; a token without rows gets 0 (INTO_ZERO).
typedef void rows_combine_fn(Tensor y, Tensor rows, Tensor row, Into into, Stream stream);
// Scalars: rows[row[t,j]] = value[t,j]   and back   value[t,j] = rows[row[t,j]], 0 where row < 0.
typedef void pairs_gather_fn(Tensor rows, Tensor value, Tensor row, Stream stream);
typedef void pairs_scatter_fn(Tensor value, Tensor rows, Tensor row, Stream stream);

// ---- optimizer

// One AdamW update of torch semantics in place over equal 1-D ranges: with g = grad·grad_scale,
//   m = β₁m + (1−β₁)g;  v = β₂v + (1−β₂)g²;  master −= lr·decay·master;  master −=
//   lr·(m/(1−β₁ᵗ))/(√(v/(1−β₂ᵗ)) + ε)
// and weight = master (rounded to the weight's dtype; weight may be master).
typedef struct {
    float lr, beta1, beta2, eps, decay, grad_scale;
    int64_t step; // t, from 1
} AdamwStep;
typedef void adamw_fn(Tensor weight, Tensor master, Tensor m, Tensor v, Tensor grad, const AdamwStep *step,
                      Stream stream);

// Every kernel: X(name, type).
#define KERNEL_LIST(X)                                                                                       \
    X(matmul, matmul_fn)                                                                                     \
    X(sum_squares, sum_squares_fn)                                                                           \
    X(rmsnorm_forward, norm_forward_fn)                                                                      \
    X(layernorm_forward, norm_forward_fn)                                                                    \
    X(rmsnorm_backward, norm_backward_fn)                                                                    \
    X(layernorm_backward, norm_backward_fn)                                                                  \
    X(rope, rope_fn)                                                                                         \
    X(scale, scale_fn)                                                                                       \
    X(clamp_forward, clamp_forward_fn)                                                                       \
    X(clamp_backward, clamp_backward_fn)                                                                     \
    X(glu_forward, glu_forward_fn)                                                                           \
    X(glu_backward, glu_backward_fn)                                                                         \
    X(attention_forward, attention_forward_fn)                                                               \
    X(attention_backward, attention_backward_fn)                                                             \
    X(embedding_forward, embedding_forward_fn)                                                               \
    X(embedding_backward, embedding_backward_fn)                                                             \
    X(cross_entropy, cross_entropy_fn)                                                                       \
    X(route_scores, route_scores_fn)                                                                         \
    X(route_capacity, route_capacity_fn)                                                                     \
    X(route_weights, route_weights_fn)                                                                       \
    X(route_sort, route_sort_fn)                                                                             \
    X(route_stats, route_stats_fn)                                                                           \
    X(route_backward, route_backward_fn)                                                                     \
    X(rows_gather, rows_gather_fn)                                                                           \
    X(rows_combine, rows_combine_fn)                                                                         \
    X(pairs_gather, pairs_gather_fn)                                                                         \
    X(pairs_scatter, pairs_scatter_fn)                                                                       \
    X(adamw, adamw_fn)

typedef struct Kernels {
#define KERNEL_ENTRY(name, type) type *name;
    KERNEL_LIST(KERNEL_ENTRY)
#undef KERNEL_ENTRY
} Kernels;
#define KERNEL_ONE(name, type) +1
enum { KERNEL_COUNT = 0 KERNEL_LIST(KERNEL_ONE) };
#undef KERNEL_ONE
extern const char *const kernel_name[KERNEL_COUNT]; // in the order of the table

// The table for a device; on the CPU picked at run time by what the processor can do. FLOE_ISA=v2|v3|v4 asks
// for less (tests); asking for more than the machine has ends the program, and so does a GPU in a build
// without CUDA.
const Kernels *kernels_for(Device device);
const char *kernels_isa(void); // "x86-64-v4 (AVX-512)", …
#ifdef __cplusplus
}
#endif
