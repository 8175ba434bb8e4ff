// SPDX-License-Identifier: Apache-2.0
// floe data pack, floe data tokenizer
#include "core/clock.h"
#include "core/log.h"
#include "data/pack.h"
#include "data/tokenizer.h"
#include "tools/cmd_data.h"
#include <stdio.h>
#include <string.h>
#include <unistd.h>

static volatile sig_atomic_t interrupted; // the signal

static void on_signal(int number) {
    interrupted = number;
}

// The first INT or TERM ends the packing cleanly, a second one kills.
static void watch_signals(void) {
    struct sigaction action = {.sa_handler = on_signal, .sa_flags = (int)SA_RESETHAND};
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
}

typedef struct {
    double start, drawn;
} Progress;

static void draw_progress(void *context, const PackReport *report) {
    Progress *progress = context;
    double now = clock_seconds();
    if (now - progress->drawn < 0.2) return;
    progress->drawn = now;
    double share = report->bytes > 0 ? (double)report->bytes_done / (double)report->bytes : 1;
    int bars = (int)(20 * share);
    fprintf(stderr, "\r[%.*s%.*s] %3.0f%%  %.1f MB  %.1f MB/s  %lld documents  %lld tokens \033[K", bars,
            "####################", 20 - bars, "--------------------", 100 * share,
            1e-6 * (double)report->bytes_done,
            1e-6 * (double)report->bytes_done / (now - progress->start + 1e-9), (long long)report->documents,
            (long long)report->tokens);
    fflush(stderr);
}

int data_pack(const CliArgs *args) {
    const char *prefix = cli_text(args, "output"), *tokenizer = cli_text(args, "tokenizer");
    int threads = data_threads(args);
    if (threads == 0) return ERR_CONFIG;
    if (!prefix) return cli_misuse(args->command, "where to? give -o PREFIX");
    bool terminal = isatty(STDERR_FILENO) == 1;
    Progress progress = {.start = clock_seconds()};
    PackOptions options = {
        .input = args->argument,
        .inputs = args->arguments,
        .prefix = prefix,
        .tokenizer = tokenizer ? tokenizer : "bytes",
        .threads = threads,
        .stop = &interrupted,
        .progress = terminal ? draw_progress : NULL,
        .context = &progress,
    };
    PackReport report;
    watch_signals();
    Status status = pack_run(&options, &report);
    if (terminal) fputs("\r\033[K", stderr);
    if (status != OK) {
        int exit_code = cli_failure(status);
        return interrupted ? 128 + (int)interrupted : exit_code;
    }
    double seconds = clock_seconds() - progress.start;
    log_rank0(LOG_INFO,
              "packed %s: %lld tokens in %lld documents, from %.1f MB in %lld files, in %.1f s (%.1f MB/s)",
              prefix, (long long)report.tokens, (long long)report.documents, 1e-6 * (double)report.bytes,
              (long long)report.files, seconds, 1e-6 * (double)report.bytes / (seconds + 1e-9));
    if (report.skipped > 0) log_rank0(LOG_WARN, "%lld files were passed over", (long long)report.skipped);
    return OK;
}

int data_tokenizer(const CliArgs *args) {
    const char *path = cli_text(args, "output");
    int64_t vocab = cli_integer(args, "vocab", 0);
    int threads = data_threads(args);
    if (threads == 0) return ERR_CONFIG;
    if (!path) return cli_misuse(args->command, "where to? give -o FILE.model");
    if (vocab < 1 || vocab > INT32_MAX)
        return cli_misuse(args->command, "give --vocab N, the number of pieces");
    double start = clock_seconds();
    Status status = tokenizer_train(args->argument, args->arguments, path, (int)vocab, threads);
    if (status != OK) return cli_failure(status);
    log_rank0(LOG_INFO, "trained %s: %lld pieces in %.1f s; use it as tokenizer sentencepiece:%s", path,
              (long long)vocab, clock_seconds() - start, path);
    return OK;
}
