// SPDX-License-Identifier: Apache-2.0
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
// Nothing of a job may be left behind, however it ends: its processes carry FLOE_JOB in their environment,
// its shared memory lies in a folder of its own, and a keeper process outlives the front end.
#include "core/file.h"
#include "tools/launch_internal.h"
#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static const char *const shared_memory = "/dev/shm";

static void sleep_ms(int ms) {
    nanosleep(&(struct timespec){ms / 1000, (ms % 1000) * 1000000L}, NULL);
}

// ---- processes

// Reads a whole file of /proc; NULL where it is gone or not ours.
static char *read_proc(const char *pid, const char *name, size_t *bytes) {
    char path[300];
    snprintf(path, sizeof path, "/proc/%s/%s", pid, name);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return NULL;
    size_t capacity = 1 << 16;
    char *text = malloc(capacity);
    *bytes = 0;
    for (ssize_t n; text && (n = read(fd, text + *bytes, capacity - *bytes - 1)) > 0;) {
        *bytes += (size_t)n;
        if (*bytes < capacity - 1) continue;
        char *grown = realloc(text, capacity *= 2);
        if (!grown) break;
        text = grown;
    }
    close(fd);
    if (text) text[*bytes] = 0;
    return text;
}

static bool has_variable(const char *pid, const char *assignment) {
    size_t bytes;
    char *environment = read_proc(pid, "environ", &bytes);
    bool found = false;
    for (const char *c = environment; c && c < environment + bytes && !found; c += strlen(c) + 1)
        found = strcmp(c, assignment) == 0;
    free(environment);
    return found;
}

static bool is_of_job(const LaunchJob *job, const char *pid) {
    char assignment[80];
    if (!isdigit((unsigned char)pid[0]) || (pid_t)atol(pid) == getpid()) return false;
    snprintf(assignment, sizeof assignment, "FLOE_JOB=%s", job->name);
    return has_variable(pid, assignment);
}

int launch_job_signal(const LaunchJob *job, int number, pid_t spare) {
    DIR *processes = opendir("/proc");
    int count = 0;
    for (const struct dirent *entry; processes && (entry = readdir(processes));) {
        pid_t pid = (pid_t)atol(entry->d_name);
        if (!is_of_job(job, entry->d_name) || pid == spare) continue;
        count++;
        if (number) kill(pid, number);
    }
    if (processes) closedir(processes);
    return count;
}

static bool program_of(long pid, char *path, size_t size) {
    char link[64];
    snprintf(link, sizeof link, "/proc/%ld/exe", pid);
    ssize_t length = readlink(link, path, size - 1);
    path[length > 0 ? length : 0] = 0;
    return length > 0;
}

// Whether a process would handle the signal now, and still would after exec: one that mpirun has just forked
// has its handlers until it becomes a rank.
static bool catches(const char *pid, int number) {
    size_t bytes;
    char *status = read_proc(pid, "status", &bytes), *line = status ? strstr(status, "\nSigCgt:") : NULL;
    char *parent = status ? strstr(status, "\nPPid:") : NULL, own_program[512], parent_program[512];
    unsigned long long mask = line ? strtoull(line + strlen("\nSigCgt:"), NULL, 16) : 0;
    bool forked_only = parent && program_of(atol(pid), own_program, sizeof own_program) &&
                       program_of(atol(parent + strlen("\nPPid:")), parent_program, sizeof parent_program) &&
                       strcmp(own_program, parent_program) == 0;
    free(status);
    return !forked_only && (mask >> (number - 1) & 1);
}

bool launch_job_listens(const LaunchJob *job, int number, int least) {
    DIR *processes = opendir("/proc");
    int count = 0, listening = 0;
    for (const struct dirent *entry; processes && (entry = readdir(processes));) {
        if (!is_of_job(job, entry->d_name)) continue;
        count++;
        listening += catches(entry->d_name, number);
    }
    if (processes) closedir(processes);
    return listening == count && count >= least;
}

void launch_job_end(const LaunchJob *job) {
    for (int i = 0; i < 50 && launch_job_signal(job, SIGKILL, 0); i++) {
        while (waitpid(-1, NULL, WNOHANG) > 0) {
        } // orphans of mpirun that came to us
        sleep_ms(20);
    }
    file_remove_tree(job->folder);
}

// ---- the folder in /dev/shm

