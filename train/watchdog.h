// SPDX-License-Identifier: Apache-2.0
// A thread of each rank that calls no MPI. Where the rank shows no sign of progress for guard.watchdog
// seconds, it writes RUN/log/stack-rank-N.txt, names who waits for whom, and ends the job with exit code 75:
// nothing is saved. Time in which the rank itself was stopped does not count.
#pragma once
#include <stdbool.h>

typedef struct Watchdog Watchdog;
// Watches over the calling thread; limit 0: over nothing, NULL.
Watchdog *watchdog_start(const char *run_dir, int rank, int ranks, double limit);
void watchdog_stop(Watchdog *watchdog); // NULL is fine

// RUN/ctl/hung says that a rank hangs; it stays where that has ended the job.
bool watchdog_has_ended(const char *run_dir);
void watchdog_clear(const char *run_dir); // before the ranks start to watch
