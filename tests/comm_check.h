// SPDX-License-Identifier: Apache-2.0
// What the MPI tests share: checks that count failures on every rank, meshes, sample values.
#pragma once
#include "comm/mesh.h"
#include "core/clock.h"
#include "core/rng.h"
#include <stdio.h>

static int failures;
#define CHECK(condition, ...)                                                                                \
    do {                                                                                                     \
        if (!(condition) && ++failures < 20) {                                                               \
            fprintf(stderr, "rank %d, %s:%d: %s: ", comm_world_rank(), __FILE__, __LINE__, #condition);      \
            fprintf(stderr, __VA_ARGS__);                                                                    \
            fputc('\n', stderr);                                                                             \
        }                                                                                                    \
    } while (0)

static inline Mesh *check_mesh(int ep) {
    Mesh *mesh;
    Status status = mesh_create(&mesh, ep);
    REQUIRE(status == OK, "%s", status_text());
    return mesh;
}

static inline Stream check_stream(Mesh *mesh) {
    Stream stream = stream_create((Device){DEVICE_CPU, 0});
    stream->progress = mesh_progress;
    stream->progress_context = mesh;
    return stream;
}

// In (−1, 1), of mixed magnitude, so that the order of a sum shows in its bits.
static inline double check_double(int64_t stream, int64_t i) {
    return (2 * rng_uniform(7, (uint64_t)stream, (uint64_t)i) - 1) * (i % 7 ? 1 : 1e-4);
}

static inline float check_value(int64_t stream, int64_t i) {
    return (float)check_double(stream, i);
}

// Exit code of a test: 1 on all ranks where any of them counted a failure.
static inline int check_result(void) {
    Mesh *mesh = check_mesh(1);
    int64_t all = failures;
    group_sum_i64(mesh_group(mesh, AXIS_WORLD), &all, 1);
    mesh_destroy(mesh);
    comm_finish();
    return all > 0;
}
