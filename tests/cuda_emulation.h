// SPDX-License-Identifier: Apache-2.0
// CUDA kernels on the CPU, for tests of their logic; no GPU and no CUDA takes part, and nothing is said about
// speed or about what a real GPU's memory model allows. The .cu files are compiled as C++ with this file
// before them. A launch runs block after block; the threads of a block are fibers that change where they
// meet: at
// __syncthreads and at the collectives of a warp. The order in which blocks, and threads between two
// meetings, take their turns is forward, reverse or random, so that a missing barrier shows in at least one
// of them. Shared memory begins as NaN in every block. Threads that do not all come to a barrier end the
// program.
#pragma once
#ifdef __cplusplus
extern "C" {
#endif
typedef enum { EMULATION_FORWARD, EMULATION_REVERSE, EMULATION_RANDOM, EMULATION_ORDERS } EmulationOrder;
void emulation_set_order(EmulationOrder order);
#ifdef __cplusplus
}
#endif

#if defined(FLOE_CUDA_EMULATION) && defined(__cplusplus)
#include <math.h>
#include <stdint.h>
#include <string.h>
#include <tuple>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)

struct dim3 {
    unsigned x, y, z;
    dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};
extern dim3 gridDim, blockDim, blockIdx, threadIdx;

// ---- launches

typedef void EmulationBody(void *context);
void emulation_run(const char *kernel, dim3 grid, dim3 block, size_t shared_bytes, EmulationBody *body,
                   void *context);
void emulation_allow_shared(const void *kernel, size_t bytes);
void *emulation_dynamic_shared(void);
extern uint64_t emulation_block; // counts the blocks run so far

