// SPDX-License-Identifier: Apache-2.0
#include "data/tokenizer.h"
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#ifdef FLOE_SENTENCEPIECE
#include "data/sentencepiece.h"
#else
typedef struct PieceModel PieceModel;
#endif
#ifdef FLOE_PCRE2
#include "data/tokenizer_json.h"
#else
typedef struct JsonTokenizer JsonTokenizer;
#endif

struct Tokenizer {
    char *name;
    PieceModel *model;   // of sentencepiece:
    JsonTokenizer *json; // of hf:; both NULL: bytes
    int vocab, bos, eos, pad;
};

static const char piece_prefix[] = "sentencepiece:", json_prefix[] = "hf:";

static Status open_model(Tokenizer *tokenizer, const char *path) {
#ifdef FLOE_SENTENCEPIECE
    if (access(path, R_OK) != 0)
        FAIL(ERR_CONFIG,
             "%s: no such SentencePiece model; train one: floe data tokenizer TEXT… -o %s --vocab N", path,
             path);
    char *problem = piece_model_open(&tokenizer->model, path);
    if (problem) {
        Status status =
            status_fail(ERR_CONFIG, __FILE__, __LINE__, "%s is not a SentencePiece model: %s", path, problem);
        free(problem);
        return status;
    }
    tokenizer->vocab = piece_model_vocab(tokenizer->model);
    tokenizer->bos = piece_model_bos(tokenizer->model);
    tokenizer->eos = piece_model_eos(tokenizer->model);
    tokenizer->pad = piece_model_pad(tokenizer->model);
    return OK;
#else
    (void)tokenizer;
    FAIL(ERR_CONFIG,
         "sentencepiece:%s: this build has no SentencePiece; install libsentencepiece-dev and build again, "
         "or use the "
         "tokenizer bytes",
         path);
#endif
}

static Status open_json(Tokenizer *tokenizer, const char *path) {
#ifdef FLOE_PCRE2
    TRY(json_tokenizer_open(&tokenizer->json, path));
    tokenizer->vocab = tokenizer->json->vocab;
    tokenizer->bos = tokenizer->json->bos;
    tokenizer->eos = tokenizer->json->eos;
    tokenizer->pad = tokenizer->json->pad;
    return OK;
#else
    (void)tokenizer;
    FAIL(ERR_CONFIG, "hf:%s: this build has no PCRE2; install libpcre2-dev (10.40 or newer) and build again",
         path);
#endif
}

static Status fill(Tokenizer *tokenizer, const char *name) {
    if (strcmp(name, "bytes") == 0) {
        tokenizer->vocab = BYTES_VOCAB;
        tokenizer->bos = BYTES_BOS;
        tokenizer->eos = BYTES_EOS;
        tokenizer->pad = BYTES_PAD;
        return OK;
    }
    if (strncmp(name, piece_prefix, sizeof piece_prefix - 1) == 0)
        return open_model(tokenizer, name + sizeof piece_prefix - 1);
    if (strncmp(name, json_prefix, sizeof json_prefix - 1) == 0)
        return open_json(tokenizer, name + sizeof json_prefix - 1);
    FAIL(ERR_CONFIG, "tokenizer %s: unknown; use bytes, sentencepiece:FILE.model or hf:FILE.json", name);
}

Status tokenizer_open(Tokenizer **out, const char *name) {
    Tokenizer *tokenizer = calloc(1, sizeof *tokenizer);
    REQUIRE(tokenizer, "out of memory");
    tokenizer->name = strdup(name);
    Status status = fill(tokenizer, name);
    if (status != OK) {
        tokenizer_close(tokenizer);
        tokenizer = NULL;
    }
    *out = tokenizer;
    return status;
}

void tokenizer_close(Tokenizer *tokenizer) {
    if (!tokenizer) return;
#ifdef FLOE_SENTENCEPIECE
    piece_model_close(tokenizer->model);
#endif
#ifdef FLOE_PCRE2
    json_tokenizer_close(tokenizer->json);
#endif
    free(tokenizer->name);
    free(tokenizer);
}

