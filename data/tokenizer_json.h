// SPDX-License-Identifier: Apache-2.0
// Hugging Face's tokenizer.json of the byte-level BPE kind. Only in builds that found PCRE2.
#pragma once
#include "core/status.h"
#include "data/tokenizer_added.h"
#include "data/tokenizer_bpe.h"
#include "data/tokenizer_split.h"
#include <stdbool.h>
#include <stdint.h>

typedef struct JsonTokenizer {
    Bpe *bpe;
    AddedTokens added[2]; // looked for one after the other, the second in what the first leaves
    Splitter *splitter;
    bool leading_space;       // put before text that begins without one
    int vocab, bos, eos, pad; // the last three: -1 if there is none
} JsonTokenizer;

// ERR_CONFIG: no such file, or something in it that would be computed in another way. bos, eos and pad are
// those of tokenizer_config.json beside the file, else what the file's template puts around a text; where
// there is no such configuration, eos is <|endoftext|>, <|end_of_text|> or </s>.
Status json_tokenizer_open(JsonTokenizer **out, const char *path);
void json_tokenizer_close(JsonTokenizer *tokenizer);
// As tokenizer_encode. Bytes that are not UTF-8 are pieces of their own.
Status json_tokenizer_encode(const JsonTokenizer *tokenizer, const char *text, int64_t bytes,
                             int32_t **tokens, int64_t *count);

// The file's content alone: fills all but bos, eos and pad, which are -1 or the template's.
Status json_tokenizer_read(JsonTokenizer *tokenizer, const char *path);
// bos, eos and pad of a tokenizer_config.json. There must be such a file.
Status json_tokenizer_read_config(JsonTokenizer *tokenizer, const char *path);
int32_t json_tokenizer_find(const JsonTokenizer *tokenizer, const char *text); // an added token's id or -1
