// SPDX-License-Identifier: Apache-2.0
// ranks: 1 2 3 4
// Groups, blocking helpers, reduce-scatter and all-gather against what each rank can compute for itself.
#include "comm/collective.h"
#include "comm_check.h"
#include "core/params.h"
#include <stdlib.h>
#include <string.h>

static void groups(void) {
    int world = comm_world_size(), rank = comm_world_rank();
    for (int ep = 1; ep <= world + 1; ep++) {
        Mesh *mesh = NULL;
        Status status = mesh_create(&mesh, ep);
        CHECK((status == OK) == (world % ep == 0), "ep %d of %d ranks gives %d", ep, world, status);
        if (status != OK) {
            CHECK(status == ERR_CONFIG && strstr(status_text(), "parallel.ep"), "%s", status_text());
            continue;
        }
        const Group *expert = mesh_group(mesh, AXIS_EXPERT), *replica = mesh_group(mesh, AXIS_REPLICA);
        CHECK(group_size(mesh_group(mesh, AXIS_WORLD)) == world, "world");
        CHECK(group_rank(mesh_group(mesh, AXIS_WORLD)) == rank, "rank in the world");
        CHECK(group_size(expert) == ep && group_rank(expert) == rank % ep, "expert group of ep %d", ep);
        CHECK(group_size(replica) == world / ep && group_rank(replica) == rank / ep, "replicas of ep %d", ep);
        mesh_destroy(mesh);
    }
    Mesh *alone;
    CHECK(mesh_create_self(&alone) == OK, "a mesh of this rank alone");
    double value = rank;
    group_sum_f64(mesh_group(alone, AXIS_WORLD), &value, 1);
    CHECK(value == rank, "a sum over one rank");
    mesh_destroy(alone);
}

static void sums(Group *g) {
    enum { COUNT = 37 };
    int size = group_size(g), rank = group_rank(g);
    double f64[COUNT], expected[COUNT];
    int64_t i64[COUNT], most[COUNT];
    uint64_t bits[COUNT], all_bits;
    for (int i = 0; i < COUNT; i++) {
        f64[i] = check_double(rank, i);
        i64[i] = (INT64_C(1) << 40) + rank * i;
        most[i] = rank == i % size ? 1000 + i : -i;
        bits[i] = rng_u64(1, (uint64_t)rank, (uint64_t)i);
        expected[i] = check_double(0, i);
        for (int r = 1; r < size; r++) expected[i] += check_double(r, i);
    }
    double largest = -1.0 * rank - 1;
    group_sum_f64(g, f64, COUNT);
    group_sum_i64(g, i64, COUNT);
    group_max_i64(g, most, COUNT);
    group_max_f64(g, &largest, 1);
    group_xor_u64(g, bits, COUNT);
    CHECK(memcmp(f64, expected, sizeof f64) == 0, "sums are not added in rank order");
    CHECK(largest == -1, "largest of negative numbers: %g", largest);
    for (int i = 0; i < COUNT; i++) {
        CHECK(i64[i] == size * (INT64_C(1) << 40) + i * size * (size - 1) / 2, "sum %d", i);
        CHECK(most[i] == 1000 + i, "largest %d", i);
        all_bits = 0;
        for (int r = 0; r < size; r++) all_bits ^= rng_u64(1, (uint64_t)r, (uint64_t)i);
        CHECK(bits[i] == all_bits, "xor %d", i);
    }
}

typedef struct {
    int next;
} Taken;

static void take(void *context, int rank, const void *data, size_t bytes) {
    Taken *taken = context;
    CHECK(rank == taken->next++, "rank %d comes out of order", rank);
    CHECK(bytes == (size_t)rank * 1000, "%zu bytes of rank %d", bytes, rank);
    for (size_t i = 0; i < bytes; i++)
        if (((const unsigned char *)data)[i] != (unsigned char)(rank + (int)i)) {
            CHECK(0, "byte %zu of rank %d", i, rank);
            return;
        }
}

