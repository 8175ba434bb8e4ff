// SPDX-License-Identifier: Apache-2.0
// For LD_PRELOAD: slow disks, so that a signal meets a run while it reads or writes. In milliseconds, while
// the file FLOE_SLOW_WHEN exists:
//   FLOE_SLOW_LOAD   each read of a checkpoint's file
//   FLOE_SLOW_SAVE   each flush of a checkpoint's file
//   FLOE_SLOW_DATA   the first touch of each page of a token shard
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum { PAGE = 4096, MOST_MAPS = 16 };

static struct { char *first, *end; } map[MOST_MAPS];
static int maps;
static long load_ms, save_ms, data_ms;
static const char *when;

static long variable(const char *name) {
    const char *text = getenv(name);
    return text ? atol(text) : 0;
}

__attribute__((constructor)) static void read_variables(void) {
    load_ms = variable("FLOE_SLOW_LOAD");
    save_ms = variable("FLOE_SLOW_SAVE");
    data_ms = variable("FLOE_SLOW_DATA");
    when = getenv("FLOE_SLOW_WHEN");
}

static void wait_ms(long ms) {
    if (!when || access(when, F_OK) != 0) return;
    struct timespec left = {ms / 1000, ms % 1000 * 1000000};
    int before = errno;
    while (nanosleep(&left, &left) != 0 && errno == EINTR) {
    }
    errno = before;
}

static bool is_named(int fd, const char *part, const char *ending) {
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    size_t end = strlen(ending);
    if (length < (ssize_t)end) return false;
    path[length] = 0;
    return strstr(path, part) && strcmp(path + length - end, ending) == 0;
}

ssize_t pread(int fd, void *out, size_t bytes, off_t offset) {
    if (load_ms > 0 && is_named(fd, "/ckpt/step-", ".h5")) wait_ms(load_ms);
    return syscall(SYS_pread64, fd, out, bytes, offset);
}

int fsync(int fd) {
    if (save_ms > 0 && is_named(fd, "/ckpt/.tmp-", ".h5")) wait_ms(save_ms);
    return (int)syscall(SYS_fsync, fd);
}

static void on_fault(int number, siginfo_t *info, void *context) {
    char *page = (char *)((uintptr_t)info->si_addr / PAGE * PAGE);
    (void)context;
    for (int i = 0; i < maps; i++)
        if (page >= map[i].first && page < map[i].end) {
            wait_ms(data_ms);
            mprotect(page, PAGE, PROT_READ);
            return;
        }
    signal(number, SIG_DFL);
}

void *mmap(void *at, size_t bytes, int protection, int flags, int fd, off_t offset) {
    void *data = (void *)syscall(SYS_mmap, at, bytes, protection, flags, fd, offset);
    if (data == MAP_FAILED || fd < 0 || data_ms <= 0 || maps == MOST_MAPS || !is_named(fd, "/data/", ".bin"))
        return data;
    struct sigaction action = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO | SA_RESTART};
    map[maps].first = data;
    map[maps++].end = (char *)data + bytes;
    sigaction(SIGSEGV, &action, NULL);
    mprotect(data, bytes, PROT_NONE);
    return data;
}
