// SPDX-License-Identifier: Apache-2.0
// A view on memory: row-major, contiguous, never owns its data. Passed by value. rank 0 = absent (optional
// argument).
#pragma once
#include "core/device.h"
#ifdef __cplusplus
extern "C" {
#endif

typedef enum { DTYPE_F32, DTYPE_BF16, DTYPE_I32, DTYPE_COUNT } DType;
enum { TENSOR_MAX_RANK = 4 };

typedef struct {
    void *data;
    int64_t dim[TENSOR_MAX_RANK];
    int rank;
    DType dtype;
} Tensor;

size_t dtype_bytes(DType dtype);
const char *dtype_name(DType dtype);
int64_t tensor_size(Tensor t); // elements
size_t tensor_bytes(Tensor t);
Tensor tensor_view(void *data, DType dtype, int rank, const int64_t dim[]);
Tensor tensor_matrix(void *data, int64_t rows, int64_t columns);  // f32
Tensor tensor_rows(Tensor t, int64_t first, int64_t count);       // t[first : first + count, …]
Tensor tensor_reshape(Tensor t, int rank, const int64_t dim[]);   // same size
Tensor tensor_as_matrix(Tensor t, int64_t rows, int64_t columns); // same size
static inline float *tensor_f32(Tensor t) {
    return (float *)t.data;
}
static inline int32_t *tensor_i32(Tensor t) {
    return (int32_t *)t.data;
}
static inline int tensor_exists(Tensor t) {
    return t.rank > 0;
}
#ifdef __cplusplus
}
#endif
