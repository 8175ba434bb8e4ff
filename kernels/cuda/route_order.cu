// SPDX-License-Identifier: Apache-2.0
// Pairs of a token and a choice in the order of their experts: a stable counting sort in three steps. Blocks
// count their pairs, a scan over blocks gives each its first place, blocks place their pairs. The sort
// itself, capacity by position (the same with another order of pairs), and capacity by probability (on sorted
// pairs).
#include "kernels/cuda/cuda.h"

constexpr unsigned ALL_LANES = 0xffffffffu;
constexpr int MOST_BLOCKS = 256, LEAST_STEPS = 2, SCAN_ROWS = 32, SELECT_THREADS = 256;
constexpr int MOST_EXPERTS = 4096, WIDE_EXPERTS = 1024, WARPS = 8, WARPS_OF_WIDE = 2;
constexpr int PLACE_THREADS = WARPS * WARP, SCAN_THREADS = SCAN_ROWS * WARP;

struct Pairs {
    const int32_t *index, *kept; // kept: all where NULL
    unsigned count, T, k;
    bool by_choice; // all first choices come first, in place of all choices of the first token
    int E;

    __device__ unsigned at(unsigned i) const {
        return by_choice ? i % T * k + i / T : i;
    }
    __device__ int expert(unsigned pair) const { // −1: dropped
        return !kept || kept[pair] ? index[pair] : -1;
    }
};

// Σ x of the threads before this one, and of all, in a block of whole warps.
static __device__ int block_scan(int x, int *total) {
    SHARED(part, int[WARP]);
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, warps = blockDim.x / WARP, sum = x, before = 0;
#pragma unroll
    for (int apart = 1; apart < WARP; apart *= 2) {
        int left = __shfl_up_sync(ALL_LANES, sum, apart);
        if (lane >= apart) sum += left;
    }
    __syncthreads(); // the sums before these have been read
    if (lane == WARP - 1) part[warp] = sum;
    __syncthreads();
    *total = 0;
    for (int w = 0; w < warps; w++) {
        if (w < warp) before += part[w];
        *total += part[w];
    }
    return before + sum - x;
}

// ---- counting sort

// block_count (blocks, E): how many pairs of each expert lie in a block's `chunk` pairs.
static __global__ void count_pairs(int32_t *block_count, Pairs pairs, unsigned chunk) {
    DYNAMIC_SHARED(count, int32_t); // (E)
    for (int e = threadIdx.x; e < pairs.E; e += blockDim.x) count[e] = 0;
    __syncthreads();
    unsigned begin = blockIdx.x * chunk, end = pairs.count - begin < chunk ? pairs.count : begin + chunk;
    for (unsigned i = begin + threadIdx.x; i < end; i += blockDim.x) {
        int e = pairs.expert(pairs.at(i));
        if (e >= 0) atomicAdd(&count[e], 1);
    }
    __syncthreads();
    for (int e = threadIdx.x; e < pairs.E; e += blockDim.x)
        block_count[(int64_t)blockIdx.x * pairs.E + e] = count[e];
}

// block_count becomes the sum over the blocks before; counts (E) all of them. Block (WARP experts, SCAN_ROWS
// parts of the blocks).
static __global__ void __launch_bounds__(SCAN_THREADS)
    scan_blocks(int32_t *block_count, int32_t *counts, int blocks, int E) {
    SHARED(part, int32_t[SCAN_ROWS][WARP]);
    int e = blockIdx.x * WARP + threadIdx.x, y = threadIdx.y, rows = (blocks + SCAN_ROWS - 1) / SCAN_ROWS;
    int begin = y * rows, end = begin + rows < blocks ? begin + rows : blocks, sum = 0;
    if (e < E)
        for (int b = begin; b < end; b++) sum += block_count[(int64_t)b * E + e];
    part[y][threadIdx.x] = sum;
    __syncthreads();
    if (e >= E) return;
    int before = 0;
    for (int row = 0; row < y; row++) before += part[row][threadIdx.x];
    if (y == SCAN_ROWS - 1) counts[e] = before + sum;
    for (int b = begin; b < end; b++) {
        int count = block_count[(int64_t)b * E + e];
        block_count[(int64_t)b * E + e] = before;
        before += count;
    }
}

