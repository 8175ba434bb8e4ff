// SPDX-License-Identifier: Apache-2.0
// The engine behind collectives and exchanges: nonblocking messages in flight on a mesh. Private to this
// room.
#pragma once
#include "comm/collective.h"
#include <mpi.h>

struct Group {
    MPI_Comm comm; // MPI_COMM_NULL where size is 1
    int rank, size;
};

struct Request {
    Mesh *mesh;
    MPI_Request *message;
    int *done_index;           // scratch of MPI_Testsome
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

Request *request_begin(Mesh *mesh); // empty, begun now
void request_send(Request *request, const Group *group, int to, const void *bytes, int64_t count, Tag tag);
void request_receive(Request *request, const Group *group, int from, void *bytes, int64_t count, Tag tag);
void request_started(Request *request); // all its messages are posted

void mpi_check(int code, const char *call); // ends the program with MPI's text
#define MPI(call) mpi_check((call), #call)
