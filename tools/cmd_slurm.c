// SPDX-License-Identifier: Apache-2.0
// floe slurm: an sbatch script that trains until the run is done, over as many jobs as that takes.
#include "core/log.h"
#include "tools/cli.h"
#include "tools/commands.h"
#include "train/format.h"
#include "train/resume.h"
#include "train/run_config.h"
#include <ctype.h>
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const CliOption options[] = {
    {.name = "nodes", .kind = CLI_INTEGER, .argument = "N", .meaning = "machines (default: 1)"},
    {.name = "ranks-per-node", .kind = CLI_INTEGER, .argument = "R", .meaning = "ranks on each (default: 1)"},
    {.name = "time",
     .kind = CLI_TEXT,
     .argument = "3h50m",
     .meaning = "time limit of a job, in whole minutes (default: the partition's)"},
    {.name = "partition", .kind = CLI_TEXT, .argument = "P", .meaning = "partition (default: the cluster's)"},
    {.name = "run-dir",
     .letter = 'o',
     .kind = CLI_TEXT,
     .argument = "RUN",
     .meaning = "run folder (default: runs/CONFIG-TIME-HEX), on a disk that all nodes see"},
    {0}};

const CliCommand cli_slurm[] = {
    {.name = "slurm",
     .usage = "CONFIG... [KEY=VALUE...]",
     .meaning = "prints an sbatch script that trains and requeues itself until the run is done",
     .details =
         "floe slurm tiny --nodes 2 --ranks-per-node 2 --time 4h -o runs/a >a.sbatch; sbatch a.sbatch\n"
         "Nothing is submitted. More: docs/operations.md",
     .option = options,
     .config = true,
     .least = 1,
     .most = -1},
    {0}};

enum {
    EARLY = 60,      // Slurm may send a signal so many seconds before it is due
    LEAST_LEAD = 30, // seconds from the signal to the end of the job
    MOST_NODES = 1 << 20
};

typedef struct {
    const CliArgs *args;
    int nodes, ranks_per_node;
    double limit;          // seconds; 0: the partition's
    const char *partition; // or NULL
    char run_dir[RUN_PATH_BYTES], folder[RUN_PATH_BYTES], program[RUN_PATH_BYTES];
    const char *name;  // of the run
    double step, save; // longest ones measured in run_dir, seconds; 0: none yet
    int lead;          // seconds from the signal to the end
} Job;

// ---- what is asked

static Status read_limit(Job *job) {
    const char *text = cli_text(job->args, "time");
    if (!text) return OK;
    TRY(duration_parse(text, &job->limit));
    if (job->limit < 2 * EARLY || fmod(job->limit, 60) != 0)
        FAIL(
            ERR_CONFIG,
            "--time %s: Slurm counts in whole minutes and may signal one minute early; at least 2m is needed",
            text);
    return OK;
}

static Status read_count(const CliArgs *args, const char *option, int *out) {
    int64_t count = cli_integer(args, option, 1);
    if (count < 1 || count > MOST_NODES)
        FAIL(ERR_CONFIG, "--%s %s: expected 1 to %d", option, cli_text(args, option), MOST_NODES);
    *out = (int)count;
    return OK;
}

// What stands in a line of options for sbatch, where there is no way to write some characters.
static Status check_word(const char *what, const char *text) {
    for (const char *c = text; *c; c++)
        if (iscntrl((unsigned char)*c) || strchr("\"'\\%#", *c))
            FAIL(ERR_CONFIG, "%s '%s': a line for sbatch cannot have the character 0x%02x", what, text,
                 (unsigned char)*c);
    return OK;
}

