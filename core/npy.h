// SPDX-License-Identifier: Apache-2.0
// NumPy .npy files (format 1.0, C order, little endian).
#pragma once
#include "core/status.h"
#include <stddef.h>
#include <stdint.h>
#ifdef __cplusplus
extern "C" {
#endif

enum { NPY_MAX_DIMS = 4 };

// A file that is filled in order. descr: "<f4", "<i4", "<f8", …
typedef struct NpyWriter NpyWriter;
Status npy_create(NpyWriter **out, const char *path, const char *descr, int dims, const int64_t dim[]);
Status npy_write(NpyWriter *writer, const void *data, size_t bytes);
// Ends the file and frees the writer. ERR_RUNTIME where less or more was written than the shape says.
Status npy_close(NpyWriter *writer);

typedef struct {
    char descr[8];
    int dims;
    int64_t dim[NPY_MAX_DIMS];
    void *data; // owned
    size_t bytes;
} NpyArray;
Status npy_read(NpyArray *out, const char *path); // ERR_DATA says what is wrong with the file
void npy_free(NpyArray *array);
#ifdef __cplusplus
}
#endif
