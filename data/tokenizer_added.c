// SPDX-License-Identifier: Apache-2.0
#include "data/tokenizer_added.h"
#include "core/status.h"
#include <stdlib.h>
#include <string.h>

void added_tokens_free(AddedTokens *added) {
    for (int i = 0; i < added->count; i++) free(added->token[i].text);
    free(added->token);
    *added = (AddedTokens){0};
}

void added_tokens_add(AddedTokens *added, int32_t id, const char *text, int64_t bytes) {
    added->token = realloc(added->token, (size_t)(added->count + 1) * sizeof *added->token);
    char *copy = malloc((size_t)bytes);
    REQUIRE(added->token && copy, "out of memory");
    memcpy(copy, text, (size_t)bytes);
    added->token[added->count++] = (AddedToken){copy, bytes, id};
}

static int compare(const void *left, const void *right) {
    const AddedToken *a = left, *b = right;
    int first = (unsigned char)a->text[0] - (unsigned char)b->text[0];
    return first ? first : (a->bytes < b->bytes) - (a->bytes > b->bytes);
}

static void mark_pair(AddedTokens *added, unsigned first, unsigned second) {
    unsigned pair = first << 8 | second;
    added->pair[pair / 64] |= (uint64_t)1 << pair % 64;
}

void added_tokens_order(AddedTokens *added) {
    if (added->count > 0) qsort(added->token, (size_t)added->count, sizeof *added->token, compare);
    int next = 0;
    for (int byte = 0; byte < 256; byte++) {
        added->first[byte] = next;
        for (; next < added->count && (unsigned char)added->token[next].text[0] == byte; next++) {
            if (added->token[next].bytes > 1)
                mark_pair(added, (unsigned)byte, (unsigned char)added->token[next].text[1]);
            else
                for (unsigned second = 0; second < 256; second++) mark_pair(added, (unsigned)byte, second);
        }
    }
    added->first[256] = added->count;
}

static const AddedToken *token_at(const AddedTokens *added, const char *text, int64_t bytes) {
    unsigned char byte = (unsigned char)text[0];
    for (int i = added->first[byte]; i < added->first[byte + 1]; i++) {
        const AddedToken *token = &added->token[i];
        if (token->bytes <= bytes && memcmp(token->text, text, (size_t)token->bytes) == 0) return token;
    }
    return NULL;
}

const AddedToken *added_tokens_find(const AddedTokens *added, const char *text, int64_t bytes, int64_t *at) {
    for (int64_t i = *at; added->count > 0 && i < bytes; i++) {
        if (i + 1 < bytes) {
            unsigned pair = (unsigned)(unsigned char)text[i] << 8 | (unsigned char)text[i + 1];
            if (!(added->pair[pair / 64] >> pair % 64 & 1)) continue;
        }
        const AddedToken *token = token_at(added, text + i, bytes - i);
        if (!token) continue;
        *at = i;
        return token;
    }
    return NULL;
}
