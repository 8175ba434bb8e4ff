// SPDX-License-Identifier: Apache-2.0
// floe data ls, floe data verify
#include "core/log.h"
#include "data/shard.h"
#include "tools/cmd_data.h"
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>

enum { BLOCK_TOKENS = 1 << 20 };

static void print_and_free(json_t *json) {
    char *text = json ? json_dumps(json, JSON_INDENT(1)) : NULL;
    REQUIRE(text, "out of memory");
    puts(text);
    free(text);
    json_decref(json);
}

static json_t *shard_json(const Shard *shard) {
    return json_pack("{s:s, s:I, s:I, s:I, s:s, s:I}", "prefix", shard_prefix(shard), "tokens",
                     (json_int_t)shard_tokens(shard), "documents", (json_int_t)shard_documents(shard),
                     "sequences", (json_int_t)shard_sequences(shard), "dtype",
                     token_type_name(shard_type(shard)), "bytes", (json_int_t)shard_bytes(shard));
}

static Status list_shard(const char *prefix, json_t *list, int64_t *tokens) {
    Shard *shard;
    TRY(shard_open(&shard, prefix));
    *tokens += shard_tokens(shard);
    if (list)
        json_array_append_new(list, shard_json(shard));
    else
        printf("%-32s %16lld %12lld  %-5s %10.1f MB\n", shard_prefix(shard), (long long)shard_tokens(shard),
               (long long)shard_documents(shard), token_type_name(shard_type(shard)),
               1e-6 * (double)shard_bytes(shard));
    shard_close(shard);
    return OK;
}

int data_list(const CliArgs *args) {
    bool json = cli_flag(args, "json");
    json_t *list = json ? json_array() : NULL;
    int64_t tokens = 0;
    int exit_code = OK;
    if (!json) printf("%-32s %16s %12s  %-5s %13s\n", "shard", "tokens", "documents", "dtype", "size");
    for (int i = 0; i < args->arguments; i++) {
        Status status = list_shard(args->argument[i], list, &tokens);
        if (status != OK) exit_code = cli_failure(status);
    }
    if (json)
        print_and_free(list);
    else if (args->arguments > 1)
        printf("%-32s %16lld\n", "total", (long long)tokens);
    return exit_code;
}

typedef struct {
    int64_t tokens;
    int32_t largest; // id
    bool checked;    // by checksums
} Verified;

static Status verify_tokens(const Shard *shard, int vocab, Verified *out) {
    int32_t *tokens = malloc(BLOCK_TOKENS * sizeof *tokens);
    REQUIRE(tokens, "out of memory");
    *out = (Verified){.tokens = shard_tokens(shard), .checked = shard_has_sums(shard)};
    Status status = OK;
    for (int64_t at = 0; at < out->tokens && status == OK; at += BLOCK_TOKENS) {
        int64_t n = out->tokens - at < BLOCK_TOKENS ? out->tokens - at : BLOCK_TOKENS;
        status = shard_read(shard, at, n, vocab, tokens);
        for (int64_t i = 0; i < n && status == OK; i++)
            if (tokens[i] > out->largest) out->largest = tokens[i];
    }
    free(tokens);
    return status;
}

static Status verify_shard(const char *prefix, int vocab, Verified *out) {
    Shard *shard;
    TRY(shard_open(&shard, prefix));
    Status status = verify_tokens(shard, vocab, out);
    shard_close(shard);
    return status;
}

int data_verify(const CliArgs *args) {
    int64_t vocab = cli_integer(args, "vocab", SHARD_ANY_VOCAB);
    if (vocab < 1 || vocab > SHARD_ANY_VOCAB) return cli_misuse(args->command, "--vocab must be above 0");
    bool json = cli_flag(args, "json");
    json_t *list = json ? json_array() : NULL;
    int exit_code = OK;
    for (int i = 0; i < args->arguments; i++) {
        const char *prefix = args->argument[i];
        Verified verified = {0};
        Status status = verify_shard(prefix, (int)vocab, &verified);
        if (status != OK) exit_code = status;
        if (status != OK && json)
            json_array_append_new(
                list, json_pack("{s:s, s:b, s:s}", "prefix", prefix, "ok", 0, "problem", status_text()));
        else if (status != OK)
            cli_failure(status);
        else if (json)
            json_array_append_new(list, json_pack("{s:s, s:b, s:I, s:i, s:b}", "prefix", prefix, "ok", 1,
                                                  "tokens", (json_int_t)verified.tokens, "largest",
                                                  verified.largest, "checksums", verified.checked));
        else
            printf("%s: %lld tokens are good, largest id %d%s\n", prefix, (long long)verified.tokens,
                   verified.largest, verified.checked ? "" : "; no checksums (PREFIX.crc)");
    }
    if (json) print_and_free(list);
    return exit_code;
}
