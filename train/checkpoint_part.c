// SPDX-License-Identifier: Apache-2.0
// One data file of a checkpoint: a snapshot of some of the state, then its HDF5 file.
#include "core/crc32c.h"
#include "core/file.h"
#include "train/checkpoint_internal.h"
#include <stdlib.h>
#include <string.h>

Part part_create(int states, int64_t capacity) {
    Part part = {.states = states, .capacity = capacity};
    for (int k = 0; k < states; k++) {
        size_t bytes = (size_t)capacity * sizeof(float) / FILE_ALIGNMENT * FILE_ALIGNMENT + FILE_ALIGNMENT;
        part.state[k] = aligned_alloc(FILE_ALIGNMENT, bytes);
        REQUIRE(part.state[k], "out of memory: %ld bytes for a checkpoint's snapshot", (long)(capacity * 4));
    }
    return part;
}

void part_free(Part *part) {
    for (int k = 0; k < part->states; k++) free(part->state[k]);
    free(part->segment);
    part_clear(part);
    free(part->buffer);
    *part = (Part){0};
}

void part_clear(Part *part) {
    for (int i = 0; i < part->buffers; i++) free(part->buffer[i].data);
    part->elements = 0;
    part->segments = 0;
    part->buffers = 0;
}

void part_add_buffer(Part *part, const CheckpointBuffer *buffer) {
    size_t bytes = (size_t)checkpoint_elements(buffer->dims, buffer->dim) * sizeof(float);
    part->buffer = realloc(part->buffer, (size_t)(part->buffers + 1) * sizeof *part->buffer);
    float *data = malloc(bytes + 1);
    REQUIRE(part->buffer && data, "out of memory: buffer %s", buffer->name);
    memcpy(data, buffer->data, bytes);
    part->buffer[part->buffers] = *buffer;
    part->buffer[part->buffers++].data = data;
}

int64_t part_add(Part *part, const char *name, int dims, const int64_t dim[], int64_t first, int64_t count) {
    REQUIRE(count <= part->capacity - part->elements, "%s: %ld elements do not fit", name, (long)count);
    if (part->segments == part->segment_capacity) {
        part->segment_capacity = 2 * part->segment_capacity + 16;
        part->segment = realloc(part->segment, (size_t)part->segment_capacity * sizeof *part->segment);
        REQUIRE(part->segment, "out of memory: %d segments", part->segment_capacity);
    }
    PartSegment *s = &part->segment[part->segments++];
    *s = (PartSegment){.name = name, .dims = dims, .first = first, .count = count, .pos = part->elements};
    for (int i = 0; i < dims; i++) s->dim[i] = dim[i];
    part->elements += count;
    return s->pos;
}

void part_seal(Part *part) {
    for (int i = 0; i < part->segments; i++) {
        PartSegment *s = &part->segment[i];
        for (int k = 0; k < part->states; k++)
            s->crc[k] = crc32c(0, part->state[k] + s->pos, (size_t)s->count * sizeof(float));
    }
}

// ---- the HDF5 file

static Status write_attributes(const Part *part, const PartPlace *place, Hdf5Image *image) {
    TRY(hdf5_image_attribute_text(image, "format", CHECKPOINT_FORMAT));
    TRY(hdf5_image_attribute_i64(image, "version", CHECKPOINT_VERSION));
    TRY(hdf5_image_attribute_i64(image, "step", place->step));
    TRY(hdf5_image_attribute_text(image, "file", place->file));
    return hdf5_image_attribute_i64(image, "elements", part->elements);
}

