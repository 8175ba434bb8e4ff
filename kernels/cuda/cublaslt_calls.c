// SPDX-License-Identifier: Apache-2.0
// The functions of cuBLASLt that matmul_cublaslt.c calls (core/cuda_library.h). One that is missing here
// shows as an undefined reference when the program is linked.
#include "core/cuda_library.h"
#include <cublasLt.h>

#define TEXT(x)                #x
#define VERSIONED(name, major) name TEXT(major)
#define LIBRARY                VERSIONED("libcublasLt.so.", CUBLAS_VER_MAJOR)
#define CALL(result, name, parameters, arguments)                                                            \
    CUDA_LIBRARY_CALL(LIBRARY, result, name, parameters, arguments)
#define STATUS_CALL(name, parameters, arguments) CALL(cublasStatus_t, name, parameters, arguments)

CALL(size_t, cublasLtGetVersion, (void), ())
CALL(const char *, cublasLtGetStatusString, (cublasStatus_t status), (status))
STATUS_CALL(cublasLtCreate, (cublasLtHandle_t * handle), (handle))
STATUS_CALL(cublasLtMatrixLayoutInit_internal,
            (cublasLtMatrixLayout_t layout, size_t size, cudaDataType type, uint64_t rows, uint64_t columns,
             int64_t stride),
            (layout, size, type, rows, columns, stride))
STATUS_CALL(cublasLtMatmulDescInit_internal,
            (cublasLtMatmulDesc_t product, size_t size, cublasComputeType_t compute, cudaDataType_t scale),
            (product, size, compute, scale))
STATUS_CALL(cublasLtMatmulDescSetAttribute,
            (cublasLtMatmulDesc_t product, cublasLtMatmulDescAttributes_t attribute, const void *value,
             size_t size),
            (product, attribute, value, size))
STATUS_CALL(cublasLtMatmulPreferenceInit_internal, (cublasLtMatmulPreference_t preference, size_t size),
            (preference, size))
STATUS_CALL(cublasLtMatmulPreferenceSetAttribute,
            (cublasLtMatmulPreference_t preference, cublasLtMatmulPreferenceAttributes_t attribute,
             const void *value, size_t size),
            (preference, attribute, value, size))
STATUS_CALL(cublasLtMatmulAlgoGetHeuristic,
            (cublasLtHandle_t handle, cublasLtMatmulDesc_t product, cublasLtMatrixLayout_t a,
             cublasLtMatrixLayout_t b, cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d,
             cublasLtMatmulPreference_t preference, int asked, cublasLtMatmulHeuristicResult_t results[],
             int *count),
            (handle, product, a, b, c, d, preference, asked, results, count))
STATUS_CALL(cublasLtMatmulAlgoCheck,
            (cublasLtHandle_t handle, cublasLtMatmulDesc_t product, cublasLtMatrixLayout_t a,
             cublasLtMatrixLayout_t b, cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d,
             const cublasLtMatmulAlgo_t *algorithm, cublasLtMatmulHeuristicResult_t *result),
            (handle, product, a, b, c, d, algorithm, result))
STATUS_CALL(cublasLtMatmul,
            (cublasLtHandle_t handle, cublasLtMatmulDesc_t product, const void *alpha, const void *a,
             cublasLtMatrixLayout_t a_layout, const void *b, cublasLtMatrixLayout_t b_layout,
             const void *beta, const void *c, cublasLtMatrixLayout_t c_layout, void *d,
             cublasLtMatrixLayout_t d_layout, const cublasLtMatmulAlgo_t *algorithm, void *workspace,
             size_t workspace_bytes, cudaStream_t stream),
            (handle, product, alpha, a, a_layout, b, b_layout, beta, c, c_layout, d, d_layout, algorithm,
             workspace, workspace_bytes, stream))