static void messages(Group *g) {
    int size = group_size(g), rank = group_rank(g), all[16];
    group_barrier(g);
    group_all_gather(g, all, &rank, sizeof rank);
    for (int r = 0; r < size; r++) CHECK(all[r] == r, "gathered %d from rank %d", all[r], r);
    for (int root = 0; root < size; root++) {
        char text[32] = "";
        if (rank == root) snprintf(text, sizeof text, "from rank %d", root);
        group_broadcast(g, root, text, sizeof text);
        char expected[32];
        snprintf(expected, sizeof expected, "from rank %d", root);
        CHECK(strcmp(text, expected) == 0, "broadcast '%s'", text);
        unsigned char own[16000];
        for (int i = 0; i < rank * 1000; i++) own[i] = (unsigned char)(rank + i);
        Taken taken = {0};
        group_gather_each(g, root, own, (size_t)rank * 1000, take, &taken);
        CHECK(taken.next == (rank == root ? size : 0), "took %d messages", taken.next);
    }
}

static Status fail_on(int rank, int first) {
    if (rank >= first) FAIL(rank == first ? ERR_DATA : ERR_CONFIG, "rank %d cannot read x.bin", rank);
    return OK;
}

static void agreement(Group *g) {
    CHECK(group_agree(g, OK) == OK, "all are fine");
    for (int first = 0; first < group_size(g); first++) {
        char expected[64];
        snprintf(expected, sizeof expected, "rank %d cannot read x.bin", first);
        Status status = group_agree(g, fail_on(group_rank(g), first));
        CHECK(status == ERR_DATA && strcmp(status_text(), expected) == 0, "%d '%s'", status, status_text());
    }
}

static void ranges(void) {
    for (int64_t units = 0; units < 40; units++)
        for (int ranks = 1; ranks < 9; ranks++) {
            int64_t end = 0, first, count, least = INT64_MAX, most = 0;
            for (int r = 0; r < ranks; r++) {
                shard_range(units * PARAM_ALIGNMENT, r, ranks, &first, &count);
                CHECK(first == end && count % PARAM_ALIGNMENT == 0, "range %d of %d", r, ranks);
                end = first + count;
                if (count < least) least = count;
                if (count > most) most = count;
            }
            CHECK(end == units * PARAM_ALIGNMENT && most - least <= PARAM_ALIGNMENT, "%d ranges of %ld",
                  ranks, (long)units);
        }
    int64_t first, count;
    shard_range(INT64_C(1) << 45, 6, 7, &first, &count);
    CHECK(first + count == INT64_C(1) << 45, "ranges of 2^45 elements");
}

static Tensor vector(float *data, int64_t count) {
    return tensor_view(data, DTYPE_F32, 1, (int64_t[]){count});
}

typedef struct {
    float *full, *shard, *staging;
    int64_t elements, first, count;
    bool add;
} Reduction;

