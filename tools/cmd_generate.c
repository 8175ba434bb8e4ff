// SPDX-License-Identifier: Apache-2.0
#include "core/log.h"
#include "data/tokenizer.h"
#include "tools/cli.h"
#include "tools/commands.h"
#include "train/generate.h"
#include "train/inference.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const CliOption generate_options[] = {
    {.name = "prompt",
     .letter = 'p',
     .kind = CLI_TEXT,
     .argument = "TEXT",
     .meaning = "what the text begins with"},
    {.name = "tokens",
     .kind = CLI_INTEGER,
     .argument = "N",
     .meaning = "at most so many new tokens (default 100)"},
    {.name = "temperature",
     .kind = CLI_NUMBER,
     .argument = "T",
     .meaning = "0: always the likeliest token (default 0.8)"},
    {.name = "top-k",
     .kind = CLI_INTEGER,
     .argument = "K",
     .meaning = "chooses among the K likeliest (default 0: all)"},
    {.name = "tokenizer",
     .kind = CLI_TEXT,
     .argument = "NAME",
     .meaning =
         "instead of the run's own: sentencepiece:FILE.model, hf:tokenizer.json (imported models have none)"},
    {.name = "bos",
     .kind = CLI_FLAG,
     .meaning = "begins with the tokenizer's begin-of-text token, as imported models expect"},
    {.name = "positions",
     .kind = CLI_INTEGER,
     .argument = "N",
     .meaning = "room for prompt and text (default: batch.seq_len of the training)"},
    {.name = "seed", .kind = CLI_INTEGER, .argument = "S", .meaning = "same seed, same text (default 1)"},
    {0}};

const CliCommand cli_generate[] = {
    {.name = "generate",
     .usage = "RUN|CKPT",
     .meaning = "continues a text with a trained model",
     .details = "RUN@STEP takes the checkpoint of that step instead of the newest one.",
     .option = generate_options,
     .least = 1,
     .most = 1},
    {0}};

typedef struct {
    int32_t *token;
    int64_t count, capacity;
} Text;

static bool keep_token(void *context, int32_t token) {
    Text *text = context;
    REQUIRE(text->count < text->capacity, "more than %lld tokens", (long long)text->capacity);
    text->token[text->count++] = token;
    return true;
}

// The prompt's tokens, with room for `more`. An empty prompt is the end of a document: what follows begins a
// new one.
static Status read_prompt(Text *out, const Tokenizer *tokenizer, const char *prompt, bool bos, int64_t more) {
    int32_t *token;
    int64_t count;
    if (bos && tokenizer_bos(tokenizer) < 0)
        FAIL(ERR_CONFIG, "--bos: this tokenizer has no token that begins a text");
    TRY(tokenizer_encode(tokenizer, prompt, (int64_t)strlen(prompt), &token, &count));
    *out = (Text){.capacity = count + more + 2};
    out->token = malloc((size_t)out->capacity * sizeof *out->token);
    REQUIRE(out->token, "no memory for %lld tokens", (long long)out->capacity);
    if (bos) out->token[out->count++] = tokenizer_bos(tokenizer);
    memcpy(out->token + out->count, token, (size_t)count * sizeof *token);
    free(token);
    out->count += count;
    if (out->count > 0) return OK;
    if (tokenizer_eos(tokenizer) < 0)
        FAIL(ERR_CONFIG, "give a prompt with -p: this tokenizer has no token that ends a text");
    out->token[out->count++] = tokenizer_eos(tokenizer);
    return OK;
}

static Status continue_text(Inference *inference, const CliArgs *args, const Tokenizer *tokenizer,
                            Text *text) {
    int positions = (int)cli_integer(args, "positions", inference->config->batch.seq_len);
    int64_t prompt_tokens = text->count, wanted = cli_integer(args, "tokens", 100);
    int32_t *prompt = malloc((size_t)prompt_tokens * sizeof *prompt);
    REQUIRE(prompt, "no memory for %lld tokens", (long long)prompt_tokens);
    memcpy(prompt, text->token, (size_t)prompt_tokens * sizeof *prompt);
    GenerateOptions options = {.prompt = prompt,
                               .prompt_tokens = prompt_tokens,
                               .tokens = wanted,
                               .temperature = cli_number(args, "temperature", 0.8),
                               .top_k = (int)cli_integer(args, "top-k", 0),
                               .seed = (uint64_t)cli_integer(args, "seed", 1),
                               .eos = tokenizer_eos(tokenizer)};
    Status status = inference_load(inference, 1, positions, false);
    if (status == OK) status = generate_tokens(&inference->state, &options, positions, keep_token, text);
    free(prompt);
    TRY(status);
    if (prompt_tokens + wanted > positions && text->count >= positions)
        log_rank0(LOG_WARN,
                  "stopped at position %d (batch.seq_len of the training); --positions gives more room",
                  positions);
    return OK;
}

static Status open_tokenizer(Tokenizer **out, const Inference *inference, const char *given) {
    const char *name = given ? given : inference->config->tokenizer;
    int vocab = inference->config->model.vocab;
    TRY(tokenizer_open(out, name));
    if (tokenizer_vocab(*out) <= vocab) return OK;
    FAIL(ERR_CONFIG, "%s = %s has %d ids, but the model %d; give the model's own with --tokenizer",
         given ? "--tokenizer" : "data.tokenizer", name, tokenizer_vocab(*out), vocab);
}

static Status generate_with(Inference *inference, const CliArgs *args, Tokenizer **tokenizer, Text *text) {
    const char *prompt = cli_text(args, "prompt");
    TRY(inference_open(inference, args->argument[0]));
    TRY(open_tokenizer(tokenizer, inference, cli_text(args, "tokenizer")));
    TRY(read_prompt(text, *tokenizer, prompt ? prompt : "", cli_flag(args, "bos"),
                    cli_integer(args, "tokens", 100)));
    TRY(continue_text(inference, args, *tokenizer, text));
    int64_t bytes;
    char *out = tokenizer_decode(*tokenizer, text->token, text->count, &bytes);
    fwrite(out, 1, (size_t)bytes, stdout);
    putchar('\n');
    free(out);
    return OK;
}

int command_generate(int argc, char **argv) {
    CliArgs args;
    int exit_code;
    if (!cli_parse(&args, argc, argv, cli_generate, &exit_code)) return exit_code;
    Inference inference = {.config = NULL};
    Tokenizer *tokenizer = NULL;
    Text text = {.token = NULL};
    comm_start(&argc, &argv);
    Status status = generate_with(&inference, &args, &tokenizer, &text);
    if (status != OK) cli_failure(status);
    inference_close(&inference);
    if (tokenizer) tokenizer_close(tokenizer);
    free(text.token);
    comm_finish();
    cli_free(&args);
    return status;
}
