// SPDX-License-Identifier: Apache-2.0
// floe data sample
#include "core/npy.h"
#include "data/loader.h"
#include "data/tokenizer.h"
#include "tools/cmd_data.h"
#include "train/run_config.h"
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef struct {
    const RunConfig *config;
    const Loader *loader;
    int64_t first_step, steps;
    NpyWriter *file;            // NULL: no file
    const Tokenizer *tokenizer; // NULL: no text
} Sampling;

static void print_sample(const Sampling *sampling, int64_t step, int64_t sample, const int32_t *tokens,
                         const SampleOrigin *origin) {
    printf("--- step %lld, sample %lld: stage %d, source %s, epoch %lld, its sample %lld\n", (long long)step,
           (long long)sample, origin->stage + 1, loader_source_name(sampling->loader, origin->source),
           (long long)origin->epoch, (long long)origin->index);
    int64_t count = loader_seq_len(sampling->loader) + 1, first = 0;
    int eos = tokenizer_eos(sampling->tokenizer);
    for (int64_t i = 0; i <= count; i++) {
        if (i < count && tokens[i] != eos) continue;
        int64_t bytes;
        char *text = tokenizer_decode(sampling->tokenizer, tokens + first, i - first, &bytes);
        fwrite(text, 1, (size_t)bytes, stdout);
        free(text);
        if (i < count) fputs("<eos>", stdout);
        first = i + 1;
    }
    putchar('\n');
}

static Status emit_step(const Sampling *sampling, int64_t step, int32_t *tokens) {
    const BatchPlan *plan = &sampling->config->batch.plan;
    int64_t first = batch_first_sample(plan, step), row = loader_seq_len(sampling->loader) + 1;
    for (int64_t i = 0; i < batch_sequences(plan, step); i++) {
        SampleOrigin origin;
        TRY(loader_read(sampling->loader, first + i, 1, tokens, &origin));
        if (sampling->file) TRY(npy_write(sampling->file, tokens, (size_t)row * sizeof *tokens));
        if (sampling->tokenizer) print_sample(sampling, step, first + i, tokens, &origin);
    }
    return OK;
}

static Status emit_steps(const Sampling *sampling) {
    int32_t *tokens = malloc((size_t)(loader_seq_len(sampling->loader) + 1) * sizeof *tokens);
    REQUIRE(tokens, "out of memory");
    Status status = OK;
    for (int64_t i = 0; i < sampling->steps && status == OK; i++)
        status = emit_step(sampling, sampling->first_step + i, tokens);
    free(tokens);
    return status;
}

static Status fill_file(Sampling *sampling, const char *path, const int64_t shape[2]) {
    TRY(npy_create(&sampling->file, path, "<i4", 2, shape));
    Status status = emit_steps(sampling);
    if (status == OK) return npy_close(sampling->file);
    char *reason = strdup(status_text()); // closing will complain about the missing rows
    npy_close(sampling->file);
    status_fail(status, __FILE__, __LINE__, "%s", reason ? reason : "out of memory");
    free(reason);
    return status;
}

// Into PATH.tmp, which takes the name PATH when it is whole.
static Status emit_file(Sampling *sampling, const char *path) {
    const BatchPlan *plan = &sampling->config->batch.plan;
    int64_t first = batch_first_sample(plan, sampling->first_step);
    int64_t end = batch_first_sample(plan, sampling->first_step + sampling->steps);
    size_t size = strlen(path) + 5;
    char *tmp = malloc(size);
    REQUIRE(tmp, "out of memory");
    snprintf(tmp, size, "%s.tmp", path);
    Status status =
        fill_file(sampling, tmp, (const int64_t[]){end - first, loader_seq_len(sampling->loader) + 1});
    if (status == OK && rename(tmp, path) != 0)
        status = status_fail(ERR_RUNTIME, __FILE__, __LINE__, "%s: cannot be renamed to %s: %s", tmp, path,
                             strerror(errno));
    if (status != OK) unlink(tmp);
    free(tmp);
    return status;
}

static Status sample_with(const CliArgs *args, const RunConfig *config) {
    Sampling sampling = {.config = config,
                         .first_step = cli_integer(args, "from-step", 1),
                         .steps = cli_integer(args, "steps", 1)};
    const char *path = cli_text(args, "output");
    Tokenizer *tokenizer = NULL;
    Loader *loader;
    if (cli_flag(args, "text")) TRY(tokenizer_open(&tokenizer, config->tokenizer));
    sampling.tokenizer = tokenizer;
    Status status = loader_create(&loader, &config->data);
    if (status == OK) {
        sampling.loader = loader;
        status = path ? emit_file(&sampling, path) : emit_steps(&sampling);
        loader_destroy(loader);
    }
    tokenizer_close(tokenizer);
    return status;
}

int data_sample(const CliArgs *args) {
    if (cli_integer(args, "from-step", 1) < 1) return cli_misuse(args->command, "--from-step counts from 1");
    if (cli_integer(args, "steps", 1) < 1) return cli_misuse(args->command, "--steps must be above 0");
    if (!cli_text(args, "output") && !cli_flag(args, "text"))
        return cli_misuse(args->command, "give -o FILE.npy, --text or both");
    RunConfig *config;
    ConfigDocument *document;
    Status status =
        config_load(&config, &document, args->argument, args->arguments, args->override, args->overrides, 0);
    if (status != OK) return (int)status; // config_load has printed every problem
    status = sample_with(args, config);
    config_free(config, document);
    return status == OK ? OK : cli_failure(status);
}
