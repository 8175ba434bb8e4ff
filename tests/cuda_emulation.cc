// SPDX-License-Identifier: Apache-2.0
#include "tests/cuda_emulation.h"
#include "core/status.h"
#include <stdlib.h>
#include <sys/mman.h>

dim3 gridDim, blockDim, blockIdx, threadIdx;
uint64_t emulation_block;

enum {
    LANES = 32,
    MOST_THREADS = 1024,
    STACK_BYTES = 256 << 10,
    PLAIN_SHARED = 48 << 10,
    MOST_SHARED = 227 << 10
};

typedef enum { READY, WAITING, ENDED } State;
struct Fiber {
    void *stack; // where it stands while others run
    State state;
    EmulationMeeting meeting;
    unsigned mask;
    uint64_t value, result;
    int from;
};

static Fiber fiber[MOST_THREADS];
static int made, threads, running,
    ended;              // fibers that exist; of the block, the one that runs, those at the end
static int block_waits; // threads at a barrier of the block
static unsigned warp_waits[MOST_THREADS / LANES]; // lanes at a meeting of their warp
static void *scheduler;
static EmulationBody *block_body;
static void *block_context;
static const char *kernel_name;
static unsigned char *dynamic_shared;
static size_t shared_allowed;
static EmulationOrder order;
static uint64_t random_state = 88172645463325252u;

void emulation_set_order(EmulationOrder wanted) {
    order = wanted;
}

void emulation_allow_shared(const void *, size_t bytes) {
    shared_allowed = bytes;
}

void *emulation_dynamic_shared(void) {
    return dynamic_shared;
}

int emulation_lane(void) {
    return running % LANES;
}

void emulation_trap(void) {
    DIE("%s, block (%u, %u), thread %d: __trap", kernel_name, blockIdx.x, blockIdx.y, running);
}

// ---- fibers

// Saves what the calling convention of x86-64 keeps over a call, leaves its stack at *from and goes on at
// `to`. Thousands of changes a block: swapcontext would make two system calls for each.
extern "C" void emulation_switch(void **from, void *to);
asm(R"(
    .text
    .type emulation_switch, @function
emulation_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
    .size emulation_switch, . - emulation_switch
)");

static void fiber_main(void) {
    for (;;) {
        int self = running;
        block_body(block_context);
        fiber[self].state = ENDED;
        emulation_switch(&fiber[self].stack, scheduler);
    }
}

