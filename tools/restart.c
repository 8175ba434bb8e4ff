// SPDX-License-Identifier: Apache-2.0
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "tools/restart.h"
#include "core/clock.h"
#include "train/format.h"
#include "train/watchdog.h"
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

// For the ranks: number of this restart, seconds since the first start, when the last record was written, and
// whether the run had begun by then.
static const char *const variable = "FLOE_RESTART";

static int count_starts(const char *run_dir) {
    char path[RUN_PATH_BYTES];
    snprintf(path, sizeof path, "%s/meta.json", run_dir);
    json_t *meta = json_load_file(path, 0, NULL);
    int count = (int)json_array_size(json_object_get(meta, "starts"));
    json_decref(meta);
    return count;
}

Restarts restarts_create(int most, const char *run_dir) {
    unsetenv(variable);
    watchdog_clear(run_dir);
    return (Restarts){
        .most = most, .run_dir = run_dir, .begun = clock_seconds(), .starts = count_starts(run_dir)};
}

static double last_record(const char *run_dir) {
    char path[RUN_PATH_BYTES];
    struct stat info;
    snprintf(path, sizeof path, "%s/metrics.jsonl", run_dir);
    if (stat(path, &info) != 0) return (double)time(NULL);
    return (double)info.st_mtim.tv_sec + 1e-9 * (double)info.st_mtim.tv_nsec;
}

// Whether a signal came meanwhile.
static bool pause_or_signal(double seconds) {
    static const int numbers[] = {SIGINT, SIGTERM, SIGHUP, SIGUSR1, SIGUSR2};
    sigset_t set, before;
    sigemptyset(&set);
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++) sigaddset(&set, numbers[i]);
    sigprocmask(SIG_BLOCK, &set, &before);
    double until = clock_seconds() + seconds;
    int number = 0;
    for (double left = seconds; left > 0 && (number <= 0 || number == SIGUSR1);
         left = until - clock_seconds())
        number = sigtimedwait(&set, NULL,
                              &(struct timespec){(time_t)left, (long)(1e9 * (left - (double)(time_t)left))});
    sigprocmask(SIG_SETMASK, &before, NULL);
    return number > 0 && number != SIGUSR1; // that asks for a save only, and there is nobody to save
}

bool restart_due(Restarts *r, const LaunchEnd *end, double max_seconds, int *exit_code) {
    enum { LONGEST_PAUSE = 300 };
    char cause[96], told[96];
    bool hung = *exit_code == ERR_TEMPORARY && watchdog_has_ended(r->run_dir);
    if (r->most == 0 || end->asked || (!hung && *exit_code <= 128)) return false;
    int number = *exit_code - 128;
    if (hung)
        snprintf(cause, sizeof cause, "the watchdog has ended the job");
    else if (number <= SIGRTMAX)
        snprintf(cause, sizeof cause, "signal %d (%s) has ended the job", number, strsignal(number));
    else // mpirun's own, for instance of a host that is gone
        snprintf(cause, sizeof cause, "the job has ended with exit code %d", *exit_code);
    if (r->done == r->most) {
        fprintf(stderr, "error: %s; all %d restarts are used up\n", cause, r->most);
        return false;
    }
    double pause = r->done < 9 ? 1 << r->done : LONGEST_PAUSE, failed = last_record(r->run_dir);
    if (pause > LONGEST_PAUSE) pause = LONGEST_PAUSE;
    r->done++;
    fprintf(stderr, "warning: %s; restart %d of %d in %.0f s\n", cause, r->done, r->most, pause);
    double spent = clock_seconds() + pause - r->begun;
    if (pause_or_signal(pause) || (max_seconds > 0 && spent >= max_seconds)) {
        *exit_code = ERR_TEMPORARY;
        return false;
    }
    watchdog_clear(r->run_dir);
    snprintf(told, sizeof told, "%d:%.3f:%.3f:%d", r->done, spent, failed,
             count_starts(r->run_dir) > r->starts);
    setenv(variable, told, 1);
    return true;
}

void restart_read(RunRequest *request) {
    const char *told = getenv(variable);
    int begun;
    double spent;
    if (!told || sscanf(told, "%d:%lf:%lf:%d", &request->restart, &spent, &request->failed_at, &begun) != 4)
        return;
    if (begun) request->start.mode = RESUME_AUTO; // from its own checkpoints, not from where it began
    if (request->max_seconds > 0) request->max_seconds -= spent;
}
