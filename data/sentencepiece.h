// SPDX-License-Identifier: Apache-2.0
// The SentencePiece library behind C functions; built only where CMake found it. Problems come back as text
// that the caller frees, NULL means none.
#pragma once
#include <stdint.h>
#ifdef __cplusplus
extern "C" {
#endif

typedef struct PieceModel PieceModel;
char *piece_model_open(PieceModel **out, const char *path);
void piece_model_close(PieceModel *model);
int piece_model_vocab(const PieceModel *model);
int piece_model_bos(const PieceModel *model); // -1: none; so for the next ones
int piece_model_eos(const PieceModel *model);
int piece_model_pad(const PieceModel *model);
char *piece_model_encode(const PieceModel *model, const char *text, int64_t bytes, int32_t **tokens,
                         int64_t *count);
// Ids must be below the vocabulary. *text is the caller's to free.
char *piece_model_decode(const PieceModel *model, const int32_t *tokens, int64_t count, char **text,
                         int64_t *bytes);

typedef struct {
    const char *text;
    int64_t bytes;
} PieceLine;
// The model file's bytes, owned by the caller.
char *piece_model_train(const PieceLine *line, int64_t lines, int vocab, char **model, int64_t *bytes);
#ifdef __cplusplus
}
#endif
