// SPDX-License-Identifier: Apache-2.0
// What the files train/checkpoint_*.c share: the parsed manifest, one data file being made, the folder
// RUN/ckpt.
#pragma once
#include "core/file.h"
#include "core/hdf5_file.h"
#include "train/checkpoint.h"
#include <pthread.h>

enum { CHECKPOINT_VERSION = 1, CHECKPOINT_NAME_BYTES = 64, STATE_KINDS = 3 };
#define CHECKPOINT_FORMAT   "floe-checkpoint"
#define CHECKPOINT_MANIFEST "MANIFEST.json"
const char *checkpoint_state_name(StateKind kind);    // "master", "m", "v"
const char *checkpoint_state_dataset(StateKind kind); // "/state/master", …

// ---- the manifest (checkpoint_manifest.c)
typedef struct { // elements [first, first + count) of a tensor, at [pos, …) of each state dataset of its file
    int tensor, file;
    int64_t first, count, pos;
    uint32_t crc[STATE_KINDS]; // of the values
} ManifestSegment;

typedef struct {
    const char *name;
    int dims;
    int64_t dim[2];
    uint32_t crc[STATE_KINDS]; // of the whole tensor
    int segment, segments;     // its part of the segment list, which is sorted by tensor and first
} ManifestTensor;

typedef struct {
    const char *name;
    int64_t bytes;
    uint32_t crc;
    int64_t elements;            // of each state dataset
    int64_t offset[STATE_KINDS]; // of each state dataset's first byte; −1: compressed
} ManifestFile;

typedef struct {
    const char *name;
    int dims;
    int64_t dim[2];
    int file;
    int64_t offset;
    uint32_t crc;
} ManifestBuffer;

typedef struct {
    char *dir;
    json_t *json; // what all names point into
    int64_t step;
    uint32_t crc; // of the manifest itself
    bool permanent, zlib;
    int states;             // 1: master alone, 3: with m and v
    ManifestTensor *tensor; // sorted by checkpoint_name_order
    ManifestFile *file;
    ManifestSegment *segment;
    ManifestBuffer *buffer;
    int tensors, files, segments, buffers;
} Manifest;

// Reads and checks everything that can be checked without the data: CRC line, sizes of the files, and that
// the segments cover every element exactly once. ERR_DATA.
Status manifest_read(Manifest *out, const char *dir);
void manifest_free(Manifest *manifest);
int manifest_find(const Manifest *manifest, const char *tensor); // −1 if there is none
int checkpoint_name_order(const char *a, const char *b);         // numbers within names compare as numbers
int64_t checkpoint_elements(int dims, const int64_t dim[]);
void manifest_path(const Manifest *manifest, int file, char *path, size_t size);

// The manifest's bytes from what all writers say: the tensors there are, as manifest_tensor gives them, in
// any order, and the files, as part_write describes them. ERR_RUNTIME where an element would be missing or
// written twice. Text owned by the caller.
json_t *manifest_tensor(const char *name, int dims, const int64_t dim[]);
typedef struct {
    int64_t step;
    bool permanent, zlib;
    int states;
    const json_t *record;
    json_t *tensors, *files; // borrowed, and changed
    char *digest;            // [CHECKPOINT_DIGEST_BYTES]: gets all states' digests; or NULL
} ManifestContent;
Status manifest_text(const ManifestContent *content, char **text, size_t *bytes);

// ---- one data file (checkpoint_part.c). Snapshot: a copy of some of the state, with its checksums; what
// comes after works on the copy alone.
typedef struct {
    const char *name; // borrowed until part_write has returned
    int dims;
    int64_t dim[2];
    int64_t first, count, pos;
    uint32_t crc[STATE_KINDS];
} PartSegment;

typedef struct {
    int states;
    int64_t elements, capacity;
    float *state[STATE_KINDS]; // [capacity] each
    PartSegment *segment;
    int segments, segment_capacity;
    CheckpointBuffer *buffer; // their data is owned
    int buffers;
} Part;
Part part_create(int states, int64_t capacity); // room for `capacity` elements
void part_free(Part *part);
void part_clear(Part *part);
// Makes room for a range of a tensor and returns where its values begin in part->state; the caller fills
// them, then calls part_seal once for all: checksums.
int64_t part_add(Part *part, const char *name, int dims, const int64_t dim[], int64_t first, int64_t count);
void part_seal(Part *part);
void part_add_buffer(Part *part, const CheckpointBuffer *buffer); // a copy of its data
typedef struct {
    const char *dir, *file;
    int64_t step;
    bool zlib;
} PartPlace;
// Builds the HDF5 file and makes it durable. description: the manifest's entry for it, owned by the caller.
Status part_write(const Part *part, const PartPlace *place, json_t **description, int64_t *bytes);

