// SPDX-License-Identifier: Apache-2.0
// Which attention runs on a GPU: cuDNN's where it was found when floe was built and the shape is plain, else
// floe's own. Nothing here needs CUDA.
#pragma once
#include "kernels/cuda/tables.h"
#ifdef __cplusplus
extern "C" {
#endif

enum { OWN_MOST_HEAD_DIM = 256, LIBRARY_MOST_HEAD_DIM = 128, LIBRARY_LENGTH_STEP = 128 };
// cuDNN's backward pass sums a query's gradient over tiles of keys. In a fixed order it does so from an S × S
// matrix for each head, in bf16, and therefore gets a part of the sequences or heads at a time, whose
// matrices are no more than this. (Its other way, without the matrix, adds floats in any order.)
#define LIBRARY_MOST_BYTES (INT64_C(512) << 20)

// How much of a shape one backward call of the library takes; the parts are equal. 0, 0: not even one key
// head of one sequence fits LIBRARY_MOST_BYTES.
typedef struct {
    int sequences, kv_heads;
} AttentionPart;
AttentionPart attention_library_part(const AttentionShape *shape);

// The rule: bf16; every query sees all keys up to its own; no softcap; heads of a multiple of 8, at most 128;
// sequences of a multiple of 128; a part of the backward pass fits.
bool attention_library_takes(const AttentionShape *shape, DType dtype);

// Bytes of GPU memory that the library's passes on this shape take beside the tensors, from CUDA's pool,
// which keeps them; 0 where the rule does not let it.
int64_t attention_library_bytes(const AttentionShape *shape, DType dtype);

// Shapes have been checked. The library's return false where it has nothing for this shape on this GPU, which
// the log says once; then nothing has happened.
extern attention_forward_fn KERNEL(own_attention_forward);
extern attention_backward_fn KERNEL(own_attention_backward);
bool library_attention_forward(Tensor out, Tensor lse, Tensor q, Tensor k, Tensor v,
                               const AttentionShape *shape, Stream stream);
bool library_attention_backward(Tensor dq, Tensor dk, Tensor dv, Tensor dout, Tensor out, Tensor lse,
                                Tensor q, Tensor k, Tensor v, const AttentionShape *shape, Stream stream);
#ifdef __cplusplus
}
#endif
