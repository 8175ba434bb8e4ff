// SPDX-License-Identifier: Apache-2.0
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "tools/launch.h"
#include "core/clock.h"
#include "tools/launch_internal.h"
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/wait.h>
#include <unistd.h>

bool launch_is_rank(void) {
    const char *step = getenv("SLURM_STEP_NUM_TASKS"); // of srun; a batch script itself is no step
    return getenv("OMPI_COMM_WORLD_SIZE") || getenv("PMIX_RANK") || (step && atoi(step) > 1);
}

int launch_rank_count(int wanted) {
    const char *size = getenv("OMPI_COMM_WORLD_SIZE");
    if (!size) size = getenv("SLURM_STEP_NUM_TASKS");
    if (launch_is_rank()) return size && atoi(size) > 0 ? atoi(size) : 1;
    if (wanted > 0) return wanted;
    int cores = launch_cores();
    return cores < 4 ? cores : 4;
}

typedef struct {
    LaunchJob job;
    bool nothing_to_save;
    pid_t mpirun;
    int errors, signals; // mpirun's stderr; a signalfd
    LaunchOutput output;
    int asked;                       // INT, TERM and HUP so far
    bool stops;                      // any signal that asks for the end
    bool stop_pending, save_pending; // to be told once all ranks listen
    double started, pending_since;
    int ranks;
    int ended_by; // signal that ended the job at once, or 0
    double ended; // when
    bool gone;    // mpirun has ended with
    int wait_status;
} Launch;

// ---- start

static void run_mpirun(char **command, int errors, const sigset_t *mask) {
    setsid();                         // the terminal's Ctrl-C is for the front end alone
    prctl(PR_SET_PDEATHSIG, SIGTERM); // should the keeper be gone too
    int null = open("/dev/null", O_RDONLY);
    if (null >= 0) dup2(null, 0);
    dup2(errors, 2);
    signal(SIGUSR1, SIG_IGN); // until mpirun listens
    signal(SIGUSR2, SIG_IGN);
    signal(SIGINT, SIG_DFL);
    sigprocmask(SIG_SETMASK, mask, NULL);
    execv(command[0], command);
    fprintf(stderr, "error: %s: %s\n", command[0], strerror(errno));
    _exit(ERR_RUNTIME);
}

static int open_signals(sigset_t *before) {
    static const int numbers[] = {SIGINT, SIGTERM, SIGHUP, SIGUSR1, SIGUSR2, SIGCHLD};
    sigset_t set;
    sigemptyset(&set);
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++) sigaddset(&set, numbers[i]);
    sigprocmask(SIG_BLOCK, &set, before);
    signal(SIGINT, SIG_DFL); // a shell may have set it aside for a background job
    return signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
}

// ---- while it runs

static void end_at_once(Launch *launch, int number) {
    if (launch->ended_by) return;
    launch->ended_by = number;
    launch->ended = clock_seconds();
    launch_job_signal(&launch->job, SIGKILL, launch->mpirun);
    kill(launch->mpirun, SIGTERM);
}

// A signal before a rank listens would end it, or be lost.
static void tell_ranks(Launch *launch) {
    enum { PATIENCE = 10 }; // seconds; ranks on other hosts cannot be looked at
    if (!launch->stop_pending && !launch->save_pending) return;
    double now = clock_seconds();
    int least = now - launch->started < PATIENCE ? launch->ranks + 1 : 2; // with mpirun
    if (!launch_job_listens(&launch->job, SIGUSR2, least) && now - launch->pending_since < PATIENCE) return;
    if (launch->save_pending) kill(launch->mpirun, SIGUSR1);
    if (launch->stop_pending) kill(launch->mpirun, SIGUSR2);
    launch->save_pending = launch->stop_pending = false;
}

static void on_signal(Launch *launch, int number) {
    bool ends = number == SIGINT || number == SIGTERM || number == SIGHUP;
    if (number == SIGCHLD) return;
    launch->asked += ends;
    launch->stops |= number != SIGUSR1;
    if (ends && (launch->asked > 1 || launch->nothing_to_save)) {
        end_at_once(launch, number);
        return;
    }
    if (!launch->stop_pending && !launch->save_pending) launch->pending_since = clock_seconds();
    if (number == SIGUSR1)
        launch->save_pending = true;
    else
        launch->stop_pending = true;
    tell_ranks(launch);
}

static void reap(Launch *launch) {
    int status;
    for (pid_t pid; (pid = waitpid(-1, &status, WNOHANG)) > 0;) {
        if (pid != launch->mpirun) continue;
        launch->gone = true;
        launch->wait_status = status;
    }
}