static Status read_job(Job *job, const CliArgs *args) {
    *job = (Job){.args = args, .partition = cli_text(args, "partition")};
    TRY(read_count(args, "nodes", &job->nodes));
    TRY(read_count(args, "ranks-per-node", &job->ranks_per_node));
    if ((int64_t)job->nodes * job->ranks_per_node > MOST_NODES)
        FAIL(ERR_CONFIG, "%d nodes with %d ranks each: at most %d ranks", job->nodes, job->ranks_per_node,
             MOST_NODES);
    TRY(read_limit(job));
    for (const char *c = job->partition; c && (*c || c == job->partition); c++)
        if (!isalnum((unsigned char)*c) && !(*c && strchr("_-.,", *c)))
            FAIL(ERR_CONFIG, "--partition '%s': expected a name, or several with commas", job->partition);
    TRY(run_dir_choose(job->run_dir, sizeof job->run_dir, cli_text(args, "run-dir"),
                       args->argument[args->arguments - 1]));
    const char *slash = strrchr(job->run_dir, '/');
    job->name = slash && slash[1] ? slash + 1 : job->run_dir;
    TRY(check_word("-o", job->run_dir));
    if (!getcwd(job->folder, sizeof job->folder)) FAIL(ERR_RUNTIME, "the working directory is gone");
    TRY(check_word("the working directory", job->folder));
    ssize_t length = readlink("/proc/self/exe", job->program, sizeof job->program - 1);
    REQUIRE(length > 0, "/proc/self/exe cannot be read; is /proc mounted?");
    job->program[length] = 0;
    return OK;
}

// Prints what is wrong with the configuration itself: *printed.
static Status check_config(const Job *job, bool *printed) {
    const CliArgs *args = job->args;
    RunConfig *config = NULL;
    ConfigDocument *document = NULL;
    Loader *loader;
    Status status = config_load(&config, &document, args->argument, args->arguments, args->override,
                                args->overrides, job->nodes * job->ranks_per_node);
    if (status == OK) status = config_need_data(config, document);
    *printed = status != OK;
    log_start(0, LOG_ERROR); // warnings are for the run
    if (status == OK) {
        status = loader_create(&loader, &config->data);
        if (status == OK) loader_destroy(loader);
    }
    if (config) config_free(config, document);
    return status;
}

// ---- how long before the end to ask

static double number_of(const json_t *record, const char *key) {
    return json_number_value(json_object_get(record, key));
}

// The longest step and save of the run so far, if it has begun.
static void read_measured(Job *job) {
    char path[RUN_PATH_BYTES + 16], *line = NULL;
    size_t size = 0;
    snprintf(path, sizeof path, "%s/metrics.jsonl", job->run_dir);
    FILE *file = fopen(path, "r");
    while (file && getline(&line, &size, file) > 0) {
        json_t *record = json_loads(line, 0, NULL);
        const char *event = json_string_value(json_object_get(record, "event"));
        if (!event) job->step = fmax(job->step, number_of(record, "step_s"));
        if (event && strcmp(event, "save") == 0) job->save = fmax(job->save, number_of(record, "seconds"));
        json_decref(record);
    }
    if (file) fclose(file);
    free(line);
}

static Status choose_lead(Job *job) {
    enum { WITHOUT_KNOWLEDGE = 600, MARGIN = 2 };
    read_measured(job);
    if (job->step > 0 && job->save > 0)
        job->lead = LEAST_LEAD + (int)ceil(MARGIN * (job->step + job->save));
    else if (job->limit > 0)
        job->lead = (int)fmin(WITHOUT_KNOWLEDGE, fmax(LEAST_LEAD, job->limit / 4));
    else
        job->lead = WITHOUT_KNOWLEDGE;
    if (job->limit > 0 && job->lead + EARLY >= job->limit)
        FAIL(ERR_CONFIG,
             "--time %s: a step of %s and a save of %s (%s/metrics.jsonl) need %d s at the end; take more "
             "time",
             cli_text(job->args, "time"), short_duration(job->step).text, short_duration(job->save).text,
             job->run_dir, job->lead + EARLY);
    return OK;
}

// ---- the script

static void put_quoted(const char *text) {
    bool plain = *text && *text != '~';
    for (const char *c = text; *c && plain; c++)
        plain = isalnum((unsigned char)*c) || strchr("_-./=,:+@%", *c);
    if (plain) {
        fputs(text, stdout);
        return;
    }
    putchar('\'');
    for (const char *c = text; *c; c++)
        if (*c == '\'')
            fputs("'\\''", stdout);
        else
            putchar(*c);
    putchar('\'');
}

static void put_word(const char *text) {
    putchar(' ');
    put_quoted(text);
}