template <typename... P, typename... A>
static void emulation_launch(const char *name, void (*kernel)(P...), dim3 grid, dim3 block,
                             size_t shared_bytes, A... arguments) {
    struct Call {
        void (*kernel)(P...);
        std::tuple<P...> arguments;
    } call = {kernel, std::tuple<P...>(arguments...)};
    emulation_run(
        name, grid, block, shared_bytes,
        [](void *context) {
            Call *c = (Call *)context;
            std::apply(c->kernel, c->arguments);
        },
        &call);
}
#define CUDA_LAUNCH(kernel, grid, block, shared_bytes, stream, ...)                                          \
    ((void)(stream), emulation_launch(#kernel, kernel, grid, block, shared_bytes, __VA_ARGS__))

template <typename Kernel> static void allow_shared(Kernel *, size_t bytes) {
    emulation_allow_shared(nullptr, bytes);
}

#define fetch_result(to, from, bytes, stream) ((void)(stream), memcpy(to, from, bytes))

// ---- shared memory: one copy, filled with NaN when a block first comes to it

template <typename T> struct EmulationShared {
    uint64_t block = UINT64_MAX;
    alignas(16) unsigned char bytes[sizeof(T)];
    T &here() {
        if (block != emulation_block) memset(bytes, 0xff, sizeof bytes);
        block = emulation_block;
        return *reinterpret_cast<T *>(bytes);
    }
};
template <typename T> using SharedType = T;
#define SHARED(name, ...)                                                                                    \
    static EmulationShared<SharedType<__VA_ARGS__>> name##_memory;                                           \
    SharedType<__VA_ARGS__> &name = name##_memory.here()
#define DYNAMIC_SHARED(name, ...)                                                                            \
    SharedType<__VA_ARGS__> *name = reinterpret_cast<SharedType<__VA_ARGS__> *>(emulation_dynamic_shared())

// ---- meetings

typedef enum {
    MEET_SHUFFLE,
    MEET_BALLOT,
    MEET_MATCH,
    MEET_WARP,
    MEET_BLOCK,
    MEET_BLOCK_COUNT,
} EmulationMeeting;
// What this thread gets when the threads of the mask (of the block) have come: of lane `from` its value, of
// a ballot the lanes whose value is not 0, of a match the lanes whose value is the same, the count of the
// block's threads whose value is not 0.
uint64_t emulation_meet(EmulationMeeting meeting, unsigned mask, uint64_t value, int from);
int emulation_lane(void);
void emulation_trap(void);

template <typename T> static T emulation_shuffle(unsigned mask, T value, int from) {
    static_assert(sizeof(T) <= 8, "a shuffle moves at most 8 bytes");
    uint64_t bits = 0;
    memcpy(&bits, &value, sizeof value);
    bits = emulation_meet(MEET_SHUFFLE, mask, bits, from);
    memcpy(&value, &bits, sizeof value);
    return value;
}
template <typename T> static T __shfl_sync(unsigned mask, T value, int from, int width = 32) {
    int lane = emulation_lane();
    return emulation_shuffle(mask, value, lane / width * width + from % width);
}
template <typename T> static T __shfl_xor_sync(unsigned mask, T value, int apart, int width = 32) {
    int lane = emulation_lane(), from = lane ^ apart;
    return emulation_shuffle(mask, value, from < (lane / width + 1) * width ? from : lane);
}
template <typename T> static T __shfl_up_sync(unsigned mask, T value, unsigned apart, int width = 32) {
    int lane = emulation_lane();
    return emulation_shuffle(mask, value, lane % width < (int)apart ? lane : lane - (int)apart);
}
template <typename T> static T __shfl_down_sync(unsigned mask, T value, unsigned apart, int width = 32) {
    int lane = emulation_lane();
    return emulation_shuffle(mask, value, lane % width + (int)apart < width ? lane + (int)apart : lane);
}
static inline unsigned __ballot_sync(unsigned mask, int predicate) {
    return (unsigned)emulation_meet(MEET_BALLOT, mask, predicate != 0, 0);
}
static inline int __any_sync(unsigned mask, int predicate) {
    return __ballot_sync(mask, predicate) != 0;
}
static inline int __all_sync(unsigned mask, int predicate) {
    return __ballot_sync(mask, predicate) == mask;
}
template <typename T> static unsigned __match_any_sync(unsigned mask, T value) {
    uint64_t bits = 0;
    memcpy(&bits, &value, sizeof value);
    return (unsigned)emulation_meet(MEET_MATCH, mask, bits, 0);
}
template <typename T> static T __reduce_max_sync(unsigned mask, T value) { // all lanes
    for (int apart = 16; apart > 0; apart /= 2) {
        T other = __shfl_xor_sync(mask, value, apart);
        if (other > value) value = other;
    }
    return value;
}
template <typename T> static T __reduce_min_sync(unsigned mask, T value) {
    for (int apart = 16; apart > 0; apart /= 2) {
        T other = __shfl_xor_sync(mask, value, apart);
        if (other < value) value = other;
    }
    return value;
}
static inline void __syncwarp(unsigned mask = 0xffffffffu) {
    emulation_meet(MEET_WARP, mask, 0, 0);
}
static inline void __syncthreads(void) {
    emulation_meet(MEET_BLOCK, 0, 0, 0);
}
static inline int __syncthreads_count(int predicate) {
    return (int)emulation_meet(MEET_BLOCK_COUNT, 0, predicate != 0, 0);
}
static inline int __syncthreads_or(int predicate) {
    return __syncthreads_count(predicate) > 0;
}

// ---- what kernels call besides

static inline int __popc(unsigned x) {
    return __builtin_popcount(x);
}
static inline int __ffs(unsigned x) {
    return __builtin_ffs((int)x);
}
static inline int __clz(int x) {
    return x ? __builtin_clz((unsigned)x) : 32;
}
static inline float __int_as_float(int x) {
    float f;
    memcpy(&f, &x, sizeof f);
    return f;
}
static inline int __float_as_int(float x) {
    int i;
    memcpy(&i, &x, sizeof i);
    return i;
}
static inline void __trap(void) {
    emulation_trap();
}
template <typename T> static T __ldg(const T *p) {
    return *p;
}
// Whole numbers only: their sums do not depend on the order.
template <typename T> static T atomicAdd(T *at, T x) {
    static_assert((T)0.5 == 0, "float atomics have no fixed order");
    T old = *at;
    *at = old + x;
    return old;
}

struct __nv_bfloat16 {
    uint16_t bits;
};
static inline float __bfloat162float(__nv_bfloat16 x) {
    return __int_as_float((int)((uint32_t)x.bits << 16));
}
static inline __nv_bfloat16 __float2bfloat16_rn(float x) {
    uint32_t bits = (uint32_t)__float_as_int(x);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return {0x7fff};
    return {(uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}
#endif
