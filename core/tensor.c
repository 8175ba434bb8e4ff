// SPDX-License-Identifier: Apache-2.0
#include "core/tensor.h"
#include "core/status.h"

size_t dtype_bytes(DType dtype) {
    return dtype == DTYPE_BF16 ? 2 : 4;
}

const char *dtype_name(DType dtype) {
    static const char *const names[DTYPE_COUNT] = {"f32", "bf16", "i32"};
    return names[dtype];
}

int64_t tensor_size(Tensor t) {
    int64_t size = t.rank > 0;
    for (int i = 0; i < t.rank; i++) size *= t.dim[i];
    return size;
}

size_t tensor_bytes(Tensor t) {
    return (size_t)tensor_size(t) * dtype_bytes(t.dtype);
}

Tensor tensor_view(void *data, DType dtype, int rank, const int64_t dim[]) {
    REQUIRE(rank >= 1 && rank <= TENSOR_MAX_RANK, "tensor of rank %d", rank);
    Tensor t = {.data = data, .rank = rank, .dtype = dtype};
    for (int i = 0; i < rank; i++) t.dim[i] = dim[i];
    return t;
}

Tensor tensor_matrix(void *data, int64_t rows, int64_t columns) {
    return tensor_view(data, DTYPE_F32, 2, (int64_t[]){rows, columns});
}

Tensor tensor_rows(Tensor t, int64_t first, int64_t count) {
    REQUIRE(t.rank > 0 && first >= 0 && count >= 0 && first + count <= t.dim[0],
            "rows %ld + %ld of a tensor with %ld", (long)first, (long)count, (long)t.dim[0]);
    int64_t row = 1;
    for (int i = 1; i < t.rank; i++) row *= t.dim[i];
    t.data = (char *)t.data + (size_t)(first * row) * dtype_bytes(t.dtype);
    t.dim[0] = count;
    return t;
}

Tensor tensor_reshape(Tensor t, int rank, const int64_t dim[]) {
    Tensor out = tensor_view(t.data, t.dtype, rank, dim);
    REQUIRE(tensor_size(out) == tensor_size(t), "reshape of %ld elements to %ld", (long)tensor_size(t),
            (long)tensor_size(out));
    return out;
}

Tensor tensor_as_matrix(Tensor t, int64_t rows, int64_t columns) {
    return tensor_reshape(t, 2, (int64_t[]){rows, columns});
}
