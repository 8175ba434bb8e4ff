// SPDX-License-Identifier: Apache-2.0
// floe doctor: what this machine has, what is missing, and what to do about it.
#include "core/hdf5_file.h"
#include "core/yaml.h"
#include "kernels/kernels.h"
#include "tools/cli.h"
#include "tools/commands.h"
#include "tools/launch.h"
#include "train/format.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/statvfs.h>
#include <unistd.h>

static const CliOption options[] = {
    {"json", 0, CLI_FLAG, NULL, "as JSON"},
    {"clean", 0, CLI_FLAG, NULL, "removes what dead jobs of yours have left in /dev/shm"},
    {0}};
const CliCommand cli_doctor[] = {
    {"doctor", "", "what this machine has, and what is missing", NULL, options, false, 0, 0}, {0}};

enum { TEXT_BYTES = 256, ENTRIES = 16 };
typedef struct {
    const char *name;
    char value[TEXT_BYTES], advice[TEXT_BYTES];
    bool fatal; // training on several ranks cannot work
} Entry;
typedef struct {
    Entry entry[ENTRIES];
    int count;
} Report;

static Entry *add(Report *report, const char *name) {
    REQUIRE(report->count < ENTRIES, "%d entries", report->count);
    Entry *entry = &report->entry[report->count++];
    *entry = (Entry){.name = name};
    return entry;
}

static void first_line_of(const char *command, char *line, size_t size) {
    line[0] = 0;
    FILE *pipe = popen(command, "r");
    if (!pipe) return;
    if (!fgets(line, (int)size, pipe)) line[0] = 0;
    char rest[512];
    while (fgets(rest, sizeof rest, pipe)) {
    }
    pclose(pipe);
    line[strcspn(line, "\n")] = 0;
}

// What follows "key" and a colon in a file of /proc; "" where it is not there.
static void proc_value(const char *path, const char *key, char *value, size_t size) {
    char line[1024];
    value[0] = 0;
    FILE *file = fopen(path, "r");
    while (file && !value[0] && fgets(line, sizeof line, file)) {
        char *colon = strchr(line, ':');
        if (strncmp(line, key, strlen(key)) || !colon) continue;
        colon += 1 + strspn(colon + 1, " \t");
        colon[strcspn(colon, "\n")] = 0;
        snprintf(value, size, "%.*s", (int)size - 1, colon);
    }
    if (file) fclose(file);
}

static void look_at_processor(Report *report) {
    char model[200];
    proc_value("/proc/cpuinfo", "model name", model, sizeof model);
    Entry *cores = add(report, "cores");
    snprintf(cores->value, TEXT_BYTES, "%ld of %ld usable, %.180s", sysconf(_SC_NPROCESSORS_ONLN),
             sysconf(_SC_NPROCESSORS_CONF), model);
    snprintf(add(report, "vector code")->value, TEXT_BYTES, "%s", kernels_isa());
}

static void look_at_memory(Report *report) {
    char available[64], total[64];
    proc_value("/proc/meminfo", "MemAvailable", available, sizeof available);
    proc_value("/proc/meminfo", "MemTotal", total, sizeof total);
    double free_bytes = 1024 * strtod(available, NULL);
    Entry *memory = add(report, "memory");
    snprintf(memory->value, TEXT_BYTES, "%s free of %s", short_bytes(free_bytes).text,
             short_bytes(1024 * strtod(total, NULL)).text);
    if (free_bytes < 1e9)
        snprintf(memory->advice, TEXT_BYTES, "less than 1 GB is free: take fewer ranks or a small model");
}

static void look_at_mpi(Report *report) {
    const char *wanted = getenv("FLOE_MPIRUN");
    char command[4200];
    snprintf(command, sizeof command, "'%s' --version 2>/dev/null", wanted && *wanted ? wanted : "mpirun");
    Entry *mpi = add(report, "mpi");
    first_line_of(command, mpi->value, TEXT_BYTES);
    if (!mpi->value[0]) {
        snprintf(mpi->value, TEXT_BYTES, "no mpirun");
        snprintf(mpi->advice, TEXT_BYTES,
                 "install openmpi-bin or set FLOE_MPIRUN; without it only -n 1 works");
        mpi->fatal = true;
    } else if (!strstr(mpi->value, "Open MPI")) {
        snprintf(mpi->advice, TEXT_BYTES,
                 "floe starts its ranks with Open MPI's mpirun; set FLOE_MPIRUN to it");
    }
}

static void look_at_libraries(Report *report) {
    unsigned hdf5[3];
    hdf5_library_version(hdf5);
    snprintf(add(report, "hdf5")->value, TEXT_BYTES, "%u.%u.%u", hdf5[0], hdf5[1], hdf5[2]);
    snprintf(add(report, "libfyaml")->value, TEXT_BYTES, "%s", yaml_library_version());
    Entry *tokenizer = add(report, "sentencepiece");
#ifdef FLOE_SENTENCEPIECE
    snprintf(tokenizer->value, TEXT_BYTES, "built in");
#else
    snprintf(tokenizer->value, TEXT_BYTES, "not built in");
    snprintf(tokenizer->advice, TEXT_BYTES,
             "sentencepiece:FILE does not work as tokenizer; install libsentencepiece-dev and build again");
#endif
    tokenizer = add(report, "pcre2");
#ifdef FLOE_PCRE2
    snprintf(tokenizer->value, TEXT_BYTES, "built in");
#else
    snprintf(tokenizer->value, TEXT_BYTES, "not built in");
    snprintf(tokenizer->advice, TEXT_BYTES,
             "hf:FILE does not work as tokenizer; install libpcre2-dev and build again");
#endif
}

