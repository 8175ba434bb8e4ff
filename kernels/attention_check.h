// SPDX-License-Identifier: Apache-2.0
// What the attention kernels of every device ask of their arguments.
#pragma once
#include "core/status.h"
#include "kernels/kernels.h"

static inline void check_attention(const AttentionShape *s, Tensor out, Tensor lse, Tensor q, Tensor k,
                                   Tensor v) {
    int64_t queries = (int64_t)s->batch * s->q_len,
            keys = s->batch ? (s->batch - 1) * s->kv_stride + s->kv_len : 0;
    int64_t width = (int64_t)s->heads * s->head_dim, kv_width = (int64_t)s->kv_heads * s->head_dim;
    REQUIRE(s->kv_heads > 0 && s->heads % s->kv_heads == 0 && s->head_dim > 0 && s->kv_len <= s->kv_stride &&
                s->q_offset + s->q_len <= s->kv_len && s->softcap >= 0,
            "attention: %d heads on %d of %d, queries %d + %d of %d keys, softcap %g", s->heads, s->kv_heads,
            s->head_dim, s->q_offset, s->q_len, s->kv_len, (double)s->softcap);
    REQUIRE(tensor_size(q) == queries * width && tensor_size(out) == queries * width &&
                tensor_size(lse) == queries * s->heads && tensor_size(k) >= keys * kv_width &&
                tensor_size(v) >= keys * kv_width,
            "attention: q of %ld elements for %ld rows of %ld, k of %ld, v of %ld for %ld rows of %ld",
            (long)tensor_size(q), (long)queries, (long)width, (long)tensor_size(k), (long)tensor_size(v),
            (long)keys, (long)kv_width);
}
