// SPDX-License-Identifier: Apache-2.0
// The front end: a floe command starts its own ranks under mpirun, stands between them and the terminal, and
// ends with the exit code of the first rank that failed.
//
//     int exit_code;
//     LaunchOptions launch = {.ranks = …};
//     if (launch_ranks(&launch, argc, argv, &exit_code)) return exit_code; // the job is over
//     comm_start(&argc, &argv);                                           // this process is a rank, or works
//     alone
#pragma once
#include "core/status.h"
#include <stdbool.h>

// How a job ended, beside its exit code.
typedef struct {
    bool asked; // a signal had asked it to
} LaunchEnd;

typedef struct {
    int ranks;                    // 0: launch_default_ranks()
    const char *color, *progress; // auto, always or never; NULL: auto
    bool nothing_to_save;         // the ranks do not listen to signals: the first one ends them at once
    bool verbose;                 // shows the mpirun command line and what mpirun says
    bool always;                  // one rank gets a process and a front end too
    int (*noted)(void);           // a signal that came before the job was there, or 0; NULL: none is noted
    LaunchEnd *end;               // filled where a job was started; or NULL
} LaunchOptions;

// This process is a rank that mpirun or srun has started already.
bool launch_is_rank(void);
// Ranks that a job will have: those of the launcher around us, or else `wanted` or, where that is 0, min(4,
// cores).
int launch_rank_count(int wanted);

// Runs "floe argv[0] argv[1] …" on the ranks under mpirun and waits for them. true: *exit_code is the job's.
// false: nothing was started since this process is a rank already or is to work alone; it goes on itself. In
// a rank this also starts the watch that ends it within 2 s when the front end or mpirun is gone. The ranks
// see FLOE_PROGRESS and FLOE_COLOR (1 or 0) as the front end's terminal and the options decide. Signals while
// the job runs: the first INT, TERM or HUP, and USR2, ask the ranks to save and stop (SIGUSR2), USR1 to save
// and go on; a second INT, TERM or HUP ends everything within 2 s (exit code 128 + signal).
bool launch_ranks(const LaunchOptions *options, int argc, char **argv, int *exit_code);

// Removes shared-memory files that dead Open MPI jobs of this user left in /dev/shm; returns how many, or
// only counts.
int launch_clean_shared_memory(bool remove);
