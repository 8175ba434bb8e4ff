// SPDX-License-Identifier: Apache-2.0
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "train/hang_report.h"
#include "train/format.h"
#include <execinfo.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

// ---- the stack, which only its own thread can write: a signal makes it do so. Handlers reach nothing else.

static pthread_t main_thread;
static pid_t main_id;
static volatile sig_atomic_t stack_fd = -1, stack_written;

static void write_stack(int number) {
    enum { FRAMES = 64 };
    void *frame[FRAMES];
    (void)number;
    if (stack_fd >= 0) backtrace_symbols_fd(frame, backtrace(frame, FRAMES), stack_fd);
    stack_written = 1;
}

static int stack_signal(void) {
    return SIGRTMIN + 2;
}

void hang_report_prepare(void) {
    void *frame[1];
    backtrace(frame, 1); // its first call loads a library, which a handler must not
    main_thread = pthread_self();
    main_id = (pid_t)syscall(SYS_gettid);
    struct sigaction action = {.sa_handler = write_stack, .sa_flags = SA_RESTART};
    sigemptyset(&action.sa_mask);
    sigaction(stack_signal(), &action, NULL);
}

// What the kernel says of the main thread: "S (sleeping)", and the call in which it sleeps.
static void write_kernel_view(int fd) {
    char path[80], text[4096];
    snprintf(path, sizeof path, "/proc/self/task/%d/status", (int)main_id);
    FILE *file = fopen(path, "r");
    while (file && fgets(text, sizeof text, file))
        if (strncmp(text, "State:", 6) == 0) dprintf(fd, "main thread: %s", text + 7);
    if (file) fclose(file);
    snprintf(path, sizeof path, "/proc/self/task/%d/wchan", (int)main_id);
    file = fopen(path, "r");
    if (file && fgets(text, sizeof text, file) && strcmp(text, "0")) dprintf(fd, "sleeps in: %s\n", text);
    if (file) fclose(file);
}

static void write_main_stack(int fd) {
    dprintf(fd, "stack of the main thread:\n");
    stack_fd = fd;
    stack_written = 0;
    bool sent = pthread_kill(main_thread, stack_signal()) == 0;
    for (int i = 0; sent && i < 100 && !stack_written; i++) nanosleep(&(struct timespec){0, 10000000}, NULL);
    stack_fd = -1;
    if (!stack_written) dprintf(fd, "none: the thread does not answer, it sleeps in the kernel\n");
}

// ---- texts

typedef struct {
    char *text;
    size_t size, length;
} Text;

static void add(Text *out, const char *format, ...) __attribute__((format(printf, 2, 3)));
static void add(Text *out, const char *format, ...) {
    va_list args;
    va_start(args, format);
    int n = vsnprintf(out->text + out->length, out->size - out->length, format, args);
    va_end(args);
    if (n > 0) out->length += (size_t)n;
    if (out->length >= out->size) out->length = out->size - 1;
}

static void add_place(Text *out, const HangReport *r) {
    add(out, "%s", r->place ? r->place : "the start");
    if (r->layer >= 0) add(out, " of layer %d", r->layer);
    if (r->pass) add(out, " (%s)", r->pass);
}

static void add_peers(Text *out, const HangReport *r) {
    int shown = r->peers < HEARTBEAT_PEERS ? r->peers : HEARTBEAT_PEERS;
    add(out, r->peers == 1 ? "rank " : "ranks ");
    for (int i = 0; i < shown; i++) add(out, "%s%d", i ? ", " : "", r->peer[i]);
    if (r->peers > shown) add(out, " and %d more", r->peers - shown);
}

static bool in_exchange(const HangReport *r) {
    return r->call && r->place && strcmp(r->call, "exchange") == 0 && strcmp(r->place, r->call) == 0;
}

static void add_call(Text *out, const HangReport *r) {
    if (in_exchange(r)) {
        add_place(out, r);
        return;
    }
    add(out, "%s over the %s group after ", r->call, r->group->name);
    add_place(out, r);
}

void hang_report_line(const HangReport *r, char *text, size_t size) {
    Text out = {text, size, 0};
    if (!r->call) {
        add(&out, "makes no progress for %.0f s after ", r->seconds);
        add_place(&out, r);
        return;
    }
    add(&out, "waits %.0f s in ", r->seconds);
    add_call(&out, r);
    if (r->peers > 0) add(&out, " for ");
    if (r->peers > 0) add_peers(&out, r);
}

// ---- the report