LaunchJob launch_job_create(void) {
    LaunchJob job;
    snprintf(job.name, sizeof job.name, "floe-%u-%d-%lx", (unsigned)getuid(), (int)getpid(),
             (unsigned long)time(NULL));
    snprintf(job.folder, sizeof job.folder, "%s/%s", shared_memory, job.name);
    if (mkdir(job.folder, 0700)) job.folder[0] = 0; // Open MPI then chooses a place itself
    return job;
}

static bool process_exists(long pid) {
    return kill((pid_t)pid, 0) == 0 || errno == EPERM;
}

// Whether some process has the file mapped.
static bool is_mapped(const char *name) {
    DIR *processes = opendir("/proc");
    bool found = false;
    for (const struct dirent *entry; processes && !found && (entry = readdir(processes));) {
        size_t bytes;
        char *maps =
            isdigit((unsigned char)entry->d_name[0]) ? read_proc(entry->d_name, "maps", &bytes) : NULL;
        found = maps && strstr(maps, name);
        free(maps);
    }
    if (processes) closedir(processes);
    return found;
}

// Left by a dead job: a folder of ours whose front end is gone, or a file of Open MPI that nobody has mapped
// for a minute.
static bool is_leftover(const char *name) {
    char path[400];
    struct stat info;
    unsigned uid;
    long pid;
    snprintf(path, sizeof path, "%s/%s", shared_memory, name);
    if (lstat(path, &info) || info.st_uid != getuid()) return false;
    if (sscanf(name, "floe-%u-%ld-", &uid, &pid) == 2) {
        LaunchJob job;
        snprintf(job.name, sizeof job.name, "%.*s", (int)sizeof job.name - 1, name);
        return !process_exists(pid) && launch_job_signal(&job, 0, 0) == 0;
    }
    return strncmp(name, "vader_segment.", 14) == 0 && time(NULL) - info.st_mtime > 60 && !is_mapped(name);
}

int launch_clean_shared_memory(bool remove) {
    DIR *folder = opendir(shared_memory);
    int count = 0;
    for (const struct dirent *entry; folder && (entry = readdir(folder));) {
        char path[400];
        if (!is_leftover(entry->d_name)) continue;
        snprintf(path, sizeof path, "%s/%s", shared_memory, entry->d_name);
        count += !remove || file_remove_tree(path) == OK;
    }
    if (folder) closedir(folder);
    return count;
}

// ---- the keeper

static void keep(const LaunchJob *job, int pipe) {
    int null = open("/dev/null", O_RDWR);
    for (int i = 0; i < 3 && null >= 0; i++) dup2(null, i); // whoever reads our output must not wait for us
    char dismissed;
    ssize_t got;
    do got = read(pipe, &dismissed, 1);
    while (got < 0 && errno == EINTR);
    if (got != 1) launch_job_end(job);
    _exit(0);
}

LaunchKeeper launch_keeper_start(const LaunchJob *job) {
    int ends[2];
    LaunchKeeper keeper = {.pid = -1, .pipe = -1};
    if (pipe2(ends, O_CLOEXEC)) return keeper;
    keeper.pid = fork();
    if (keeper.pid == 0) {
        setsid();
        signal(SIGINT, SIG_IGN);
        signal(SIGTERM, SIG_IGN);
        signal(SIGHUP, SIG_IGN);
        close(ends[1]);
        keep(job, ends[0]);
    }
    close(ends[0]);
    keeper.pipe = ends[1];
    return keeper;
}

void launch_keeper_dismiss(LaunchKeeper *keeper) {
    if (keeper->pid < 0) return;
    void (*before)(int) = signal(SIGPIPE, SIG_IGN); // where it has been killed there is nobody to tell
    ssize_t written = write(keeper->pipe, "", 1);
    (void)written;
    signal(SIGPIPE, before);
    close(keeper->pipe);
    waitpid(keeper->pid, NULL, 0);
}

// ---- in a rank

// The parent is mpirun or its daemon on this host. PR_SET_PDEATHSIG would not do: it fires when the parent's
// thread ends, and mpirun may start ranks from threads of its own.
static void *watch(void *unused) {
    (void)unused;
    pid_t parent = getppid();
    while (getppid() == parent) sleep_ms(200);
    kill(getpid(), SIGKILL);
    return NULL;
}

void launch_watch_parent(void) {
    sigset_t all, before;
    pthread_t thread;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before); // signals are for the main thread
    if (pthread_create(&thread, NULL, watch, NULL) == 0) pthread_detach(thread);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
}