// Calls out(pair, expert, place) for the pairs of the block; the place counts from the expert's first pair,
// or where Out::AMONG_ALL from the first of all. Dropped pairs come with −1. A warp has neighbouring pairs,
// and takes 32 after 32.
template <typename Out>
static __global__ void __launch_bounds__(PLACE_THREADS)
    place_pairs(Pairs pairs, unsigned chunk, const int32_t *block_first, const int32_t *counts, Out out) {
    DYNAMIC_SHARED(next, int32_t); // (warps, E)
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, warps = blockDim.x / WARP, E = pairs.E;
    unsigned begin = blockIdx.x * chunk + warp * (chunk / warps), end = begin + chunk / warps;
    if (end > pairs.count) end = pairs.count;
    for (int i = threadIdx.x; i < warps * E; i += blockDim.x) next[i] = 0;
    __syncthreads();
    int32_t *mine = next + warp * E;
    for (unsigned i = begin + lane; i < end; i += WARP) {
        int e = pairs.expert(pairs.at(i));
        if (e >= 0) atomicAdd(&mine[e], 1);
    }
    int each = (E + blockDim.x - 1) / blockDim.x, first = threadIdx.x * each, start = 0, all;
    int last = first + each < E ? first + each : E;
    if (Out::AMONG_ALL) {
        for (int e = first; e < last; e++) start += counts[e];
        start = block_scan(start, &all);
    }
    __syncthreads();
    for (int e = first; e < last; e++) {
        int place = start + block_first[(int64_t)blockIdx.x * E + e];
        for (int w = 0; w < warps; w++) {
            int count = next[w * E + e];
            next[w * E + e] = place;
            place += count;
        }
        if (Out::AMONG_ALL) start += counts[e];
    }
    __syncthreads();
    for (unsigned i = begin; i < end; i += WARP) {
        bool there = i + lane < end;
        unsigned pair = there ? pairs.at(i + lane) : 0;
        int e = there ? pairs.expert(pair) : -1;
        unsigned same = __match_any_sync(ALL_LANES, e), before = same & ((1u << lane) - 1);
        int place = e >= 0 ? mine[e] + __popc(before) : -1;
        __syncwarp();
        if (e >= 0 && !before) mine[e] += __popc(same);
        __syncwarp();
        if (there) out(pair, e, place);
    }
}

static int warps_for(int64_t E) {
    return E <= WIDE_EXPERTS ? WARPS : WARPS_OF_WIDE; // 32 KiB of shared memory
}

static size_t order_words(int64_t E) {
    return (size_t)(MOST_BLOCKS * E);
}

// block_first: order_words(E) of scratch. Without pairs counts alone are written.
template <typename Out>
static void order_pairs(int32_t *counts, int32_t *block_first, Pairs pairs, Out out, Stream stream) {
    int warps = warps_for(pairs.E), threads = warps * WARP;
    int64_t steps = ceil_div(pairs.count, (int64_t)MOST_BLOCKS * threads);
    unsigned chunk = (unsigned)((steps > LEAST_STEPS ? steps : LEAST_STEPS) * threads);
    unsigned blocks = (unsigned)ceil_div(pairs.count, chunk);
    size_t row = (size_t)pairs.E * sizeof(int32_t);
    if (blocks) CUDA_LAUNCH(count_pairs, blocks, threads, row, stream, block_first, pairs, chunk);
    CUDA_LAUNCH(scan_blocks, (unsigned)ceil_div(pairs.E, WARP), dim3(WARP, SCAN_ROWS), 0, stream, block_first,
                counts, (int)blocks, pairs.E);
    if (blocks)
        CUDA_LAUNCH(place_pairs<Out>, blocks, threads, row * (size_t)warps, stream, pairs, chunk, block_first,
                    counts, out);
}

struct WriteRow {
    static constexpr bool AMONG_ALL = true;
    int32_t *row;
    __device__ void operator()(unsigned pair, int, int place) const {
        row[pair] = place;
    }
};

void KERNEL(route_sort)(Tensor row, Tensor counts, Tensor index, Tensor kept, Stream stream) {
    int64_t pairs = tensor_size(index), E = counts.dim[0];
    REQUIRE(tensor_size(row) == pairs && pairs <= INT32_MAX &&
                (!tensor_exists(kept) || tensor_size(kept) == pairs),
            "route_sort: %ld pairs, %ld places", (long)pairs, (long)tensor_size(row));
    REQUIRE(E <= MOST_EXPERTS, "route_sort: %ld experts, at most %d fit a block", (long)E, MOST_EXPERTS);
    Pairs all = {tensor_i32(index),
                 tensor_exists(kept) ? tensor_i32(kept) : nullptr,
                 (unsigned)pairs,
                 (unsigned)index.dim[0],
                 (unsigned)index.dim[1],
                 false,
                 (int)E};
    int32_t *scratch = (int32_t *)stream_scratch(stream, order_words(E) * sizeof(int32_t));
    order_pairs(tensor_i32(counts), scratch, all, WriteRow{tensor_i32(row)}, stream);
}

// ---- capacity

struct WriteKept { // of pairs in the order in which they get a place
    static constexpr bool AMONG_ALL = false;
    int32_t *kept;
    int64_t capacity;
    __device__ void operator()(unsigned pair, int, int place) const {
        kept[pair] = place < capacity;
    }
};

