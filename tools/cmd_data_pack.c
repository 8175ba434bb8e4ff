// SPDX-License-Identifier: Apache-2.0
#ifndef _GNU_SOURCE
#define _GNU_SOURCE // sched_getaffinity
#endif
// floe data pack, floe data tokenizer
#include "core/clock.h"
#include "core/log.h"
#include "data/pack.h"
#include "data/tokenizer.h"
#include "tools/cmd_data.h"
#include <sched.h>
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

enum { MOST_THREADS = 1024 };

static int available_cores(void) {
    cpu_set_t cores;
    return sched_getaffinity(0, sizeof cores, &cores) == 0 ? CPU_COUNT(&cores) : 1;
}

int data_pack(const CliArgs *args) {
    const char *prefix = cli_text(args, "output"), *tokenizer = cli_text(args, "tokenizer");
    int64_t threads = cli_integer(args, "threads", available_cores());
    if (threads < 1 || threads > MOST_THREADS)
        return cli_misuse(args->command, "-j takes 1 to %d", MOST_THREADS);
    if (!prefix) return cli_misuse(args->command, "where to? give -o PREFIX");
    bool terminal = isatty(STDERR_FILENO) == 1;
    Progress progress = {.start = clock_seconds()};
    PackOptions options = {
        .input = args->argument,
        .inputs = args->arguments,
        .prefix = prefix,
        .tokenizer = tokenizer ? tokenizer : "bytes",
        .threads = (int)threads,
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
    if (report.skipped > 0) log_rank0(LOG_WARN, "files passed over: %lld", (long long)report.skipped);
    return OK;
}

int data_tokenizer(const CliArgs *args) {
    const char *path = cli_text(args, "output");
    int64_t vocab = cli_integer(args, "vocab", 0);
    if (!path) return cli_misuse(args->command, "where to? give -o FILE.model");
    if (vocab < 1 || vocab > INT32_MAX)
        return cli_misuse(args->command, "give --vocab N, the number of pieces");
    double start = clock_seconds();
    Status status = tokenizer_train(args->argument, args->arguments, path, (int)vocab);
    if (status != OK) return cli_failure(status);
    log_rank0(LOG_INFO, "trained %s: %lld pieces in %.1f s; use it as tokenizer sentencepiece:%s", path,
              (long long)vocab, clock_seconds() - start, path);
    return OK;
}
