// SPDX-License-Identifier: Apache-2.0
// MANIFEST.json: made from what all writers say of their files.
#include "core/crc32c.h"
#include "train/checkpoint_internal.h"
#include <stdlib.h>
#include <string.h>
#include <time.h>

typedef struct {
    int64_t first, count;
    uint32_t crc[STATE_KINDS];
    int tensor;
} Piece;

json_t *manifest_tensor(const char *name, int dims, const int64_t dim[]) {
    json_t *shape = json_array();
    for (int d = 0; d < dims; d++) json_array_append_new(shape, json_integer(dim[d]));
    return json_pack("[s, o]", name, shape);
}

static int tensor_order(const void *a, const void *b) {
    json_t *const *x = a, *const *y = b;
    return checkpoint_name_order(json_string_value(json_array_get(*x, 0)),
                                 json_string_value(json_array_get(*y, 0)));
}

static void sort_tensors(json_t *tensors) {
    size_t count = json_array_size(tensors);
    json_t **entry = malloc((count + 1) * sizeof *entry);
    REQUIRE(entry, "out of memory: %zu tensors", count);
    for (size_t i = 0; i < count; i++) entry[i] = json_incref(json_array_get(tensors, i));
    qsort(entry, count, sizeof *entry, tensor_order);
    json_array_clear(tensors);
    for (size_t i = 0; i < count; i++) json_array_append_new(tensors, entry[i]);
    free(entry);
}

static int find_tensor(const json_t *tensors, const char *name) {
    size_t low = 0, high = json_array_size(tensors);
    while (low < high) {
        size_t middle = (low + high) / 2;
        int order = checkpoint_name_order(
            json_string_value(json_array_get(json_array_get(tensors, middle), 0)), name);
        if (order == 0) return (int)middle;
        if (order < 0)
            low = middle + 1;
        else
            high = middle;
    }
    return -1;
}

static int piece_order(const void *a, const void *b) {
    const Piece *x = a, *y = b;
    if (x->tensor != y->tensor) return x->tensor < y->tensor ? -1 : 1;
    return (x->first > y->first) - (x->first < y->first);
}

// In the files' segments tensors turn from names into numbers; all segments are gathered, sorted, in pieces.
static Status number_segments(const ManifestContent *content, Piece **pieces, int *count) {
    size_t files = json_array_size(content->files), total = 0;
    for (size_t i = 0; i < files; i++)
        total += json_array_size(json_object_get(json_array_get(content->files, i), "segments"));
    Piece *piece = calloc(total + 1, sizeof *piece);
    REQUIRE(piece, "out of memory: %zu segments", total);
    *pieces = piece;
    *count = 0;
    for (size_t i = 0; i < files; i++) {
        json_t *segments = json_object_get(json_array_get(content->files, i), "segments"), *entry;
        size_t s;
        json_array_foreach(segments, s, entry) {
            const char *name = json_string_value(json_array_get(entry, 0));
            Piece *p = &piece[(*count)++];
            p->tensor = name ? find_tensor(content->tensors, name) : -1;
            if (p->tensor < 0)
                FAIL(ERR_RUNTIME, "checkpoint: tensor %s is in no rank's table", name ? name : "?");
            p->first = json_integer_value(json_array_get(entry, 1));
            p->count = json_integer_value(json_array_get(entry, 2));
            for (int k = 0; k < content->states; k++)
                p->crc[k] =
                    (uint32_t)strtoul(json_string_value(json_array_get(entry, 4 + (size_t)k)), NULL, 16);
            json_array_set_new(entry, 0, json_integer(p->tensor));
        }
    }
    qsort(piece, (size_t)*count, sizeof *piece, piece_order);
    return OK;
}

static json_t *crc_text(uint32_t crc) {
    return json_sprintf("%08x", crc);
}

static int64_t entry_elements(const json_t *entry) {
    const json_t *shape = json_array_get(entry, 1);
    int64_t elements = 1;
    for (size_t i = 0; i < json_array_size(shape); i++)
        elements *= json_integer_value(json_array_get(shape, i));
    return elements;
}

