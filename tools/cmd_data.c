// SPDX-License-Identifier: Apache-2.0
#include "tools/cmd_data.h"
#include "tools/commands.h"
#include <stddef.h>

static const CliOption pack_options[] = {
    {"output", 'o', CLI_TEXT, "PREFIX", "write PREFIX.bin and PREFIX.idx"},
    {"tokenizer", 0, CLI_TEXT, "NAME", "bytes (default), sentencepiece:FILE.model or hf:FILE.json"},
    {"threads", 'j', CLI_INTEGER, "N", "threads (default: the cores)"},
    {0}};
static const CliOption list_options[] = {{"json", 0, CLI_FLAG, NULL, "print JSON"}, {0}};
static const CliOption verify_options[] = {
    {"vocab", 0, CLI_INTEGER, "N", "ids must be below N (default: any id from 0)"},
    {"json", 0, CLI_FLAG, NULL, "print JSON"},
    {0}};
static const CliOption sample_options[] = {
    {"from-step", 0, CLI_INTEGER, "A", "first step, counted from 1 (default 1)"},
    {"steps", 0, CLI_INTEGER, "N", "number of steps (default 1)"},
    {"output", 'o', CLI_TEXT, "FILE.npy", "write the tokens, int32 (samples, seq_len + 1)"},
    {"text", 0, CLI_FLAG, NULL, "print the samples decoded, with stage and source"},
    {0}};
static const CliOption tokenizer_options[] = {
    {"output", 'o', CLI_TEXT, "FILE.model", "write the model"},
    {"vocab", 0, CLI_INTEGER, "N", "number of pieces; 260 of them are special or bytes"},
    {0}};

enum { ANY_NUMBER = -1 };
const CliCommand cli_data[] = {
    {"data pack", "INPUT…", "turn text into a token shard",
     "An input is a text file, a folder of such, or JSONL (.jsonl) with a text field; each may be compressed "
     "(.gz).\n"
     "Each file and each JSONL line is a document and gets an end-of-document token.",
     pack_options, false, 1, ANY_NUMBER},
    {"data ls", "PREFIX…", "tokens, documents, type and size of token shards", NULL, list_options, false, 1,
     ANY_NUMBER},
    {"data verify", "PREFIX…", "check the structure of token shards and every token id", NULL, verify_options,
     false, 1, ANY_NUMBER},
    {"data sample", "CONFIG… [KEY=VALUE…]", "the tokens that training steps see",
     "Writes exactly the samples of steps A … A + N - 1, in their global order.", sample_options, true, 0,
     ANY_NUMBER},
    {"data tokenizer", "INPUT…", "train a SentencePiece BPE tokenizer with byte fallback",
     "Inputs are those of floe data pack. Of more than 256 MiB an even sample of lines is used.",
     tokenizer_options, false, 1, ANY_NUMBER},
    {0}};

typedef int part_fn(const CliArgs *args);
static part_fn *const parts[] = {data_pack, data_list, data_verify, data_sample,
                                 data_tokenizer}; // cli_data's order

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
