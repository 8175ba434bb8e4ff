// SPDX-License-Identifier: Apache-2.0
#include "core/safetensors.h"
#include "core/file.h"
#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { MAX_HEADER = 100 << 20, PIECE = 1 << 16 }; // the format's own limit; elements converted at a time

struct Safetensors {
    char *path;
    int fd;
    int64_t bytes, data; // of the file; where its data begins
    json_t *header;      // what names and types point into
    SafeTensor *tensor;  // sorted by offset
    int count;
};

static const struct {
    const char *name;
    int bytes;
} types[] = {{"F64", 8}, {"F32", 4}, {"F16", 2},     {"BF16", 2},    {"I64", 8},
             {"I32", 4}, {"I16", 2}, {"I8", 1},      {"U64", 8},     {"U32", 4},
             {"U16", 2}, {"U8", 1},  {"F8_E5M2", 1}, {"F8_E4M3", 1}, {"BOOL", 1}};

static int type_bytes(const char *name) {
    for (size_t i = 0; i < sizeof types / sizeof *types; i++)
        if (!strcmp(types[i].name, name)) return types[i].bytes;
    return 0;
}

// Names go to the terminal: one with control characters in it is refused.
static bool is_plain(const char *text) {
    for (; *text; text++)
        if ((unsigned char)*text < 32 || *text == 127) return false;
    return true;
}

static Status read_shape(const Safetensors *f, SafeTensor *t, const json_t *shape) {
    t->dims = (int)json_array_size(shape);
    t->elements = 1;
    if (!json_is_array(shape) || t->dims > SAFETENSORS_MAX_DIMS)
        FAIL(ERR_DATA, "%s: tensor %.200s: its shape is not a list of at most %d sizes", f->path, t->name,
             SAFETENSORS_MAX_DIMS);
    for (int i = 0; i < t->dims; i++) {
        const json_t *size = json_array_get(shape, (size_t)i);
        t->dim[i] = json_integer_value(size);
        if (!json_is_integer(size) || t->dim[i] < 0 || (t->dim[i] && t->elements > INT64_MAX / 8 / t->dim[i]))
            FAIL(ERR_DATA, "%s: tensor %.200s: size %d of its shape is impossible", f->path, t->name, i);
        t->elements *= t->dim[i];
    }
    return OK;
}

static Status read_tensor(const Safetensors *f, SafeTensor *t, const char *name, const json_t *entry) {
    const json_t *offsets = json_object_get(entry, "data_offsets");
    const json_t *begin = json_array_get(offsets, 0), *end = json_array_get(offsets, 1);
    if (!is_plain(name) || !*name)
        FAIL(ERR_DATA, "%s: a tensor's name is empty or holds control characters", f->path);
    t->name = name;
    t->dtype = json_string_value(json_object_get(entry, "dtype"));
    if (!t->dtype || !type_bytes(t->dtype))
        FAIL(ERR_DATA, "%s: tensor %.200s: unknown type %.20s", f->path, name,
             t->dtype && is_plain(t->dtype) ? t->dtype : "(none)");
    TRY(read_shape(f, t, json_object_get(entry, "shape")));
    if (json_array_size(offsets) != 2 || !json_is_integer(begin) || !json_is_integer(end))
        FAIL(ERR_DATA, "%s: tensor %.200s: data_offsets are not two numbers", f->path, name);
    int64_t first = json_integer_value(begin), last = json_integer_value(end), room = f->bytes - f->data;
    if (first < 0 || last < first || last > room)
        FAIL(ERR_DATA,
             "%s: tensor %.200s: bytes %ld to %ld do not lie in the file's %ld bytes of data; fetch the file "
             "again",
             f->path, name, (long)first, (long)last, (long)room);
    if (last - first != t->elements * type_bytes(t->dtype))
        FAIL(ERR_DATA, "%s: tensor %.200s: %ld elements of %s need %ld bytes, not %ld", f->path, name,
             (long)t->elements, t->dtype, (long)(t->elements * type_bytes(t->dtype)), (long)(last - first));
    t->offset = f->data + first;
    return OK;
}

static int offset_order(const void *a, const void *b) {
    const SafeTensor *x = a, *y = b;
    if (x->offset != y->offset) return x->offset < y->offset ? -1 : 1;
    return (x->elements > y->elements) - (x->elements < y->elements);
}

// The data is the tensors' bytes one after another: no hole, no overlap, nothing behind.
static Status check_layout(const Safetensors *f) {
    int64_t at = f->data;
    for (int i = 0; i < f->count; i++) {
        const SafeTensor *t = &f->tensor[i];
        if (t->offset != at)
            FAIL(ERR_DATA, "%s: tensor %.200s %s at byte %ld", f->path, t->name,
                 t->offset < at ? "overlaps another" : "leaves a hole", (long)at);
        at += t->elements * type_bytes(t->dtype);
    }
    if (at != f->bytes)
        FAIL(ERR_DATA, "%s: %ld bytes of data belong to no tensor", f->path, (long)(f->bytes - at));
    return OK;
}

