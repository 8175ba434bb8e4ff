// SPDX-License-Identifier: Apache-2.0
#include "train/generate.h"
#include "core/rng.h"
#include <math.h>
#include <stdlib.h>

typedef struct {
    float logit;
    int32_t token;
} Candidate;

// Best first; equal ones by the lower token.
static int compare(const void *a, const void *b) {
    const Candidate *x = a, *y = b;
    if (x->logit != y->logit) return x->logit < y->logit ? 1 : -1;
    return (x->token > y->token) - (x->token < y->token);
}

static int32_t pick_best(const float *logits, int vocab) {
    int32_t best = 0;
    for (int i = 1; i < vocab; i++)
        if (logits[i] > logits[best]) best = i;
    return best;
}

// Number n of the text. candidate: room for vocab.
static int32_t pick(const GenerateOptions *options, const float *logits, int vocab, int64_t n,
                    Candidate *candidate) {
    if (options->temperature <= 0) return pick_best(logits, vocab);
    for (int i = 0; i < vocab; i++) candidate[i] = (Candidate){logits[i], i};
    int count = options->top_k > 0 && options->top_k < vocab ? options->top_k : vocab;
    qsort(candidate, (size_t)vocab, sizeof *candidate, compare);
    double sum = 0, temperature = options->temperature, best = candidate[0].logit;
    for (int i = 0; i < count; i++) sum += exp((candidate[i].logit - best) / temperature);
    double left = rng_uniform(options->seed, hash_text("generate"), (uint64_t)n) * sum;
    for (int i = 0; i < count; i++) {
        left -= exp((candidate[i].logit - best) / temperature);
        if (left < 0) return candidate[i].token;
    }
    return candidate[0].token;
}

Status generate_tokens(TrainState *state, const GenerateOptions *options, int positions,
                       bool (*emit)(void *context, int32_t token), void *context) {
    int vocab = state->config->model.vocab;
    if (options->prompt_tokens >= positions)
        FAIL(
            ERR_CONFIG,
            "the prompt has %lld tokens, but the model has only %d positions (batch.seq_len of its training);"
            " shorten the prompt",
            (long long)options->prompt_tokens, positions);
    for (int64_t i = 0; i < options->prompt_tokens; i++)
        if (options->prompt[i] < 0 || options->prompt[i] >= vocab)
            FAIL(ERR_CONFIG,
                 "token %d of the prompt is %d, but the model's vocabulary has %d: it was trained with "
                 "another "
                 "tokenizer",
                 (int)i, options->prompt[i], vocab);
    float *logits = malloc((size_t)vocab * sizeof *logits);
    Candidate *candidate = malloc((size_t)vocab * sizeof *candidate);
    int32_t *next = malloc((size_t)options->prompt_tokens * sizeof *next);
    REQUIRE(logits && candidate && next, "no memory for a vocabulary of %d", vocab);
    for (int64_t i = 0; i < options->prompt_tokens; i++) next[i] = options->prompt[i];
    int64_t count = options->prompt_tokens, position = 0;
    for (int64_t n = 0; n < options->tokens && position + count <= positions; n++) {
        Tensor tokens = tensor_view(next, DTYPE_I32, 1, (int64_t[]){count});
        model_extend(state->model, tokens, (int)position, tensor_matrix(logits, 1, vocab));
        position += count;
        count = 1;
        next[0] = pick(options, logits, vocab, n, candidate);
        if (next[0] == options->eos || !emit(context, next[0])) break;
    }
    free(next);
    free(candidate);
    free(logits);
    return OK;
}
