// SPDX-License-Identifier: Apache-2.0
// Byte-level BPE: a piece of bytes becomes its single bytes' ids, then the neighbours whose merge has the
// lowest rank are joined, the first of equals first, until no merge fits.
#pragma once
#include <stdbool.h>
#include <stdint.h>

typedef struct Bpe Bpe;
Bpe *bpe_create(int vocab); // ids are below vocab; none has a text yet
void bpe_destroy(Bpe *bpe);

// Gives an id its text. A made one can come out of bpe_encode. False: the id has a text, or a made token the
// text of another.
bool bpe_add_token(Bpe *bpe, int32_t id, const char *text, int64_t bytes, bool made);
// The made token of a text; -1: there is none.
int32_t bpe_find(const Bpe *bpe, const char *text, int64_t bytes);
// Of two merges of the same pair the later counts.
void bpe_add_merge(Bpe *bpe, int32_t left, int32_t right, int32_t merged, int32_t rank);
// To be called after the last token and merge. whole: a piece that is a token's text becomes that token
// whatever the merges say. -1, or the first byte that is no token's text.
int bpe_finish(Bpe *bpe, bool whole);
// NULL: the id has none.
const char *bpe_text(const Bpe *bpe, int32_t id, int64_t *bytes);

typedef struct {
    int32_t *token;
    int64_t count, capacity;
} TokenList;
void token_list_add(TokenList *list, int32_t token);

// Memory that one thread uses again and again; begins as zeros.
typedef struct {
    void *symbol, *heap;
    int64_t capacity; // symbols
} BpeScratch;
void bpe_scratch_free(BpeScratch *scratch);
// Appends the ids of a piece. Any number of threads at once, each with its own scratch.
void bpe_encode(const Bpe *bpe, BpeScratch *scratch, const char *piece, int64_t bytes, TokenList *out);