static void print_options(const Job *job) {
    printf("#!/bin/bash\n"
           "# floe train on %d node%s with %d rank%s each. Submit it with sbatch; it starts itself again "
           "until the run is done.\n"
           "\n"
           "#SBATCH --job-name=\"%s\"\n"
           "# Paths count from here. One file has the output of all starts.\n"
           "#SBATCH --chdir=\"%s\"\n"
           "#SBATCH --output=\"%s-%%j.out\"\n"
           "#SBATCH --open-mode=append\n"
           "#SBATCH --nodes=%d\n"
           "#SBATCH --ntasks-per-node=%d\n",
           job->nodes, job->nodes > 1 ? "s" : "", job->ranks_per_node, job->ranks_per_node > 1 ? "s" : "",
           job->name, job->folder, job->name, job->nodes, job->ranks_per_node);
    if (job->partition) printf("#SBATCH --partition=%s\n", job->partition);
    int minutes = (int)(job->limit / 60);
    if (minutes) printf("#SBATCH --time=%d-%02d:%02d:00\n", minutes / 1440, minutes / 60 % 24, minutes % 60);
    printf("# After a lost node or preemption Slurm starts the job again.\n"
           "#SBATCH --requeue\n"
           "# Slurm signals this script so many seconds before the end, or up to a minute earlier. That must "
           "do for a step\n");
    if (job->step > 0 && job->save > 0)
        printf("# and a save, which took up to %s and %s in %s/metrics.jsonl.\n",
               short_duration(job->step).text, short_duration(job->save).text, job->run_dir);
    else
        printf("# and a save; it is a guess until %s/metrics.jsonl has both: then print this script again.\n",
               job->run_dir);
    printf("#SBATCH --signal=B:USR2@%d\n\n", job->lead);
}

static void print_command(const Job *job) {
    const CliArgs *args = job->args;
    printf("train=(");
    put_quoted(job->program);
    printf(" train");
    for (int i = 0; i < args->arguments; i++) put_word(args->argument[i]);
    for (int i = 0; i < args->overrides; i++) put_word(args->override[i]);
    printf(" -o");
    put_word(job->run_dir);
    if (job->limit > 0) printf(" --max-time %ds", (int)job->limit - job->lead);
    printf(")\n\n");
}

static const char script[] =
    "# Slurm starts the ranks where it speaks PMIx, mpirun where it does not. A rank that has died ends the "
    "others.\n"
    "if srun --mpi=list 2>&1 | grep -q pmix; then\n"
    "    launch=(srun --mpi=pmix --wait=5)\n"
    "else\n"
    "    launch=(mpirun -np \"$SLURM_NTASKS\")\n"
    "fi\n"
    "\n"
    "# USR2 asks the ranks to save and to stop with exit code 75. srun and mpirun pass it on; at TERM they "
    "would end the ranks.\n"
    "ask() {\n"
    "    asked=yes\n"
    "    [ -z \"$job\" ] || kill -USR2 \"$job\" 2>/dev/null\n"
    "}\n"
    "job=\n"
    "trap ask USR2 TERM\n"
    "\"${launch[@]}\" \"${train[@]}\" &\n"
    "job=$!\n"
    "\n"
    "# A signal interrupts wait, which then says nothing about the job.\n"
    "asked=yes\n"
    "while [ \"$asked\" ]; do\n"
    "    asked=\n"
    "    wait \"$job\"\n"
    "    code=$?\n"
    "done\n"
    "\n"
    "# Stopped early with a checkpoint: once more, unless Slurm is ending the job (scancel).\n"
    "if [ $code = 75 ] && [ \"$(squeue --noheader --jobs=\"$SLURM_JOB_ID\" --format=%T)\" = RUNNING ]; then\n"
    "    scontrol requeue \"$SLURM_JOB_ID\"\n"
    "fi\n"
    "exit $code\n";

int command_slurm(int argc, char **argv) {
    CliArgs args;
    Job job;
    int exit_code;
    bool printed = false;
    if (!cli_parse(&args, argc, argv, cli_slurm, &exit_code)) return exit_code;
    Status status = read_job(&job, &args);
    if (status == OK) status = check_config(&job, &printed);
    if (status == OK) status = choose_lead(&job);
    if (status == OK) {
        print_options(&job);
        print_command(&job);
        fputs(script, stdout);
    }
    exit_code = printed ? (int)status : cli_failure(status);
    cli_free(&args);
    return exit_code;
}
