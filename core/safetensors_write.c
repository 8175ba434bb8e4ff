// SPDX-License-Identifier: Apache-2.0
#ifndef _GNU_SOURCE
#define _GNU_SOURCE // posix_fallocate
#endif
#include "core/safetensors_write.h"
#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { PIECE = 1 << 18 }; // elements converted and written at a time

struct SafetensorsWriter {
    char *path;
    int fd;
    SafetensorsType type;
    int64_t left; // values that are still to come
    uint16_t *half;
};

int safetensors_type_bytes(SafetensorsType type) {
    return type == SAFETENSORS_F32 ? 4 : 2;
}

static Status write_bytes(const SafetensorsWriter *w, const void *data, size_t bytes) {
    for (size_t done = 0; done < bytes;) {
        ssize_t n = write(w->fd, (const char *)data + done, bytes - done);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0)
            FAIL(ERR_RUNTIME, "%s: cannot write: %s; free space or check the disk", w->path,
                 n < 0 ? strerror(errno) : "nothing written");
        done += (size_t)n;
    }
    return OK;
}

// {"name":{"dtype","shape","data_offsets"}, …}, filled up with spaces to a multiple of 8 bytes.
static char *header_text(SafetensorsType type, const SafeTensor tensors[], int count, int64_t *elements) {
    json_t *header = json_pack("{s:{s:s}}", "__metadata__", "format", "pt");
    int64_t at = 0;
    *elements = 0;
    for (int i = 0; i < count; i++) {
        int64_t size = 1;
        json_t *shape = json_array();
        for (int d = 0; d < tensors[i].dims; d++) {
            json_array_append_new(shape, json_integer(tensors[i].dim[d]));
            size *= tensors[i].dim[d];
        }
        int64_t bytes = size * safetensors_type_bytes(type);
        json_t *entry = json_pack("{s:s, s:o, s:[I, I]}", "dtype", type == SAFETENSORS_F32 ? "F32" : "BF16",
                                  "shape", shape, "data_offsets", (json_int_t)at, (json_int_t)(at + bytes));
        REQUIRE(json_object_set_new(header, tensors[i].name, entry) == 0, "out of memory: %d tensors", count);
        at += bytes;
        *elements += size;
    }
    char *text = json_dumps(header, JSON_COMPACT);
    size_t length = text ? strlen(text) : 0;
    char *padded = text ? realloc(text, length + 9) : NULL;
    REQUIRE(padded, "out of memory: %d tensors", count);
    for (; length % 8; length++) padded[length] = ' ';
    padded[length] = 0;
    json_decref(header);
    return padded;
}

// The space is asked for first, so that a full disk shows at once. File systems that cannot are fine.
static Status begin_file(SafetensorsWriter *w, const char *header) {
    unsigned char start[8];
    size_t length = strlen(header);
    for (int i = 0; i < 8; i++) start[i] = (unsigned char)((uint64_t)length >> 8 * i);
    int64_t bytes = 8 + (int64_t)length + w->left * safetensors_type_bytes(w->type);
    int full = posix_fallocate(w->fd, 0, (off_t)bytes);
    if (full == ENOSPC || full == EDQUOT || full == EFBIG)
        FAIL(ERR_RUNTIME, "%s: %s: %ld bytes do not fit; free space", w->path, strerror(full), (long)bytes);
    TRY(write_bytes(w, start, sizeof start));
    return write_bytes(w, header, length);
}

Status safetensors_create(SafetensorsWriter **out, const char *path, SafetensorsType type,
                          const SafeTensor tensors[], int count) {
    *out = NULL;
    int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (fd < 0) FAIL(ERR_RUNTIME, "%s: cannot create: %s", path, strerror(errno));
    SafetensorsWriter *w = malloc(sizeof *w);
    REQUIRE(w, "out of memory");
    *w = (SafetensorsWriter){.path = strdup(path), .fd = fd, .type = type};
    w->half = type == SAFETENSORS_BF16 ? malloc(PIECE * sizeof *w->half) : NULL;
    REQUIRE(w->path && (w->half || type == SAFETENSORS_F32), "out of memory");
    char *header = header_text(type, tensors, count, &w->left);
    Status status = begin_file(w, header);
    free(header);
    if (status == OK)
        *out = w;
    else
        safetensors_discard(w);
    return status;
}

static uint16_t to_brain(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return (uint16_t)(bits >> 16 | 0x40); // NaN stays one
    return (uint16_t)((bits + 0x7fffu + (bits >> 16 & 1)) >> 16);
}

Status safetensors_append(SafetensorsWriter *w, const float *values, int64_t count) {
    REQUIRE(count >= 0 && count <= w->left, "%s: %ld values, but only %ld are left", w->path, (long)count,
            (long)w->left);
    w->left -= count;
    for (int64_t done = 0; done < count; done += PIECE) {
        int64_t n = count - done < PIECE ? count - done : PIECE;
        for (int64_t i = 0; w->half && i < n; i++) w->half[i] = to_brain(values[done + i]);
        const void *data = w->half ? (const void *)w->half : values + done;
        TRY(write_bytes(w, data, (size_t)(n * safetensors_type_bytes(w->type))));
    }
    return OK;
}

static void writer_free(SafetensorsWriter *w) {
    free(w->half);
    free(w->path);
    free(w);
}

Status safetensors_finish(SafetensorsWriter *w) {
    REQUIRE(w->left == 0, "%s: %ld values are missing", w->path, (long)w->left);
    Status status = OK;
    if (fsync(w->fd))
        status =
            status_fail(ERR_RUNTIME, __FILE__, __LINE__, "%s: cannot flush: %s", w->path, strerror(errno));
    if (close(w->fd) && status == OK)
        status =
            status_fail(ERR_RUNTIME, __FILE__, __LINE__, "%s: cannot close: %s", w->path, strerror(errno));
    if (status != OK) unlink(w->path);
    writer_free(w);
    return status;
}

void safetensors_discard(SafetensorsWriter *w) {
    if (!w) return;
    close(w->fd);
    unlink(w->path);
    writer_free(w);
}