// "8 NVIDIA H100 80GB HBM3 (sm_90, 132 processors, 79.1 GB)", and how many others there are.
static void print_gpus(const GpuReport *gpus, char *value) {
    const GpuText *first = &gpus->gpu[0];
    int same = 0;
    for (int i = 0; i < gpus->count && i < GPU_TEXTS; i++)
        same += !strcmp(gpus->gpu[i].name, first->name) && gpus->gpu[i].memory == first->memory;
    int length =
        snprintf(value, TEXT_BYTES, "%d %s (sm_%d%d, %d processors, %s)", same, first->name, first->major,
                 first->minor, first->processors, short_bytes((double)first->memory).text);
    if (same < gpus->count)
        snprintf(value + length, TEXT_BYTES - (size_t)length, ", %d others", gpus->count - same);
}

static void look_at_gpus(Report *report) {
    char driver[160];
    GpuReport gpus = device_gpus();
    proc_value("/proc/driver/nvidia/version", "NVRM version", driver, sizeof driver);
    Entry *built = add(report, "gpu support");
    snprintf(built->value, TEXT_BYTES, "%s%s", gpus.built[0] ? "built with " : "not built in", gpus.built);
    Entry *cuda = add(report, "gpu driver");
    snprintf(cuda->value, TEXT_BYTES, "%s%s%s",
             gpus.driver[0] ? gpus.driver
             : driver[0]    ? ""
                            : "none",
             gpus.driver[0] && driver[0] ? ", " : "", driver);
    Entry *gpu = add(report, "gpu");
    if (gpus.count > 0)
        print_gpus(&gpus, gpu->value);
    else
        snprintf(gpu->value, TEXT_BYTES, "no GPU: %.200s", gpus.problem);
    if (gpus.count == 0 && driver[0])
        snprintf(gpu->advice, TEXT_BYTES, "there is a driver, but this floe computes on the CPU alone");
}

static void look_at_shared_memory(Report *report, bool clean) {
    struct statvfs info;
    Entry *shm = add(report, "/dev/shm");
    int leftovers = launch_clean_shared_memory(clean);
    double room = statvfs("/dev/shm", &info) ? 0 : (double)info.f_bavail * (double)info.f_frsize;
    snprintf(shm->value, TEXT_BYTES, "%s free, %d leftover%s of dead jobs%s", short_bytes(room).text,
             leftovers, leftovers == 1 ? "" : "s", clean && leftovers ? ", removed" : "");
    if (leftovers && !clean) snprintf(shm->advice, TEXT_BYTES, "floe doctor --clean removes them");
    if (room < 64e6)
        snprintf(shm->advice, TEXT_BYTES,
                 "ranks exchange through /dev/shm, which needs room; mount it larger");
}

static void look_at_limits(Report *report) {
    static const struct {
        const char *name;
        int resource;
    } limits[] = {{"open files", RLIMIT_NOFILE},
                  {"locked memory", RLIMIT_MEMLOCK},
                  {"processes", RLIMIT_NPROC},
                  {"address space", RLIMIT_AS}};
    Entry *entry = add(report, "limits");
    size_t length = 0;
    for (size_t i = 0; i < sizeof limits / sizeof *limits; i++) {
        struct rlimit limit;
        char number[32] = "unlimited";
        if (getrlimit(limits[i].resource, &limit)) continue;
        if (limit.rlim_cur != RLIM_INFINITY)
            snprintf(number, sizeof number, "%llu", (unsigned long long)limit.rlim_cur);
        length += (size_t)snprintf(entry->value + length, TEXT_BYTES - length, "%s%s %s", i ? ", " : "",
                                   limits[i].name, number);
        if (limits[i].resource == RLIMIT_NOFILE && limit.rlim_cur < 256)
            snprintf(entry->advice, TEXT_BYTES, "few open files are allowed: ulimit -n 1024");
    }
}

static void print_text(const Report *report) {
    for (int i = 0; i < report->count; i++) {
        const Entry *entry = &report->entry[i];
        printf("%-14s %s\n", entry->name, entry->value);
        if (entry->advice[0])
            printf("%-14s   %s: %s\n", "", entry->fatal ? "missing" : "note", entry->advice);
    }
}

static void print_json(const Report *report) {
    json_t *json = json_object();
    for (int i = 0; i < report->count; i++) {
        const Entry *entry = &report->entry[i];
        json_object_set_new(json, entry->name,
                            json_pack("{s:s, s:s?, s:b}", "value", entry->value, "advice",
                                      entry->advice[0] ? entry->advice : NULL, "ok", !entry->advice[0]));
    }
    json_dumpf(json, stdout, JSON_INDENT(2));
    putchar('\n');
    json_decref(json);
}

int command_doctor(int argc, char **argv) {
    CliArgs args;
    int exit_code;
    if (!cli_parse(&args, argc, argv, cli_doctor, &exit_code)) return exit_code;
    Report report = {0};
    snprintf(add(&report, "floe")->value, TEXT_BYTES, "%s", FLOE_VERSION);
    look_at_processor(&report);
    look_at_memory(&report);
    look_at_mpi(&report);
    look_at_libraries(&report);
    look_at_gpus(&report);
    look_at_shared_memory(&report, cli_flag(&args, "clean"));
    look_at_limits(&report);
    (cli_flag(&args, "json") ? print_json : print_text)(&report);
    for (int i = 0; i < report.count; i++)
        if (report.entry[i].fatal) exit_code = ERR_RUNTIME;
    cli_free(&args);
    return exit_code;
}