static void make_fibers(int count) {
    for (; made < count; made++) {
        char *stack = (char *)mmap(NULL, STACK_BYTES, PROT_READ | PROT_WRITE,
                                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        REQUIRE(stack != MAP_FAILED, "out of memory: stacks of emulated threads");
        // Six saved registers, fiber_main as the return address, and an empty one of its own: as after a
        // call, the stack is 8 bytes off a multiple of 16.
        void **top = (void **)(stack + STACK_BYTES) - 8;
        top[6] = (void *)fiber_main;
        fiber[made].stack = top;
    }
}

static void set_thread_index(int thread) {
    threadIdx = dim3((unsigned)thread % blockDim.x, (unsigned)thread / blockDim.x % blockDim.y,
                     (unsigned)thread / (blockDim.x * blockDim.y));
}

// ---- meetings

static void check_same(const Fiber &a, const Fiber &b) {
    REQUIRE(a.meeting == b.meeting && a.mask == b.mask,
            "%s, block (%u, %u): threads meet at different barriers, or with different masks", kernel_name,
            blockIdx.x, blockIdx.y);
}

static void finish_block_meeting(void) {
    uint64_t count = 0;
    for (int t = 0; t < threads; t++) {
        check_same(fiber[t], fiber[0]);
        count += fiber[t].value;
    }
    for (int t = 0; t < threads; t++) {
        fiber[t].result = count;
        fiber[t].state = READY;
    }
    block_waits = 0;
}

static uint64_t warp_result(const Fiber *warp, const Fiber &f) {
    uint64_t lanes = 0;
    if (f.meeting == MEET_SHUFFLE) {
        REQUIRE(f.mask >> f.from & 1, "%s: shuffle from lane %d, which is not in the mask %x", kernel_name,
                f.from, f.mask);
        return warp[f.from].value;
    }
    for (int l = 0; l < LANES; l++)
        if (f.mask >> l & 1 && (f.meeting == MEET_BALLOT ? warp[l].value != 0 : warp[l].value == f.value))
            lanes |= 1u << l;
    return lanes;
}

static void finish_warp_meeting(int first, unsigned mask) {
    Fiber *warp = fiber + first;
    for (unsigned left = mask; left; left &= left - 1) check_same(warp[__builtin_ctz(left)], fiber[running]);
    for (unsigned left = mask; left; left &= left - 1) {
        int lane = __builtin_ctz(left);
        warp[lane].result = warp_result(warp, warp[lane]);
        warp[lane].state = READY;
    }
    warp_waits[first / LANES] &= ~mask;
}

// The thread that comes last works out what everyone gets.
uint64_t emulation_meet(EmulationMeeting meeting, unsigned mask, uint64_t value, int from) {
    int self = running, warp = self / LANES;
    Fiber &f = fiber[self];
    f.meeting = meeting;
    f.mask = mask;
    f.value = value;
    f.from = from;
    f.state = WAITING;
    if (meeting == MEET_BLOCK || meeting == MEET_BLOCK_COUNT) {
        if (++block_waits == threads) finish_block_meeting();
    } else {
        REQUIRE(mask >> self % LANES & 1, "%s: thread %d is not in its own mask %x", kernel_name, self, mask);
        warp_waits[warp] |= 1u << self % LANES;
        if ((warp_waits[warp] & mask) == mask) finish_warp_meeting(warp * LANES, mask);
    }
    emulation_switch(&f.stack, scheduler);
    return f.result;
}

// ---- launches

static uint64_t random_below(uint64_t limit) { // xorshift
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return random_state % limit;
}

// Which of `count` comes at turn i; `start` is random for the random order.
static int at_turn(int i, int count, uint64_t start) {
    return order == EMULATION_FORWARD   ? i
           : order == EMULATION_REVERSE ? count - 1 - i
                                        : (int)(((uint64_t)i + start) % (uint64_t)count);
}

// Gives every ready thread of a warp one turn; how many had one.
static int run_warp(int first) {
    int lanes = threads - first < LANES ? threads - first : LANES, moved = 0;
    uint64_t start = random_below(LANES);
    for (int i = 0; i < lanes; i++) {
        int t = first + at_turn(i, lanes, start);
        if (fiber[t].state != READY) continue;
        running = t;
        set_thread_index(t);
        emulation_switch(&scheduler, fiber[t].stack);
        moved++;
        ended += fiber[t].state == ENDED;
    }
    return moved;
}

// A warp goes on until it waits for others, or at random less far: warps that run ahead of others show where
// a barrier before the next use of shared memory is missing.
static void run_block(size_t shared_bytes) {
    int warps = (threads + LANES - 1) / LANES;
    memset(dynamic_shared, 0xff, shared_bytes);
    for (int t = 0; t < threads; t++) fiber[t].state = READY;
    memset(warp_waits, 0, sizeof warp_waits);
    block_waits = 0;
    emulation_block++;
    for (ended = 0; ended < threads;) {
        int moved = 0;
        uint64_t start = random_below((uint64_t)warps);
        for (int i = 0; i < warps; i++) {
            int warp = at_turn(i, warps, start), once;
            do {
                once = run_warp(warp * LANES);
                moved += once;
            } while (once > 0 && (order != EMULATION_RANDOM || random_below(4) > 0));
        }
        REQUIRE(moved > 0,
                "%s, block (%u, %u): %d threads wait for others, which wait elsewhere or have ended",
                kernel_name, blockIdx.x, blockIdx.y, threads - ended);
    }
}

void emulation_run(const char *kernel, dim3 grid, dim3 block, size_t shared_bytes, EmulationBody *body,
                   void *context) {
    size_t limit = shared_allowed > PLAIN_SHARED ? shared_allowed : (size_t)PLAIN_SHARED;
    threads = (int)(block.x * block.y * block.z);
    REQUIRE(grid.x > 0 && grid.y > 0 && grid.z > 0 && grid.x <= INT32_MAX && grid.y <= 65535 &&
                grid.z <= 65535 && threads > 0 && threads <= MOST_THREADS && shared_bytes <= limit &&
                shared_bytes <= MOST_SHARED,
            "%s: no GPU runs a grid of (%u, %u, %u) blocks of %d threads with %zu bytes of shared memory",
            kernel, grid.x, grid.y, grid.z, threads, shared_bytes);
    gridDim = grid;
    blockDim = block;
    kernel_name = kernel;
    block_body = body;
    block_context = context;
    shared_allowed = 0;
    make_fibers(threads);
    dynamic_shared = (unsigned char *)malloc(shared_bytes ? shared_bytes : 1);
    REQUIRE(dynamic_shared, "out of memory: %zu bytes", shared_bytes);
    uint64_t start = random_below(grid.x);
    for (unsigned z = 0; z < grid.z; z++)
        for (unsigned y = 0; y < grid.y; y++)
            for (unsigned i = 0; i < grid.x; i++) {
                blockIdx = dim3((unsigned)at_turn((int)i, (int)grid.x, start), y, z);
                run_block(shared_bytes);
            }
    free(dynamic_shared);
}