static bool read_errors(Launch *launch) { // false: the other end is closed
    char data[4096];
    ssize_t n = read(launch->errors, data, sizeof data);
    if (n > 0) launch_output_take(&launch->output, data, (size_t)n);
    return n > 0 || (n < 0 && (errno == EAGAIN || errno == EINTR));
}

static void wait_for_end(Launch *launch) {
    struct pollfd fds[] = {{launch->signals, POLLIN, 0}, {launch->errors, POLLIN, 0}};
    while (!launch->gone) {
        bool busy = launch->output.length || launch->stop_pending || launch->save_pending || launch->ended_by;
        if (poll(fds, 2, busy ? 50 : 500) == 0) launch_output_pause(&launch->output);
        struct signalfd_siginfo info;
        while (read(launch->signals, &info, sizeof info) == sizeof info)
            on_signal(launch, (int)info.ssi_signo);
        if ((fds[1].revents & (POLLIN | POLLHUP)) && !read_errors(launch)) fds[1].fd = -1;
        tell_ranks(launch);
        if (launch->ended_by && clock_seconds() - launch->ended > 1) kill(launch->mpirun, SIGKILL);
        reap(launch);
    }
}

// What is still in the pipe; processes that hold it open are being ended.
static void drain(Launch *launch) {
    struct pollfd fd = {launch->errors, POLLIN, 0};
    while (poll(&fd, 1, 0) > 0 && read_errors(launch)) {
    }
}

static int exit_code_of(const Launch *launch) {
    if (launch->ended_by) return 128 + launch->ended_by;
    if (WIFSIGNALED(launch->wait_status)) {
        fprintf(stderr, "error: mpirun was ended by signal %d (%s); the ranks were ended with it\n",
                WTERMSIG(launch->wait_status), strsignal(WTERMSIG(launch->wait_status)));
        return 128 + WTERMSIG(launch->wait_status);
    }
    int code = WEXITSTATUS(launch->wait_status);
    if (code > 128 && code < 128 + NSIG && !launch->output.rank_spoke) // mpirun does not always say so
        fprintf(stderr, "error: a rank was ended by signal %d (%s)\n", code - 128, strsignal(code - 128));
    return code;
}

static void free_words(char **words) {
    for (char **word = words; *word; word++) free(*word);
    free(words);
}

static int run(const LaunchOptions *options, int ranks, int argc, char **argv) {
    Launch launch = {.nothing_to_save = options->nothing_to_save,
                     .job = launch_job_create(),
                     .ranks = ranks,
                     .started = clock_seconds(),
                     .output = {.verbose = options->verbose, .first_failed = -1}};
    launch_environment(options, &launch.job, ranks);
    char **command = launch_command(ranks, argc, argv);
    if (!command) {
        launch_job_end(&launch.job);
        return ERR_RUNTIME;
    }
    if (options->verbose)
        for (char **word = command; *word; word++) fprintf(stderr, "%s%s", *word, word[1] ? " " : "\n");
    sigset_t before;
    int errors[2];
    fflush(NULL);
    launch.signals = open_signals(&before);
    REQUIRE(launch.signals >= 0 && pipe2(errors, O_CLOEXEC) == 0, "cannot start ranks: %s", strerror(errno));
    launch.errors = errors[0];
    prctl(PR_SET_CHILD_SUBREAPER, 1); // ranks whose mpirun was killed become ours
    LaunchKeeper keeper = launch_keeper_start(&launch.job);
    launch.mpirun = fork();
    if (launch.mpirun == 0) run_mpirun(command, errors[1], &before);
    REQUIRE(launch.mpirun > 0, "cannot start mpirun: %s", strerror(errno));
    close(errors[1]);
    int noted = options->noted ? options->noted() : 0;
    if (noted) on_signal(&launch, noted);
    wait_for_end(&launch);
    launch_job_end(&launch.job);
    launch_environment_end(&launch.job);
    drain(&launch);
    int exit_code = exit_code_of(&launch);
    launch_output_end(&launch.output, exit_code != OK && exit_code != ERR_TEMPORARY && !launch.ended_by);
    if (options->end) options->end->asked = launch.stops;
    launch_keeper_dismiss(&keeper);
    close(launch.errors);
    close(launch.signals);
    free_words(command);
    sigprocmask(SIG_SETMASK, &before, NULL);
    return exit_code;
}

bool launch_ranks(const LaunchOptions *options, int argc, char **argv, int *exit_code) {
    if (launch_is_rank()) {
        launch_watch_parent();
        return false;
    }
    int ranks = launch_rank_count(options->ranks);
    if (ranks == 1 && !options->always) {
        launch_terminal_environment(options);
        return false;
    }
    *exit_code = run(options, ranks, argc, argv);
    return true;
}
