// SPDX-License-Identifier: Apache-2.0
// MANIFEST.json: read and checked.
#include "core/crc32c.h"
#include "train/checkpoint_internal.h"
#include <ctype.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

const char *checkpoint_state_name(StateKind kind) {
    return (const char *const[]){"master", "m", "v"}[kind];
}

const char *checkpoint_state_dataset(StateKind kind) {
    return (const char *const[]){"/state/master", "/state/m", "/state/v"}[kind];
}

int checkpoint_name_order(const char *a, const char *b) {
    while (*a && *b) {
        if (isdigit((unsigned char)*a) && isdigit((unsigned char)*b)) {
            char *a_end, *b_end;
            unsigned long x = strtoul(a, &a_end, 10), y = strtoul(b, &b_end, 10);
            if (x != y) return x < y ? -1 : 1;
            if (a_end - a != b_end - b) return a_end - a < b_end - b ? -1 : 1;
            a = a_end;
            b = b_end;
        } else if (*a != *b)
            return (unsigned char)*a < (unsigned char)*b ? -1 : 1;
        else
            a++, b++;
    }
    return (*a != 0) - (*b != 0);
}

int64_t checkpoint_elements(int dims, const int64_t dim[]) {
    return dims == 2 ? dim[0] * dim[1] : dim[0];
}

void manifest_path(const Manifest *m, int file, char *path, size_t size) {
    snprintf(path, size, "%s/%s", m->dir, m->file[file].name);
}

#define DAMAGED(m, ...) FAIL(ERR_DATA, "%s/" CHECKPOINT_MANIFEST ": " __VA_ARGS__)

// The body ends with a newline; after it stands exactly {"crc32c":"xxxxxxxx"} and a newline.
static Status split_crc_line(const char *dir, const char *text, size_t bytes, size_t *body, uint32_t *crc) {
    enum { LINE = 22 };
    if (bytes < LINE + 1) FAIL(ERR_DATA, "%s/" CHECKPOINT_MANIFEST ": %zu bytes: too short", dir, bytes);
    *body = bytes - (size_t)LINE;
    char expected[LINE + 1];
    *crc = crc32c(0, text, *body);
    snprintf(expected, sizeof expected, "{\"crc32c\":\"%08x\"}\n", *crc);
    if (memcmp(text + *body, expected, strlen(expected)) || strlen(expected) != LINE)
        FAIL(ERR_DATA, "%s/" CHECKPOINT_MANIFEST ": damaged: its last line is not %.*s", dir, LINE - 2,
             expected);
    return OK;
}

static bool parse_crc(const json_t *value, uint32_t *out) {
    const char *text = json_string_value(value);
    if (!text || strlen(text) != 8 || strspn(text, "0123456789abcdef") != 8) return false;
    *out = (uint32_t)strtoul(text, NULL, 16);
    return true;
}

static bool parse_count(const json_t *value, int64_t *out) {
    *out = json_integer_value(value);
    return json_is_integer(value) && *out >= 0;
}

static bool parse_shape(const json_t *value, int *dims, int64_t dim[2]) {
    *dims = (int)json_array_size(value);
    if (*dims < 1 || *dims > 2) return false;
    for (int i = 0; i < *dims; i++)
        if (!parse_count(json_array_get(value, (size_t)i), &dim[i]) || dim[i] < 1) return false;
    return *dims == 1 || dim[0] <= INT64_MAX / 16 / dim[1];
}

static void *entries(size_t count, size_t size) {
    void *memory = calloc(count + 1, size);
    REQUIRE(memory, "out of memory: manifest with %zu entries", count);
    return memory;
}

// ["name", [dims], "crc of master", …]
static Status parse_tensors(Manifest *m) {
    json_t *list = json_object_get(m->json, "tensors");
    m->tensors = (int)json_array_size(list);
    m->tensor = entries((size_t)m->tensors, sizeof *m->tensor);
    for (int i = 0; i < m->tensors; i++) {
        const json_t *entry = json_array_get(list, (size_t)i);
        ManifestTensor *t = &m->tensor[i];
        t->name = json_string_value(json_array_get(entry, 0));
        bool good = t->name && strlen(t->name) < CHECKPOINT_NAME_BYTES &&
                    parse_shape(json_array_get(entry, 1), &t->dims, t->dim);
        for (int k = 0; good && k < m->states; k++)
            good = parse_crc(json_array_get(entry, 2 + (size_t)k), &t->crc[k]);
        if (!good) DAMAGED(m, "tensor %d is not [name, shape, checksums]", m->dir, i);
        if (i && checkpoint_name_order(m->tensor[i - 1].name, t->name) >= 0)
            DAMAGED(m, "tensor %s is out of order", m->dir, t->name);
    }
    return OK;
}