// `many` reductions in flight at once, then as many gathers of their results.
static void reductions(Mesh *mesh, Axis axis, Stream stream, const int64_t *elements, int many) {
    const Group *g = mesh_group(mesh, axis);
    int size = group_size(g), rank = group_rank(g);
    Reduction *x = calloc((size_t)many, sizeof *x);
    Request **request = calloc((size_t)many, sizeof(Request *));
    for (int k = 0; k < many; k++) {
        x[k] = (Reduction){.elements = elements[k], .add = k % 2};
        shard_range(elements[k], rank, size, &x[k].first, &x[k].count);
        x[k].full = malloc((size_t)elements[k] * sizeof(float) + 1);
        x[k].shard = malloc((size_t)x[k].count * sizeof(float) + 1);
        x[k].staging = malloc((size_t)(x[k].count * (size - 1)) * sizeof(float) + 1);
        for (int64_t i = 0; i < elements[k]; i++) x[k].full[i] = check_value(10 * k + rank, i);
        for (int64_t i = 0; i < x[k].count; i++) x[k].shard[i] = 3;
        request[k] =
            reduce_scatter_begin(mesh, axis, vector(x[k].shard, x[k].count), vector(x[k].full, elements[k]),
                                 vector(x[k].staging, x[k].count * (size - 1)), x[k].add, stream);
    }
    for (int k = 0; k < many; k++) {
        CommTiming timing;
        stream_poll(stream);
        comm_end(request[k], &timing, stream);
        CHECK(timing.begun <= timing.done && timing.waited >= 0, "timing");
        CHECK(timing.bytes_sent == 4 * (x[k].elements - x[k].count), "%ld bytes", (long)timing.bytes_sent);
        int64_t wrong = 0;
        for (int64_t i = 0; i < x[k].count; i++) {
            float sum = check_value(10 * k, x[k].first + i);
            for (int r = 1; r < size; r++) sum += check_value(10 * k + r, x[k].first + i);
            wrong += x[k].shard[i] != (x[k].add ? 3 + sum : sum);
        }
        CHECK(wrong == 0, "%ld sums of %ld differ from sums in rank order", (long)wrong, (long)x[k].count);
    }
    for (int k = many - 1; k >= 0; k--) {
        memset(x[k].full, 0xff, (size_t)elements[k] * sizeof(float));
        for (int64_t i = 0; i < x[k].count; i++) x[k].full[x[k].first + i] = check_value(k, x[k].first + i);
        request[k] = all_gather_begin(mesh, axis, vector(x[k].full, elements[k]), stream);
    }
    for (int k = 0; k < many; k++) {
        comm_end(request[k], NULL, stream);
        int64_t wrong = 0;
        for (int64_t i = 0; i < elements[k]; i++) wrong += x[k].full[i] != check_value(k, i);
        CHECK(wrong == 0, "%ld of %ld gathered values are wrong", (long)wrong, (long)elements[k]);
        free(x[k].full);
        free(x[k].shard);
        free(x[k].staging);
    }
    free(x);
    free(request);
}

static double gather_while_polling(Mesh *mesh, Stream stream, float *memory, int64_t elements,
                                   double *before_end) {
    CommTiming timing;
    group_barrier(mesh_group(mesh, AXIS_WORLD));
    Request *request = all_gather_begin(mesh, AXIS_WORLD, vector(memory, elements), stream);
    double begun = clock_seconds();
    while (clock_seconds() - begun < 0.4) stream_poll(stream);
    *before_end = clock_seconds();
    comm_end(request, &timing, stream);
    return timing.done;
}

// Messages travel while a stream is polled, and only then.
static void progress(Mesh *mesh, Stream stream) {
    int64_t elements = 4 << 20;
    float *memory = calloc((size_t)elements, sizeof *memory);
    double before_end;
    for (int on = 0; on < 2; on++) {
        mesh_set_progress(mesh, on);
        double done = gather_while_polling(mesh, stream, memory, elements, &before_end);
        CHECK((done <= before_end) == (on || comm_world_size() == 1),
              "with progress %s the messages were there %g ms before comm_end", on ? "on" : "off",
              1e3 * (before_end - done));
    }
    free(memory);
}

int main(int argc, char **argv) {
    comm_start(&argc, &argv);
    groups();
    ranges();
    for (int ep = 1; ep <= comm_world_size(); ep++) {
        if (comm_world_size() % ep) continue;
        Mesh *mesh = check_mesh(ep);
        Stream stream = check_stream(mesh);
        for (int axis = 0; axis < AXIS_COUNT; axis++) {
            Group *g = mesh_group(mesh, (Axis)axis);
            sums(g);
            messages(g);
            agreement(g);
            // none, fewer units than ranks, odd, several messages of 1 MiB to each rank
            reductions(mesh, (Axis)axis, stream, (int64_t[]){0, 16, 48, 16 * 1001, 16 * 81921}, 5);
        }
        progress(mesh, stream);
        stream_destroy(stream);
        mesh_destroy(mesh);
    }
    return check_result();
}
