// SPDX-License-Identifier: Apache-2.0
// HDF5 without its traps: files are built as an image in memory, which the caller writes and flushes itself,
// so that a full disk or a kill never meets the library; only files whose checksum has been found right may
// be opened. One thread at a time.
#pragma once
#include "core/status.h"
#include <stddef.h>
#include <stdint.h>
#ifdef __cplusplus
extern "C" {
#endif

void hdf5_library_version(unsigned version[3]);

// ---- writing. Failures are ERR_RUNTIME; after one, hdf5_image_abandon is all that may be called.
typedef struct Hdf5Image Hdf5Image;
Status hdf5_image_create(Hdf5Image **out, int64_t expected_bytes);                  // expected: a hint
Status hdf5_image_group(Hdf5Image *image, const char *name);                        // "/state"
Status hdf5_image_attribute_i64(Hdf5Image *image, const char *name, int64_t value); // of the root
Status hdf5_image_attribute_text(Hdf5Image *image, const char *name, const char *text);
// Datasets, contiguous. dims of f32 in dim; the others are rows × columns (columns 0: one-dimensional).
Status hdf5_image_f32(Hdf5Image *image, const char *name, const float *data, int dims, const int64_t dim[]);
Status hdf5_image_i64(Hdf5Image *image, const char *name, const int64_t *data, int64_t rows, int64_t columns);
Status hdf5_image_u32(Hdf5Image *image, const char *name, const uint32_t *data, int64_t rows,
                      int64_t columns);
Status hdf5_image_names(Hdf5Image *image, const char *name, const char *data, int64_t rows,
                        size_t bytes_each);
// A dataset whose values the caller puts into the file itself, from *offset on (a multiple of 4096 unless it
// is small): the image need not hold them. Made last, so that little else lies behind.
Status hdf5_image_f32_apart(Hdf5Image *image, const char *name, int64_t count, int64_t *offset);
// One-dimensional, in chunks with the standard shuffle and deflate filters.
Status hdf5_image_f32_zlib(Hdf5Image *image, const char *name, const float *data, int64_t count);
// Where a contiguous dataset's bytes will lie in the file; −1 where it has none.
Status hdf5_image_offset(Hdf5Image *image, const char *name, int64_t *offset);
// The finished file: `bytes` long; the first `held` of them in data, owned by the caller (free), the rest
// zero or apart. Ends the image, also on failure.
Status hdf5_image_finish(Hdf5Image *image, void **data, size_t *held, size_t *bytes);
void hdf5_image_abandon(Hdf5Image *image); // NULL: nothing

// ---- reading. Failures are ERR_DATA.
typedef struct Hdf5File Hdf5File;
Status hdf5_file_open(Hdf5File **out, const char *path);
void hdf5_file_close(Hdf5File *file);
Status hdf5_file_count(Hdf5File *file, const char *dataset, int64_t *count); // elements
Status hdf5_file_read_f32(Hdf5File *file, const char *dataset, int64_t first, int64_t count, float *out);
#ifdef __cplusplus
}
#endif