// [tensor, first, count, pos, "crc of master", …]
static bool parse_segment(const Manifest *m, const json_t *entry, ManifestSegment *s) {
    int64_t tensor;
    bool good = parse_count(json_array_get(entry, 0), &tensor) && tensor < m->tensors &&
                parse_count(json_array_get(entry, 1), &s->first) &&
                parse_count(json_array_get(entry, 2), &s->count) &&
                parse_count(json_array_get(entry, 3), &s->pos) && s->count > 0;
    if (!good) return false;
    s->tensor = (int)tensor;
    for (int k = 0; k < m->states; k++)
        if (!parse_crc(json_array_get(entry, 4 + (size_t)k), &s->crc[k])) return false;
    const ManifestTensor *t = &m->tensor[tensor];
    int64_t size = checkpoint_elements(t->dims, t->dim), room = m->file[s->file].elements;
    return s->first <= size && s->count <= size - s->first && s->pos <= room && s->count <= room - s->pos;
}

static bool parse_buffer(const Manifest *m, const json_t *entry, ManifestBuffer *b) {
    b->name = json_string_value(json_array_get(entry, 0));
    if (!b->name || !parse_shape(json_array_get(entry, 1), &b->dims, b->dim) ||
        !parse_count(json_array_get(entry, 2), &b->offset) || !parse_crc(json_array_get(entry, 3), &b->crc))
        return false;
    int64_t bytes = 4 * checkpoint_elements(b->dims, b->dim), room = m->file[b->file].bytes;
    return b->offset <= room && bytes <= room - b->offset;
}

static bool parse_file(Manifest *m, const json_t *entry, ManifestFile *f) {
    f->name = json_string_value(json_object_get(entry, "name"));
    if (!f->name || strchr(f->name, '/') || !parse_count(json_object_get(entry, "bytes"), &f->bytes) ||
        !parse_crc(json_object_get(entry, "crc32c"), &f->crc) ||
        !parse_count(json_object_get(entry, "elements"), &f->elements))
        return false;
    const json_t *offsets = json_object_get(entry, "offsets");
    for (int k = 0; k < STATE_KINDS; k++) {
        f->offset[k] = -1;
        if (m->zlib || k >= m->states || f->elements == 0) continue;
        int64_t at;
        if (!parse_count(json_array_get(offsets, (size_t)k), &at) || at > f->bytes ||
            f->elements > (f->bytes - at) / 4)
            return false;
        f->offset[k] = at;
    }
    return true;
}

// Counts the entries of all files' arrays under key, so that one allocation holds them.
static int count_all(const json_t *files, const char *key) {
    size_t count = 0;
    for (size_t i = 0; i < json_array_size(files); i++)
        count += json_array_size(json_object_get(json_array_get(files, i), key));
    return (int)count;
}

static Status parse_files(Manifest *m) {
    json_t *list = json_object_get(m->json, "files");
    m->files = (int)json_array_size(list);
    m->file = entries((size_t)m->files, sizeof *m->file);
    m->segment = entries((size_t)count_all(list, "segments"), sizeof *m->segment);
    m->buffer = entries((size_t)count_all(list, "buffers"), sizeof *m->buffer);
    for (int i = 0; i < m->files; i++) {
        const json_t *entry = json_array_get(list, (size_t)i);
        if (!parse_file(m, entry, &m->file[i])) DAMAGED(m, "the entry of file %d is malformed", m->dir, i);
        const json_t *segments = json_object_get(entry, "segments"),
                     *buffers = json_object_get(entry, "buffers");
        for (size_t s = 0; s < json_array_size(segments); s++) {
            ManifestSegment *segment = &m->segment[m->segments++];
            segment->file = i;
            if (!parse_segment(m, json_array_get(segments, s), segment))
                DAMAGED(m, "segment %zu of %s is malformed", m->dir, s, m->file[i].name);
        }
        for (size_t b = 0; b < json_array_size(buffers); b++) {
            ManifestBuffer *buffer = &m->buffer[m->buffers++];
            buffer->file = i;
            if (!parse_buffer(m, json_array_get(buffers, b), buffer))
                DAMAGED(m, "buffer %zu of %s is malformed", m->dir, b, m->file[i].name);
        }
    }
    return OK;
}

