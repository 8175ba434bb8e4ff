// SPDX-License-Identifier: Apache-2.0
// Log lines that name their audience. Errors, warnings and debug lines go to stderr, info to stdout; each is
// flushed.
#pragma once
#ifdef __cplusplus
extern "C" {
#endif

typedef enum { LOG_DEBUG, LOG_INFO, LOG_WARN, LOG_ERROR } LogLevel;

void log_start(int rank, LogLevel lowest); // before this the program counts as rank 0 at LOG_INFO
int log_rank_number(void);
int log_shows(LogLevel level); // lines of this level are printed
// Every info, warning and error line of this process goes to this file descriptor too, whatever `lowest`
// hides; -1: no copy.
void log_copy_to(int fd);
void log_rank0(LogLevel level, const char *format, ...) __attribute__((format(printf, 2, 3))); // rank 0 alone
void log_rank(LogLevel level, const char *format, ...) __attribute__((format(printf, 2, 3))); // "[rank 3] …"
#ifdef __cplusplus
}
#endif
