// SPDX-License-Identifier: Apache-2.0
#include "comm/requests.h"
#include "core/clock.h"
#include <stdlib.h>
#include <string.h>

enum { MESSAGE_BYTES = 1 << 20 }; // longer ones are cut: counts stay far below 2³¹, and pieces pipeline

void mpi_check(int code, const char *call) {
    if (code == MPI_SUCCESS) return;
    char text[MPI_MAX_ERROR_STRING];
    int length = 0;
    MPI_Error_string(code, text, &length);
    DIE("%s: %.*s", call, length, text);
}

Request *request_begin(Mesh *mesh) {
    Request *request = mesh->unused;
    if (request)
        mesh->unused = request->next;
    else
        request = calloc(1, sizeof *request);
    REQUIRE(request, "out of memory: a request");
    request->mesh = mesh;
    request->count = request->open = 0;
    request->sum.ranks = 0;
    request->next = NULL;
    request->timing = (CommTiming){.begun = clock_seconds()};
    return request;
}

static MPI_Request *next_message(Request *r) {
    if (r->count == r->capacity) {
        r->capacity = r->capacity ? 2 * r->capacity : 32;
        r->message = realloc(r->message, (size_t)r->capacity * sizeof *r->message);
        r->done_index = realloc(r->done_index, (size_t)r->capacity * sizeof *r->done_index);
        REQUIRE(r->message && r->done_index, "out of memory: %d messages", r->capacity);
    }
    return &r->message[r->count++];
}

void request_send(Request *request, const Group *group, int to, const void *bytes, int64_t count, Tag tag) {
    request->timing.bytes_sent += count;
    for (int64_t at = 0; at < count; at += MESSAGE_BYTES) {
        int part = (int)(count - at < MESSAGE_BYTES ? count - at : MESSAGE_BYTES);
        MPI(MPI_Isend((const char *)bytes + at, part, MPI_BYTE, to, tag, group->comm, next_message(request)));
    }
}

void request_receive(Request *request, const Group *group, int from, void *bytes, int64_t count, Tag tag) {
    for (int64_t at = 0; at < count; at += MESSAGE_BYTES) {
        int part = (int)(count - at < MESSAGE_BYTES ? count - at : MESSAGE_BYTES);
        MPI(MPI_Irecv((char *)bytes + at, part, MPI_BYTE, from, tag, group->comm, next_message(request)));
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

// Lets the messages travel; true when all have arrived.
static bool request_test(Request *request) {
    int done = 0;
    MPI(MPI_Testsome(request->count, request->message, &done, request->done_index, MPI_STATUSES_IGNORE));
    if (done != MPI_UNDEFINED)
        request->open -= done;
    else
        request->open = 0;
    if (request->open == 0) request->timing.done = clock_seconds();
    return request->open == 0;
}

static void remove_from_flight(Request *request) {
    for (Request **at = &request->mesh->in_flight; *at; at = &(*at)->next)
        if (*at == request) {
            *at = request->next;
            return;
        }
}

void mesh_progress(void *context) {
    static const double PAUSE = 50e-6;
    Mesh *mesh = context;
    if (!mesh->in_flight || !mesh->progress) return;
    double now = clock_seconds();
    if (now - mesh->polled < PAUSE) return;
    for (Request *r = mesh->in_flight, *next; r; r = next) {
        next = r->next;
        if (request_test(r)) remove_from_flight(r);
    }
    mesh->polled = clock_seconds();
}

void mesh_set_progress(Mesh *mesh, bool on) {
    mesh->progress = on;
}

// shard = or += ((piece 0 + piece 1) + piece 2) …, the own one in its place.
static void sum_in_rank_order(const Request *r) {
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
    }
}

void comm_end(Request *request, CommTiming *timing, Stream stream) {
    (void)stream;
    if (request->open > 0) {
        double begun = clock_seconds();
        while (!request_test(request)) // others in flight move with it: MPI's progress is common to all
            ;
        request->timing.waited = clock_seconds() - begun;
        remove_from_flight(request);
    }
    if (request->sum.ranks) sum_in_rank_order(request);
    if (timing) *timing = request->timing;
    request->next = request->mesh->unused;
    request->mesh->unused = request;
}
