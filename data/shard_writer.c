// SPDX-License-Identifier: Apache-2.0
#include "core/crc32c.h"
#include "data/output_file.h"
#include "data/shard.h"
#include "data/shard_sums.h"
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { LARGEST_U16_VOCAB = 65499, CHUNK_TOKENS = 65536 };

typedef struct {
    void *data;
    int64_t count, capacity, width;
} List;

struct ShardWriter {
    char *prefix;
    OutputFile bin, idx, crc;
    int vocab;
    TokenType type;
    int64_t tokens;
    ShardSums sums;
    uint32_t idx_crc; // of what has been written to idx
    int64_t idx_bytes;
    List length; // int32_t, a sequence each
    List first;  // int64_t, a document each: its first sequence
};

static void *list_push(List *list) {
    if (list->count == list->capacity) {
        list->capacity = list->capacity ? 2 * list->capacity : 1024;
        list->data = realloc(list->data, (size_t)(list->capacity * list->width));
        REQUIRE(list->data, "out of memory for the index of %lld documents", (long long)list->capacity);
    }
    return (char *)list->data + list->width * list->count++;
}

static void push_first(ShardWriter *writer) {
    *(int64_t *)list_push(&writer->first) = writer->length.count;
}

static void writer_free(ShardWriter *writer) {
    free(writer->prefix);
    free(writer->length.data);
    free(writer->first.data);
    shard_sums_free(&writer->sums);
    free(writer);
}

static Status open_files(ShardWriter *writer) {
    char path[PATH_MAX];
    snprintf(path, sizeof path, "%s.bin", writer->prefix);
    TRY(output_open(&writer->bin, path));
    snprintf(path, sizeof path, "%s.idx", writer->prefix);
    TRY(output_open(&writer->idx, path));
    snprintf(path, sizeof path, "%s.crc", writer->prefix);
    return output_open(&writer->crc, path);
}

Status shard_writer_create(ShardWriter **out, const char *prefix, int vocab) {
    *out = NULL;
    if (strlen(prefix) > PATH_MAX - 16) FAIL(ERR_CONFIG, "the name %.64s… is too long", prefix);
    ShardWriter *writer = calloc(1, sizeof *writer);
    REQUIRE(writer, "out of memory");
    writer->prefix = strdup(prefix);
    writer->vocab = vocab;
    writer->type = vocab <= LARGEST_U16_VOCAB ? TOKEN_U16 : TOKEN_I32;
    writer->length.width = sizeof(int32_t);
    writer->first.width = sizeof(int64_t);
    Status status = open_files(writer);
    if (status != OK) {
        shard_writer_cancel(writer);
        return status;
    }
    *out = writer;
    return OK;
}

static Status write_bin(ShardWriter *writer, const void *data, int64_t bytes) {
    shard_sums_add(&writer->sums, data, bytes);
    return output_write(&writer->bin, data, bytes);
}

static Status write_tokens(ShardWriter *writer, const int32_t *tokens, int64_t count) {
    uint16_t narrow[CHUNK_TOKENS];
    for (int64_t done = 0; done < count;) {
        int64_t n = count - done < CHUNK_TOKENS ? count - done : CHUNK_TOKENS;
        for (int64_t i = 0; i < n; i++) {
            int32_t token = tokens[done + i];
            REQUIRE(token >= 0 && token < writer->vocab, "%s: token %lld is %d, vocabulary %d",
                    writer->prefix, (long long)(writer->tokens + done + i), token, writer->vocab);
            narrow[i] = (uint16_t)token;
        }
        if (writer->type == TOKEN_U16)
            TRY(write_bin(writer, narrow, n * (int64_t)sizeof narrow[0]));
        else
            TRY(write_bin(writer, tokens + done, n * (int64_t)sizeof tokens[0]));
        done += n;
    }
    return OK;
}

Status shard_writer_add(ShardWriter *writer, const int32_t *tokens, int64_t count) {
    push_first(writer);
    for (int64_t left = count; left > 0;) {
        int32_t length = left < INT32_MAX ? (int32_t)left : INT32_MAX;
        *(int32_t *)list_push(&writer->length) = length;
        left -= length;
    }
    TRY(write_tokens(writer, tokens, count));
    writer->tokens += count;
    return OK;
}

int64_t shard_writer_tokens(const ShardWriter *writer) {
    return writer->tokens;
}

static Status write_idx(ShardWriter *writer, const void *data, int64_t bytes) {
    writer->idx_crc = crc32c(writer->idx_crc, data, (size_t)bytes);
    writer->idx_bytes += bytes;
    return output_write(&writer->idx, data, bytes);
}

static Status write_index(ShardWriter *writer) {
    int64_t version = 1, sequences = writer->length.count, bounds = writer->first.count, offset = 0;
    uint8_t type = (uint8_t)writer->type;
    TRY(write_idx(writer, "MMIDIDX\0", 9));
    TRY(write_idx(writer, &version, 8));
    TRY(write_idx(writer, &type, 1));
    TRY(write_idx(writer, &sequences, 8));
    TRY(write_idx(writer, &bounds, 8));
    TRY(write_idx(writer, writer->length.data, 4 * sequences));
    for (int64_t i = 0; i < sequences; i++) {
        TRY(write_idx(writer, &offset, 8));
        offset += ((const int32_t *)writer->length.data)[i] * (int64_t)token_type_bytes(writer->type);
    }
    return write_idx(writer, writer->first.data, 8 * bounds);
}

// The old index goes first and the new one comes last: no moment shows an index beside another shard's tokens
// or checksums.
static Status commit(ShardWriter *writer) {
    TRY(write_index(writer));
    TRY(shard_sums_write(&writer->sums, &writer->crc, writer->idx_bytes, writer->idx_crc));
    TRY(output_sync(&writer->bin));
    TRY(output_sync(&writer->idx));
    TRY(output_sync(&writer->crc));
    unlink(writer->idx.path);
    unlink(writer->crc.path);
    TRY(output_commit(&writer->bin));
    TRY(output_commit(&writer->crc));
    return output_commit(&writer->idx);
}

Status shard_writer_finish(ShardWriter *writer) {
    push_first(writer); // the last bound
    Status status = commit(writer);
    output_cancel(&writer->bin);
    output_cancel(&writer->idx);
    output_cancel(&writer->crc);
    writer_free(writer);
    return status;
}

void shard_writer_cancel(ShardWriter *writer) {
    if (!writer) return;
    output_cancel(&writer->bin);
    output_cancel(&writer->idx);
    output_cancel(&writer->crc);
    writer_free(writer);
}
