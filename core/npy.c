// SPDX-License-Identifier: Apache-2.0
#include "core/npy.h"
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct NpyWriter {
    FILE *file;
    char *path;
    size_t expected, written;
};

static const char magic[8] = "\x93NUMPY\x01"; // and version 1.0: the last byte is 0

static size_t element_bytes(const char *descr) {
    return (size_t)strtoul(descr + 2, NULL, 10);
}

static size_t array_bytes(const char *descr, int dims, const int64_t dim[]) {
    size_t bytes = element_bytes(descr);
    for (int i = 0; i < dims; i++) bytes *= (size_t)dim[i];
    return bytes;
}

// The header's dictionary, padded so that the data begins at a multiple of 64.
static int header_text(char *out, size_t size, const char *descr, int dims, const int64_t dim[]) {
    int n = snprintf(out, size, "{'descr': '%s', 'fortran_order': False, 'shape': (", descr);
    for (int i = 0; i < dims; i++)
        n += snprintf(out + n, size - (size_t)n, i ? ", %lld" : "%lld", (long long)dim[i]);
    n += snprintf(out + n, size - (size_t)n,
                  dims == 1 ? ",), }" : "), }"); // (3,) and (8, 24), as numpy has it
    while ((n + 11) % 64 != 0) out[n++] = ' ';
    out[n++] = '\n';
    return n;
}

Status npy_create(NpyWriter **out, const char *path, const char *descr, int dims, const int64_t dim[]) {
    REQUIRE(dims >= 1 && dims <= NPY_MAX_DIMS, "%d dimensions", dims);
    FILE *file = fopen(path, "wb");
    if (!file) FAIL(ERR_RUNTIME, "%s: %s", path, strerror(errno));
    char header[512];
    int length = header_text(header, sizeof header - 64, descr, dims, dim);
    unsigned char size[2] = {(unsigned char)(length & 255), (unsigned char)(length >> 8)};
    if (fwrite(magic, 1, 8, file) != 8 || fwrite(size, 1, 2, file) != 2 ||
        fwrite(header, 1, (size_t)length, file) != (size_t)length) {
        fclose(file);
        FAIL(ERR_RUNTIME, "%s: %s", path, strerror(errno));
    }
    NpyWriter *writer = calloc(1, sizeof *writer);
    *writer = (NpyWriter){file, strdup(path), array_bytes(descr, dims, dim), 0};
    *out = writer;
    return OK;
}

Status npy_write(NpyWriter *writer, const void *data, size_t bytes) {
    if (fwrite(data, 1, bytes, writer->file) != bytes)
        FAIL(ERR_RUNTIME, "%s: %s", writer->path, strerror(errno));
    writer->written += bytes;
    return OK;
}

static Status close_file(const NpyWriter *writer) {
    if (fclose(writer->file) != 0) FAIL(ERR_RUNTIME, "%s: %s", writer->path, strerror(errno));
    if (writer->written != writer->expected)
        FAIL(ERR_RUNTIME, "%s: %zu bytes written, its shape has %zu", writer->path, writer->written,
             writer->expected);
    return OK;
}

Status npy_close(NpyWriter *writer) {
    Status status = close_file(writer);
    free(writer->path);
    free(writer);
    return status;
}

static Status parse_header(NpyArray *out, const char *header, const char *path) {
    const char *descr = strstr(header, "'descr': '"), *shape = strstr(header, "'shape': (");
    if (!descr || !shape || !strstr(header, "'fortran_order': False"))
        FAIL(ERR_DATA, "%s: header %.80s: only C order arrays are read", path, header);
    descr += strlen("'descr': '");
    size_t length = strcspn(descr, "'");
    if (length >= sizeof out->descr || descr[0] == '>' || length < 3)
        FAIL(ERR_DATA, "%s: element type %.16s is not read", path, descr);
    memcpy(out->descr, descr, length);
    out->descr[length] = 0;
    char *at = (char *)shape + strlen("'shape': (");
    for (out->dims = 0; *at && *at != ')';) {
        char *end;
        int64_t value = strtoll(at, &end, 10);
        if (end == at || value < 0 || out->dims == NPY_MAX_DIMS)
            FAIL(ERR_DATA, "%s: bad shape %.40s", path, shape);
        out->dim[out->dims++] = value;
        at = end + strspn(end, ", ");
    }
    return OK;
}

static Status read_file(NpyArray *out, const char *path, FILE *file) {
    unsigned char start[10];
    if (fread(start, 1, 10, file) != 10 || memcmp(start, magic, 8) != 0)
        FAIL(ERR_DATA, "%s: not a .npy file of format 1.0", path);
    size_t length = start[8] | (size_t)start[9] << 8;
    char header[65536];
    if (fread(header, 1, length, file) != length) FAIL(ERR_DATA, "%s: ends within its header", path);
    header[length] = 0;
    TRY(parse_header(out, header, path));
    out->bytes = array_bytes(out->descr, out->dims, out->dim);
    out->data = malloc(out->bytes + 1);
    REQUIRE(out->data, "%s: no memory for %zu bytes", path, out->bytes);
    size_t got = fread(out->data, 1, out->bytes, file);
    if (got != out->bytes) FAIL(ERR_DATA, "%s: has %zu bytes of data, its shape %zu", path, got, out->bytes);
    return OK;
}

Status npy_read(NpyArray *out, const char *path) {
    *out = (NpyArray){0};
    FILE *file = fopen(path, "rb");
    if (!file) FAIL(ERR_DATA, "%s: %s", path, strerror(errno));
    Status status = read_file(out, path, file);
    fclose(file);
    if (status != OK) npy_free(out);
    return status;
}

void npy_free(NpyArray *array) {
    free(array->data);
    *array = (NpyArray){0};
}
