// SPDX-License-Identifier: Apache-2.0
#include "comm/mesh.h"
#include "comm/requests.h"
#include <stdlib.h>

static void abort_all_ranks(int exit_code) {
    MPI_Abort(MPI_COMM_WORLD, exit_code);
}

static bool launched(void) {
    static const char *const signs[] = {"OMPI_COMM_WORLD_SIZE", "PMIX_RANK", "PMI_RANK"};
    for (size_t i = 0; i < sizeof signs / sizeof *signs; i++)
        if (getenv(signs[i])) return true;
    return false;
}

static bool running(void) {
    int started = 0, finished = 0;
    MPI_Initialized(&started);
    MPI_Finalized(&finished);
    return started && !finished;
}

void comm_start(int *argc, char ***argv) {
    if (!launched()) return;
    int provided;
    MPI(NULL, MPI_Init_thread(argc, argv, MPI_THREAD_FUNNELED, &provided));
    MPI(NULL, MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN));
    REQUIRE(provided >= MPI_THREAD_FUNNELED, "this MPI gives thread level %d; floe needs MPI_THREAD_FUNNELED",
            provided);
    status_set_abort_hook(abort_all_ranks);
}

void comm_finish(void) {
    if (!running()) return;
    status_set_abort_hook(NULL);
    MPI(NULL, MPI_Finalize());
}

int comm_world_rank(void) {
    int rank = 0;
    if (running()) MPI(NULL, MPI_Comm_rank(MPI_COMM_WORLD, &rank));
    return rank;
}

int comm_world_size(void) {
    int size = 1;
    if (running()) MPI(NULL, MPI_Comm_size(MPI_COMM_WORLD, &size));
    return size;
}

static const char *const AXIS_NAME[AXIS_COUNT] = {"world", "expert", "replica"};

static Mesh *mesh_alone(void) {
    Mesh *mesh = calloc(1, sizeof *mesh);
    REQUIRE(mesh, "out of memory: a mesh");
    for (int axis = 0; axis < AXIS_COUNT; axis++)
        mesh->group[axis] = (Group){.comm = MPI_COMM_NULL, .name = AXIS_NAME[axis], .size = 1};
    mesh->progress = true;
    return mesh;
}

_Static_assert((int)AXIS_COUNT == (int)HEARTBEAT_KINDS, "a count of blocking calls for each axis");

static void split(Mesh *mesh, Axis axis, int color, int key) {
    Group *group = &mesh->group[axis];
    MPI(NULL, MPI_Comm_split(MPI_COMM_WORLD, color, key, &group->comm));
    MPI(group, MPI_Comm_set_errhandler(group->comm, MPI_ERRORS_RETURN));
    MPI(group, MPI_Comm_rank(group->comm, &group->rank));
    MPI(group, MPI_Comm_size(group->comm, &group->size));
    group->told =
        (HeartbeatGroup){.name = group->name, .kind = (int)axis, .rank = group->rank, .size = group->size};
}

// Member i is rank first + i·stride of the world.
static void place(Group *group, int first, int stride) {
    group->told.first = first;
    group->told.stride = stride;
}

Status mesh_create_self(Mesh **out) {
    *out = mesh_alone();
    return OK;
}

Status mesh_create(Mesh **out, int expert_parallel) {
    int world = comm_world_size(), rank = comm_world_rank();
    if (expert_parallel < 1 || world % expert_parallel)
        FAIL(ERR_CONFIG, "parallel.ep = %d must divide the %d ranks", expert_parallel, world);
    Mesh *mesh = mesh_alone();
    if (world > 1) {
        split(mesh, AXIS_WORLD, 0, rank);
        split(mesh, AXIS_EXPERT, rank / expert_parallel, rank);
        split(mesh, AXIS_REPLICA, rank % expert_parallel, rank);
        place(&mesh->group[AXIS_WORLD], 0, 1);
        place(&mesh->group[AXIS_EXPERT], rank / expert_parallel * expert_parallel, 1);
        place(&mesh->group[AXIS_REPLICA], rank % expert_parallel, expert_parallel);
    }
    *out = mesh;
    return OK;
}

void mesh_destroy(Mesh *mesh) {
    if (!mesh) return;
    REQUIRE(!mesh->in_flight, "a mesh is destroyed with messages in flight");
    for (Request *r = mesh->unused, *next; r; r = next) {
        next = r->next;
        free(r->message);
        free(r->expected);
        free(r->peer);
        free(r->done_index);
        free(r->status);
        free(r);
    }
    for (int axis = 0; axis < AXIS_COUNT; axis++)
        if (mesh->group[axis].comm != MPI_COMM_NULL) MPI(NULL, MPI_Comm_free(&mesh->group[axis].comm));
    free(mesh);
}

int group_world_rank(const Group *group, int rank) {
    return group->told.first + rank * group->told.stride;
}

Group *mesh_group(const Mesh *mesh, Axis axis) {
    return (Group *)&mesh->group[axis];
}
