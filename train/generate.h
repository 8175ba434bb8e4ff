// SPDX-License-Identifier: Apache-2.0
// Text from a model, one token after the other, with a key/value cache.
#pragma once
#include "train/state.h"

typedef struct {
    const int32_t *prompt;
    int64_t prompt_tokens; // at least 1
    int64_t tokens;        // at most so many new ones
    double temperature;    // 0: always the likeliest token
    int top_k;             // 0: all tokens
    uint64_t seed;
    int eos; // ends the text; −1: none
} GenerateOptions;

// state: a world of one with a model created with training false, sequences 1 and seq_len = positions. emit
// gets each new token (eos is not given) and may end the text by returning false. ERR_CONFIG where the prompt
// leaves no position.
Status generate_tokens(TrainState *state, const GenerateOptions *options, int positions,
                       bool (*emit)(void *context, int32_t token), void *context);
