// SPDX-License-Identifier: Apache-2.0
#include "core/arena.h"
#include "core/status.h"

Arena arena_empty(Device device) {
    return (Arena){.device = device};
}

void arena_commit(Arena *arena) {
    REQUIRE(!arena->base, "arena committed twice");
    arena->capacity = arena->peak;
    arena->base = device_alloc(arena->device, arena->capacity);
    arena->used = 0;
}

void arena_free(Arena *arena) {
    device_free(arena->device, arena->base);
    *arena = arena_empty(arena->device);
}

void *arena_bytes(Arena *arena, size_t bytes) {
    size_t at = arena->used;
    arena->used += (bytes + DEVICE_ALIGNMENT - 1) / DEVICE_ALIGNMENT * DEVICE_ALIGNMENT;
    if (arena->used > arena->peak) arena->peak = arena->used;
    if (!arena->base) return NULL;
    REQUIRE(arena->used <= arena->capacity,
            "arena of %zu bytes is full: the layout placed more than it counted", arena->capacity);
    return arena->base + at;
}

Tensor arena_tensor(Arena *arena, DType dtype, int rank, const int64_t dim[]) {
    Tensor t = tensor_view(NULL, dtype, rank, dim);
    t.data = arena_bytes(arena, tensor_bytes(t));
    return t;
}

Tensor arena_matrix(Arena *arena, int64_t rows, int64_t columns) {
    return arena_tensor(arena, DTYPE_F32, 2, (int64_t[]){rows, columns});
}

Tensor arena_vector(Arena *arena, int64_t size) {
    return arena_tensor(arena, DTYPE_F32, 1, (int64_t[]){size});
}

size_t arena_mark(const Arena *arena) {
    return arena->used;
}

void arena_reset(Arena *arena, size_t mark) {
    REQUIRE(mark <= arena->used, "arena reset to %zu beyond %zu", mark, arena->used);
    arena->used = mark;
}