struct WriteList { // bits of the pair's probability, and the pair, by expert
    static constexpr bool AMONG_ALL = true;
    uint32_t *key, *pair_at;
    const float *probs;
    unsigned k;
    int64_t E;
    __device__ void operator()(unsigned pair, int e, int place) const {
        key[place] = (uint32_t)__float_as_int(probs[pair / k * E + e]);
        pair_at[place] = pair;
    }
};

// The key of the rank-th largest (from 1, at most count) and, in *rank, how many of that key belong to the
// largest: digit by digit from the top, each time keys that agree with the digits found so far are counted.
static __device__ uint32_t select_key(const uint32_t *key, int count, int *rank) {
    SHARED(bin, int[SELECT_THREADS]);
    SHARED(found, int[2]);
    uint32_t prefix = 0, known = 0;
    for (int shift = 24; shift >= 0; shift -= 8) {
        bin[threadIdx.x] = 0;
        __syncthreads();
        for (int i = threadIdx.x; i < count; i += SELECT_THREADS)
            if ((key[i] & known) == prefix) atomicAdd(&bin[key[i] >> shift & 255], 1);
        __syncthreads();
        int digit = SELECT_THREADS - 1 - (int)threadIdx.x, here = bin[digit], all;
        int above = block_scan(here, &all);
        if (above < *rank && *rank <= above + here) {
            found[0] = digit;
            found[1] = *rank - above;
        }
        __syncthreads();
        prefix |= (uint32_t)found[0] << shift;
        known |= 255u << shift;
        *rank = found[1];
    }
    return prefix;
}

// Block e keeps the first `capacity` pairs of expert e by key, then by place in the list. Probabilities are
// never negative: their bits order like they.
static __global__ void __launch_bounds__(SELECT_THREADS)
    keep_largest(int32_t *kept, const uint32_t *key, const uint32_t *pair_at, const int32_t *counts,
                 int64_t capacity) {
    int e = blockIdx.x, count = counts[e], start = 0, before = 0;
    for (int i = threadIdx.x; i < e; i += SELECT_THREADS) before += counts[i];
    block_scan(before, &start);
    key += start;
    pair_at += start;
    uint32_t least = capacity > 0 ? 0 : UINT32_MAX;
    int equal = capacity > 0 ? count : 0; // how many of the least key are kept
    if (capacity > 0 && capacity < count) {
        equal = (int)capacity;
        least = select_key(key, count, &equal);
    }
    int taken = 0, more;
    for (int begin = 0; begin < count; begin += SELECT_THREADS) {
        int i = begin + (int)threadIdx.x;
        bool there = i < count, is_least = there && key[i] == least;
        int place = taken + block_scan(is_least, &more);
        taken += more;
        if (there) kept[pair_at[i]] = key[i] > least || (is_least && place < equal);
    }
}

void KERNEL(route_capacity)(Tensor kept, Tensor index, Tensor probs, int64_t capacity, DropPolicy policy,
                            Stream stream) {
    int64_t T = index.dim[0], k = index.dim[1], E = probs.dim[1], pairs = T * k;
    REQUIRE(kept.dim[0] == T && kept.dim[1] == k && probs.dim[0] == T && pairs <= INT32_MAX,
            "capacity: kept (%ld, %ld), index (%ld, %ld), probs (%ld, %ld)", (long)kept.dim[0],
            (long)kept.dim[1], (long)T, (long)k, (long)probs.dim[0], (long)E);
    REQUIRE(E <= MOST_EXPERTS, "capacity: %ld experts, at most %d fit a block", (long)E, MOST_EXPERTS);
    if (pairs == 0) return;
    bool by_probs = policy == DROP_PROBS;
    size_t words = order_words(E) + (size_t)E + (by_probs ? 2 * (size_t)pairs : 0);
    int32_t *first = (int32_t *)stream_scratch(stream, words * sizeof(int32_t));
    int32_t *counts = first + order_words(E);
    uint32_t *key = (uint32_t *)(counts + E), *pair_at = key + pairs;
    Pairs all = {tensor_i32(index), nullptr, (unsigned)pairs, (unsigned)T, (unsigned)k, !by_probs, (int)E};
    if (!by_probs) {
        order_pairs(counts, first, all, WriteKept{tensor_i32(kept), capacity}, stream);
        return;
    }
    order_pairs(counts, first, all, WriteList{key, pair_at, tensor_f32(probs), (unsigned)k, E}, stream);
    CUDA_LAUNCH(keep_largest, (unsigned)E, SELECT_THREADS, 0, stream, tensor_i32(kept), key, pair_at, counts,
                capacity);
}
