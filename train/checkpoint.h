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
    int64_t step;
    double seconds, gather_seconds;
    double stall_seconds; // training stood still: copy, checksums, agreement, commit
    double copy_seconds,
        write_seconds;        // of that the copy with its checksums; making files durable: slowest rank's
    int64_t bytes, raw_bytes; // on disk over all ranks; of tensors
} CheckpointReport;

typedef struct {
    bool zlib;
    int64_t keep;       // newest ones that stay; 0 = all
    bool permanent;     // the first at or after a stage switch: never removed by keep
    int64_t part_bytes; // largest file, about; 0 = 1 GiB; a save needs twice this of memory
    int64_t host_bytes; // most memory that a save may take on a rank; 0: no limit
} CheckpointOptions;

// Writes RUN/ckpt/step-%09d: visible only when whole and durable. record: run facts that the manifest keeps
// (step, samples, tokens, config, plan, ledger …); borrowed. Then removes what keep says. Collective over the
// world; the same status on every rank; on failure nothing is left behind and older checkpoints are whole.
Status checkpoint_save(const CheckpointState *state, json_t *record, const char *run_dir, int64_t step,
                       const CheckpointOptions *options, CheckpointReport *report);

// ---- the same, beside the training: every rank's part of the state is copied to staging memory, which lives
// as long as the run, and a thread writes it.

// Bytes of a rank for staging and one file's image; 0 where that is more than options->host_bytes on any
// rank: then only checkpoint_save is possible, which streams. Collective; the same on every rank.
int64_t checkpoint_staging_bytes(const CheckpointState *state, const CheckpointOptions *options);
// The same for one rank that owns so many elements of the weights.
int64_t checkpoint_plan_bytes(int64_t owned, const CheckpointOptions *options);
typedef struct CheckpointWriter CheckpointWriter;
CheckpointWriter *checkpoint_writer_create(const CheckpointState *state, const CheckpointOptions *options);
void checkpoint_writer_destroy(CheckpointWriter *writer); // no save may be in flight
// Copies and begins to write; the state may change as soon as this returns. What state, its params and mesh
// point to stays until the finish. No other save may be in flight, nor a load: HDF5 belongs to the thread
// now. Collective; same status on every rank.
Status checkpoint_writer_begin(CheckpointWriter *writer, const CheckpointState *state, json_t *record,
                               const char *run_dir, int64_t step);
bool checkpoint_writer_busy(const CheckpointWriter *writer); // between begin and finish
// news[0]: this rank is still writing, news[1]: it has failed. All ranks' maxima go to
// checkpoint_writer_ready: true when checkpoint_writer_finish would not wait.
void checkpoint_writer_news(CheckpointWriter *writer, int64_t news[2]);
bool checkpoint_writer_ready(CheckpointWriter *writer, const int64_t most[2]);
// Waits for the thread; then commits like checkpoint_save. Collective.
Status checkpoint_writer_finish(CheckpointWriter *writer, CheckpointReport *report);

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
