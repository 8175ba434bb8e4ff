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

enum { CHECKPOINT_DIGEST_BYTES = 32 };
typedef struct {
    int64_t step;
    double seconds;       // until it was durable
    double stall_seconds; // training stood still: copy, checksums, agreement, commit
    double copy_seconds,
        write_seconds;        // of that the copy with its checksums; making files durable: slowest rank's
    int64_t bytes, raw_bytes; // on disk over all ranks; of tensors
    char digest[CHECKPOINT_DIGEST_BYTES]; // of all states, on rank 0: equal where no value has changed
} CheckpointReport;

typedef struct {
    bool zlib;
    bool permanent;     // the first at or after a stage switch: retention never removes it
    int64_t part_bytes; // largest file, about, and the memory that a save needs; 0 = 1 GiB; with zlib
                        // twice this of memory
    int64_t host_bytes; // most memory that a save may take on a rank; 0: no limit
} CheckpointOptions;

// Writes RUN/ckpt/step-%09d: visible only when whole and durable. record: run facts that the manifest keeps
// (step, samples, tokens, config, plan, ledger …); borrowed. Collective over the world; the same status on
// every rank; on failure nothing is left behind and older checkpoints are whole.
Status checkpoint_save(const CheckpointState *state, json_t *record, const char *run_dir, int64_t step,
                       const CheckpointOptions *options, CheckpointReport *report);

// ---- the same, beside the training: every rank's part of the state is copied to staging memory, which lives
// as long as the run, and a thread writes it.

// Bytes of a rank for staging and, with zlib, one file's image; 0 where that is more than options->host_bytes
// on any rank: then only checkpoint_save is possible, which streams. Collective; the same on every rank.
int64_t checkpoint_staging_bytes(const CheckpointState *state, const CheckpointOptions *options);
// The same for one rank that owns so many elements of the weights.
int64_t checkpoint_plan_bytes(int64_t owned, const CheckpointOptions *options);
typedef struct CheckpointWriter CheckpointWriter;
// Collective, like all of these but news and busy.
CheckpointWriter *checkpoint_writer_create(const CheckpointState *state, const CheckpointOptions *options);
void checkpoint_writer_destroy(CheckpointWriter *writer); // no save may be in flight
// Copies and begins to write; the state may change as soon as this returns. What state, its params and mesh
// point to stays until the finish. No other save may be in flight, nor a load: HDF5 belongs to the thread
// now.
void checkpoint_writer_begin(CheckpointWriter *writer, const CheckpointState *state, json_t *record,
                             const char *run_dir, int64_t step);
bool checkpoint_writer_busy(const CheckpointWriter *writer); // between begin and finish
// news[0]: a thread of this rank is at work, news[1]: it has failed. All ranks' maxima go to
// checkpoint_writer_advance, which has the checkpoint committed once all have written: true when
// checkpoint_writer_finish would not wait.
void checkpoint_writer_news(CheckpointWriter *writer, int64_t news[2]);
bool checkpoint_writer_advance(CheckpointWriter *writer, const int64_t most[2]);
// Waits for what is left to do. The same status on every rank; on failure nothing is left behind, as in
// checkpoint_save.
Status checkpoint_writer_finish(CheckpointWriter *writer, CheckpointReport *report);

// Fills held master, m, v and the buffers, after checking every byte that it uses. weights_only: masters
// alone, m and v become 0, buffers are filled where the checkpoint has them; needed for checkpoints without
// optimizer states. record: the manifest's, owned by the caller. read: NULL, or what was read. ERR_DATA names
// file, tensor and position; ERR_CONFIG says how the checkpoint's model differs. Collective over the world.
typedef struct {
    int64_t held;       // bytes of the checkpoint's data files,
    int64_t read, most; // read from them by all ranks, and by the rank that read most
    double seconds;     // the slowest rank's
} CheckpointRead;
Status checkpoint_load(const CheckpointState *state, const char *dir, bool weights_only, json_t **record,
                       CheckpointRead *read);

