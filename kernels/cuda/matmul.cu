// SPDX-License-Identifier: Apache-2.0
// Matrix products: of bf16 into bf16 or f32, of f32 into f32. A product of one f32 and one bf16 matrix, which
// the router's gradients need, becomes products of bf16: f32 is split into three bf16 that add up to it.
#include "kernels/cuda/cuda.h"
#include "kernels/cuda/matmul.h"

constexpr int SPLIT_THREADS = 256, PARTS = 3;

// x (rows, columns) = Σ_p part_p exactly, but for bits below 2⁻¹³³; part p of x[r, c] is at
// to[r·row_stride + p·part_stride + c].
static __global__ void __launch_bounds__(SPLIT_THREADS)
    split(__nv_bfloat16 *to, const float *x, int64_t size, int64_t columns, int64_t row_stride,
          int64_t part_stride) {
    int64_t at = (int64_t)blockIdx.x * SPLIT_THREADS + threadIdx.x;
    if (at >= size) return;
    float rest = x[at];
    to += at / columns * row_stride + at % columns;
#pragma unroll
    for (int p = 0; p < PARTS; p++) {
        __nv_bfloat16 part = rounded<__nv_bfloat16>(rest);
        rest -= as_float(part);
        to[p * part_stride] = part;
    }
}

static void launch_split(void *to, Tensor x, int64_t row_stride, int64_t part_stride, Stream stream) {
    CUDA_LAUNCH(split, (unsigned)ceil_div(tensor_size(x), SPLIT_THREADS), SPLIT_THREADS, 0, stream,
                (__nv_bfloat16 *)to, tensor_f32(x), tensor_size(x), x.dim[1], row_stride, part_stride);
}

static Tensor bf16_matrix(char *data, int64_t rows, int64_t columns) {
    return {.data = data, .dim = {rows, columns}, .rank = 2, .dtype = DTYPE_BF16};
}

static void run(Tensor c, Tensor a, bool a_transposed, Tensor b, bool b_transposed, Into into,
                char *workspace, Stream stream) {
    ColumnProduct product = column_product(c, a, a_transposed, b, b_transposed, into);
    KERNEL(run_product)(&product, workspace, stream);
}

// Into f32: the product with each part is added.
static void run_parts(Tensor c, Tensor a, bool a_transposed, Tensor b, bool b_transposed, Into into,
                      Stream stream) {
    bool split_a = a.dtype == DTYPE_F32;
    Tensor whole = split_a ? a : b;
    size_t part_bytes = (size_t)tensor_size(whole) * sizeof(__nv_bfloat16);
    char *workspace = (char *)stream_scratch(stream, MATMUL_WORKSPACE_BYTES + PARTS * part_bytes);
    char *parts = workspace + MATMUL_WORKSPACE_BYTES;
    launch_split(parts, whole, whole.dim[1], tensor_size(whole), stream);
    for (int p = 0; p < PARTS; p++) {
        Tensor part = bf16_matrix(parts + p * part_bytes, whole.dim[0], whole.dim[1]);
        run(c, split_a ? part : a, a_transposed, split_a ? b : part, b_transposed, p > 0 ? INTO_SUM : into,
            workspace, stream);
    }
}

// Into bf16, which is rounded once: the parts of a side by side (M, 3K), b three times one below the other
// (3K, N).
static void run_side_by_side(Tensor c, Tensor a, Tensor b, Into into, Stream stream) {
    int64_t M = a.dim[0], K = a.dim[1], N = b.dim[1];
    size_t a_bytes = (size_t)(M * PARTS * K) * sizeof(__nv_bfloat16), b_bytes = tensor_bytes(b);
    a_bytes = (a_bytes + PACK_BYTES - 1) / PACK_BYTES * PACK_BYTES;
    char *workspace = (char *)stream_scratch(stream, MATMUL_WORKSPACE_BYTES + a_bytes + PARTS * b_bytes);
    char *parts = workspace + MATMUL_WORKSPACE_BYTES, *copies = parts + a_bytes;
    launch_split(parts, a, PARTS * K, K, stream);
    for (int p = 0; p < PARTS; p++)
        device_copy(stream->device, copies + p * b_bytes, stream->device, b.data, b_bytes, stream);
    run(c, bf16_matrix(parts, M, PARTS * K), false, bf16_matrix(copies, PARTS * K, N), false, into, workspace,
        stream);
}

static bool is_float(Tensor t) {
    return t.dtype == DTYPE_F32 || t.dtype == DTYPE_BF16;
}

void KERNEL(matmul)(Tensor c, Tensor a, bool a_transposed, Tensor b, bool b_transposed, Into into,
                    Stream stream) {
    int64_t M = c.dim[0], N = c.dim[1], K = a.dim[!a_transposed];
    REQUIRE(c.rank == 2 && a.rank == 2 && b.rank == 2 && a.dim[a_transposed] == M &&
                b.dim[b_transposed] == K && b.dim[!b_transposed] == N,
            "matmul: c (%ld, %ld), a (%ld, %ld)%s, b (%ld, %ld)%s", (long)M, (long)N, (long)a.dim[0],
            (long)a.dim[1], a_transposed ? " transposed" : "", (long)b.dim[0], (long)b.dim[1],
            b_transposed ? " transposed" : "");
    bool mixed = a.dtype != b.dtype, side_by_side = mixed && c.dtype == DTYPE_BF16;
    REQUIRE(is_float(a) && is_float(b) && is_float(c) &&
                (c.dtype == DTYPE_F32 || a.dtype == DTYPE_BF16 || mixed) &&
                (!side_by_side || (a.dtype == DTYPE_F32 && !a_transposed && !b_transposed)),
            "matmul: no product of %s%s and %s%s into %s", dtype_name(a.dtype),
            a_transposed ? " transposed" : "", dtype_name(b.dtype), b_transposed ? " transposed" : "",
            dtype_name(c.dtype));
    if (M == 0 || N == 0) return;
    if (K == 0) {
        if (into == INTO_ZERO) device_zero(stream->device, c.data, tensor_bytes(c), stream);
    } else if (side_by_side) {
        run_side_by_side(c, a, b, into, stream);
    } else if (mixed) {
        run_parts(c, a, a_transposed, b, b_transposed, into, stream);
    } else {
        run(c, a, a_transposed, b, b_transposed, into, (char *)stream_scratch(stream, MATMUL_WORKSPACE_BYTES),
            stream);
    }
}
