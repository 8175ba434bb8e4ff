// SPDX-License-Identifier: Apache-2.0
// The engine behind collectives and exchanges: nonblocking messages in flight on a mesh. Private to this
// room.
#pragma once
#include "comm/collective.h"
#include "core/heartbeat.h"
#include <mpi.h>

struct Group {
    MPI_Comm comm; // MPI_COMM_NULL where size is 1
    const char *name;
    int rank, size;
    HeartbeatGroup told;
};

struct Request {
    Mesh *mesh;
    const Group *group;
    MPI_Request *message;
    int *expected;       // bytes that a message must bring; −1: this rank sends it
    int *peer;           // rank of the group at its other end
    const char *purpose; // of the messages, for who waits; NULL: none yet
    int *done_index;     // what MPI_Testsome fills
    MPI_Status *status;
    int count, capacity, open; // messages; not complete yet
    CommTiming timing;
    // what comm_end has left to do: sum `pieces` into `shard`, in rank order
    struct {
        float *shard;
        const float *own, *staging;
        int64_t count;
        int rank, ranks; // ranks 0: nothing
        bool add;
    } sum;
    Request *next; // in flight, or free
};

struct Mesh {
    Group group[AXIS_COUNT];
    Request *in_flight, *unused;
    double polled; // clock of the last look
    bool progress;
};

typedef enum { TAG_COUNTS = 1, TAG_DISPATCH, TAG_COMBINE, TAG_REDUCE, TAG_GATHER, TAG_CONTROL } Tag;

Request *request_begin(Mesh *mesh, Axis axis); // empty, begun now
void request_send(Request *request, int to, const void *bytes, int64_t count, Tag tag);
void request_receive(Request *request, int from, void *bytes, int64_t count, Tag tag);
void request_started(Request *request); // all its messages are posted

// Ends the program with the call, the group and MPI's text.
void mpi_check(int code, const char *call, const Group *group);
#define MPI(group, call) mpi_check((call), #call, (group))

int group_world_rank(const Group *group, int rank);