// Newest committed step ≤ at_most (−1: any) in RUN/ckpt whose files have the manifest's sizes and whose
// manifest is whole; *step = −1 where there is none. Damaged ones are named on stderr and passed over. Not
// collective.
Status checkpoint_find(const char *run_dir, int64_t at_most, int64_t *step, char *dir, size_t dir_size);
// The same for who goes on with the run: damaged ones are moved to damaged-step-… and added to quarantined
// (an array) as members of an event: damaged_step, moved_to, message.
Status checkpoint_find_newest(const char *run_dir, int64_t at_most, json_t *quarantined, int64_t *step,
                              char *dir, size_t dir_size);
// Moves checkpoints later than step to ckpt/abandoned-…, removes .tmp-* left by a crash. Not collective: rank
// 0 calls.
Status checkpoint_abandon_after(const char *run_dir, int64_t step);

// ---- which stay (checkpoint_retain.c). Not collective: rank 0 calls.

typedef struct {
    int64_t keep;       // newest verified ones that stay; 0: all stay
    int64_t keep_every; // those at multiples of this step stay; 0: none
    bool trusting;      // takes all whole ones for verified: to know what could go
} CheckpointRules;
typedef enum {
    FATE_GOES,
    FATE_NEWEST,     // stays and counts
    FATE_UNVERIFIED, // among the newest: stays, does not count
    FATE_PERMANENT,  // older ones that stay: the first at or after a stage switch,
    FATE_EVERY,      // at a multiple of keep_every,
    FATE_PINNED,     // by hand
    FATE_DAMAGED,    // stays: it may be all that is left of something
} CheckpointFate;
typedef struct {
    struct {
        int64_t step;
        CheckpointFate fate;
    } * entry; // ascending
    int count;
} CheckpointFates;
Status checkpoint_fates(const char *run_dir, const CheckpointRules *rules, CheckpointFates *out);
void checkpoint_fates_free(CheckpointFates *fates);
Status checkpoint_retain(const char *run_dir, const CheckpointRules *rules, int64_t *removed);
// Re-reads a checkpoint that seems to be damaged and, if it is, moves it to RUN/ckpt/damaged-step-… with a
// warning. *entry: as in checkpoint_find_newest, owned by the caller; NULL where it is whole.
Status checkpoint_quarantine(const char *run_dir, int64_t step, json_t **entry);

// Marks lie beside a checkpoint's folder, never in it, and hold for its content alone.
typedef enum { MARK_VERIFIED, MARK_PINNED } CheckpointMark;
bool checkpoint_has_mark(const char *dir, CheckpointMark mark);
Status checkpoint_set_mark(const char *dir, CheckpointMark mark);
Status checkpoint_remove_mark(const char *dir, CheckpointMark mark);

// ---- re-reading what was committed, beside the training: each rank its share of the files, on a thread
typedef struct CheckpointCheck CheckpointCheck;
CheckpointCheck *checkpoint_check_create(Group *world);
void checkpoint_check_destroy(CheckpointCheck *check); // none may be in flight
void checkpoint_check_begin(CheckpointCheck *check, const char *dir);
bool checkpoint_check_busy(const CheckpointCheck *check);    // between begin and finish
bool checkpoint_check_running(const CheckpointCheck *check); // this rank's share is not done yet
void checkpoint_check_cancel(CheckpointCheck *check);        // finish need not wait for the rest
typedef struct {
    bool complete; // not cancelled on any rank
    double seconds;
    int64_t bytes;
} CheckpointChecked;
// Waits for all shares. ERR_DATA: the damage that a rank has found. Collective; the same on every rank.
Status checkpoint_check_finish(CheckpointCheck *check, CheckpointChecked *out);

// ---- offline, one process
Status checkpoint_manifest(const char *dir, json_t **manifest); // parsed and checked against its own CRC line
void checkpoint_digest(const json_t *digest, char out[CHECKPOINT_DIGEST_BYTES]); // a manifest's, as one text
Status checkpoint_verify(const char *dir, bool print);                           // re-reads every byte
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
