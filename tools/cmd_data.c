// SPDX-License-Identifier: Apache-2.0
#ifndef _GNU_SOURCE
#define _GNU_SOURCE // sched_getaffinity
#endif
#include "tools/cmd_data.h"
#include "tools/commands.h"
#include <sched.h>

enum { MOST_THREADS = 1024 };

#define THREADS_OPTION                                                                                       \
    {                                                                                                        \
        .name = "threads", .letter = 'j', .kind = CLI_INTEGER, .argument = "N",                              \
        .meaning = "threads (default: the cores)"                                                            \
    }
#define JSON_OPTION                                                                                          \
    { .name = "json", .kind = CLI_FLAG, .meaning = "print JSON" }

static const CliOption pack_options[] = {{.name = "output",
                                          .letter = 'o',
                                          .kind = CLI_TEXT,
                                          .argument = "PREFIX",
                                          .meaning = "write PREFIX.bin and PREFIX.idx"},
                                         {.name = "tokenizer",
                                          .kind = CLI_TEXT,
                                          .argument = "NAME",
                                          .meaning = "bytes (default) or sentencepiece:FILE.model"},
                                         THREADS_OPTION,
                                         {0}};
static const CliOption list_options[] = {JSON_OPTION, {0}};
static const CliOption verify_options[] = {{.name = "vocab",
                                            .kind = CLI_INTEGER,
                                            .argument = "N",
                                            .meaning = "ids must be below N (default: any id from 0)"},
                                           JSON_OPTION,
                                           {0}};
static const CliOption sample_options[] = {
    {.name = "from-step",
     .kind = CLI_INTEGER,
     .argument = "A",
     .meaning = "first step, counted from 1 (default 1)"},
    {.name = "steps", .kind = CLI_INTEGER, .argument = "N", .meaning = "number of steps (default 1)"},
    {.name = "output",
     .letter = 'o',
     .kind = CLI_TEXT,
     .argument = "FILE.npy",
     .meaning = "write the tokens, int32 (samples, seq_len + 1)"},
    {.name = "text", .kind = CLI_FLAG, .meaning = "print the samples decoded, with stage and source"},
    {0}};
static const CliOption tokenizer_options[] = {
    {.name = "output",
     .letter = 'o',
     .kind = CLI_TEXT,
     .argument = "FILE.model",
     .meaning = "write the model"},
    {.name = "vocab",
     .kind = CLI_INTEGER,
     .argument = "N",
     .meaning = "number of pieces, with the 260 special and byte pieces"},
    THREADS_OPTION,
    {0}};

const CliCommand cli_data[] = {
    {.name = "data pack",
     .usage = "INPUT…",
     .meaning = "turn text into a token shard",
     .details = "An input is a text file, a folder of such, either of them compressed (.gz), or JSONL "
                "(.jsonl, .jsonl.gz) with\n"
                "a text field. Each file or JSONL line is a document and gets an end-of-document token.",
     .option = pack_options,
     .least = 1,
     .most = -1},
    {.name = "data ls",
     .usage = "PREFIX…",
     .meaning = "tokens, documents, type and size of token shards",
     .option = list_options,
     .least = 1,
     .most = -1},
    {.name = "data verify",
     .usage = "PREFIX…",
     .meaning = "check the structure of token shards and every token id",
     .option = verify_options,
     .least = 1,
     .most = -1},
    {.name = "data sample",
     .usage = "CONFIG… [KEY=VALUE…]",
     .meaning = "the tokens that training steps see",
     .details = "Writes exactly the samples of steps A … A + N − 1 in their global order.",
     .option = sample_options,
     .config = true,
     .least = 0,
     .most = -1},
    {.name = "data tokenizer",
     .usage = "INPUT…",
     .meaning = "train a SentencePiece BPE tokenizer with byte fallback",
     .details = "Inputs are those of floe data pack. Of more than 256 MiB an even sample of lines is used.",
     .option = tokenizer_options,
     .least = 1,
     .most = -1},
    {0}};

typedef int part_fn(const CliArgs *args);
static part_fn *const parts[] = {data_pack, data_list, data_verify, data_sample,
                                 data_tokenizer}; // in cli_data's order

int command_data(int argc, char **argv) {
    int exit_code;
    const CliCommand *command = cli_choose(argc, argv, cli_data, &exit_code);
    if (!command) return exit_code;
    CliArgs args;
    if (!cli_parse(&args, argc - 1, argv + 1, command, &exit_code)) return exit_code;
    exit_code = parts[command - cli_data](&args);
    cli_free(&args);
    return exit_code;
}

int data_threads(const CliArgs *args) {
    cpu_set_t cores;
    int available = sched_getaffinity(0, sizeof cores, &cores) == 0 ? CPU_COUNT(&cores) : 1;
    int64_t threads = cli_integer(args, "threads", available);
    if (threads >= 1 && threads <= MOST_THREADS) return (int)threads;
    cli_misuse(args->command, "-j %lld: give 1 to %d threads", (long long)threads, MOST_THREADS);
    return 0;
}
