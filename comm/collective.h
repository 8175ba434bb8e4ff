// SPDX-License-Identifier: Apache-2.0
// Collectives on device memory that run while the device computes: x_begin … comm_end. All are Collective
// over the group, begun in the same order on all its ranks; many may be in flight. No allocation after the
// first step.
#pragma once
#include "comm/mesh.h"
#include "core/tensor.h"

typedef struct Request Request;
typedef struct {
    double begun, done, waited; // seconds: clock at begin, clock when seen complete, time blocked in comm_end
    int64_t bytes_sent;         // to other ranks
} CommTiming;

// Waits for the request (poking MPI), frees it, and tells its timing where timing is not NULL.
void comm_end(Request *request, CommTiming *timing, Stream stream);

// The range [first, first + count) of `elements` (a multiple of 16) that rank r of n owns: multiples of 16,
// as equal as can be, in rank order.
void shard_range(int64_t elements, int rank, int ranks, int64_t *first, int64_t *count);

// shard = Σ over ranks of their `full`, on this rank's shard_range, pieces added in rank order 0, 1, 2, …
// (bit-equal in every run). staging: this call's own space of shard_count · (n − 1) floats. into: whether
// shard is overwritten or added to. full (elements) must stay unchanged until comm_end.
Request *reduce_scatter_begin(Mesh *mesh, Axis axis, Tensor shard, Tensor full, Tensor staging, bool add,
                              Stream stream);
// full's other ranges are filled with their owners'; the own range is already in place.
Request *all_gather_begin(Mesh *mesh, Axis axis, Tensor full, Stream stream);
