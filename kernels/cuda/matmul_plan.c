// SPDX-License-Identifier: Apache-2.0
#include "core/status.h"
#include "kernels/cuda/matmul.h"
#include <stdlib.h>
#include <string.h>

// A row-major tensor, read column by column.
static ColumnMatrix column_matrix(Tensor t, bool transposed) {
    return (ColumnMatrix){.rows = t.dim[1],
                          .columns = t.dim[0],
                          .stride = t.dim[1] ? t.dim[1] : 1,
                          .dtype = t.dtype,
                          .transposed = transposed};
}

ColumnProduct column_product(Tensor c, Tensor a, bool a_transposed, Tensor b, bool b_transposed, Into into) {
    return (ColumnProduct){.m = c.dim[1],
                           .n = c.dim[0],
                           .k = a.dim[!a_transposed],
                           .left = column_matrix(b, b_transposed),
                           .right = column_matrix(a, a_transposed),
                           .result = column_matrix(c, false),
                           .left_data = b.data,
                           .right_data = a.data,
                           .result_data = c.data,
                           .beta = into == INTO_SUM ? 1.0f : 0.0f};
}

// ---- keys

enum { FEW_ROWS = 128, FEW_STEP = 16, ROWS_STEP = 128 };

static int64_t bucket(int64_t rows) {
    int64_t step = rows <= FEW_ROWS ? FEW_STEP : ROWS_STEP;
    return (rows + step - 1) / step * step;
}

ColumnProduct plan_product(const ColumnProduct *product, bool exact) {
    ColumnProduct p = *product;
    if (exact) return p;
    if (!p.right.transposed) {
        p.n = p.right.columns = p.result.columns = bucket(p.n);
    } else if (!p.left.transposed) { // else k is a stride
        p.k = p.right.columns = p.left.columns = bucket(p.k);
    }
    return p;
}

// Of an address in bytes; more than 16 makes no difference to loads.
static int32_t alignment(const void *data) {
    uintptr_t address = (uintptr_t)data | 16;
    return (int32_t)(address & -address);
}

PlanKey plan_key(const ColumnProduct *product, bool exact) {
    ColumnProduct p = plan_product(product, exact);
    return (PlanKey){.m = p.m,
                     .n = p.n,
                     .k = p.k,
                     .left_stride = p.left.stride,
                     .right_stride = p.right.stride,
                     .result_stride = p.result.stride,
                     .left_type = p.left.dtype,
                     .right_type = p.right.dtype,
                     .result_type = p.result.dtype,
                     .left_alignment = alignment(p.left_data),
                     .right_alignment = alignment(p.right_data),
                     .result_alignment = alignment(p.result_data),
                     .left_transposed = p.left.transposed,
                     .right_transposed = p.right.transposed,
                     .adds = p.beta != 0,
                     .exact = exact};
}

// ---- cache: open addressing

enum { SLOTS = 2 * PLAN_CACHE_MOST };
_Static_assert((SLOTS & (SLOTS - 1)) == 0, "the slots are a power of two");
_Static_assert(sizeof(PlanKey) == 6 * 8 + 10 * 4, "keys are compared as bytes, and have no padding");

struct PlanCache {
    int count;
    bool used[SLOTS];
    Plan plan[SLOTS];
};

PlanCache *plan_cache_create(void) {
    PlanCache *cache = calloc(1, sizeof *cache);
    REQUIRE(cache, "out of memory: plans of matrix products");
    return cache;
}

void plan_cache_destroy(PlanCache *cache) {
    free(cache);
}

static uint64_t hash_of(const PlanKey *key) { // FNV-1a
    const unsigned char *byte = (const unsigned char *)key;
    uint64_t hash = 14695981039346656037u;
    for (size_t i = 0; i < sizeof *key; i++) hash = (hash ^ byte[i]) * 1099511628211u;
    return hash ^ hash >> 32;
}

static int slot_of(const PlanCache *cache, const PlanKey *key) {
    int slot = (int)(hash_of(key) % SLOTS);
    while (cache->used[slot] && memcmp(&cache->plan[slot].key, key, sizeof *key) != 0)
        slot = (slot + 1) % SLOTS;
    return slot;
}

Plan *plan_cache_find(PlanCache *cache, const PlanKey *key) {
    int slot = slot_of(cache, key);
    if (cache->used[slot]) return &cache->plan[slot];
    if (cache->count == PLAN_CACHE_MOST) {
        memset(cache, 0, sizeof *cache);
        slot = slot_of(cache, key);
    }
    cache->used[slot] = true;
    cache->count++;
    cache->plan[slot].key = *key;
    return &cache->plan[slot];
}
