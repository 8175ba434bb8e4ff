// SPDX-License-Identifier: Apache-2.0
// Tokens that stand for a fixed text wherever it occurs, looked for before anything else is done to a text.
#pragma once
#include <stdbool.h>
#include <stdint.h>

typedef struct {
    char *text; // owned
    int64_t bytes;
    int32_t id;
} AddedToken;

// Begins as zeros.
typedef struct {
    AddedToken *token; // by first byte, the longest first, once they are ordered
    int count;
    int first[257];                // token[first[b]] … token[first[b + 1] - 1] begin with byte b
    uint64_t pair[(1 << 16) / 64]; // a bit for each two bytes that a token may begin with
} AddedTokens;
void added_tokens_free(AddedTokens *added);
void added_tokens_add(AddedTokens *added, int32_t id, const char *text, int64_t bytes); // not of 0 bytes
void added_tokens_order(AddedTokens *added);                                            // after the last one
// The first token's place at or after `at`, the longest of those that begin there; NULL: none is left.
const AddedToken *added_tokens_find(const AddedTokens *added, const char *text, int64_t bytes, int64_t *at);