// The segment table, column by column: /segments/{name,shape,range,crc32c}.
static Status write_segments(const Part *part, Hdf5Image *image) {
    size_t n = (size_t)part->segments;
    char *name = calloc(n + 1, CHECKPOINT_NAME_BYTES);
    int64_t *shape = calloc(n + 1, 2 * sizeof *shape), *range = calloc(n + 1, 3 * sizeof *range);
    uint32_t *crc = calloc(n + 1, STATE_KINDS * sizeof *crc);
    REQUIRE(name && shape && range && crc, "out of memory: table of %zu segments", n);
    for (size_t i = 0; i < n; i++) {
        const PartSegment *s = &part->segment[i];
        snprintf(name + i * CHECKPOINT_NAME_BYTES, CHECKPOINT_NAME_BYTES, "%s", s->name);
        memcpy(shape + 2 * i, s->dim, 2 * sizeof *shape);
        memcpy(range + 3 * i, (int64_t[]){s->first, s->count, s->pos}, 3 * sizeof *range);
        memcpy(crc + i * (size_t)part->states, s->crc, (size_t)part->states * sizeof *crc);
    }
    Status status = hdf5_image_names(image, "/segments/name", name, (int64_t)n, CHECKPOINT_NAME_BYTES);
    if (status == OK) status = hdf5_image_i64(image, "/segments/shape", shape, (int64_t)n, 2);
    if (status == OK) status = hdf5_image_i64(image, "/segments/range", range, (int64_t)n, 3);
    if (status == OK) status = hdf5_image_u32(image, "/segments/crc32c", crc, (int64_t)n, part->states);
    free(name);
    free(shape);
    free(range);
    free(crc);
    return status;
}

// Compressed values lie in the image; plain ones stay where they are and are written from there.
static Status write_state(const Part *part, const PartPlace *place, Hdf5Image *image, int64_t offset[]) {
    for (int k = 0; k < part->states; k++) {
        const char *name = checkpoint_state_dataset((StateKind)k);
        offset[k] = -1;
        if (place->zlib)
            TRY(hdf5_image_f32_zlib(image, name, part->state[k], part->elements));
        else
            TRY(hdf5_image_f32_apart(image, name, part->elements, &offset[k]));
    }
    return OK;
}

static json_t *shape_json(int dims, const int64_t dim[]) {
    json_t *shape = json_array();
    for (int i = 0; i < dims; i++) json_array_append_new(shape, json_integer(dim[i]));
    return shape;
}

static Status write_buffers(const Part *part, Hdf5Image *image, json_t *list) {
    for (int i = 0; i < part->buffers; i++) {
        const CheckpointBuffer *b = &part->buffer[i];
        char name[CHECKPOINT_NAME_BYTES + 16];
        int64_t offset;
        snprintf(name, sizeof name, "/buffers/%s", b->name);
        TRY(hdf5_image_f32(image, name, b->data, b->dims, b->dim));
        TRY(hdf5_image_offset(image, name, &offset));
        uint32_t crc = crc32c(0, b->data, (size_t)checkpoint_elements(b->dims, b->dim) * sizeof(float));
        json_array_append_new(list, json_pack("[s, o, I, o]", b->name, shape_json(b->dims, b->dim),
                                              (json_int_t)offset, json_sprintf("%08x", crc)));
    }
    return OK;
}

static Status fill_image(const Part *part, const PartPlace *place, Hdf5Image *image, json_t *buffers,
                         int64_t offset[]) {
    TRY(write_attributes(part, place, image));
    TRY(hdf5_image_group(image, "/segments"));
    TRY(write_segments(part, image));
    TRY(hdf5_image_group(image, "/buffers"));
    TRY(write_buffers(part, image, buffers));
    TRY(hdf5_image_group(image, "/state"));
    return write_state(part, place, image, offset);
}

static json_t *describe_segments(const Part *part) {
    json_t *list = json_array();
    for (int i = 0; i < part->segments; i++) {
        const PartSegment *s = &part->segment[i];
        json_t *entry = json_pack("[s, I, I, I]", s->name, (json_int_t)s->first, (json_int_t)s->count,
                                  (json_int_t)s->pos);
        for (int k = 0; k < part->states; k++) json_array_append_new(entry, json_sprintf("%08x", s->crc[k]));
        json_array_append_new(list, entry);
    }
    return list;
}

