// SPDX-License-Identifier: Apache-2.0
// Reading from one data file of a checkpoint. Contiguous data is read at the place that the manifest names,
// without the HDF5 library; compressed data through the library, after every byte of the file has been
// checked.
#include "core/crc32c.h"
#include "train/checkpoint_internal.h"
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { PIECE = 1 << 18 }; // elements read at a time

static const ManifestFile *entry(const DataFile *f) {
    return &f->manifest->file[f->file];
}

Status data_file_open(DataFile *f, const Manifest *manifest, int file) {
    char path[FILE_PATH_BYTES];
    *f = (DataFile){.manifest = manifest, .file = file};
    manifest_path(manifest, file, path, sizeof path);
    f->fd = open(path, O_RDONLY | O_CLOEXEC);
    if (f->fd < 0) FAIL(ERR_DATA, "%s: %s", path, strerror(errno));
    return OK;
}

void data_file_close(DataFile *f) {
    hdf5_file_close(f->hdf5);
    if (f->fd >= 0) close(f->fd);
    *f = (DataFile){.fd = -1};
}

static Status open_checked(DataFile *f, const char *path) {
    TRY(hdf5_file_open(&f->hdf5, path));
    for (int k = 0; k < f->manifest->states; k++) {
        int64_t count;
        TRY(hdf5_file_count(f->hdf5, checkpoint_state_dataset((StateKind)k), &count));
        if (count != entry(f)->elements)
            FAIL(ERR_DATA, "%s: %s has %ld values, the manifest says %ld", path,
                 checkpoint_state_dataset((StateKind)k), (long)count, (long)entry(f)->elements);
    }
    return OK;
}

static Status read_bytes(DataFile *f, int64_t offset, void *out, size_t bytes) {
    char path[FILE_PATH_BYTES];
    manifest_path(f->manifest, f->file, path, sizeof path);
    f->read += (int64_t)bytes;
    return file_read_at(f->fd, path, offset, out, bytes);
}

static Status read_values(DataFile *f, StateKind kind, int64_t pos, int64_t count, float *out) {
    if (!f->hdf5) return read_bytes(f, entry(f)->offset[kind] + 4 * pos, out, (size_t)count * sizeof *out);
    double share = (double)count / (double)(entry(f)->elements * f->manifest->states);
    f->read += (int64_t)(share * (double)entry(f)->bytes);
    return hdf5_file_read_f32(f->hdf5, checkpoint_state_dataset(kind), pos, count, out);
}

Status data_file_read(DataFile *f, StateKind kind, int64_t pos, int64_t count, float *out) {
    REQUIRE(f->checked, "%s is read before it has been checked", entry(f)->name);
    return read_values(f, kind, pos, count, out);
}

// What pieces of [first, first + count) lie in values [at, at + n) of the tensor.
static void copy_overlap(const float *values, int64_t at, int64_t n, int64_t first, int64_t count,
                         float *out) {
    int64_t from = at > first ? at : first, to = at + n < first + count ? at + n : first + count;
    if (from < to) memcpy(out + (from - first), values + (from - at), (size_t)(to - from) * sizeof *out);
}

static void damage_text(const Manifest *m, const ManifestSegment *s, StateKind kind, char *text,
                        size_t size) {
    int64_t offset = m->file[s->file].offset[kind];
    int length = snprintf(text, size, "%s of %s, elements %ld to %ld", checkpoint_state_name(kind),
                          m->tensor[s->tensor].name, (long)s->first, (long)(s->first + s->count));
    if (offset >= 0 && length < (int)size)
        snprintf(text + length, size - (size_t)length, ", at byte %ld", (long)(offset + 4 * s->pos));
}

static Status judge_segment(const DataFile *f, const ManifestSegment *s, StateKind kind, uint32_t crc) {
    if (crc == s->crc[kind]) return OK;
    char place[256];
    damage_text(f->manifest, s, kind, place, sizeof place);
    FAIL(ERR_DATA, "%s/%s: damaged: %s", f->manifest->dir, entry(f)->name, place);
}

static Status stream_segment(DataFile *f, const ManifestSegment *s, StateKind kind, int64_t first,
                             int64_t count, float *out, float *piece) {
    uint32_t crc = 0;
    for (int64_t done = 0; done < s->count; done += PIECE) {
        int64_t n = s->count - done < PIECE ? s->count - done : PIECE;
        TRY(read_values(f, kind, s->pos + done, n, piece));
        crc = crc32c(crc, piece, (size_t)n * sizeof *piece);
        copy_overlap(piece, s->first + done, n, first, count, out);
    }
    return judge_segment(f, s, kind, crc);
}

Status data_file_confirm(const DataFile *f, const ManifestSegment *s, StateKind kind, const float *values) {
    return judge_segment(f, s, kind, crc32c(0, values, (size_t)s->count * sizeof *values));
}

