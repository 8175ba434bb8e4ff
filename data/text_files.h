// SPDX-License-Identifier: Apache-2.0
// The text that pack and the tokenizer's training read: files, folders, .gz and JSONL, in a fixed order.
#pragma once
#include "core/status.h"
#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

// A piece of input: one whole text file, or whole lines of a .jsonl file.
typedef struct {
    char *text; // owned by whoever took the chunk
    int64_t bytes;
    bool jsonl;
    const char *path;   // borrowed from the reader
    int64_t first_line; // from 1
} TextChunk;

typedef struct TextReader TextReader;
// Lists the inputs. A folder stands for the regular files below it, in byte order of their paths, without
// names that begin with a dot. *.jsonl and *.jsonl.gz are JSONL, everything else is one document a file.
// ERR_CONFIG: no such input.
Status text_reader_create(TextReader **out, const char *const input[], int inputs);
void text_reader_destroy(TextReader *reader);
// The next chunk; *more = false at the end. Files found in folders that are empty or not text are passed over
// and named on stderr; for files named as inputs that is ERR_DATA.
Status text_reader_next(TextReader *reader, TextChunk *chunk, bool *more);
int text_reader_files(const TextReader *reader);
int text_reader_skipped(const TextReader *reader);
int64_t text_reader_bytes(const TextReader *reader);      // on disk, all files
int64_t text_reader_bytes_done(const TextReader *reader); // on disk, read so far

// One line of a chunk; moves *at behind it, false at the end of the chunk.
bool text_next_line(const TextChunk *chunk, int64_t *at, const char **line, int64_t *bytes);
// The `text` of line number `number` of a JSONL file: borrowed from *document, which the caller decrefs. A
// blank line gives *document = NULL. ERR_DATA names file:line.
Status text_of_json(const char *line, int64_t bytes, const char *path, int64_t number, json_t **document,
                    const char **text, int64_t *text_bytes);
