// SPDX-License-Identifier: Apache-2.0
#include "core/log.h"
#include <stdarg.h>
#include <stdio.h>
#include <unistd.h>

static int own_rank;
static int started;
static LogLevel lowest_level = LOG_INFO;
static int copy_fd = -1;

void log_start(int rank, LogLevel lowest) {
    own_rank = rank;
    lowest_level = lowest;
    started = 1;
}

int log_rank_number(void) {
    return own_rank;
}

int log_shows(LogLevel level) {
    return level >= lowest_level;
}

void log_copy_to(int fd) {
    copy_fd = fd;
}

// One write a line, so that lines of several ranks do not mix.
static void print(LogLevel level, int with_rank, const char *format, va_list args) {
    static const char *const names[] = {"debug: ", "", "warning: ", "error: "};
    int copied = copy_fd >= 0 && level >= LOG_INFO;
    if (level < lowest_level && !copied) return;
    char line[8192];
    int length = with_rank ? snprintf(line, sizeof line, "[rank %d] ", own_rank) : 0;
    length += snprintf(line + length, sizeof line - (size_t)length, "%s", names[level]);
    int body = vsnprintf(line + length, sizeof line - (size_t)length - 1, format, args);
    length += body < 0 ? 0 : body;
    if (length > (int)sizeof line - 2) length = (int)sizeof line - 2;
    line[length++] = '\n';
    if (copied && write(copy_fd, line, (size_t)length) < 0) copy_fd = -1; // a full disk must not end the run
    if (level < lowest_level) return;
    FILE *out = level == LOG_INFO ? stdout : stderr;
    fwrite(line, 1, (size_t)length, out);
    fflush(out);
}

void log_rank0(LogLevel level, const char *format, ...) {
    if (own_rank != 0) return;
    va_list args;
    va_start(args, format);
    print(level, 0, format, args);
    va_end(args);
}

void log_rank(LogLevel level, const char *format, ...) {
    va_list args;
    va_start(args, format);
    print(level, started, format, args);
    va_end(args);
}
