// SPDX-License-Identifier: Apache-2.0
// Stands in for cuBLASLt where the CUDA kernels are emulated: does what a column-major product says, element
// by element, and dies where cuBLASLt would refuse it.
#include "core/status.h"
#include "kernels/cuda/matmul.h"
#include <string.h>

enum { WORKSPACE_END = 64 << 10 };

static float element(const ColumnMatrix *m, const void *data, int64_t row, int64_t column) {
    REQUIRE(row >= 0 && row < m->rows && column >= 0 && column < m->columns,
            "element (%ld, %ld) of a matrix (%ld, %ld)", (long)row, (long)column, (long)m->rows,
            (long)m->columns);
    int64_t at = row + column * m->stride;
    if (m->dtype == DTYPE_F32) return ((const float *)data)[at];
    uint32_t bits = (uint32_t)((const uint16_t *)data)[at] << 16;
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

static void set_element(const ColumnMatrix *m, void *data, int64_t row, int64_t column, float x) {
    int64_t at = row + column * m->stride;
    if (m->dtype == DTYPE_F32) {
        ((float *)data)[at] = x;
        return;
    }
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    ((uint16_t *)data)[at] = (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

static void check(const ColumnProduct *p) {
    int64_t left_k = p->left.transposed ? p->left.rows : p->left.columns;
    int64_t left_m = p->left.transposed ? p->left.columns : p->left.rows;
    int64_t right_k = p->right.transposed ? p->right.columns : p->right.rows;
    int64_t right_n = p->right.transposed ? p->right.rows : p->right.columns;
    REQUIRE(p->m > 0 && p->n > 0 && p->k > 0 && left_k == p->k && right_k == p->k && left_m == p->m &&
                right_n == p->n && p->result.rows == p->m && p->result.columns == p->n &&
                p->left.stride >= p->left.rows && p->right.stride >= p->right.rows &&
                p->result.stride >= p->m && !p->result.transposed,
            "a product that cuBLASLt refuses");
    REQUIRE(p->left.dtype == p->right.dtype && (p->left.dtype == DTYPE_BF16 || p->result.dtype == DTYPE_F32),
            "types that cuBLASLt refuses");
}

void KERNEL(run_product)(const ColumnProduct *p, void *workspace, Stream stream) {
    (void)stream;
    check(p);
    memset(workspace, 0xff, WORKSPACE_END); // where something else would be, were it too short
    memset((char *)workspace + MATMUL_WORKSPACE_BYTES - WORKSPACE_END, 0xff, WORKSPACE_END);
    for (int64_t j = 0; j < p->n; j++)
        for (int64_t i = 0; i < p->m; i++) {
            double sum =
                p->beta != 0 ? (double)p->beta * (double)element(&p->result, p->result_data, i, j) : 0;
            for (int64_t k = 0; k < p->k; k++)
                sum += (double)(p->left.transposed ? element(&p->left, p->left_data, k, i)
                                                   : element(&p->left, p->left_data, i, k)) *
                       (double)(p->right.transposed ? element(&p->right, p->right_data, j, k)
                                                    : element(&p->right, p->right_data, k, j));
            set_element(&p->result, p->result_data, i, j, (float)sum);
        }
}