HangReport hang_report_take(const char *run_dir, int rank, int ranks, double seconds) {
    HangReport r = {.run_dir = run_dir, .rank = rank, .ranks = ranks, .seconds = seconds};
    r.call = atomic_load_explicit(&heartbeat.call, memory_order_acquire);
    r.group = HEARTBEAT_LOAD(group);
    r.place = HEARTBEAT_LOAD(place);
    r.pass = HEARTBEAT_LOAD(pass);
    r.layer = HEARTBEAT_LOAD(layer);
    r.step = HEARTBEAT_LOAD(step);
    r.peers = HEARTBEAT_LOAD(peers);
    for (int i = 0; i < HEARTBEAT_PEERS; i++) r.peer[i] = HEARTBEAT_LOAD(peer[i]);
    for (int i = 0; i < HEARTBEAT_KINDS; i++) r.calls[i] = HEARTBEAT_LOAD(calls[i]);
    return r;
}

static void report_path(char *path, size_t size, const char *run_dir, int rank) {
    snprintf(path, size, "%s/log/stack-rank-%d.txt", run_dir, rank);
}

void hang_report_write(const HangReport *r) {
    char path[RUN_PATH_BYTES], host[256] = "", text[4096];
    Text out = {text, sizeof text, 0};
    snprintf(path, sizeof path, "%s/log", r->run_dir);
    mkdir(path, 0777);
    report_path(path, sizeof path, r->run_dir, r->rank);
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    if (fd < 0) return; // the line on the terminal has to do
    gethostname(host, sizeof host - 1);
    add(&out, "rank %d of %d on %s, process %d, %s\n", r->rank, r->ranks, host, (int)getpid(),
        utc_now("%Y-%m-%dT%H:%M:%SZ").text);
    add(&out, "no progress for %.1f s in step %lld\n", r->seconds, (long long)r->step);
    add(&out, r->call ? "waits in: " : "last sign of life: ");
    if (r->call)
        add_call(&out, r);
    else
        add_place(&out, r);
    if (r->call)
        add(&out, "\nas rank %d of the %d of the %s group", r->group->rank, r->group->size, r->group->name);
    add(&out, "\nblocking calls so far: %lld %lld %lld\n", (long long)r->calls[0], (long long)r->calls[1],
        (long long)r->calls[2]);
    dprintf(fd, "%s", text);
    write_kernel_view(fd);
    write_main_stack(fd);
    close(fd);
}

// Calls that another rank had begun when it reported; false: it has not reported since then.
static bool calls_of(const HangReport *r, int rank, int64_t since, int64_t calls[HEARTBEAT_KINDS]) {
    char path[RUN_PATH_BYTES], line[512];
    long long n[HEARTBEAT_KINDS];
    struct stat info;
    bool found = false;
    report_path(path, sizeof path, r->run_dir, rank);
    FILE *file = fopen(path, "r");
    if (file && fstat(fileno(file), &info) == 0 && info.st_mtime >= since)
        while (!found && fgets(line, sizeof line, file))
            found = sscanf(line, "blocking calls so far: %lld %lld %lld", &n[0], &n[1], &n[2]) == 3;
    if (file) fclose(file);
    for (int i = 0; found && i < HEARTBEAT_KINDS; i++) calls[i] = n[i];
    return found;
}

static void add_missing(HangReport *r, int rank) {
    if (r->peers < HEARTBEAT_PEERS) r->peer[r->peers] = rank;
    r->peers++;
}

void hang_report_silent(const HangReport *report, int64_t since, char *text, size_t size) {
    HangReport silent = {.run_dir = report->run_dir};
    int64_t calls[HEARTBEAT_KINDS];
    for (int rank = 0; rank < report->ranks; rank++)
        if (rank != report->rank && !calls_of(report, rank, since, calls)) add_missing(&silent, rank);
    Text out = {text, size, 0};
    *text = 0;
    if (silent.peers) add_peers(&out, &silent);
}

void hang_report_find_missing(HangReport *r, int64_t since) {
    int64_t calls[HEARTBEAT_KINDS];
    char path[RUN_PATH_BYTES], text[512];
    if (r->call && r->peers < 0) {
        r->peers = 0;
        for (int i = 0; i < r->group->size; i++) {
            int rank = r->group->first + i * r->group->stride, kind = r->group->kind;
            if (rank == r->rank) continue;
            if (calls_of(r, rank, since, calls) && calls[kind] >= r->calls[kind]) continue;
            add_missing(r, rank);
        }
    }
    if (!r->call || r->peers < 1) return;
    Text out = {text, sizeof text, 0};
    add_peers(&out, r);
    report_path(path, sizeof path, r->run_dir, r->rank);
    int fd = open(path, O_WRONLY | O_APPEND | O_CLOEXEC);
    if (fd < 0) return;
    dprintf(fd, "not arrived: %s\n", text);
    close(fd);
}
