// SPDX-License-Identifier: Apache-2.0
#include "core/crc32c.h"
#include "optim/internal.h"
#include <stdlib.h>

// Votes of one group: `sum` has the checksums of all ranks, `stride` apart; those that hold the same weights
// are first, first + step, ….
static void compare(const uint32_t *sum, int stride, int first, int step, int world, ReplicaFault *out) {
    int differs = first;
    while (differs < world && sum[differs * stride] == sum[first * stride]) differs += step;
    if (differs >= world) return;
    int most = 0, wrong = first;
    uint32_t common = 0;
    for (int r = first; r < world; r += step) {
        int votes = 0;
        for (int q = first; q < world; q += step) votes += sum[q * stride] == sum[r * stride];
        if (votes > most) most = votes, common = sum[r * stride];
    }
    int copies = (world - first + step - 1) / step;
    while (sum[wrong * stride] == common) wrong += step;
    *out = (ReplicaFault){
        .found = true, .rank = wrong, .other = wrong == first ? first + step : first, .copies = copies};
    out->certain = 2 * most > copies;
}

ReplicaFault zero_compare_replicas(Zero *z, const void *more, size_t bytes) {
    int groups = z->params->group_count, stride = groups + 1;
    Group *world = mesh_group(z->mesh, AXIS_WORLD);
    int ranks = group_size(world), ep = group_size(mesh_group(z->mesh, AXIS_EXPERT));
    ReplicaFault fault = {0};
    if (ranks == 1) return fault;
    uint32_t *sum = calloc((size_t)stride * (size_t)(ranks + 1), sizeof *sum), *own = sum + stride * ranks;
    REQUIRE(sum, "out of memory: checksums of %d ranks", ranks);
    for (int i = 0; i < groups; i++)
        own[i] = crc32c(0, z->group[i].weights, (size_t)z->params->group[i].elements * sizeof(float));
    own[groups] = crc32c(0, more, bytes);
    group_all_gather(world, sum, own, (size_t)stride * sizeof *own);
    for (int i = 0; i <= groups && !fault.found; i++) {
        bool expert = i < groups && z->params->group[i].expert;
        for (int first = 0; first < (expert ? ep : 1) && !fault.found; first++)
            compare(sum + i, stride, first, expert ? ep : 1, ranks, &fault);
        fault.group = i;
    }
    free(sum);
    return fault;
}
