// SPDX-License-Identifier: Apache-2.0
#include "core/status.h"
#include "kernels/cuda/attention.h"

static void check_attention(const AttentionShape *s, Tensor out, Tensor lse, Tensor q, Tensor k, Tensor v) {
    int64_t queries = (int64_t)s->batch * s->q_len;
    int64_t keys = s->batch ? (s->batch - 1) * s->kv_stride + s->kv_len : 0;
    int64_t width = (int64_t)s->heads * s->head_dim, kv_width = (int64_t)s->kv_heads * s->head_dim;
    REQUIRE(s->kv_heads > 0 && s->heads % s->kv_heads == 0 && s->head_dim > 0 && s->kv_len <= s->kv_stride &&
                s->q_offset + s->q_len <= s->kv_len && s->softcap >= 0,
            "attention: %d heads on %d of %d, queries %d + %d of %d keys, softcap %g", s->heads, s->kv_heads,
            s->head_dim, s->q_offset, s->q_len, s->kv_len, (double)s->softcap);
    REQUIRE(s->head_dim <= OWN_MOST_HEAD_DIM, "attention: heads of %d, at most %d on a GPU", s->head_dim,
            OWN_MOST_HEAD_DIM);
    REQUIRE(tensor_size(q) == queries * width && tensor_size(out) == queries * width &&
                tensor_size(lse) == queries * s->heads && tensor_size(k) >= keys * kv_width &&
                tensor_size(v) >= keys * kv_width,
            "attention: q of %ld elements for %ld rows of %ld, k of %ld, v of %ld for %ld rows of %ld",
            (long)tensor_size(q), (long)queries, (long)width, (long)tensor_size(k), (long)tensor_size(v),
            (long)keys, (long)kv_width);
    REQUIRE(k.dtype == q.dtype && v.dtype == q.dtype && out.dtype == q.dtype && lse.dtype == DTYPE_F32,
            "attention: types %s, %s, %s, %s, %s", dtype_name(q.dtype), dtype_name(k.dtype),
            dtype_name(v.dtype), dtype_name(out.dtype), dtype_name(lse.dtype));
}

#ifdef FLOE_CUDNN
// The library moves 16 bytes at once.
static bool aligned(Tensor t) {
    return (uintptr_t)t.data % 16 == 0;
}
#endif

void KERNEL(attention_forward)(Tensor out, Tensor lse, Tensor q, Tensor k, Tensor v,
                               const AttentionShape *shape, Stream stream) {
    check_attention(shape, out, lse, q, k, v);
#ifdef FLOE_CUDNN
    if (attention_library_takes(shape, q.dtype) && aligned(out) && aligned(lse) && aligned(q) && aligned(k) &&
        aligned(v) && library_attention_forward(out, lse, q, k, v, shape, stream))
        return;
#endif
    KERNEL(own_attention_forward)(out, lse, q, k, v, shape, stream);
}

void KERNEL(attention_backward)(Tensor dq, Tensor dk, Tensor dv, Tensor dout, Tensor out, Tensor lse,
                                Tensor q, Tensor k, Tensor v, const AttentionShape *shape, Stream stream) {
    check_attention(shape, out, lse, q, k, v);
    check_attention(shape, dout, lse, dq, dk, dv);
    REQUIRE(dq.dtype == q.dtype, "attention backward: dq %s, q %s", dtype_name(dq.dtype),
            dtype_name(q.dtype));
#ifdef FLOE_CUDNN
    if (attention_library_takes(shape, q.dtype) && aligned(dq) && aligned(dk) && aligned(dv) &&
        aligned(dout) && aligned(out) && aligned(lse) && aligned(q) && aligned(k) && aligned(v) &&
        library_attention_backward(dq, dk, dv, dout, out, lse, q, k, v, shape, stream))
        return;
#endif
    KERNEL(own_attention_backward)(dq, dk, dv, dout, out, lse, q, k, v, shape, stream);
}
