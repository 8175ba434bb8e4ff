// SPDX-License-Identifier: Apache-2.0
// What the files tools/launch*.c share.
#pragma once
#include "tools/launch.h"
#include <stddef.h>
#include <sys/types.h>

// ---- launch_output.c: mpirun's stderr, on its way to ours. mpirun's banners and the errors of all ranks but
// the first that failed are left out; the rest passes unchanged, unfinished lines (a progress bar) after a
// moment.
typedef struct {
    bool verbose;     // everything passes
    char line[16384]; // read but not judged yet
    size_t length;
    bool in_banner;
    int first_failed; // rank whose errors are shown; −1: none yet
    bool rank_spoke;  // a rank has written an error
    char *banner;     // what was left out of mpirun's words
    size_t banner_bytes;
} LaunchOutput;
void launch_output_take(LaunchOutput *output, const char *data, size_t bytes);
void launch_output_pause(LaunchOutput *output); // nothing came for a moment
// The end. Where the job failed and no rank said why, mpirun's words are shown.
void launch_output_end(LaunchOutput *output, bool failed);

// ---- launch_job.c: processes and shared memory of a job, known by FLOE_JOB in their environment
typedef struct {
    char name[48];   // value of FLOE_JOB
    char folder[80]; // of its shared memory
} LaunchJob;
LaunchJob launch_job_create(void); // makes the folder
// Sends the signal to every process of the job but this one and `spare`; returns how many there are.
int launch_job_signal(const LaunchJob *job, int signal, pid_t spare);
// Whether at least `least` processes of the job are there and all of them would handle the signal now.
bool launch_job_listens(const LaunchJob *job, int signal, int least);
// Kills what is left of the job, waits up to a second for its end, and removes its folder.
void launch_job_end(const LaunchJob *job);
// A process that outlives us: when this process is gone without launch_keeper_dismiss, it ends the job.
typedef struct {
    pid_t pid;
    int pipe; // its end there tells the keeper
} LaunchKeeper;
LaunchKeeper launch_keeper_start(const LaunchJob *job);
void launch_keeper_dismiss(LaunchKeeper *keeper);
// Ends this process when the process that started it is gone.
void launch_watch_parent(void);

// ---- launch_command.c
// The mpirun command line that runs this program with argv on `ranks` ranks; NULL after a message on stderr.
// Owned by the caller, strings too.
char **launch_command(int ranks, int argc, char **argv);
// Sets what ranks find in their environment. Call before launch_command.
void launch_environment(const LaunchOptions *options, const LaunchJob *job, int ranks);
void launch_environment_end(const LaunchJob *job);              // a restart has a folder of its own
void launch_terminal_environment(const LaunchOptions *options); // FLOE_COLOR and FLOE_PROGRESS alone
int launch_cores(void);                                         // processors that this process may use
