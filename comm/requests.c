// SPDX-License-Identifier: Apache-2.0
#include "comm/requests.h"
#include "core/clock.h"
#include <stdlib.h>
#include <string.h>

enum { MESSAGE_BYTES = 1 << 20 }; // longer ones are cut: counts stay far below 2³¹, and pieces pipeline

void mpi_check(int code, const char *call, const Group *group) {
    if (code == MPI_SUCCESS) return;
    char text[MPI_MAX_ERROR_STRING];
    int length = 0;
    MPI_Error_string(code, text, &length);
    if (!group) DIE("%s: %.*s", call, length, text);
    DIE("%s, as rank %d of the %d of the %s group: %.*s", call, group->rank, group->size, group->name, length,
        text);
}

Request *request_begin(Mesh *mesh, Axis axis) {
    Request *request = mesh->unused;
    if (request)
        mesh->unused = request->next;
    else
        request = calloc(1, sizeof *request);
    REQUIRE(request, "out of memory: a request");
    request->mesh = mesh;
    request->group = mesh_group(mesh, axis);
    request->count = request->open = 0;
    request->sum.ranks = 0;
    request->purpose = NULL;
    request->next = NULL;
    request->timing = (CommTiming){.begun = clock_seconds()};
    return request;
}

static const char *const purpose_of[] = {[TAG_COUNTS] = "exchange",
                                         [TAG_DISPATCH] = "exchange",
                                         [TAG_COMBINE] = "exchange",
                                         [TAG_REDUCE] = "sum of gradients",
                                         [TAG_GATHER] = "gather of weights"};

static MPI_Request *next_message(Request *r, int peer, int expected, Tag tag) {
    if (r->count == r->capacity) {
        r->capacity = r->capacity ? 2 * r->capacity : 64;
        size_t room = (size_t)r->capacity;
        r->message = realloc(r->message, room * sizeof *r->message);
        r->expected = realloc(r->expected, room * sizeof *r->expected);
        r->peer = realloc(r->peer, room * sizeof *r->peer);
        r->done_index = realloc(r->done_index, room * sizeof *r->done_index);
        r->status = realloc(r->status, room * sizeof *r->status);
        REQUIRE(r->message && r->expected && r->peer && r->done_index && r->status,
                "out of memory: %d messages", r->capacity);
    }
    r->expected[r->count] = expected;
    r->peer[r->count] = peer;
    r->purpose = purpose_of[tag];
    return &r->message[r->count++];
}

void request_send(Request *r, int to, const void *bytes, int64_t count, Tag tag) {
    r->timing.bytes_sent += count;
    for (int64_t at = 0; at < count; at += MESSAGE_BYTES) {
        int part = (int)(count - at < MESSAGE_BYTES ? count - at : MESSAGE_BYTES);
        MPI(r->group, MPI_Isend((const char *)bytes + at, part, MPI_BYTE, to, tag, r->group->comm,
                                next_message(r, to, -1, tag)));
    }
}

void request_receive(Request *r, int from, void *bytes, int64_t count, Tag tag) {
    for (int64_t at = 0; at < count; at += MESSAGE_BYTES) {
        int part = (int)(count - at < MESSAGE_BYTES ? count - at : MESSAGE_BYTES);
        MPI(r->group, MPI_Irecv((char *)bytes + at, part, MPI_BYTE, from, tag, r->group->comm,
                                next_message(r, from, part, tag)));
    }
}

void request_started(Request *request) {
    request->open = request->count;
    if (request->open == 0) {
        request->timing.done = clock_seconds();
        return;
    }
    request->next = request->mesh->in_flight;
    request->mesh->in_flight = request;
}

// A message that is shorter than expected: the ranks disagree about what they send each other.
static void check_arrived(const Request *r, int index, const MPI_Status *status) {
    int bytes;
    MPI(r->group, MPI_Get_count(status, MPI_BYTE, &bytes));
    REQUIRE(bytes == r->expected[index],
            "a message from rank %d of the %s group has %d bytes where %d were expected (tag %d)",
            status->MPI_SOURCE, r->group->name, bytes, r->expected[index], status->MPI_TAG);
}

// Lets the messages travel; true when all have arrived.
static bool request_test(Request *r) {
    int done = 0, code = MPI_Testsome(r->count, r->message, &done, r->done_index, r->status);
    if (code != MPI_ERR_IN_STATUS) MPI(r->group, code);
    for (int i = 0; i < done; i++) {
        if (code == MPI_ERR_IN_STATUS) mpi_check(r->status[i].MPI_ERROR, "MPI_Testsome", r->group);
        if (r->expected[r->done_index[i]] >= 0) check_arrived(r, r->done_index[i], &r->status[i]);
    }
    r->open -= done;
    return r->open == 0;
}

static void test_all(Mesh *mesh) {
    for (Request **at = &mesh->in_flight; *at;) {
        Request *r = *at;
        if (request_test(r)) {
            r->timing.done = clock_seconds();
            *at = r->next;
        } else {
            at = &r->next;
        }
    }
    mesh->polled = clock_seconds();
}

void mesh_progress(void *context) {
    static const double PAUSE = 50e-6;
    Mesh *mesh = context;
    if (!mesh->in_flight || !mesh->progress) return;
    if (clock_seconds() - mesh->polled < PAUSE) return;
    test_all(mesh);
}

void mesh_set_progress(Mesh *mesh, bool on) {
    mesh->progress = on;
}

// shard = or += ((piece 0 + piece 1) + piece 2) …, the own one in its place.
static void sum_in_rank_order(const Request *r, Stream stream) {
    enum { BLOCK = 4096 };
    for (int64_t at = 0; at < r->sum.count; at += BLOCK) {
        int64_t n = r->sum.count - at < BLOCK ? r->sum.count - at : BLOCK;
        float total[BLOCK];
        for (int rank = 0; rank < r->sum.ranks; rank++) {
            int64_t slot = rank < r->sum.rank ? rank : rank - 1;
            const float *piece =
                (rank == r->sum.rank ? r->sum.own : r->sum.staging + slot * r->sum.count) + at;
            if (rank == 0)
                memcpy(total, piece, (size_t)n * sizeof *total);
            else
                for (int64_t i = 0; i < n; i++) total[i] += piece[i];
        }
        float *shard = r->sum.shard + at;
        if (r->sum.add)
            for (int64_t i = 0; i < n; i++) shard[i] += total[i];
        else
            memcpy(shard, total, (size_t)n * sizeof *total);
        stream_poll(stream);
    }
}

static void tell_missing(const Request *r) {
    heartbeat_no_peer();
    for (int i = 0; i < r->count; i++)
        if (r->message[i] != MPI_REQUEST_NULL) heartbeat_add_peer(group_world_rank(r->group, r->peer[i]));
}

static double wait_for(Request *r) {
    static const double PATIENCE = 0.25; // seconds until it is told who has not come, and again
    double begun = clock_seconds(), told = begun;
    heartbeat_wait(r->purpose, &r->group->told);
    while (r->open > 0) {
        test_all(r->mesh);
        if (r->mesh->polled - told < PATIENCE) continue;
        tell_missing(r);
        told = r->mesh->polled;
    }
    double seconds = clock_seconds() - begun;
    heartbeat_wait_over(seconds);
    return seconds;
}

void comm_end(Request *request, CommTiming *timing, Stream stream) {
    if (request->open > 0) request->timing.waited = wait_for(request);
    if (request->sum.ranks) sum_in_rank_order(request, stream);
    if (timing) *timing = request->timing;
    request->next = request->mesh->unused;
    request->mesh->unused = request;
}