static Status read_header(Safetensors *f) {
    unsigned char start[8];
    TRY(file_read_at(f->fd, f->path, 0, start, sizeof start));
    uint64_t length = 0;
    for (int i = 7; i >= 0; i--) length = length << 8 | start[i];
    if (length > MAX_HEADER || length > (uint64_t)f->bytes - 8)
        FAIL(ERR_DATA,
             "%s: not a safetensors file, or cut off: a header of %llu bytes (at most %d) in a file of %ld; "
             "fetch it again",
             f->path, (unsigned long long)length, MAX_HEADER, (long)f->bytes);
    char *text = malloc((size_t)length + 1);
    REQUIRE(text, "%s: no memory for a header of %llu bytes", f->path, (unsigned long long)length);
    Status status = file_read_at(f->fd, f->path, 8, text, (size_t)length);
    json_error_t error = {.text = "it does not begin with {"};
    if (status == OK && length && text[0] == '{')
        f->header = json_loadb(text, (size_t)length, JSON_REJECT_DUPLICATES, &error);
    free(text);
    TRY(status);
    if (!json_is_object(f->header)) FAIL(ERR_DATA, "%s: its header is not JSON: %s", f->path, error.text);
    const json_t *metadata = json_object_get(f->header, "__metadata__");
    if (metadata && !json_is_object(metadata)) FAIL(ERR_DATA, "%s: __metadata__ is not an object", f->path);
    f->data = 8 + (int64_t)length;
    return OK;
}

static Status read_file(Safetensors *f) {
    struct stat info;
    f->fd = open(f->path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); // a pipe would be waited for
    if (f->fd < 0 || fstat(f->fd, &info)) FAIL(ERR_DATA, "%s: %s", f->path, strerror(errno));
    if (!S_ISREG(info.st_mode)) FAIL(ERR_DATA, "%s: is not a file", f->path);
    if (info.st_size < 8)
        FAIL(ERR_DATA, "%s: not a safetensors file: %ld bytes, its header's length alone takes 8", f->path,
             (long)info.st_size);
    f->bytes = info.st_size;
    TRY(read_header(f));
    f->tensor = calloc(json_object_size(f->header) + 1, sizeof *f->tensor);
    REQUIRE(f->tensor, "%s: no memory for %zu tensors", f->path, json_object_size(f->header));
    const char *name;
    json_t *entry;
    json_object_foreach(f->header, name, entry) {
        if (!strcmp(name, "__metadata__")) continue;
        TRY(read_tensor(f, &f->tensor[f->count], name, entry));
        f->count++;
    }
    qsort(f->tensor, (size_t)f->count, sizeof *f->tensor, offset_order);
    return check_layout(f);
}

Status safetensors_open(Safetensors **out, const char *path) {
    Safetensors *f = calloc(1, sizeof *f);
    REQUIRE(f && (f->path = strdup(path)), "out of memory");
    f->fd = -1;
    Status status = read_file(f);
    if (status != OK) {
        safetensors_close(f);
        f = NULL;
    }
    *out = f;
    return status;
}

void safetensors_close(Safetensors *f) {
    if (!f) return;
    if (f->fd >= 0) close(f->fd);
    json_decref(f->header);
    free(f->tensor);
    free(f->path);
    free(f);
}

int safetensors_count(const Safetensors *f) {
    return f->count;
}

const SafeTensor *safetensors_tensor(const Safetensors *f, int index) {
    return &f->tensor[index];
}

bool safetensors_converts(const SafeTensor *t) {
    return !strcmp(t->dtype, "F32") || !strcmp(t->dtype, "BF16") || !strcmp(t->dtype, "F16");
}

static float from_bits(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

// IEEE half: 1 sign, 5 exponent (bias 15), 10 mantissa bits. All its values are f32 values.
static float from_half(uint16_t half) {
    uint32_t sign = (uint32_t)(half & 0x8000) << 16, exponent = half >> 10 & 31, mantissa = half & 1023;
    if (exponent == 31) return from_bits(sign | 0x7f800000u | mantissa << 13);
    if (exponent) return from_bits(sign | (exponent + 112) << 23 | mantissa << 13);
    float tiny = (float)mantissa * 0x1p-24f;
    return sign ? -tiny : tiny;
}

static Status read_halves(const Safetensors *f, const SafeTensor *t, int64_t first, int64_t count,
                          float *out) {
    uint16_t piece[PIECE];
    bool brain = !strcmp(t->dtype, "BF16");
    for (int64_t done = 0; done < count; done += PIECE) {
        int64_t n = count - done < PIECE ? count - done : PIECE;
        TRY(file_read_at(f->fd, f->path, t->offset + 2 * (first + done), piece, 2 * (size_t)n));
        for (int64_t i = 0; i < n; i++)
            out[done + i] = brain ? from_bits((uint32_t)piece[i] << 16) : from_half(piece[i]);
    }
    return OK;
}

Status safetensors_read_f32(const Safetensors *f, int index, int64_t first, int64_t count, float *out) {
    const SafeTensor *t = &f->tensor[index];
    REQUIRE(safetensors_converts(t) && first >= 0 && count <= t->elements - first,
            "%s: %s of %s, elements %ld + %ld", f->path, t->name, t->dtype, (long)first, (long)count);
    if (!strcmp(t->dtype, "F32"))
        return file_read_at(f->fd, f->path, t->offset + 4 * first, out, (size_t)count * sizeof *out);
    return read_halves(f, t, first, count, out);
}