// ---- one save (checkpoint_save.c)
typedef struct { // what all ranks wrote, on rank 0; elsewhere nothing
    json_t *tensors, *files;
    bool malformed;
} Gathered;
typedef struct {
    CheckpointState state; // what it points to is borrowed
    CheckpointOptions options;
    char *run_dir;
    int64_t step;
    Group *world;
    char tmp[FILE_PATH_BYTES];
    json_t *record, *files; // files: what this rank wrote
    Gathered all;
    int64_t bytes, raw_bytes;
    double begun, copy_seconds, write_seconds, stall_seconds;
    double durable; // when it was committed, on rank 0
    char digest[CHECKPOINT_DIGEST_BYTES];
} Save;
typedef struct { // a walk over the owned slices that stops where a part is full
    int slice;
    int64_t done; // elements of it
} SaveCursor;
int64_t save_owned_elements(const CheckpointState *state);
int64_t save_part_elements(int64_t owned, const CheckpointOptions *options); // of a part
// A number that makes the names of temporary folders this job's own. Collective.
uint64_t save_token(Group *world);
Save save_create(const CheckpointState *state, json_t *record, const char *run_dir, int64_t step,
                 const CheckpointOptions *options, uint64_t token);
void save_free(Save *save);
void save_take_part(const Save *save, SaveCursor *at, Part *part);
// These three call no MPI and may run on a thread of their own: making the folder, which every rank does for
// itself; making a part durable; on rank 0, after save_gather, manifest and name.
Status save_make_folder(const Save *save);
Status save_write_part(Save *save, const Part *part, int number);
Status save_commit(Save *save);
void save_gather(Save *save); // to rank 0: what each rank wrote. Collective
// After save_commit, or instead of it: agreement and report; on failure nothing is left. Collective.
Status save_finish(Save *save, Status status, CheckpointReport *report);

// ---- reading from one data file (checkpoint_file.c). Everything handed out has been checked first.
typedef struct {
    const Manifest *manifest;
    int file, fd;
    Hdf5File *hdf5; // of a compressed file, once it has been checked
    bool checked;
    int64_t read; // bytes of it so far; of what the library reads, its share of the compressed file
} DataFile;
Status data_file_open(DataFile *out, const Manifest *manifest, int file);
void data_file_close(DataFile *file);
// Every byte, against size and CRC; what is damaged is named: state, tensor and bytes.
Status data_file_check(DataFile *file);
Status data_file_checksum(DataFile *file); // the same without the HDF5 library, for threads
// Values of a segment, without a check of their own; after data_file_check.
Status data_file_read(DataFile *file, StateKind kind, int64_t pos, int64_t count, float *out);
// Copies elements [first, first + count) of the segment's tensor into out after checking the whole segment.
Status data_file_segment(DataFile *file, const ManifestSegment *segment, StateKind kind, int64_t first,
                         int64_t count, float *out);
typedef struct {
    int64_t pos, count; // values of each state dataset
    float *to[STATE_KINDS];
} DataRange;
// Fills ranges, which are sorted and do not overlap, in one pass over the whole file, which is checked: what
// was filled counts only once this has returned OK. Not for compressed files.
Status data_file_scan(DataFile *file, const DataRange *range, int ranges);
// That these are the segment's values: a file may be as it was written and hold something else there.
Status data_file_confirm(const DataFile *file, const ManifestSegment *segment, StateKind kind,
                         const float *values);
Status data_file_buffer(DataFile *file, const ManifestBuffer *buffer, float *out);

// ---- folders (checkpoint_folder.c)
typedef struct {
    int64_t *step;
    int count;
} StepList;
Status folder_steps(const char *run_dir,
                    StepList *out); // of the folders RUN/ckpt/step-*, ascending; owned by the caller
void folder_step_path(const char *run_dir, int64_t step, char *path, size_t size);
// RUN/ckpt/.tmp-step-…, of one save of one job; every rank that writes into it makes it.
void folder_tmp_path(const char *run_dir, int64_t step, uint64_t token, char *path, size_t size);
Status folder_prepare(const char *run_dir, const char *tmp);
// Writes the manifest into tmp, makes all durable, gives the folder its name and removes what stood there. On
// failure tmp is still there.
Status folder_commit(const char *tmp, const char *dir, const char *manifest, size_t bytes);
Status folder_remove(const char *dir);    // renamed first, so that nobody sees half of it
Status folder_clear(const char *run_dir); // removes .tmp-* and .trash-*
// Moves RUN/ckpt/step-… to damaged-step-… and says so. entry: members of the event that tells it, owned by
// the caller.
Status folder_quarantine(const char *run_dir, int64_t step, const char *why, json_t **entry);