int tokenizer_vocab(const Tokenizer *tokenizer) {
    return tokenizer->vocab;
}
int tokenizer_bos(const Tokenizer *tokenizer) {
    return tokenizer->bos;
}
int tokenizer_eos(const Tokenizer *tokenizer) {
    return tokenizer->eos;
}
int tokenizer_pad(const Tokenizer *tokenizer) {
    return tokenizer->pad;
}

Status tokenizer_encode(const Tokenizer *tokenizer, const char *text, int64_t bytes, int32_t **tokens,
                        int64_t *count) {
#ifdef FLOE_SENTENCEPIECE
    if (tokenizer->model) {
        char *problem = piece_model_encode(tokenizer->model, text, bytes, tokens, count);
        if (!problem) return OK;
        Status status = status_fail(ERR_RUNTIME, __FILE__, __LINE__, "%s: %s", tokenizer->name, problem);
        free(problem);
        return status;
    }
#endif
#ifdef FLOE_PCRE2
    if (tokenizer->json) {
        TRY(json_tokenizer_encode(tokenizer->json, text, bytes, tokens, count));
        return OK;
    }
#endif
    *tokens = malloc((size_t)(bytes + 1) * sizeof **tokens);
    REQUIRE(*tokens, "out of memory for %lld tokens of %s", (long long)bytes, tokenizer->name);
    for (int64_t i = 0; i < bytes; i++) (*tokens)[i] = (unsigned char)text[i];
    *count = bytes;
    return OK;
}

typedef struct {
    char *data;
    int64_t bytes, capacity;
} Text;

static void text_append(Text *text, const char *data, int64_t bytes) {
    if (text->bytes + bytes + 1 > text->capacity) {
        text->capacity = 2 * (text->bytes + bytes) + 64;
        text->data = realloc(text->data, (size_t)text->capacity);
        REQUIRE(text->data, "out of memory for %lld bytes of text", (long long)text->capacity);
    }
    memcpy(text->data + text->bytes, data, (size_t)bytes);
    text->bytes += bytes;
    text->data[text->bytes] = 0;
}

static const char unknown[] = "\xef\xbf\xbd"; // U+FFFD

// Ids that all stand for text.
static void decode_run(const Tokenizer *tokenizer, const int32_t *tokens, int64_t count, Text *out) {
#ifdef FLOE_SENTENCEPIECE
    if (tokenizer->model) {
        char *text;
        int64_t bytes;
        char *problem = piece_model_decode(tokenizer->model, tokens, count, &text, &bytes);
        REQUIRE(!problem, "%s: %s", tokenizer->name, problem);
        text_append(out, text, bytes);
        free(text);
        return;
    }
#endif
#ifdef FLOE_PCRE2
    if (tokenizer->json) {
        for (int64_t i = 0; i < count; i++) {
            int64_t bytes;
            const char *text = bpe_text(tokenizer->json->bpe, tokens[i], &bytes);
            text_append(out, text ? text : unknown, text ? bytes : (int64_t)sizeof unknown - 1);
        }
        return;
    }
#endif
    (void)tokenizer;
    for (int64_t i = 0; i < count; i++) text_append(out, &(char){(char)tokens[i]}, 1);
}

char *tokenizer_decode(const Tokenizer *tokenizer, const int32_t *tokens, int64_t count, int64_t *bytes) {
    Text out = {0};
    text_append(&out, "", 0);
    int64_t first = 0;
    for (int64_t i = 0; i <= count; i++) {
        int32_t id = i < count ? tokens[i] : -1;
        bool outside = id < 0 || id >= tokenizer->vocab;
        if (!outside && id != tokenizer->bos && id != tokenizer->eos && id != tokenizer->pad) continue;
        if (i > first) decode_run(tokenizer, tokens + first, i - first, &out);
        if (outside && i < count) text_append(&out, unknown, sizeof unknown - 1);
        first = i + 1;
    }
    if (bytes) *bytes = out.bytes;
    return out.data;
}
