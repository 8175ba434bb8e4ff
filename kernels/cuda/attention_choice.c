// SPDX-License-Identifier: Apache-2.0
#include "kernels/attention_check.h"
#include "kernels/cuda/attention.h"

static void check(const AttentionShape *s, Tensor out, Tensor lse, Tensor q, Tensor k, Tensor v) {
    check_attention(s, out, lse, q, k, v);
    REQUIRE(s->head_dim <= OWN_MOST_HEAD_DIM, "attention: heads of %d, at most %d on a GPU", s->head_dim,
            OWN_MOST_HEAD_DIM);
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
    check(shape, out, lse, q, k, v);
#ifdef FLOE_CUDNN
    if (attention_library_takes(shape, q.dtype) && aligned(out) && aligned(lse) && aligned(q) && aligned(k) &&
        aligned(v) && library_attention_forward(out, lse, q, k, v, shape, stream))
        return;
#endif
    KERNEL(own_attention_forward)(out, lse, q, k, v, shape, stream);
}

void KERNEL(attention_backward)(Tensor dq, Tensor dk, Tensor dv, Tensor dout, Tensor out, Tensor lse,
                                Tensor q, Tensor k, Tensor v, const AttentionShape *shape, Stream stream) {
    check(shape, out, lse, q, k, v);
    check(shape, dout, lse, dq, dk, dv);
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
