// SPDX-License-Identifier: Apache-2.0
// Matrix products through cuBLASLt. Which algorithm runs is what its heuristics name first for the shape: the
// same in every run on the same kind of GPU with the same library. Sums in parts are kept in f32.
#include "core/device_cuda.h"
#include "kernels/cuda/matmul.h"
#include <cublasLt.h>
#include <pthread.h>
#include <string.h>

#define CUBLASLT_CHECK(call)                                                                                 \
    do {                                                                                                     \
        cublasStatus_t status_ = (call);                                                                     \
        if (status_ != CUBLAS_STATUS_SUCCESS)                                                                \
            DIE("cuBLASLt: %s: %s", #call, cublasLtGetStatusString(status_));                                \
    } while (0)

// One for each GPU: the handle and its plans.
enum { MOST_GPUS = 64 };
typedef struct {
    cublasLtHandle_t handle;
    PlanCache *plans;
} Library;
static Library libraries[MOST_GPUS];
static pthread_mutex_t library_lock = PTHREAD_MUTEX_INITIALIZER; // also of all plans

static Library *library_of(int gpu) {
    REQUIRE(gpu >= 0 && gpu < MOST_GPUS, "GPU %d: at most %d", gpu, MOST_GPUS);
    Library *library = &libraries[gpu];
    if (library->handle) return library;
    CUDA_CHECK(cudaSetDevice(gpu));
    CUBLASLT_CHECK(cublasLtCreate(&library->handle));
    library->plans = plan_cache_create();
    return library;
}

typedef struct {
    cublasLtMatmulDescOpaque_t product;
    cublasLtMatrixLayoutOpaque_t left, right, result;
} Descriptors;

static cudaDataType type_of(DType dtype) {
    REQUIRE(dtype == DTYPE_F32 || dtype == DTYPE_BF16, "matmul: no product of %s", dtype_name(dtype));
    return dtype == DTYPE_F32 ? CUDA_R_32F : CUDA_R_16BF;
}

static void describe_matrix(cublasLtMatrixLayoutOpaque_t *layout, const ColumnMatrix *m) {
    CUBLASLT_CHECK(cublasLtMatrixLayoutInit(layout, type_of(m->dtype), (uint64_t)m->rows,
                                            (uint64_t)m->columns, m->stride));
}

static void set_operation(Descriptors *d, cublasLtMatmulDescAttributes_t which, bool transposed) {
    cublasOperation_t operation = transposed ? CUBLAS_OP_T : CUBLAS_OP_N;
    CUBLASLT_CHECK(cublasLtMatmulDescSetAttribute(&d->product, which, &operation, sizeof operation));
}

// Pedantic for f32: neither TF32 nor sums of bf16 parts in its place, whatever the environment asks for.
static void describe(Descriptors *d, const ColumnProduct *p) {
    REQUIRE(p->left.dtype == p->right.dtype, "matmul: %s times %s", dtype_name(p->left.dtype),
            dtype_name(p->right.dtype));
    cublasComputeType_t compute =
        p->left.dtype == DTYPE_F32 ? CUBLAS_COMPUTE_32F_PEDANTIC : CUBLAS_COMPUTE_32F;
    CUBLASLT_CHECK(cublasLtMatmulDescInit(&d->product, compute, CUDA_R_32F));
    set_operation(d, CUBLASLT_MATMUL_DESC_TRANSA, p->left.transposed);
    set_operation(d, CUBLASLT_MATMUL_DESC_TRANSB, p->right.transposed);
    describe_matrix(&d->left, &p->left);
    describe_matrix(&d->right, &p->right);
    describe_matrix(&d->result, &p->result);
}

static void prefer(cublasLtMatmulPreferenceOpaque_t *preference,
                   cublasLtMatmulPreferenceAttributes_t attribute, uint32_t value) {
    CUBLASLT_CHECK(cublasLtMatmulPreferenceSetAttribute(preference, attribute, &value, sizeof value));
}

static bool make_plan(const Library *library, Plan *plan, const ColumnProduct *p) {
    Descriptors d;
    cublasLtMatmulPreferenceOpaque_t preference;
    cublasLtMatmulHeuristicResult_t result;
    uint64_t workspace = MATMUL_WORKSPACE_BYTES;
    int found = 0;
    describe(&d, p);
    CUBLASLT_CHECK(cublasLtMatmulPreferenceInit(&preference));
    CUBLASLT_CHECK(cublasLtMatmulPreferenceSetAttribute(&preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                                                        &workspace, sizeof workspace));
    // Parts are added up in f32, by a second kernel: not in the result's type, nor in its place.
    prefer(&preference, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE);
    prefer(&preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, (uint32_t)plan->key.left_alignment);
    prefer(&preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, (uint32_t)plan->key.right_alignment);
    prefer(&preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, (uint32_t)plan->key.result_alignment);
    prefer(&preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, (uint32_t)plan->key.result_alignment);
    cublasStatus_t status =
        cublasLtMatmulAlgoGetHeuristic(library->handle, &d.product, &d.left, &d.right, &d.result, &d.result,
                                       &preference, 1, &result, &found);
    if (status != CUBLAS_STATUS_SUCCESS || found == 0 || result.state != CUBLAS_STATUS_SUCCESS) return false;
    _Static_assert(sizeof result.algo == sizeof plan->algorithm, "cuBLASLt's algorithm has another size");
    memcpy(plan->algorithm, &result.algo, sizeof result.algo);
    plan->made = true;
    return true;
}

// Whether the plan of a bucket runs on this shape of it.
static bool plan_runs(const Library *library, const Plan *plan, Descriptors *d) {
    cublasLtMatmulHeuristicResult_t result;
    cublasLtMatmulAlgo_t algorithm;
    memcpy(&algorithm, plan->algorithm, sizeof algorithm);
    return cublasLtMatmulAlgoCheck(library->handle, &d->product, &d->left, &d->right, &d->result, &d->result,
                                   &algorithm, &result) == CUBLAS_STATUS_SUCCESS &&
           result.workspaceSize <= MATMUL_WORKSPACE_BYTES;
}

// The plan of the product's bucket, or one of its own where that does not run.
static const Plan *plan_for(const Library *library, const ColumnProduct *p, Descriptors *d) {
    for (int exact = 0; exact < 2; exact++) {
        PlanKey key = plan_key(p, exact);
        ColumnProduct planned = plan_product(p, exact);
        Plan *plan = plan_cache_find(library->plans, &key);
        if (!plan->made && !make_plan(library, plan, &planned)) continue;
        if ((planned.n == p->n && planned.k == p->k) || plan_runs(library, plan, d)) return plan;
    }
    DIE("cuBLASLt %zu has no product (%ld, %ld) of %s%s and %s%s over %ld into %s on this GPU",
        cublasLtGetVersion(), (long)p->m, (long)p->n, dtype_name(p->left.dtype),
        p->left.transposed ? " transposed" : "", dtype_name(p->right.dtype),
        p->right.transposed ? " transposed" : "", (long)p->k, dtype_name(p->result.dtype));
}

void KERNEL(run_product)(const ColumnProduct *p, void *workspace, Stream stream) {
    Descriptors d;
    cublasLtMatmulAlgo_t algorithm;
    const float one = 1;
    describe(&d, p);
    pthread_mutex_lock(&library_lock);
    const Library *library = library_of(stream->device.index);
    memcpy(&algorithm, plan_for(library, p, &d)->algorithm, sizeof algorithm);
    pthread_mutex_unlock(&library_lock);
    CUBLASLT_CHECK(cublasLtMatmul(library->handle, &d.product, &one, p->left_data, &d.left, p->right_data,
                                  &d.right, &p->beta, p->result_data, &d.result, p->result_data, &d.result,
                                  &algorithm, workspace, MATMUL_WORKSPACE_BYTES, stream->native));
}
