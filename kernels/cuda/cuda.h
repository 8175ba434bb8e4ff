// SPDX-License-Identifier: Apache-2.0
// What the CUDA kernels share: launches, packs of 16 bytes, sums over a block in a fixed order.
#pragma once
#ifndef FLOE_CUDA_EMULATION // tests/cuda_emulation.h stands in for these
#include "core/device_cuda.h"
#include <cuda_bf16.h>
#include <cuda_runtime.h>
#endif
#include "core/status.h"
#include "kernels/cuda/tables.h"
#include <math.h>
#include <string.h>

constexpr int WARP = 32, PACK_BYTES = 16;

// CUDA_LAUNCH((kernel<T, 4>), grid, block, shared bytes, stream, arguments…) enqueues a kernel; grid > 0.
// SHARED(name, type): memory of the block. DYNAMIC_SHARED(name, type): the launch's shared bytes as type[].
#ifndef FLOE_CUDA_EMULATION
#define CUDA_LAUNCH(kernel, grid, block, shared_bytes, stream, ...)                                          \
    do {                                                                                                     \
        kernel<<<(grid), (block), (shared_bytes), (cudaStream_t)(stream)->native>>>(__VA_ARGS__);            \
        CUDA_CHECK(cudaGetLastError());                                                                      \
    } while (0)
template <typename T> using SharedType = T;
#define SHARED(name, ...) __shared__ SharedType<__VA_ARGS__> name
#define DYNAMIC_SHARED(name, ...)                                                                            \
    extern __shared__ __align__(16) unsigned char dynamic_shared[];                                          \
    SharedType<__VA_ARGS__> *name = reinterpret_cast<SharedType<__VA_ARGS__> *>(dynamic_shared)

// Lets a kernel take more dynamic shared memory than the 48 KiB that every GPU gives.
template <typename Kernel> static void allow_shared(Kernel *kernel, size_t bytes) {
    if (bytes > 48 * 1024)
        CUDA_CHECK(cudaFuncSetAttribute((const void *)kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                        (int)bytes));
}

// Waits for the stream and fetches a result of at most STREAM_RESULT_BYTES.
static inline void fetch_result(void *to, const void *from, size_t bytes, Stream stream) {
    CUDA_CHECK(cudaMemcpyAsync(stream->host_result, from, bytes, cudaMemcpyDeviceToHost,
                               (cudaStream_t)stream->native));
    CUDA_CHECK(cudaStreamSynchronize((cudaStream_t)stream->native));
    memcpy(to, stream->host_result, bytes);
}
#endif

// ---- packs: neighbouring elements of a row that one thread loads and stores at once

template <typename T, int WIDTH> struct alignas(sizeof(T) * WIDTH) Pack { T at[WIDTH]; };

static __device__ __forceinline__ float as_float(float x) {
    return x;
}
static __device__ __forceinline__ float as_float(__nv_bfloat16 x) {
    return __bfloat162float(x);
}
template <typename T> static __device__ __forceinline__ T rounded(float x); // to nearest, ties to even
template <> __device__ __forceinline__ float rounded<float>(float x) {
    return x;
}
template <> __device__ __forceinline__ __nv_bfloat16 rounded<__nv_bfloat16>(float x) {
    return __float2bfloat16_rn(x);
}

// Whether rows of `columns` elements, and these tensors' first elements, begin at multiples of 16 bytes. An
// absent tensor fits.
static inline bool packs_fit(int64_t columns, Tensor t) {
    return (uintptr_t)t.data % PACK_BYTES == 0 && columns * (int64_t)dtype_bytes(t.dtype) % PACK_BYTES == 0;
}
template <typename... Rest> static inline bool packs_fit(int64_t columns, Tensor first, Rest... rest) {
    return packs_fit(columns, first) && packs_fit(columns, rest...);
}

// Calls function<T, WIDTH>(arguments…): T by the dtype, WIDTH the elements of a pack where packs fit, else 1.
#define CALL_BY_TYPE(dtype, fits, function, ...)                                                             \
    do {                                                                                                     \
        if ((dtype) == DTYPE_F32 && (fits))                                                                  \
            function<float, 4>(__VA_ARGS__);                                                                 \
        else if ((dtype) == DTYPE_F32)                                                                       \
            function<float, 1>(__VA_ARGS__);                                                                 \
        else if ((dtype) == DTYPE_BF16 && (fits))                                                            \
            function<__nv_bfloat16, 8>(__VA_ARGS__);                                                         \
        else if ((dtype) == DTYPE_BF16)                                                                      \
            function<__nv_bfloat16, 1>(__VA_ARGS__);                                                         \
        else                                                                                                 \
            DIE("%s: no kernel for %s", #function, dtype_name(dtype));                                       \
    } while (0)

// WIDTH f32 that lie beside a pack of another type.
template <int WIDTH> struct Floats {
    static constexpr int PART = WIDTH < 4 ? WIDTH : 4;
    float at[WIDTH];

    __device__ __forceinline__ void load(const float *from) {
#pragma unroll
        for (int i = 0; i < WIDTH; i += PART)
            *reinterpret_cast<Pack<float, PART> *>(at + i) =
                *reinterpret_cast<const Pack<float, PART> *>(from + i);
    }
    __device__ __forceinline__ void store(float *to) const {
#pragma unroll
        for (int i = 0; i < WIDTH; i += PART)
            *reinterpret_cast<Pack<float, PART> *>(to + i) =
                *reinterpret_cast<const Pack<float, PART> *>(at + i);
    }
};

// ---- launch shapes

static inline int64_t ceil_div(int64_t a, int64_t b) {
    return (a + b - 1) / b;
}

// Threads of a block that works on one row: whole warps, about two packs for each thread. Decides the order
// of sums over the row.
static inline int row_threads(int64_t packs, int most) {
    int64_t threads = ceil_div(packs, 2 * WARP) * WARP;
    return threads < WARP ? WARP : threads > most ? most : (int)threads;
}

// ---- sums of one value per thread, in an order that only the shape of the block decides

template <typename V> static __device__ __forceinline__ V warp_sum(V x) {
#pragma unroll
    for (int apart = WARP / 2; apart > 0; apart /= 2) x += __shfl_xor_sync(0xffffffffu, x, apart);
    return x;
}

// Every thread of a block of whole warps gets the COUNT sums over the block in its x.
template <typename V, int COUNT> static __device__ __forceinline__ void block_sums(V (&x)[COUNT]) {
    SHARED(partial, V[COUNT][WARP]);
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, warps = blockDim.x / WARP;
#pragma unroll
    for (int i = 0; i < COUNT; i++) x[i] = warp_sum(x[i]);
    __syncthreads(); // the sums before these have been read
    if (lane == 0)
        for (int i = 0; i < COUNT; i++) partial[i][warp] = x[i];
    __syncthreads();
#pragma unroll
    for (int i = 0; i < COUNT; i++) x[i] = warp_sum(lane < warps ? partial[i][lane] : V(0));
}

template <typename V> static __device__ __forceinline__ V block_sum(V x) {
    V sum[1] = {x};
    block_sums(sum);
    return sum[0];
}

static __device__ __forceinline__ float block_max(float x) {
    SHARED(partial, float[WARP]);
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, warps = blockDim.x / WARP;
#pragma unroll
    for (int apart = WARP / 2; apart > 0; apart /= 2) x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, apart));
    __syncthreads();
    if (lane == 0) partial[warp] = x;
    __syncthreads();
    x = partial[lane < warps ? lane : 0];
#pragma unroll
    for (int apart = WARP / 2; apart > 0; apart /= 2) x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, apart));
    return x;
}
