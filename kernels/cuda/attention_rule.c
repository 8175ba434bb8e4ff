// SPDX-License-Identifier: Apache-2.0
#include "kernels/cuda/attention.h"

// Of a backward call: the matrices; where several heads share a key head, dk and dv of each.
static int64_t part_bytes(const AttentionShape *s, int sequences, int kv_heads) {
    int64_t heads = (int64_t)sequences * kv_heads * (s->heads / s->kv_heads), length = s->q_len;
    int64_t shared = s->heads > s->kv_heads ? 2 * heads * length * s->head_dim : 0;
    return 2 * (heads * length * length + shared);
}

AttentionPart attention_library_part(const AttentionShape *s) {
    for (int n = s->batch; n > 0; n--)
        if (s->batch % n == 0 && part_bytes(s, n, s->kv_heads) <= LIBRARY_MOST_BYTES)
            return (AttentionPart){n, s->kv_heads};
    for (int n = s->kv_heads; n > 0; n--)
        if (s->kv_heads % n == 0 && part_bytes(s, 1, n) <= LIBRARY_MOST_BYTES) return (AttentionPart){1, n};
    return (AttentionPart){0, 0};
}

bool attention_library_takes(const AttentionShape *s, DType dtype) {
    return dtype == DTYPE_BF16 && s->batch > 0 && s->q_len > 0 && s->q_len == s->kv_len &&
           s->kv_stride == s->kv_len && s->q_offset == 0 && !s->doc_start && s->softcap == 0 &&
           s->head_dim % 8 == 0 && s->head_dim <= LIBRARY_MOST_HEAD_DIM &&
           s->q_len % LIBRARY_LENGTH_STEP == 0 && attention_library_part(s).sequences > 0;
}

int64_t attention_library_bytes(const AttentionShape *s, DType dtype) {
    if (!attention_library_takes(s, dtype)) return 0;
    AttentionPart part = attention_library_part(s);
    int64_t rows = (int64_t)part.sequences * part.kv_heads * (s->heads / s->kv_heads) * s->q_len;
    return part_bytes(s, part.sequences, part.kv_heads) + rows * (int64_t)sizeof(float) + (1 << 20);
}
