// SPDX-License-Identifier: Apache-2.0
// Sharded checkpoints that load on any number of ranks, any expert-parallel size and any ZeRO stage.
// Layout, commit protocol and guarantees: docs/formats.md.
#pragma once
#include "comm/mesh.h"
#include "core/params.h"
#include "optim/zero.h"
#include <jansson.h>

typedef struct { // small state that every rank holds alike; written by rank 0
    const char *name;
    int dims;
    int64_t dim[2];
    float *data;
} CheckpointBuffer;

typedef struct {
    ParamTable *params;
    const ZeroSlice *owned, *held; // written; filled by a load
    int owned_count, held_count;
    const CheckpointBuffer *buffer;
    int buffers;
    int ep;
    Mesh *mesh;
} CheckpointState;

typedef struct {
    double seconds, gather_seconds;
    int64_t bytes, raw_bytes; // on disk over all ranks; of tensors
} CheckpointReport;

typedef struct {
    bool zlib;
    int64_t keep;       // newest ones that stay; 0 = all
    bool permanent;     // the first at or after a stage switch: never removed by keep
    int64_t part_bytes; // largest file, about; 0 = 1 GiB; a save needs twice this of memory
} CheckpointOptions;

// Writes RUN/ckpt/step-%09d: visible only when whole and durable. record: run facts that the manifest keeps
// (step, samples, tokens, config, plan, ledger …); borrowed. Then removes what keep says. Collective over the
// world; the same status on every rank; on failure nothing is left behind and older checkpoints are whole.
Status checkpoint_save(const CheckpointState *state, const json_t *record, const char *run_dir, int64_t step,
                       const CheckpointOptions *options, CheckpointReport *report);

// Fills held master, m, v and the buffers, after checking every byte that it uses. weights_only: masters
// alone, m and v become 0, buffers are filled where the checkpoint has them; needed for checkpoints without
// optimizer states. record: the manifest's, owned by the caller. ERR_DATA names file, tensor and position;
// ERR_CONFIG says how the checkpoint's model differs. Collective over the world.
Status checkpoint_load(const CheckpointState *state, const char *dir, bool weights_only, json_t **record);

// Newest committed step ≤ at_most (−1: any) in RUN/ckpt whose files have the manifest's sizes and whose
// manifest is whole; *step = −1 where there is none. Damaged ones are named on stderr and passed over. Not
// collective.
Status checkpoint_find(const char *run_dir, int64_t at_most, int64_t *step, char *dir, size_t dir_size);
// Moves checkpoints later than step to ckpt/abandoned-…, removes .tmp-* left by a crash. Not collective: rank
// 0 calls.
Status checkpoint_abandon_after(const char *run_dir, int64_t step);

// ---- offline, one process
Status checkpoint_manifest(const char *dir, json_t **manifest); // parsed and checked against its own CRC line
Status checkpoint_verify(const char *dir, bool print);          // re-reads every byte
typedef struct CheckpointReader CheckpointReader;
Status checkpoint_reader_open(CheckpointReader **out, const char *dir);
void checkpoint_reader_close(CheckpointReader *reader);
int checkpoint_reader_tensors(const CheckpointReader *reader);
typedef struct {
    const char *name;
    int dims;
    int64_t dim[2];
    bool moments; // m and v are there
} CheckpointTensor;
CheckpointTensor checkpoint_reader_tensor(const CheckpointReader *reader, int index);
typedef enum { STATE_MASTER, STATE_M, STATE_V } StateKind;
Status checkpoint_reader_read(CheckpointReader *reader, int index, StateKind kind, int64_t first,
                              int64_t count, float *out);
int checkpoint_reader_buffers(const CheckpointReader *reader);
CheckpointTensor checkpoint_reader_buffer(const CheckpointReader *reader, int index);
Status checkpoint_reader_read_buffer(CheckpointReader *reader, int index, float *out); // all of it
