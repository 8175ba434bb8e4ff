// SPDX-License-Identifier: Apache-2.0
// floe COMMAND …
#include "tools/cli.h"
#include "tools/commands.h"
#include "train/run_options.h"
#include <stdio.h>
#include <string.h>

static const struct {
    const char *name;
    command_fn *run;
    const CliCommand *table;
} commands[] = {
    {"train", command_train, cli_train},       {"config", command_config, cli_config},
    {"data", command_data, cli_data},          {"ckpt", command_ckpt, cli_ckpt},
    {"eval", command_eval, cli_eval},          {"generate", command_generate, cli_generate},
    {"bench", command_bench, cli_bench},       {"slurm", command_slurm, cli_slurm},
    {"doctor", command_doctor, cli_doctor},    {"completion", command_completion, cli_completion},
    {"version", command_version, cli_version},
};
enum { COMMANDS = sizeof commands / sizeof *commands };

static void print_help(FILE *out) {
    fputs("floe trains Mixture-of-Experts language models on MPI ranks.\n"
          "\n"
          "  floe train CONFIG… [KEY=VALUE…]     train; starts the ranks itself\n"
          "  floe config check|show|keys|diff    look at a configuration and its keys\n"
          "  floe data pack|tokenizer|ls|verify|sample\n"
          "                                      text to token shards, and what a run reads\n"
          "  floe ckpt ls|inspect|verify|diff|import\n"
          "                                      look at checkpoints\n"
          "  floe eval RUN|CKPT                  loss on held-out text\n"
          "  floe generate RUN|CKPT -p TEXT      write on\n"
          "  floe bench step|gemm|overlap CONFIG measure\n"
          "  floe slurm CONFIG                   prints a job script for Slurm that requeues itself\n"
          "  floe doctor                         what this machine has, and what is missing\n"
          "  floe completion bash|zsh|fish       completion for the shell\n"
          "  floe version\n"
          "\n"
          "examples:\n"
          "  floe data pack books/ -o data/prose             text into data/prose.bin and .idx\n"
          "  floe train tiny -n 2 data.sources.prose.path=data/prose\n"
          "  floe config show tiny optim.lr=3e-4 --origin    every value and where it comes from\n"
          "  floe generate runs/latest -p \"In the beginning\"\n"
          "\n"
          "Every command has --help. CONFIG is a YAML file or a preset (configs/presets).\n"
          "Exit codes: 0 done, 1 failed, 2 usage or configuration, 3 does not fit, 4 data or checkpoint\n"
          "damaged, 5 diverged, 75 stopped early with a checkpoint: start again.\n",
          out);
}

int main(int argc, char **argv) {
    const char *name = argc > 1 ? argv[1] : "";
    if (strcmp(name, "--version") == 0) return command_version(1, argv);
    if (strcmp(name, "--help") == 0 || strcmp(name, "-h") == 0 || strcmp(name, "help") == 0) {
        print_help(stdout);
        return 0;
    }
    const char *names[COMMANDS];
    for (int i = 0; i < COMMANDS; i++) {
        names[i] = commands[i].name;
        if (strcmp(name, names[i]) == 0) return commands[i].run(argc - 1, argv + 1);
    }
    if (argc < 2) {
        print_help(stderr);
        return ERR_CONFIG;
    }
    const char *nearest = word_nearest(name, names, COMMANDS);
    if (nearest) return cli_misuse(NULL, "unknown command '%s'; did you mean '%s'?", name, nearest);
    return cli_misuse(NULL, "unknown command '%s'", name);
}