// Gives every tensor its checksums and every state its digest, the checksum of all its values in the order of
// the list: neither depends on how many ranks wrote. Fails where an element is missing or there twice.
static Status sum_tensors(const ManifestContent *content, const Piece *piece, int pieces, json_t *digest) {
    uint32_t all[STATE_KINDS] = {0};
    int at_piece = 0;
    size_t i;
    json_t *entry;
    json_array_foreach(content->tensors, i, entry) {
        uint32_t crc[STATE_KINDS] = {0};
        int64_t size = entry_elements(entry), at = 0;
        for (; at_piece < pieces && piece[at_piece].tensor == (int)i && piece[at_piece].first == at;
             at_piece++) {
            const Piece *p = &piece[at_piece];
            for (int k = 0; k < content->states; k++) crc[k] = crc32c_join(crc[k], p->crc[k], 4 * p->count);
            at += p->count;
        }
        if (at != size || (at_piece < pieces && piece[at_piece].tensor == (int)i))
            FAIL(ERR_RUNTIME, "checkpoint: tensor %s: element %ld of %ld is owned by no rank or by two",
                 json_string_value(json_array_get(entry, 0)), (long)at, (long)size);
        for (int k = 0; k < content->states; k++) {
            json_array_append_new(entry, crc_text(crc[k]));
            all[k] = crc32c_join(all[k], crc[k], 4 * size);
        }
    }
    for (int k = 0; k < content->states; k++)
        json_object_set_new(digest, checkpoint_state_name((StateKind)k), crc_text(all[k]));
    return OK;
}

static void print_value(FILE *out, const char *key, const json_t *value) {
    char *text = json_dumps(value, JSON_COMPACT | JSON_ENCODE_ANY);
    REQUIRE(text, "checkpoint: %s cannot be written as JSON", key);
    fprintf(out, "\"%s\":%s", key, text);
    free(text);
}

// One element a line.
static void print_list(FILE *out, const char *key, const json_t *list) {
    fprintf(out, "\"%s\":[", key);
    for (size_t i = 0; i < json_array_size(list); i++) {
        char *text = json_dumps(json_array_get(list, i), JSON_COMPACT);
        REQUIRE(text, "checkpoint: %s cannot be written as JSON", key);
        fprintf(out, "%s\n%s", i ? "," : "", text);
        free(text);
    }
    fprintf(out, "\n]");
}

static json_t *state_names(int states) {
    json_t *names = json_array();
    for (int k = 0; k < states; k++)
        json_array_append_new(names, json_string(checkpoint_state_name((StateKind)k)));
    return names;
}

static void print_manifest(FILE *out, const ManifestContent *content, const json_t *digest) {
    char created[32];
    time_t now = time(NULL);
    struct tm utc;
    strftime(created, sizeof created, "%Y-%m-%dT%H:%M:%SZ", gmtime_r(&now, &utc));
    json_t *states = state_names(content->states);
    fprintf(out,
            "{\n\"format\":\"" CHECKPOINT_FORMAT "\",\n\"version\":%d,\n\"step\":%ld,\n\"permanent\":%s,\n",
            CHECKPOINT_VERSION, (long)content->step, content->permanent ? "true" : "false");
    fprintf(out, "\"compress\":\"%s\",\n\"created\":\"%s\",\n", content->zlib ? "zlib" : "none", created);
    print_value(out, "states", states);
    fprintf(out, ",\n");
    print_value(out, "digest", digest);
    fprintf(out, ",\n");
    print_value(out, "record", content->record);
    fprintf(out, ",\n");
    print_list(out, "tensors", content->tensors);
    fprintf(out, ",\n");
    print_list(out, "files", content->files);
    fprintf(out, "\n}\n");
    json_decref(states);
}

void checkpoint_digest(const json_t *digest, char out[CHECKPOINT_DIGEST_BYTES]) {
    int length = 0;
    for (int k = 0; k < STATE_KINDS; k++) {
        const char *text = json_string_value(json_object_get(digest, checkpoint_state_name((StateKind)k)));
        length += snprintf(out + length, CHECKPOINT_DIGEST_BYTES - (size_t)length, "%.8s.", text ? text : "");
    }
}

Status manifest_text(const ManifestContent *content, char **text, size_t *bytes) {
    Piece *piece = NULL;
    int pieces = 0;
    json_t *digest = json_object();
    *text = NULL;
    sort_tensors(content->tensors);
    Status status = number_segments(content, &piece, &pieces);
    if (status == OK) status = sum_tensors(content, piece, pieces, digest);
    free(piece);
    if (status == OK) {
        FILE *out = open_memstream(text, bytes);
        REQUIRE(out, "out of memory: manifest");
        print_manifest(out, content, digest);
        if (content->digest) checkpoint_digest(digest, content->digest);
        fflush(out);
        fprintf(out, "{\"crc32c\":\"%08x\"}\n", crc32c(0, *text, *bytes));
        REQUIRE(fclose(out) == 0, "out of memory: manifest");
    }
    json_decref(digest);
    return status;
}
