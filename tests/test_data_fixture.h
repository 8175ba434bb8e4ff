// SPDX-License-Identifier: Apache-2.0
// A folder of its own for a test, and token shards in it.
#pragma once
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
// after those
#include "core/file.h"
#include "core/log.h"
#include "core/status.h"
#include "data/shard.h"
#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static char test_folder[64];

static inline int folder_setup(void **state) {
    (void)state;
    log_start(0, LOG_ERROR);
    strcpy(test_folder, "/tmp/floe-test-XXXXXX");
    return mkdtemp(test_folder) ? 0 : -1;
}

static inline int folder_teardown(void **state) {
    (void)state;
    return file_remove_tree(test_folder) == OK ? 0 : -1;
}

// A path in the test's folder, valid until the eighth call after this.
static inline const char *in_test_folder(const char *name) {
    static char path[8][256];
    static int next;
    char *out = path[next++ % 8];
    snprintf(out, sizeof path[0], "%s/%s", test_folder, name);
    return out;
}

static inline void write_bytes(const char *path, const void *data, size_t bytes) {
    FILE *file = fopen(path, "wb");
    assert_non_null(file);
    assert_int_equal(fwrite(data, 1, bytes, file), bytes);
    assert_int_equal(fclose(file), 0);
}

static inline void write_text(const char *path, const char *text) {
    write_bytes(path, text, strlen(text));
}

// One document of `count` tokens: token i is (i · step + first) mod vocab.
static inline void make_shard(const char *prefix, int64_t count, int vocab, int64_t first, int64_t step) {
    ShardWriter *writer;
    int32_t *tokens = malloc((size_t)count * sizeof *tokens);
    assert_non_null(tokens);
    for (int64_t i = 0; i < count; i++) tokens[i] = (int32_t)((i * step + first) % vocab);
    assert_int_equal(shard_writer_create(&writer, prefix, vocab), OK);
    assert_int_equal(shard_writer_add(writer, tokens, count), OK);
    assert_int_equal(shard_writer_finish(writer), OK);
    free(tokens);
}

// The call failed with this status, and the message has each of the texts.
static inline void assert_failed(Status status, Status expected, const char *a, const char *b) {
    if (status != expected || !strstr(status_text(), a) || !strstr(status_text(), b))
        fail_msg("status %d (expected %d), message \"%s\" (expected \"%s\" and \"%s\")", (int)status,
                 (int)expected, status_text(), a, b);
}
