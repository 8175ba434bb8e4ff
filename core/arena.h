// SPDX-License-Identifier: Apache-2.0
// One allocation that many tensors share. A layout function runs twice: on an empty arena, where it only
// counts, and on the committed one, where it hands out memory. Sizes and pointers cannot disagree.
#pragma once
#include "core/device.h"
#include "core/tensor.h"
#ifdef __cplusplus
extern "C" {
#endif

typedef struct {
    Device device;
    char *base; // NULL while counting
    size_t used, capacity, peak;
} Arena;

Arena arena_empty(Device device);
void arena_commit(Arena *arena); // allocates the peak of what was counted, zeroed, and starts again at 0
void arena_free(Arena *arena);
Tensor arena_tensor(Arena *arena, DType dtype, int rank,
                    const int64_t dim[]);                         // 64-byte aligned; data NULL counting
Tensor arena_matrix(Arena *arena, int64_t rows, int64_t columns); // f32
Tensor arena_vector(Arena *arena, int64_t size);                  // f32
void *arena_bytes(Arena *arena, size_t bytes);
size_t arena_mark(const Arena *arena);
void arena_reset(Arena *arena, size_t mark); // frees everything taken since mark; the peak stays
#ifdef __cplusplus
}
#endif
