// SPDX-License-Identifier: Apache-2.0
// Two kinds of failure. What a caller can react to (a bad file, a bad key) returns a Status.
// What nobody can (a wrong shape, a failed MPI call) ends every rank, through DIE or REQUIRE.
#pragma once
#ifdef __cplusplus
extern "C" {
#endif

// The values are the exit codes of the floe command.
typedef enum {
    OK = 0,
    ERR_RUNTIME = 1,    // a run-time failure: I/O error, failed launch
    ERR_CONFIG = 2,     // usage or configuration
    ERR_FIT = 3,        // does not fit the machine
    ERR_DATA = 4,       // data or checkpoint corrupt
    ERR_DIVERGED = 5,   // stopped by a policy
    ERR_TEMPORARY = 75, // stopped early with a checkpoint: start again
} Status;

const char *status_text(void); // what the last failure on this thread said, with its trail of calls
Status status_fail(Status status, const char *file, int line, const char *format, ...)
    __attribute__((format(printf, 4, 5)));
Status status_trail(Status status, const char *file, int line, const char *call);
void die_at(const char *file, int line, const char *condition, const char *format, ...)
    __attribute__((noreturn, format(printf, 4, 5)));
void status_set_abort_hook(void (*hook)(int exit_code)); // comm: ends all ranks

// A Status failure's message names the file, the value and the next step; the trail is shown at -v only.
#define FAIL(status, ...) return status_fail((status), __FILE__, __LINE__, __VA_ARGS__)
#define TRY(call)                                                                                            \
    do {                                                                                                     \
        Status status_ = (call);                                                                             \
        if (status_ != OK) return status_trail(status_, __FILE__, __LINE__, #call);                          \
    } while (0)
#define DIE(...) die_at(__FILE__, __LINE__, 0, __VA_ARGS__)
#define REQUIRE(condition, ...)                                                                              \
    do {                                                                                                     \
        if (!(condition)) die_at(__FILE__, __LINE__, #condition, __VA_ARGS__);                               \
    } while (0)
#ifdef __cplusplus
}
#endif
