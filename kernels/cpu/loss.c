// SPDX-License-Identifier: Apache-2.0
// Both ends of the model: token embedding and cross-entropy.
#include "kernels/cpu/vec.h"

static int64_t checked_token(const char *what, Tensor tokens, int64_t t, int64_t limit) {
    int64_t token = tensor_i32(tokens)[t];
    REQUIRE(token >= 0 && token < limit, "%s: token %ld of a vocabulary of %ld", what, (long)token,
            (long)limit);
    return token;
}

void KERNEL(embedding_forward)(Tensor y, Tensor table, Tensor tokens, Stream stream) {
    int64_t T = tokens.dim[0], h = table.dim[1], batch = poll_rows(h);
    REQUIRE(y.dim[0] == T && y.dim[1] == h, "embedding: (%ld, %ld) from %ld tokens of width %ld",
            (long)y.dim[0], (long)y.dim[1], (long)T, (long)h);
    for (int64_t t = 0; t < T; t++) {
        int64_t token = checked_token("embedding", tokens, t, table.dim[0]);
        memcpy(tensor_f32(y) + t * h, tensor_f32(table) + token * h, (size_t)h * sizeof(float));
        if ((t + 1) % batch == 0) stream_poll(stream);
    }
}

void KERNEL(embedding_backward)(Tensor dtable, Tensor dy, Tensor tokens, Stream stream) {
    int64_t T = tokens.dim[0], h = dtable.dim[1], batch = poll_rows(h);
    REQUIRE(dy.dim[0] == T && dy.dim[1] == h, "embedding backward: (%ld, %ld) for %ld tokens of width %ld",
            (long)dy.dim[0], (long)dy.dim[1], (long)T, (long)h);
    for (int64_t t = 0; t < T; t++) {
        float *to = tensor_f32(dtable) + checked_token("embedding backward", tokens, t, dtable.dim[0]) * h;
        const float *from = tensor_f32(dy) + t * h;
        SIMD for (int64_t c = 0; c < h; c++) to[c] += from[c];
        if ((t + 1) % batch == 0) stream_poll(stream);
    }
}

// Σ_v e^(x − most), in pieces that stay in the first cache; where `keep`, the terms stay in x.
static float sum_of_exp(float *x, int64_t n, float most, bool keep) {
    enum { PIECE = 512 };
    float piece[PIECE], sum = 0;
    for (int64_t start = 0; start < n; start += PIECE) {
        int64_t count = n - start < PIECE ? n - start : PIECE;
        float *from = x + start, *to = keep ? from : piece;
        SIMD for (int64_t i = 0; i < count; i++) to[i] = exp2_below((from[i] - most) * log2_e);
        sum += total(to, count);
    }
    return sum;
}

void KERNEL(cross_entropy)(Tensor logprob, Tensor logits, Tensor targets, float grad_scale, Stream stream) {
    int64_t T = logits.dim[0], V = logits.dim[1], batch = poll_rows(2 * V);
    REQUIRE(logprob.dim[0] == T && targets.dim[0] == T && V > 0,
            "cross entropy: logits (%ld, %ld), %ld targets", (long)T, (long)V, (long)targets.dim[0]);
    for (int64_t t = 0; t < T; t++) {
        float *x = tensor_f32(logits) + t * V;
        int64_t target = checked_token("cross entropy", targets, t, V);
        float most = largest(x, V), aim = x[target], sum = sum_of_exp(x, V, most, grad_scale != 0);
        tensor_f32(logprob)[t] = aim - most - logf(sum);
        if (grad_scale != 0) {
            float scale = grad_scale / sum;
            SIMD for (int64_t i = 0; i < V; i++) x[i] *= scale;
            x[target] -= grad_scale;
        }
        if ((t + 1) % batch == 0) stream_poll(stream);
    }
}
