// SPDX-License-Identifier: Apache-2.0
#include "comm/group.h"
#include "comm/requests.h"
#include "core/clock.h"
#include "core/rng.h"
#include <stdlib.h>
#include <string.h>

int group_rank(const Group *group) {
    return group->rank;
}

int group_size(const Group *group) {
    return group->size;
}

// Debug builds: every rank must be in the same call with the same size.
static void check_same_call(Group *group, const char *call, int64_t size) {
#ifdef NDEBUG
    (void)group, (void)call, (void)size;
#else
    int64_t name = (int64_t)(hash_text(call) >> 1), most[] = {name, -name, size, -size};
    MPI(group, MPI_Allreduce(MPI_IN_PLACE, most, 4, MPI_INT64_T, MPI_MAX, group->comm));
    REQUIRE(most[0] == -most[1] && most[2] == -most[3],
            "rank %d of the %s group is in %s of %ld, others are in another call or size", group->rank,
            group->name, call, (long)size);
#endif
}

// What follows blocks until other ranks of the group are in the same call; which of them are not, only they
// know.
static double wait_begin(Group *group, const char *call) {
    int kind = group->told.kind;
    HEARTBEAT_STORE(calls[kind], HEARTBEAT_LOAD(calls[kind]) + 1);
    heartbeat_wait(call, &group->told);
    return clock_seconds();
}

static void wait_end(double begun) {
    heartbeat_wait_over(clock_seconds() - begun);
}

void group_barrier(Group *group) {
    if (group->size == 1) return;
    double begun = wait_begin(group, "barrier");
    check_same_call(group, __func__, 0);
    MPI(group, MPI_Barrier(group->comm));
    wait_end(begun);
}

void group_broadcast(Group *group, int root, void *bytes, size_t count) {
    enum { PART = 1 << 30 };
    if (group->size == 1) return;
    double begun = wait_begin(group, "broadcast");
    check_same_call(group, __func__, (int64_t)count);
    for (size_t at = 0; at < count; at += PART) {
        int part = (int)(count - at < PART ? count - at : PART);
        MPI(group, MPI_Bcast((char *)bytes + at, part, MPI_BYTE, root, group->comm));
    }
    wait_end(begun);
}

static void *gathered(Group *group, const void *own, size_t bytes) {
    void *all = malloc(bytes * (size_t)group->size + 1);
    REQUIRE(all, "out of memory: %zu bytes of %d ranks", bytes, group->size);
    group_all_gather(group, all, own, bytes);
    return all;
}

void group_all_gather(Group *group, void *all, const void *own, size_t count) {
    if (group->size == 1) {
        memmove(all, own, count);
        return;
    }
    REQUIRE(count < 1u << 30, "all-gather of %zu bytes a rank", count);
    double begun = wait_begin(group, "gather");
    check_same_call(group, __func__, (int64_t)count);
    MPI(group, MPI_Allgather(own, (int)count, MPI_BYTE, all, (int)count, MPI_BYTE, group->comm));
    wait_end(begun);
}

void group_sum_f64_each(Group *group, double *values, int count, double *each) {
    if (each) each[0] = values[0];
    if (group->size == 1) return;
    double *all = gathered(group, values, (size_t)count * sizeof *values);
    for (int i = 0; i < count; i++) {
        values[i] = all[i];
        for (int rank = 1; rank < group->size; rank++)
            values[i] += all[(size_t)rank * (size_t)count + (size_t)i];
    }
    for (int rank = 0; each && rank < group->size; rank++) each[rank] = all[(size_t)rank * (size_t)count];
    free(all);
}

void group_sum_f64(Group *group, double *values, int count) {
    group_sum_f64_each(group, values, count, NULL);
}

static void reduce(Group *group, const char *call, void *values, int count, MPI_Datatype type, MPI_Op op) {
    if (group->size == 1) return;
    double begun = wait_begin(group, call);
    check_same_call(group, call, count);
    MPI(group, MPI_Allreduce(MPI_IN_PLACE, values, count, type, op, group->comm));
    wait_end(begun);
}

void group_sum_i64(Group *group, int64_t *values, int count) {
    reduce(group, "sum", values, count, MPI_INT64_T, MPI_SUM);
}

void group_max_f64(Group *group, double *values, int count) {
    reduce(group, "maximum", values, count, MPI_DOUBLE, MPI_MAX);
}

void group_max_i64(Group *group, int64_t *values, int count) {
    reduce(group, "maximum", values, count, MPI_INT64_T, MPI_MAX);
}

void group_xor_u64(Group *group, uint64_t *values, int count) {
    reduce(group, "checksum", values, count, MPI_UINT64_T, MPI_BXOR);
}

// Waits for one rank, which is known.
static double wait_for_rank(Group *group, int rank) {
    heartbeat_wait("message", &group->told);
    heartbeat_add_peer(group_world_rank(group, rank));
    return clock_seconds();
}

void group_gather_each(Group *group, int root, const void *own, size_t bytes,
                       void (*take)(void *context, int rank, const void *data, size_t bytes), void *context) {
    int64_t size = (int64_t)bytes;
    REQUIRE(size < 1 << 30, "a message of %zu bytes", bytes);
    if (group->size > 1) check_same_call(group, __func__, root);
    if (group->rank != root) {
        double begun = wait_for_rank(group, root);
        MPI(group, MPI_Send(&size, 1, MPI_INT64_T, root, TAG_CONTROL, group->comm));
        MPI(group, MPI_Send(own, (int)size, MPI_BYTE, root, TAG_CONTROL, group->comm));
        wait_end(begun);
        return;
    }
    for (int rank = 0; rank < group->size; rank++) {
        if (rank == root) {
            take(context, rank, own, bytes);
            continue;
        }
        double begun = wait_for_rank(group, rank);
        MPI(group, MPI_Recv(&size, 1, MPI_INT64_T, rank, TAG_CONTROL, group->comm, MPI_STATUS_IGNORE));
        void *data = malloc((size_t)size + 1);
        REQUIRE(data, "out of memory: a message of %ld bytes", (long)size);
        MPI(group, MPI_Recv(data, (int)size, MPI_BYTE, rank, TAG_CONTROL, group->comm, MPI_STATUS_IGNORE));
        wait_end(begun);
        take(context, rank, data, (size_t)size);
        free(data);
    }
}

Status group_agree(Group *group, Status status) {
    if (group->size == 1) return status;
    int64_t first =
        status == OK ? INT64_MIN : -(int64_t)group->rank; // the largest is the lowest failing rank's
    group_max_i64(group, &first, 1);
    if (first == INT64_MIN) return OK;
    struct {
        int status;
        char text[2048];
    } message = {.status = status};
    strncpy(message.text, status_text(), sizeof message.text - 1);
    group_broadcast(group, (int)-first, &message, sizeof message);
    return status_fail((Status)message.status, __FILE__, __LINE__, "%s", message.text);
}
