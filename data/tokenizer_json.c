// SPDX-License-Identifier: Apache-2.0
#include "data/tokenizer_json.h"
#ifdef FLOE_PCRE2
#include "core/file.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

void json_tokenizer_close(JsonTokenizer *tokenizer) {
    if (!tokenizer) return;
    bpe_destroy(tokenizer->bpe);
    for (int i = 0; i < 2; i++) added_tokens_free(&tokenizer->added[i]);
    splitter_destroy(tokenizer->splitter);
    free(tokenizer);
}

int32_t json_tokenizer_find(const JsonTokenizer *tokenizer, const char *text) {
    int64_t length = (int64_t)strlen(text);
    for (int i = 0; i < 2; i++) {
        const AddedTokens *added = &tokenizer->added[i];
        for (int j = 0; j < added->count; j++)
            if (added->token[j].bytes == length && memcmp(added->token[j].text, text, (size_t)length) == 0)
                return added->token[j].id;
    }
    return -1;
}

static Status find_special_tokens(JsonTokenizer *tokenizer, const char *path) {
    static const char *const ends[] = {"<|endoftext|>", "<|end_of_text|>", "</s>"};
    char config[FILE_PATH_BYTES];
    const char *slash = strrchr(path, '/');
    int folder = slash ? (int)(slash + 1 - path) : 0;
    if (snprintf(config, sizeof config, "%.*stokenizer_config.json", folder, path) >= (int)sizeof config)
        FAIL(ERR_CONFIG, "%s: the path is too long", path);
    if (access(config, F_OK) == 0) return json_tokenizer_read_config(tokenizer, config);
    for (size_t i = 0; tokenizer->eos < 0 && i < sizeof ends / sizeof *ends; i++)
        tokenizer->eos = json_tokenizer_find(tokenizer, ends[i]);
    return OK;
}

Status json_tokenizer_open(JsonTokenizer **out, const char *path) {
    JsonTokenizer *tokenizer = calloc(1, sizeof *tokenizer);
    REQUIRE(tokenizer, "out of memory");
    tokenizer->bos = tokenizer->eos = tokenizer->pad = -1;
    tokenizer->splitter = splitter_create();
    Status status = json_tokenizer_read(tokenizer, path);
    if (status == OK) status = find_special_tokens(tokenizer, path);
    if (status != OK) {
        json_tokenizer_close(tokenizer);
        tokenizer = NULL;
    }
    *out = tokenizer;
    return status;
}

// ---- encoding

typedef struct {
    const JsonTokenizer *tokenizer;
    SplitScratch *split;
    BpeScratch bpe;
    TokenList out;
} Encoder;

static void encode_piece(void *context, const char *piece, int64_t bytes) {
    Encoder *encoder = context;
    bpe_encode(encoder->tokenizer->bpe, &encoder->bpe, piece, bytes, &encoder->out);
}

// Bytes of the character that the text begins with; 0: no UTF-8. At least one byte.
static int character_bytes(const unsigned char *text, int64_t bytes) {
    unsigned char lead = text[0];
    if (lead < 0x80) return 1;
    int count = lead < 0xc2 ? 0 : lead < 0xe0 ? 2 : lead < 0xf0 ? 3 : lead < 0xf5 ? 4 : 0;
    if (count == 0 || count > bytes) return 0;
    for (int i = 1; i < count; i++)
        if ((text[i] & 0xc0) != 0x80) return 0;
    bool overlong = (lead == 0xe0 && text[1] < 0xa0) || (lead == 0xf0 && text[1] < 0x90);
    bool surrogate = lead == 0xed && text[1] >= 0xa0, beyond = lead == 0xf4 && text[1] >= 0x90;
    return overlong || surrogate || beyond ? 0 : count;
}

// Length of the run of characters, or of bytes that are none, at the beginning.
static int64_t run_bytes(const char *text, int64_t bytes, bool *valid) {
    const unsigned char *data = (const unsigned char *)text;
    int64_t at = 0;
    *valid = character_bytes(data, bytes) > 0;
    while (at < bytes) {
        int count = character_bytes(data + at, bytes - at);
        if ((count > 0) != *valid) break;
        at += count > 0 ? count : 1;
    }
    return at;
}

static Status encode_runs(Encoder *encoder, const char *text, int64_t bytes) {
    while (bytes > 0) {
        bool valid;
        int64_t run = run_bytes(text, bytes, &valid);
        if (valid)
            TRY(splitter_run(encoder->tokenizer->splitter, encoder->split, text, run, encode_piece, encoder));
        else
            encode_piece(encoder, text, run);
        text += run;
        bytes -= run;
    }
    return OK;
}

// Text without added tokens.
static Status encode_plain(Encoder *encoder, const char *text, int64_t bytes) {
    if (!encoder->tokenizer->leading_space || bytes == 0 || text[0] == ' ')
        return encode_runs(encoder, text, bytes);
    char *spaced = malloc((size_t)bytes + 1);
    REQUIRE(spaced, "out of memory for %lld bytes of text", (long long)bytes);
    spaced[0] = ' ';
    memcpy(spaced + 1, text, (size_t)bytes);
    Status status = encode_runs(encoder, spaced, bytes + 1);
    free(spaced);
    return status;
}

static Status encode_from(Encoder *encoder, int pass, const char *text, int64_t bytes) {
    if (pass == 2) return encode_plain(encoder, text, bytes);
    const AddedToken *token;
    for (int64_t from = 0, at = 0;; from = at) {
        token = added_tokens_find(&encoder->tokenizer->added[pass], text, bytes, &at);
        TRY(encode_from(encoder, pass + 1, text + from, (token ? at : bytes) - from));
        if (!token) return OK;
        token_list_add(&encoder->out, token->id);
        at += token->bytes;
    }
}

Status json_tokenizer_encode(const JsonTokenizer *tokenizer, const char *text, int64_t bytes,
                             int32_t **tokens, int64_t *count) {
    Encoder encoder = {.tokenizer = tokenizer, .split = split_scratch_create(tokenizer->splitter)};
    Status status = encode_from(&encoder, 0, text, bytes);
    split_scratch_free(encoder.split);
    bpe_scratch_free(&encoder.bpe);
    if (status != OK) {
        free(encoder.out.token);
        encoder.out = (TokenList){0};
    } else if (!encoder.out.token) {
        encoder.out.token = malloc(sizeof *encoder.out.token);
        REQUIRE(encoder.out.token, "out of memory");
    }
    *tokens = encoder.out.token;
    *count = encoder.out.count;
    return status;
}
#endif
