// SPDX-License-Identifier: Apache-2.0
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "train/watchdog.h"
#include "core/background.h"
#include "core/clock.h"
#include "train/hang_report.h"
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

struct Watchdog {
    char run_dir[RUN_PATH_BYTES];
    int rank, ranks;
    double limit, tick;
    int stop[2]; // a pipe: closed to end the thread
    pthread_t thread;
};

enum { FEW_RANKS = 64 };             // up to here each of them prints its line
static const double GRACE = 2.0;     // seconds in which the others write their reports …
static const double LAST_WORD = 1.5; // … and then print their lines

static void hung_path(char *path, size_t size, const char *run_dir) {
    snprintf(path, size, "%s/ctl/hung", run_dir);
}

bool watchdog_has_ended(const char *run_dir) {
    char path[RUN_PATH_BYTES + 16];
    hung_path(path, sizeof path, run_dir);
    return access(path, F_OK) == 0;
}

void watchdog_clear(const char *run_dir) {
    char path[RUN_PATH_BYTES + 16];
    hung_path(path, sizeof path, run_dir);
    unlink(path);
}

// Whether this rank is the first to say so. *since: when the first one did.
static bool mark_hung(const Watchdog *w, int64_t *since) {
    char path[RUN_PATH_BYTES + 16];
    struct stat info;
    hung_path(path, sizeof path, w->run_dir);
    int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (fd >= 0) close(fd);
    *since = stat(path, &info) == 0 ? (int64_t)info.st_mtime : 0;
    return fd >= 0;
}

// A terminal or pipe that nobody reads must not keep the job from ending.
static void print(const Watchdog *w, const char *text) {
    char path[RUN_PATH_BYTES + 16];
    struct pollfd out = {2, POLLOUT, 0};
    size_t length = strlen(text);
    snprintf(path, sizeof path, "%s/log.txt", w->run_dir);
    int log = open(path, O_WRONLY | O_APPEND | O_CLOEXEC);
    ssize_t written = log >= 0 ? write(log, text, length) : 0;
    if (log >= 0) close(log);
    if (poll(&out, 1, 500) > 0 && (out.revents & POLLOUT)) written = write(2, text, length);
    (void)written; // nobody is left to be told
}

// False: asked to stop.
static bool pause_for(const Watchdog *w, double seconds) {
    struct pollfd stop = {w->stop[0], POLLIN, 0};
    return poll(&stop, 1, (int)(1000 * seconds)) == 0;
}

// Returns where the rank has gone on meanwhile, or is done.
static void end_job(const Watchdog *w, double idle) {
    char line[1024], text[RUN_PATH_BYTES + 1200];
    int64_t since;
    uint64_t beats = HEARTBEAT_LOAD(beats);
    HangReport report = hang_report_take(w->run_dir, w->rank, w->ranks, idle);
    bool first = mark_hung(w, &since);
    hang_report_write(&report);
    if (!pause_for(w, GRACE)) return;
    if (HEARTBEAT_LOAD(beats) != beats) {
        if (first) watchdog_clear(w->run_dir);
        return;
    }
    if (first || w->ranks <= FEW_RANKS) {
        hang_report_find_missing(&report, since);
        hang_report_line(&report, line, sizeof line);
        snprintf(text, sizeof text, "[rank %d] %s\n", w->rank, line);
        print(w, text);
    }
    if (!pause_for(w, LAST_WORD)) return;
    if (first) {
        hang_report_silent(&report, since, line, sizeof line);
        snprintf(
            text, sizeof text,
            "[rank %d] error: no progress for %.0f s (guard.watchdog = %g); the job ends and saves nothing; "
            "stacks: %s/log/stack-rank-*.txt%s%s\n",
            w->rank, idle, w->limit, w->run_dir, *line ? "; none from " : "", line);
        print(w, text);
    }
    mark_hung(w, &since);
    _exit(ERR_TEMPORARY);
}

static void *watch(void *context) {
    const Watchdog *w = context;
    uint64_t beats = HEARTBEAT_LOAD(beats);
    double idle = 0, seen = clock_seconds(), looked = 0;
    while (pause_for(w, w->tick)) {
        double now = clock_seconds(), spent = now - seen;
        seen = now;
        idle += spent < 2 * w->tick ? spent : 2 * w->tick; // more: this process was stopped
        if (HEARTBEAT_LOAD(beats) != beats) {
            beats = HEARTBEAT_LOAD(beats);
            idle = 0;
            continue;
        }
        bool asked = false; // by a rank that hangs; looked for now and then, since it is a file
        if (idle >= 0.5 * w->limit && now - looked >= 1) {
            looked = now;
            asked = watchdog_has_ended(w->run_dir);
        }
        if (idle < w->limit && !asked) continue;
        end_job(w, idle);
        idle = 0;
        seen = clock_seconds();
    }
    return NULL;
}

Watchdog *watchdog_start(const char *run_dir, int rank, int ranks, double limit) {
    if (limit <= 0) return NULL;
    Watchdog *w = calloc(1, sizeof *w);
    REQUIRE(w && pipe2(w->stop, O_CLOEXEC) == 0, "no memory or file for the watchdog");
    snprintf(w->run_dir, sizeof w->run_dir, "%s", run_dir);
    w->rank = rank;
    w->ranks = ranks;
    w->limit = limit;
    w->tick = limit > 20 ? 1 : limit / 20;
    hang_report_prepare();
    int failed = background_start(&w->thread, watch, w);
    REQUIRE(!failed, "cannot start the watchdog's thread: %s", strerror(failed));
    return w;
}

void watchdog_stop(Watchdog *w) {
    if (!w) return;
    close(w->stop[1]);
    pthread_join(w->thread, NULL);
    close(w->stop[0]);
    free(w);
}
