// SPDX-License-Identifier: Apache-2.0
// Writing .safetensors files, a piece at a time.
#pragma once
#include "core/safetensors.h"
#ifdef __cplusplus
extern "C" {
#endif

// Values become the file's type: rounded to nearest, ties to even, for BF16.
typedef enum { SAFETENSORS_F32, SAFETENSORS_BF16 } SafetensorsType;
int safetensors_type_bytes(SafetensorsType type);

typedef struct SafetensorsWriter SafetensorsWriter;
// A new file with room for all of the tensors' values, which follow in the same order. name, dims and dim of
// each tensor are read, only now. A file that exists is an error, as is a full disk.
Status safetensors_create(SafetensorsWriter **out, const char *path, SafetensorsType type,
                          const SafeTensor tensors[], int count);
// The file's next values.
Status safetensors_append(SafetensorsWriter *writer, const float *values, int64_t count);
// After the last value: makes the file durable. Frees the writer whatever the outcome.
Status safetensors_finish(SafetensorsWriter *writer);
void safetensors_discard(SafetensorsWriter *writer); // closes and removes an unfinished file; NULL: nothing
#ifdef __cplusplus
}
#endif
