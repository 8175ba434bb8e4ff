// SPDX-License-Identifier: Apache-2.0
#include "tools/watch.h"
#include "core/clock.h"
#include "train/format.h"
#include <stdio.h>
#include <unistd.h>

// The only state of the process here: the handler can reach nothing else.
static volatile sig_atomic_t interrupted;
static struct { double start, drawn; } bar;

static void on_signal(int number) {
    interrupted = number;
}

static void draw(void *context, int64_t done, int64_t total) {
    (void)context;
    double now = clock_seconds(), share = total > 0 ? (double)done / (double)total : 1;
    if (now - bar.drawn < 0.2) return;
    bar.drawn = now;
    int cells = (int)(20 * share);
    double left = done > 0 ? (now - bar.start) * (1 - share) / share : 0;
    fprintf(stderr, "\r[%.*s%.*s] %3.0f%%  %s of %s  eta %s   Ctrl-C: stop, nothing is left\033[K", cells,
            "####################", 20 - cells, "--------------------", 100 * share,
            short_bytes((double)done).text, short_bytes((double)total).text, short_duration(left).text);
    fflush(stderr);
}

Watch watch_begin(void) {
    struct sigaction action = {.sa_handler = on_signal, .sa_flags = (int)SA_RESETHAND | SA_RESTART};
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
    bar.start = clock_seconds();
    return (Watch){.stop = &interrupted, .progress = isatty(STDERR_FILENO) == 1 ? draw : NULL};
}

int watch_end(Status status) {
    if (bar.drawn > 0) fputs("\r\033[K", stderr);
    if (status == OK) return OK;
    int exit_code = cli_failure(status);
    return interrupted ? 128 + (int)interrupted : exit_code;
}
