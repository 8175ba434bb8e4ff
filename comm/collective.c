// SPDX-License-Identifier: Apache-2.0
#include "comm/collective.h"
#include "comm/requests.h"
#include "core/params.h"

void shard_range(int64_t elements, int rank, int ranks, int64_t *first, int64_t *count) {
    REQUIRE(elements % PARAM_ALIGNMENT == 0, "a range of %ld elements", (long)elements);
    int64_t units = elements / PARAM_ALIGNMENT, low = units * rank / ranks, high = units * (rank + 1) / ranks;
    *first = low * PARAM_ALIGNMENT;
    *count = (high - low) * PARAM_ALIGNMENT;
}

Request *reduce_scatter_begin(Mesh *mesh, Axis axis, Tensor shard, Tensor full, Tensor staging, bool add,
                              Stream stream) {
    (void)stream;
    const Group *group = mesh_group(mesh, axis);
    int64_t first, count, elements = tensor_size(full);
    shard_range(elements, group->rank, group->size, &first, &count);
    REQUIRE(tensor_size(shard) == count, "a shard of %ld elements, its range has %ld",
            (long)tensor_size(shard), (long)count);
    Request *r = request_begin(mesh, axis);
    r->sum.shard = tensor_f32(shard);
    r->sum.own = tensor_f32(full) + first;
    r->sum.staging = tensor_f32(staging);
    r->sum.count = count;
    r->sum.rank = group->rank;
    r->sum.ranks = group->size;
    r->sum.add = add;
    for (int other = 0, slot = 0; other < group->size; other++) {
        if (other == group->rank) continue;
        request_receive(r, other, tensor_f32(staging) + count * slot++, count * (int64_t)sizeof(float),
                        TAG_REDUCE);
    }
    for (int step = 1; step < group->size; step++) {
        int other = (group->rank + step) % group->size;
        int64_t from, piece;
        shard_range(elements, other, group->size, &from, &piece);
        request_send(r, other, tensor_f32(full) + from, piece * (int64_t)sizeof(float), TAG_REDUCE);
    }
    request_started(r);
    return r;
}

Request *all_gather_begin(Mesh *mesh, Axis axis, Tensor full, Stream stream) {
    (void)stream;
    const Group *group = mesh_group(mesh, axis);
    int64_t first, count, elements = tensor_size(full);
    Request *r = request_begin(mesh, axis);
    for (int other = 0; other < group->size; other++) {
        if (other == group->rank) continue;
        shard_range(elements, other, group->size, &first, &count);
        request_receive(r, other, tensor_f32(full) + first, count * (int64_t)sizeof(float), TAG_GATHER);
    }
    shard_range(elements, group->rank, group->size, &first, &count);
    for (int step = 1; step < group->size; step++)
        request_send(r, (group->rank + step) % group->size, tensor_f32(full) + first,
                     count * (int64_t)sizeof(float), TAG_GATHER);
    request_started(r);
    return r;
}
