// SPDX-License-Identifier: Apache-2.0
// A matrix product as cuBLAS wants it, in column-major order, and the choice of its plan. Nothing here needs
// CUDA.
#pragma once
#include "kernels/cuda/tables.h"
#ifdef __cplusplus
extern "C" {
#endif

// A matrix of `rows` × `columns` in memory, column by column, `stride` elements from one to the next.
typedef struct {
    int64_t rows, columns, stride;
    DType dtype;
    bool transposed; // for the product
} ColumnMatrix;

// result (m, n) = beta · result + op(left) op(right), the sums over k in f32.
typedef struct {
    int64_t m, n, k;
    ColumnMatrix left, right, result;
    const void *left_data, *right_data;
    void *result_data;
    float beta; // 0: result is not read
} ColumnProduct;

// matmul of kernels/kernels.h, whose matrices are given row by row: read column by column they are their
// transposes, and cᵀ = op(b)ᵀ op(a)ᵀ.
ColumnProduct column_product(Tensor c, Tensor a, bool a_transposed, Tensor b, bool b_transposed, Into into);

// What decides how a product is computed. The number of rows that belong to tokens (n, or k where they are
// summed over, as in the gradient of a weight) is rounded up to a bucket: it is another one for each expert
// and each step, and a plan for the bucket does for all of them. `exact`: not rounded, for shapes on which
// their bucket's plan does not run.
typedef struct {
    int64_t m, n, k, left_stride, right_stride, result_stride;
    int32_t left_type, right_type, result_type, left_alignment, right_alignment, result_alignment;
    int32_t left_transposed, right_transposed, adds, exact;
} PlanKey;
PlanKey plan_key(const ColumnProduct *product, bool exact);
ColumnProduct plan_product(const ColumnProduct *product, bool exact); // the product of the bucket

// Plans by key. A plan depends on its key alone, so that forgetting all when the cache is full costs time
// only.
typedef struct {
    PlanKey key;
    bool made;                                               // by the caller
    unsigned char algorithm[64] __attribute__((aligned(8))); // a cublasLtMatmulAlgo_t
} Plan;
typedef struct PlanCache PlanCache;
enum { PLAN_CACHE_MOST = 4096 };
PlanCache *plan_cache_create(void);
void plan_cache_destroy(PlanCache *cache);
// The key's plan, not yet made where the key is new; valid until the next call.
Plan *plan_cache_find(PlanCache *cache, const PlanKey *key);

// Enqueues the product; left and right have the same type. workspace: device memory for sums in parts.
enum { MATMUL_WORKSPACE_BYTES = 32 << 20 };
void KERNEL(run_product)(const ColumnProduct *product, void *workspace, Stream stream);
#ifdef __cplusplus
}
#endif