Status data_file_segment(DataFile *f, const ManifestSegment *s, StateKind kind, int64_t first, int64_t count,
                         float *out) {
    if (f->manifest->zlib) TRY(data_file_check(f)); // the library meets checked bytes alone
    float *piece = malloc(PIECE * sizeof *piece);
    REQUIRE(piece, "out of memory: %d values", PIECE);
    Status status = stream_segment(f, s, kind, first, count, out, piece);
    free(piece);
    return status;
}

Status data_file_buffer(DataFile *f, const ManifestBuffer *b, float *out) {
    char path[FILE_PATH_BYTES];
    size_t bytes = (size_t)checkpoint_elements(b->dims, b->dim) * sizeof *out;
    manifest_path(f->manifest, f->file, path, sizeof path);
    TRY(read_bytes(f, b->offset, out, bytes));
    if (crc32c(0, out, bytes) != b->crc) FAIL(ERR_DATA, "%s: damaged: buffer %s", path, b->name);
    return OK;
}

// ---- whole files

// What of a file with a wrong checksum is damaged: ": m of embed, elements 0 to 9, at byte 2048", the first
// such place.
static void name_damage(DataFile *f, char *text, size_t size) {
    const Manifest *m = f->manifest;
    snprintf(text, size, m->zlib ? "somewhere, for it is compressed" : "outside the tensors' values");
    for (int i = 0; i < m->segments && !m->zlib; i++)
        for (int k = 0; k < m->states; k++)
            if (m->segment[i].file == f->file &&
                data_file_segment(f, &m->segment[i], (StateKind)k, 0, 0, NULL) != OK) {
                damage_text(m, &m->segment[i], (StateKind)k, text, size);
                return;
            }
    for (int i = 0; i < m->buffers && !m->zlib; i++) {
        const ManifestBuffer *b = &m->buffer[i];
        float *values = malloc((size_t)checkpoint_elements(b->dims, b->dim) * sizeof *values);
        bool damaged = b->file == f->file && values && data_file_buffer(f, b, values) != OK;
        free(values);
        if (!damaged) continue;
        snprintf(text, size, "buffer %s, at byte %ld", b->name, (long)b->offset);
        return;
    }
}

static Status judge_file(DataFile *f, const char *path, int64_t bytes, uint32_t crc) {
    char place[256];
    if (bytes != entry(f)->bytes)
        FAIL(ERR_DATA, "%s: has %ld bytes, the manifest says %ld", path, (long)bytes, (long)entry(f)->bytes);
    if (crc == entry(f)->crc) return OK;
    name_damage(f, place, sizeof place);
    FAIL(ERR_DATA, "%s: damaged: %s; checksum %08x, the manifest says %08x", path, place, crc, entry(f)->crc);
}

Status data_file_checksum(DataFile *f) {
    char path[FILE_PATH_BYTES];
    int64_t bytes;
    uint32_t crc;
    manifest_path(f->manifest, f->file, path, sizeof path);
    TRY(file_checksum(f->fd, path, &bytes, &crc));
    f->read += bytes;
    return judge_file(f, path, bytes, crc);
}

// Copies what bytes [at, at + n) of the file hold of the ranges. next: the first range that does not end
// before.
static void fill_ranges(const DataFile *f, const char *bytes, int64_t at, int64_t n, const DataRange *range,
                        int ranges, int next[STATE_KINDS]) {
    for (int k = 0; k < f->manifest->states; k++)
        for (int i = next[k]; i < ranges; i++) {
            int64_t begin = entry(f)->offset[k] + 4 * range[i].pos, end = begin + 4 * range[i].count;
            if (begin >= at + n) break;
            if (end <= at + n) next[k] = i + 1;
            int64_t from = begin > at ? begin : at, to = end < at + n ? end : at + n;
            if (from < to)
                memcpy((char *)range[i].to[k] + (from - begin), bytes + (from - at), (size_t)(to - from));
        }
}

Status data_file_scan(DataFile *f, const DataRange *range, int ranges) {
    char path[FILE_PATH_BYTES];
    manifest_path(f->manifest, f->file, path, sizeof path);
    char *piece = malloc(PIECE * sizeof(float));
    REQUIRE(piece, "out of memory: %d values", PIECE);
    int64_t bytes = entry(f)->bytes; // manifest_read has seen that it has so many
    int next[STATE_KINDS] = {0};
    uint32_t crc = 0;
    Status status = OK;
    for (int64_t at = 0, n; at < bytes && status == OK; at += n) {
        n = bytes - at < (int64_t)(PIECE * sizeof(float)) ? bytes - at : (int64_t)(PIECE * sizeof(float));
        status = read_bytes(f, at, piece, (size_t)n);
        if (status != OK) break;
        crc = crc32c(crc, piece, (size_t)n);
        fill_ranges(f, piece, at, n, range, ranges, next);
    }
    free(piece);
    TRY(status);
    return judge_file(f, path, bytes, crc);
}

Status data_file_check(DataFile *f) {
    char path[FILE_PATH_BYTES];
    if (f->checked) return OK;
    manifest_path(f->manifest, f->file, path, sizeof path);
    TRY(data_file_checksum(f));
    if (f->manifest->zlib && entry(f)->elements) TRY(open_checked(f, path));
    f->checked = true;
    return OK;
}
