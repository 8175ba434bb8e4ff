// SPDX-License-Identifier: Apache-2.0
// A set of ranks and how they talk. Owns its own MPI communicator; a group of one never calls MPI.
#pragma once
#include "core/device.h"
#include "core/status.h"
#include <stdbool.h>
#include <stdint.h>

typedef struct Group Group;
int group_rank(const Group *group);
int group_size(const Group *group);

// ---- blocking, on host memory; for set-up, control and once-a-step scalars. All are Collective over the
// group.
void group_barrier(Group *group);
void group_broadcast(Group *group, int root, void *bytes, size_t count);
// values[i] = Σ over ranks, added in rank order: the same bits on every rank and in every run.
void group_sum_f64(Group *group, double *values, int count);
// The same; each[r] is rank r's values[0], unless each is NULL.
void group_sum_f64_each(Group *group, double *values, int count, double *each);
void group_sum_i64(Group *group, int64_t *values, int count);
void group_max_f64(Group *group, double *values, int count);
void group_max_i64(Group *group, int64_t *values, int count);
void group_xor_u64(Group *group, uint64_t *values, int count);
// all[r·count …] = rank r's bytes.
void group_all_gather(Group *group, void *all, const void *own, size_t count);
// Rank root receives every rank's message (lengths may differ) one after another; take is called on root in
// rank order.
void group_gather_each(Group *group, int root, const void *own, size_t bytes,
                       void (*take)(void *context, int rank, const void *data, size_t bytes), void *context);
// The first rank's failure, on all ranks: returns OK only where every rank passes OK; else the lowest failing
// rank's status, with its text in status_text() on every rank.
Status group_agree(Group *group, Status status);
