// SPDX-License-Identifier: Apache-2.0
// A row that one block goes over several times but reads from memory once.
#pragma once
#include "kernels/cuda/cuda.h"

// The packs of a row that belong to this thread: the first HELD stay in registers, more are read again.
template <typename T, int WIDTH, int HELD> struct Row {
    typedef Pack<T, WIDTH> P;
    const P *from;
    P held[HELD];

    __device__ __forceinline__ void load(const T *row, int64_t packs) {
        from = reinterpret_cast<const P *>(row);
#pragma unroll
        for (int i = 0; i < HELD; i++) {
            int64_t at = threadIdx.x + (int64_t)i * blockDim.x;
            if (at < packs) held[i] = from[at];
        }
    }
};

// f(index of a pack, that pack of every row) for the packs of this thread.
template <typename F, typename T, int WIDTH, int HELD>
static __device__ __forceinline__ void each_pack(int64_t packs, const Row<T, WIDTH, HELD> &a, F f) {
#pragma unroll
    for (int i = 0; i < HELD; i++) {
        int64_t at = threadIdx.x + (int64_t)i * blockDim.x;
        if (at < packs) f(at, a.held[i]);
    }
    for (int64_t at = threadIdx.x + (int64_t)HELD * blockDim.x; at < packs; at += blockDim.x)
        f(at, a.from[at]);
}
template <typename F, typename T, int WIDTH, int HELD>
static __device__ __forceinline__ void each_pack(int64_t packs, const Row<T, WIDTH, HELD> &a,
                                                 const Row<T, WIDTH, HELD> &b, F f) {
#pragma unroll
    for (int i = 0; i < HELD; i++) {
        int64_t at = threadIdx.x + (int64_t)i * blockDim.x;
        if (at < packs) f(at, a.held[i], b.held[i]);
    }
    for (int64_t at = threadIdx.x + (int64_t)HELD * blockDim.x; at < packs; at += blockDim.x)
        f(at, a.from[at], b.from[at]);
}
