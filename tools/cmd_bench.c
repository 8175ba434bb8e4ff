// SPDX-License-Identifier: Apache-2.0
#include "core/log.h"
#include "tools/bench.h"
#include "tools/cli.h"
#include "tools/commands.h"
#include "tools/launch.h"
#include <stdlib.h>
#include <string.h>

// clang-format off
#define COMMON_OPTIONS                                                                                       \
    {.name = "ranks", .letter = 'n', .kind = CLI_INTEGER, .argument = "N",                                   \
     .meaning = "ranks (default: min(4, cores))"},                                                           \
    {.name = "repeats", .kind = CLI_INTEGER, .argument = "N", .meaning = "timed repeats (default 10)"},      \
    {.name = "json", .kind = CLI_FLAG, .meaning = "prints JSON"}
// clang-format on

static const CliOption bench_options[] = {
    COMMON_OPTIONS,
    {.name = "no-progress", .kind = CLI_FLAG, .meaning = "messages move only where they are waited for"},
    {0}};

static const CliOption save_options[] = {
    COMMON_OPTIONS,
    {.name = "output",
     .letter = 'o',
     .kind = CLI_TEXT,
     .argument = "DIR",
     .meaning = "folder to save to (default: floe-bench-save); what is saved is removed"},
    {0}};

const CliCommand cli_bench[] = {
    {.name = "bench step",
     .usage = "CONFIG... [KEY=VALUE...]",
     .meaning = "training steps on made-up tokens: tokens per second, and where the time goes",
     .option = bench_options,
     .config = true,
     .least = 1,
     .most = -1},
    {.name = "bench overlap",
     .usage = "CONFIG... [KEY=VALUE...]",
     .meaning = "how much of the expert exchange the dense compute hides",
     .details =
         "hidden = (t_off - t_on) / t_exchange; efficiency = (t_off - t_on) / t_hideable, the sum over\n"
         "exchanges of the smaller of its time alone and the time of all work scheduled over it.",
     .option = bench_options,
     .config = true,
     .least = 1,
     .most = -1},
    {.name = "bench save",
     .usage = "CONFIG... [KEY=VALUE...]",
     .meaning = "saves beside training steps: how long training waits, how fast files are written",
     .details =
         "copy_alone is one copy of the state with its checksums, plain_write what write and fsync of as\n"
         "many bytes take; step_beside is a step while a save is being written.",
     .option = save_options,
     .config = true,
     .least = 1,
     .most = -1},
    {.name = "bench gemm",
     .usage = "CONFIG... [KEY=VALUE...]",
     .meaning = "matrix products in the model's shapes, alone",
     .option = bench_options,
     .config = true,
     .least = 1,
     .most = -1},
    {0}};

static int compare(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

double bench_median(double *values, int count) {
    qsort(values, (size_t)count, sizeof *values, compare);
    return count % 2 ? values[count / 2] : 0.5 * (values[count / 2 - 1] + values[count / 2]);
}

static Status run(const CliArgs *args, const RunConfig *config) {
    BenchOptions options = {.repeats = (int)cli_integer(args, "repeats", 10), .json = cli_flag(args, "json")};
    if (!strcmp(args->command->name, "bench save")) {
        const char *folder = cli_text(args, "output");
        options.folder = folder ? folder : "floe-bench-save";
        return bench_save(config, &options);
    }
    options.progress = !cli_flag(args, "no-progress");
    if (!strcmp(args->command->name, "bench step")) return bench_step(config, &options);
    if (!strcmp(args->command->name, "bench overlap")) return bench_overlap(config, &options);
    return bench_gemm(config, &options);
}

int command_bench(int argc, char **argv) {
    CliArgs args;
    int exit_code;
    const CliCommand *command = cli_choose(argc, argv, cli_bench, &exit_code);
    if (!command || !cli_parse(&args, argc - 1, argv + 1, command, &exit_code)) return exit_code;
    RunConfig *config = NULL;
    ConfigDocument *document = NULL;
    LaunchOptions launch = {.ranks = (int)cli_integer(&args, "ranks", 0), .nothing_to_save = true};
    int ranks = launch_rank_count(launch.ranks);
    Status status = cli_integer(&args, "repeats", 10) > 0
                        ? config_load(&config, &document, args.argument, args.arguments, args.override,
                                      args.overrides, ranks)
                        : (Status)cli_misuse(command, "--repeats must be above 0");
    exit_code = status;
    if (status == OK && !launch_ranks(&launch, argc, argv, &exit_code)) {
        comm_start(&argc, &argv);
        log_start(comm_world_rank(), LOG_INFO);
        exit_code = run(&args, config);
        if (exit_code != OK) log_rank0(LOG_ERROR, "%s", status_text());
        comm_finish();
    }
    if (config) config_free(config, document);
    cli_free(&args);
    return exit_code;
}