static int segment_order(const void *a, const void *b) {
    const ManifestSegment *x = a, *y = b;
    if (x->tensor != y->tensor) return x->tensor < y->tensor ? -1 : 1;
    return (x->first > y->first) - (x->first < y->first);
}

// Every element of every tensor exactly once.
static Status check_cover(Manifest *m) {
    qsort(m->segment, (size_t)m->segments, sizeof *m->segment, segment_order);
    int s = 0;
    for (int i = 0; i < m->tensors; i++) {
        ManifestTensor *t = &m->tensor[i];
        int64_t size = checkpoint_elements(t->dims, t->dim), at = 0;
        t->segment = s;
        while (s < m->segments && m->segment[s].tensor == i && m->segment[s].first == at)
            at += m->segment[s++].count;
        t->segments = s - t->segment;
        if (at != size || (s < m->segments && m->segment[s].tensor == i))
            DAMAGED(m, "tensor %s: element %ld of %ld is missing or there twice", m->dir, t->name, (long)at,
                    (long)size);
    }
    return OK;
}

static Status check_sizes(const Manifest *m) {
    for (int i = 0; i < m->files; i++) {
        char path[FILE_PATH_BYTES];
        struct stat info;
        manifest_path(m, i, path, sizeof path);
        if (stat(path, &info)) FAIL(ERR_DATA, "%s: %s", path, strerror(errno));
        if (!S_ISREG(info.st_mode) || info.st_size != m->file[i].bytes)
            FAIL(ERR_DATA, "%s: has %ld bytes, the manifest says %ld", path, (long)info.st_size,
                 (long)m->file[i].bytes);
    }
    return OK;
}

static Status parse(Manifest *m) {
    const char *format = json_string_value(json_object_get(m->json, "format"));
    int64_t version = json_integer_value(json_object_get(m->json, "version"));
    if (!format || strcmp(format, CHECKPOINT_FORMAT)) DAMAGED(m, "is not a checkpoint of floe", m->dir);
    if (version != CHECKPOINT_VERSION)
        FAIL(ERR_CONFIG, "%s/" CHECKPOINT_MANIFEST ": version %ld of the format; this floe reads version %d",
             m->dir, (long)version, CHECKPOINT_VERSION);
    const char *compress = json_string_value(json_object_get(m->json, "compress"));
    m->zlib = compress && !strcmp(compress, "zlib");
    m->permanent = json_is_true(json_object_get(m->json, "permanent"));
    m->states = (int)json_array_size(json_object_get(m->json, "states"));
    if (!parse_count(json_object_get(m->json, "step"), &m->step) ||
        (m->states != 1 && m->states != STATE_KINDS) || !compress || (!m->zlib && strcmp(compress, "none")))
        DAMAGED(m, "step, states or compress is malformed", m->dir);
    TRY(parse_tensors(m));
    TRY(parse_files(m));
    TRY(check_cover(m));
    return check_sizes(m);
}

static Status read_json(Manifest *m) {
    char path[FILE_PATH_BYTES], *text;
    size_t bytes, body = 0;
    snprintf(path, sizeof path, "%s/" CHECKPOINT_MANIFEST, m->dir);
    TRY(file_read_all(path, &text, &bytes));
    Status status = split_crc_line(m->dir, text, bytes, &body, &m->crc);
    json_error_t error;
    if (status == OK) m->json = json_loadb(text, body, JSON_REJECT_DUPLICATES, &error);
    free(text);
    TRY(status);
    if (!m->json) DAMAGED(m, "line %d: %s", m->dir, error.line, error.text);
    return OK;
}

Status manifest_read(Manifest *m, const char *dir) {
    *m = (Manifest){.dir = strdup(dir)};
    REQUIRE(m->dir, "out of memory");
    Status status = read_json(m);
    if (status == OK) status = parse(m);
    if (status != OK) manifest_free(m);
    return status;
}

void manifest_free(Manifest *m) {
    free(m->dir);
    json_decref(m->json);
    free(m->tensor);
    free(m->file);
    free(m->segment);
    free(m->buffer);
    *m = (Manifest){0};
}

int manifest_find(const Manifest *m, const char *name) {
    int low = 0, high = m->tensors;
    while (low < high) {
        int middle = (low + high) / 2, order = checkpoint_name_order(m->tensor[middle].name, name);
        if (order == 0) return middle;
        if (order < 0)
            low = middle + 1;
        else
            high = middle;
    }
    return -1;
}

Status checkpoint_manifest(const char *dir, json_t **json) {
    Manifest m;
    TRY(manifest_read(&m, dir));
    *json = json_incref(m.json);
    manifest_free(&m);
    return OK;
}
