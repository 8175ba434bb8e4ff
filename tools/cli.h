// SPDX-License-Identifier: Apache-2.0
// The command line as every subcommand reads it. A command is described by a table, which feeds the parser,
// --help and shell completion.
//
//     const CliCommand cli_eval[] = {
//         {.name = "eval", .usage = "RUN|CKPT", .meaning = "loss on held-out text", .option = options, .least
//         = 1, .most = 1}, {0}};
//     int command_eval(int argc, char **argv) {
//         CliArgs args;
//         int exit_code;
//         if (!cli_parse(&args, argc, argv, cli_eval, &exit_code)) return exit_code;
//         … args.argument[0], cli_text(&args, "data"), cli_flag(&args, "json") …
//         cli_free(&args);
#pragma once
#include "core/status.h"
#include <stdbool.h>
#include <stdint.h>

typedef enum {
    CLI_FLAG,    // --json
    CLI_TEXT,    // --data PREFIX, --data=PREFIX, -o DIR, -oDIR
    CLI_INTEGER, // checked: a whole number ≥ 0
    CLI_NUMBER,  // checked: a number ≥ 0
    CLI_CHOICE,  // checked: argument is "auto|always|never"
} CliKind;

typedef struct {
    const char *name; // "run-dir"; NULL ends a table
    char letter;      // 'o' or 0
    CliKind kind;
    const char *argument; // what --help calls the value: "DIR"; of CLI_CHOICE the choices
    const char *meaning;  // one line
} CliOption;

typedef struct {
    const char *name;        // "train", "data pack"; NULL ends a table
    const char *usage;       // the arguments: "CONFIG… [KEY=VALUE…]"
    const char *meaning;     // one line
    const char *details;     // more lines for --help, or NULL
    const CliOption *option; // or NULL
    bool config; // KEY=VALUE, --KEY.KEY=VALUE and --KEY.KEY VALUE are collected as overrides of configuration
                 // keys
    int least, most; // plain arguments; most −1: any number
} CliCommand;

// The table of every command file; help and completion walk them. A command without parts has one entry
// before {0}.
extern const CliCommand cli_train[], cli_config[], cli_data[], cli_ckpt[], cli_eval[], cli_generate[],
    cli_bench[], cli_slurm[], cli_doctor[], cli_completion[], cli_version[];

typedef struct {
    const CliCommand *command;
    const char **argument; // plain arguments, in order; those after -- too
    int arguments;
    const char **override; // "optim.lr=3e-4", in order
    int overrides;
    const char **value; // by option; NULL: not given
    char **owned;
    int owned_count;
} CliArgs;

// argv[0] is skipped. false: help was printed, or what is wrong on stderr; then *exit_code is 0 or 2 and
// there is nothing to free. Every command also takes -h and --help.
bool cli_parse(CliArgs *out, int argc, char **argv, const CliCommand *command, int *exit_code);
void cli_free(CliArgs *args);
// For commands with parts ("floe data pack …", argv[0] "data", argv[1] "pack"): the entry of the table that
// argv[1] names; parse argc − 1, argv + 1 with it. NULL like false above.
const CliCommand *cli_choose(int argc, char **argv, const CliCommand table[], int *exit_code);

// Values of options; the option must stand in the command's table.
bool cli_flag(const CliArgs *args, const char *option);
const char *cli_text(const CliArgs *args, const char *option); // NULL: not given
int64_t cli_integer(const CliArgs *args, const char *option, int64_t when_not_given);
double cli_number(const CliArgs *args, const char *option, double when_not_given);

// Prints "error: " and the last failure's message on stderr; returns its exit code.
int cli_failure(Status status);
// Prints "command line: error: …" and where to read on; returns 2.
int cli_misuse(const CliCommand *command, const char *format, ...) __attribute__((format(printf, 2, 3)));
