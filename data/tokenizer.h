// SPDX-License-Identifier: Apache-2.0
// Text to token ids and back. "bytes": ids 0 … 255 are the byte values, 256 begins a text, 257 ends a
// document, 258 is padding. "sentencepiece:FILE": a SentencePiece model, "hf:FILE": a tokenizer.json of the
// byte-level BPE kind; each only in builds that found its library.
#pragma once
#include "core/status.h"
#include <stdint.h>

enum { BYTES_BOS = 256, BYTES_EOS, BYTES_PAD, BYTES_VOCAB };

typedef struct Tokenizer Tokenizer;
Status tokenizer_open(Tokenizer **out,
                      const char *name); // ERR_CONFIG: an unknown name, no such file, library left out
void tokenizer_close(Tokenizer *tokenizer);
int tokenizer_vocab(const Tokenizer *tokenizer); // ids are below it
int tokenizer_bos(const Tokenizer *tokenizer);   // -1 where the model has none; so for the next ones
int tokenizer_eos(const Tokenizer *tokenizer);
int tokenizer_pad(const Tokenizer *tokenizer);

// Neither adds nor expects bos or eos. Results are the caller's to free. Any number of threads at once.
Status tokenizer_encode(const Tokenizer *tokenizer, const char *text, int64_t bytes, int32_t **tokens,
                        int64_t *count);
// Zero-terminated; bytes (or NULL) is its length without the zero. bos, eos and pad give no text, ids beyond
// the vocabulary or without a token give U+FFFD.
char *tokenizer_decode(const Tokenizer *tokenizer, const int32_t *tokens, int64_t count, int64_t *bytes);

// Trains a SentencePiece BPE model of vocab pieces with byte fallback on the text of inputs (as pack reads
// them) and writes it to path. Ids: 0 unknown, 1 bos, 2 eos, 3 pad, 4 … 259 bytes. The same text gives the
// same file.
Status tokenizer_train(const char *const input[], int inputs, const char *path, int vocab);
