// SPDX-License-Identifier: Apache-2.0
// Several shards as one stream of tokens, in the order given.
#pragma once
#include "data/shard.h"

typedef struct Corpus Corpus;
Status corpus_open(Corpus **out, const char *const prefix[], int prefixes);
void corpus_close(Corpus *corpus);
int64_t corpus_tokens(const Corpus *corpus);
int corpus_unchecked_shards(const Corpus *corpus); // those without checksums
uint64_t corpus_identity(const Corpus *corpus);    // of the shards and their order; names do not count
const char *corpus_name(const Corpus *corpus);     // for messages: the first shard's prefix; borrowed
// Tokens first … first + count − 1 of the stream, across shards.
Status corpus_read(const Corpus *corpus, int64_t first, int64_t count, int vocab, int32_t *tokens);