// The file: the image, with the states that are not in it where they belong.
typedef struct {
    const char *image;
    size_t held;   // bytes of it; zeros follow
    int64_t bytes; // of the file
    FilePiece piece[2 * STATE_KINDS + 1];
    int pieces;
    uint32_t crc;
} PartFile;

static void add_image(PartFile *file, int64_t from, int64_t to) {
    static const char zeros[FILE_ALIGNMENT];
    int64_t held = to < (int64_t)file->held ? to : (int64_t)file->held;
    if (from < held) {
        FilePiece p = {.data = file->image + from, .offset = from, .bytes = (size_t)(held - from)};
        file->crc = crc32c(file->crc, p.data, p.bytes);
        file->piece[file->pieces++] = p;
        from = held;
    }
    for (int64_t left = to - from, some; left > 0; left -= some) {
        some = left < FILE_ALIGNMENT ? left : FILE_ALIGNMENT;
        file->crc = crc32c(file->crc, zeros, (size_t)some);
    }
}

// Its segments lie one behind the other, and their checksums were made with the copy.
static void add_state(PartFile *file, const Part *part, int kind, int64_t offset) {
    file->piece[file->pieces++] = (FilePiece){
        .data = part->state[kind], .offset = offset, .bytes = (size_t)part->elements * sizeof(float)};
    for (int i = 0; i < part->segments; i++) {
        const PartSegment *s = &part->segment[i];
        file->crc = crc32c_join(file->crc, s->crc[kind], s->count * (int64_t)sizeof(float));
    }
}

static void lay_out(PartFile *file, const Part *part, const int64_t offset[]) {
    int64_t done = 0;
    for (int left = part->elements ? part->states : 0; left > 0; left--) {
        int next = -1;
        for (int k = 0; k < part->states; k++)
            if (offset[k] >= done && (next < 0 || offset[k] < offset[next])) next = k;
        if (next < 0) break; // compressed: all in the image
        add_image(file, done, offset[next]);
        add_state(file, part, next, offset[next]);
        done = offset[next] + part->elements * (int64_t)sizeof(float);
    }
    add_image(file, done, file->bytes);
}

static Status write_part(const Part *part, const PartPlace *place, json_t *description, int64_t *bytes) {
    Hdf5Image *image;
    void *data = NULL;
    size_t held = 0, size = 0;
    int64_t offset[STATE_KINDS], tables = (int64_t)part->segments * 256 + (1 << 16);
    json_t *buffers = json_array(), *offsets = json_array();
    json_object_set_new(description, "buffers", buffers);
    json_object_set_new(description, "offsets", offsets);
    TRY(hdf5_image_create(&image, place->zlib ? tables + part->elements * part->states * 4 : tables));
    Status status = fill_image(part, place, image, buffers, offset);
    if (status == OK)
        status = hdf5_image_finish(image, &data, &held, &size);
    else
        hdf5_image_abandon(image);
    TRY(status);
    char path[FILE_PATH_BYTES];
    snprintf(path, sizeof path, "%s/%s", place->dir, place->file);
    PartFile file = {.image = data, .held = held, .bytes = (int64_t)size};
    lay_out(&file, part, offset);
    for (int k = 0; k < part->states; k++) json_array_append_new(offsets, json_integer(offset[k]));
    json_object_set_new(description, "bytes", json_integer((json_int_t)size));
    json_object_set_new(description, "crc32c", json_sprintf("%08x", file.crc));
    status = file_write_pieces_durable(path, file.piece, file.pieces, file.bytes);
    free(data);
    *bytes = file.bytes;
    return status;
}

Status part_write(const Part *part, const PartPlace *place, json_t **description, int64_t *bytes) {
    *description = json_pack("{s:s, s:I}", "name", place->file, "elements", (json_int_t)part->elements);
    REQUIRE(*description, "out of memory");
    Status status = write_part(part, place, *description, bytes);
    if (status == OK)
        json_object_set_new(*description, "segments", describe_segments(part));
    else {
        json_decref(*description);
        *description = NULL;
    }
    return status;
}
