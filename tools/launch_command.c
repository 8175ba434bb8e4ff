// SPDX-License-Identifier: Apache-2.0
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
// How mpirun is called.
#include "tools/launch_internal.h"
#include <errno.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

int launch_cores(void) {
    cpu_set_t *set = CPU_ALLOC(8192);
    int count = 1;
    if (set && sched_getaffinity(0, CPU_ALLOC_SIZE(8192), set) == 0)
        count = CPU_COUNT_S(CPU_ALLOC_SIZE(8192), set);
    CPU_FREE(set);
    return count > 0 ? count : 1;
}

// Cores, counting those that run two threads once; 0: cannot tell.
static int physical_cores(void) {
    int count = 0;
    for (int cpu = 0; cpu < launch_cores(); cpu++) {
        char path[128];
        int first;
        snprintf(path, sizeof path, "/sys/devices/system/cpu/cpu%d/topology/thread_siblings_list", cpu);
        FILE *file = fopen(path, "r");
        if (!file) return 0;
        count += fscanf(file, "%d", &first) == 1 && first == cpu;
        fclose(file);
    }
    return count;
}

// Binding pays where the ranks fill the machine and have it to themselves; a job on a few of many cores is
// better placed by the system, since another such job would be bound to the same ones.
static bool may_bind(int ranks) {
    int cores = physical_cores();
    bool whole_machine = launch_cores() == sysconf(_SC_NPROCESSORS_ONLN);
    return whole_machine && ranks <= cores && 2 * ranks > cores;
}

static char *find_program(const char *name) {
    const char *path = getenv("PATH");
    if (strchr(name, '/')) return access(name, X_OK) == 0 ? strdup(name) : NULL;
    while (path && *path) {
        size_t length = strcspn(path, ":");
        char *whole = malloc(length + strlen(name) + 2);
        if (!whole) return NULL;
        sprintf(whole, "%.*s/%s", (int)length, path, name);
        if (access(whole, X_OK) == 0) return whole;
        free(whole);
        path += length + (path[length] == ':');
    }
    return NULL;
}

typedef struct {
    char **word;
    int count;
} Words;

static void add(Words *words, const char *text) {
    words->word = realloc(words->word, sizeof *words->word * (size_t)(words->count + 2));
    REQUIRE(words->word, "out of memory");
    words->word[words->count++] = strdup(text);
    words->word[words->count] = NULL;
}

static void add_split(Words *words, const char *text) {
    while (text && *text) {
        size_t length = strcspn(text, " \t\n");
        char *word = strndup(text, length);
        if (word && *word) add(words, word);
        free(word);
        text += length + (text[length] != 0);
    }
}

// mpirun on this machine alone: nobody has said where else ranks may run.
static bool is_local(void) {
    const char *hosts = getenv("OMPI_MCA_orte_default_hostfile"), *nodes = getenv("SLURM_NNODES");
    return !getenv("FLOE_MPIRUN_ARGS") && !hosts && !(nodes && atoi(nodes) > 1);
}

// Other hosts see only the variables that are named.
static void pass_environment(Words *words) {
    for (char **variable = environ; *variable; variable++) {
        if (strncmp(*variable, "FLOE_", 5) && strncmp(*variable, "OMP_NUM_THREADS=", 16) &&
            strncmp(*variable, "OPENBLAS_NUM_THREADS=", 21))
            continue;
        char *name = strndup(*variable, strcspn(*variable, "="));
        add(words, "-x");
        add(words, name ? name : "");
        free(name);
    }
}

char **launch_command(int ranks, int argc, char **argv) {
    const char *wanted = getenv("FLOE_MPIRUN");
    char number[16], self[4096];
    char *mpirun = find_program(wanted && *wanted ? wanted : "mpirun");
    if (!mpirun) {
        fprintf(stderr,
                "error: %s was not found; install openmpi-bin, set FLOE_MPIRUN to its path, or use -n 1\n",
                wanted && *wanted ? wanted : "mpirun");
        return NULL;
    }
    ssize_t length = readlink("/proc/self/exe", self, sizeof self - 1);
    REQUIRE(length > 0, "/proc/self/exe: %s; is /proc mounted?", strerror(errno));
    self[length] = 0;
    snprintf(number, sizeof number, "%d", ranks);
    Words words = {0};
    add(&words, mpirun);
    free(mpirun);
    if (geteuid() == 0) add(&words, "--allow-run-as-root");
    add(&words, "-np");
    add(&words, number);
    add_split(&words, may_bind(ranks) ? "--bind-to core" : "--bind-to none");
    if (ranks > physical_cores()) add(&words, "--oversubscribe");
    if (!is_local()) pass_environment(&words);
    add_split(&words, getenv("FLOE_MPIRUN_ARGS"));
    add(&words, self);
    for (int i = 0; i < argc; i++) add(&words, argv[i]);
    return words.word;
}

// ---- environment

// Sandboxes forbid reading another process's memory, which Open MPI tries for large messages and complains
// about.
static bool may_read_processes(void) {
    char from = 1, to = 0;
    struct iovec here = {&to, 1}, there = {&from, 1};
    return process_vm_readv(getpid(), &here, 1, &there, 1, 0) == 1;
}

static bool decided(const char *wish, bool automatic) {
    if (wish && strcmp(wish, "always") == 0) return true;
    return !(wish && strcmp(wish, "never") == 0) && automatic;
}

static bool wants_color(void) {
    const char *none = getenv("NO_COLOR"), *off = getenv("CLICOLOR"), *force = getenv("CLICOLOR_FORCE"),
               *terminal = getenv("TERM");
    if (none && *none) return false;
    if (force && strcmp(force, "0")) return true;
    if (off && strcmp(off, "0") == 0) return false;
    return isatty(1) && !(terminal && strcmp(terminal, "dumb") == 0);
}

void launch_terminal_environment(const LaunchOptions *options) {
    const char *terminal = getenv("TERM");
    bool draws = isatty(2) && !(terminal && strcmp(terminal, "dumb") == 0);
    setenv("FLOE_COLOR", decided(options->color, wants_color()) ? "1" : "0", 1);
    setenv("FLOE_PROGRESS", decided(options->progress, draws) ? "1" : "0", 1);
}

static const char *const folder_variable[] = {"OMPI_MCA_btl_vader_backing_directory",
                                              "OMPI_MCA_orte_tmpdir_base"};

void launch_environment(const LaunchOptions *options, const LaunchJob *job, int ranks) {
    launch_terminal_environment(options);
    setenv("FLOE_JOB", job->name, 1);
    setenv("OMP_NUM_THREADS", "1", 0);
    setenv("OPENBLAS_NUM_THREADS", "1", 0);
    if (!may_read_processes()) setenv("OMPI_MCA_btl_vader_single_copy_mechanism", "none", 0);
    if (is_local()) {
        setenv("OMPI_MCA_btl", "self,vader", 0);
        for (int i = 0; i < 2 && job->folder[0]; i++) setenv(folder_variable[i], job->folder, 0);
    }
    if (ranks > launch_cores()) setenv("OMPI_MCA_mpi_yield_when_idle", "1", 0);
}

void launch_environment_end(const LaunchJob *job) {
    for (int i = 0; i < 2; i++) {
        const char *value = getenv(folder_variable[i]);
        if (value && strcmp(value, job->folder) == 0) unsetenv(folder_variable[i]);
    }
}
