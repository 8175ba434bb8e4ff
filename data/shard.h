// SPDX-License-Identifier: Apache-2.0
// Token shards in Megatron's layout: PREFIX.bin holds the ids of all documents one after the other,
// PREFIX.idx their lengths. Both are mapped, never copied.
#pragma once
#include "core/status.h"
#include <stdbool.h>
#include <stdint.h>

typedef enum { // the codes in .idx
    TOKEN_U8 = 1,
    TOKEN_I8 = 2,
    TOKEN_I16 = 3,
    TOKEN_I32 = 4,
    TOKEN_I64 = 5,
    TOKEN_U16 = 8,
} TokenType;
const char *token_type_name(TokenType type);
int token_type_bytes(TokenType type);

enum { SHARD_ANY_VOCAB = INT32_MAX };

typedef struct Shard Shard;
// Checks the whole .idx against the size of .bin, and its checksum where there is a PREFIX.crc. A name ending
// in .bin or .idx stands for its prefix. ERR_DATA names file, values and remedy.
Status shard_open(Shard **out, const char *prefix);
void shard_close(Shard *shard);
const char *shard_prefix(const Shard *shard); // borrowed
int64_t shard_tokens(const Shard *shard);
int64_t shard_documents(const Shard *shard);
int64_t shard_sequences(const Shard *shard); // pieces of documents, each shorter than 2^31 tokens
int64_t shard_bytes(const Shard *shard);     // of both files
TokenType shard_type(const Shard *shard);
// First token of a document; of shard_documents(): the number of tokens.
int64_t shard_document_start(const Shard *shard, int64_t document);
// A fingerprint of sizes, type, all document lengths and 16 blocks of 4 KiB spread over .bin.
uint64_t shard_identity(const Shard *shard);
// Whether PREFIX.crc is there: only then damage of .bin is seen.
bool shard_has_sums(const Shard *shard);
// Tokens first … first + count − 1, after a check of their blocks where there are checksums. ERR_DATA names a
// damaged block, or position and value of an id that is negative or ≥ vocab.
Status shard_read(const Shard *shard, int64_t first, int64_t count, int vocab, int32_t *tokens);

// Writes PREFIX.bin.tmp, PREFIX.idx.tmp and PREFIX.crc.tmp, renamed when finished: a reader finds the old
// shard, the new one, or an error. Ids take 2 bytes if vocab < 65500, else 4. Makes the folder.
typedef struct ShardWriter ShardWriter;
Status shard_writer_create(ShardWriter **out, const char *prefix, int vocab);
Status shard_writer_add(ShardWriter *writer, const int32_t *tokens, int64_t count); // one document
int64_t shard_writer_tokens(const ShardWriter *writer);
Status shard_writer_finish(ShardWriter *writer); // frees the writer, whatever the result
void shard_writer_cancel(ShardWriter *writer);   // removes what was written
