// SPDX-License-Identifier: Apache-2.0
#include "core/status.h"
#include "core/log.h"
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static _Thread_local char text[4096];
static void (*abort_hook)(int exit_code);

const char *status_text(void) {
    return text;
}

Status status_fail(Status status, const char *file, int line, const char *format, ...) {
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    log_rank(LOG_DEBUG, "%s:%d: %s", file, line, text);
    return status;
}

Status status_trail(Status status, const char *file, int line, const char *call) {
    log_rank(LOG_DEBUG, "  from %s:%d: %s", file, line, call);
    return status;
}

void status_set_abort_hook(void (*hook)(int exit_code)) {
    abort_hook = hook;
}

void die_at(const char *file, int line, const char *condition, const char *format, ...) {
    char message[2048];
    va_list args;
    va_start(args, format);
    vsnprintf(message, sizeof message, format, args);
    va_end(args);
    log_rank(LOG_ERROR, "%s:%d: %s%s%s", file, line, condition ? condition : "", condition ? ": " : "",
             message);
    fflush(NULL);
    if (abort_hook) abort_hook(ERR_RUNTIME);
    abort();
}
