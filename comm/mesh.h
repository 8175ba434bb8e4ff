// SPDX-License-Identifier: Apache-2.0
// The process mesh: all ranks, and how they share out experts.
#pragma once
#include "comm/group.h"

// WORLD: every rank (dense weights are replicated over it). EXPERT: `ep` consecutive ranks that hold one set
// of experts between them; EP rank r has experts r·E/ep … REPLICA: the ranks with the same experts.
typedef enum { AXIS_WORLD, AXIS_EXPERT, AXIS_REPLICA, AXIS_COUNT } Axis;
typedef struct Mesh Mesh;

// Starts MPI (funneled) and installs the abort hook. Without a launcher: a world of one. Call before anything
// else.
void comm_start(int *argc, char ***argv);
void comm_finish(void);
int comm_world_rank(void);
int comm_world_size(void);

// Collective over all ranks. ERR_CONFIG where expert_parallel does not divide the world.
Status mesh_create(Mesh **out, int expert_parallel);
Status mesh_create_self(Mesh **out); // this rank alone; not collective
void mesh_destroy(Mesh *mesh);
Group *mesh_group(const Mesh *mesh, Axis axis); // borrowed: the mesh owns it

// Lets every message in flight on the mesh travel while kernels run: pass to a stream as its progress
// callback. Looks at the clock first and returns at once when it was called less than 50 µs ago or nothing is
// in flight.
void mesh_progress(void *mesh);
void mesh_set_progress(Mesh *mesh,
                       bool on); // off: messages move only in comm_end; to show what progress is worth
