// SPDX-License-Identifier: Apache-2.0
// Reading .safetensors files. Nothing in the file is trusted: lengths, offsets and names are checked at the
// opening.
#pragma once
#include "core/status.h"
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#ifdef __cplusplus
extern "C" {
#endif

enum { SAFETENSORS_MAX_DIMS = 8 };

typedef struct {
    const char *name;
    const char *dtype; // "F32", "BF16", …
    int dims;
    int64_t dim[SAFETENSORS_MAX_DIMS];
    int64_t elements;
    int64_t offset; // of its first byte in the file
} SafeTensor;

typedef struct Safetensors Safetensors;
// ERR_DATA says what is wrong with the file.
Status safetensors_open(Safetensors **out, const char *path);
void safetensors_close(Safetensors *file); // NULL: nothing
int safetensors_count(const Safetensors *file);
const SafeTensor *safetensors_tensor(const Safetensors *file, int index);
bool safetensors_converts(const SafeTensor *tensor); // F32, BF16 and F16 can be read as f32
// Values [first, first + count) of a tensor that converts.
Status safetensors_read_f32(const Safetensors *file, int index, int64_t first, int64_t count, float *out);
#ifdef __cplusplus
}
#endif
