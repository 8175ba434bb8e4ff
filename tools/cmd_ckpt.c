// SPDX-License-Identifier: Apache-2.0
#include "tools/cmd_ckpt.h"
#include "core/file.h"
#include "tools/commands.h"
#include "tools/watch.h"
#include "train/checkpoint.h"
#include "train/format.h"
#include "train/hf_import.h"
#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

static const CliOption json_options[] = {{.name = "json", .kind = CLI_FLAG, .meaning = "prints JSON"}, {0}};
static const CliOption import_options[] = {{.name = "output",
                                            .letter = 'o',
                                            .kind = CLI_TEXT,
                                            .argument = "CKPT",
                                            .meaning = "the new checkpoint's folder"},
                                           {.name = "collapse-kv",
                                            .kind = CLI_INTEGER,
                                            .argument = "N",
                                            .meaning =
                                                "of Arctic's first upload: keep N key/value heads, where "
                                                "the others are equal copies"},
                                           {0}};

static const CliOption export_options[] = {
    {.name = "output", .letter = 'o', .kind = CLI_TEXT, .argument = "HF_DIR", .meaning = "the new folder"},
    {.name = "dtype",
     .kind = CLI_CHOICE,
     .argument = "bf16|f32",
     .meaning = "number format of the files (default bf16: rounded to nearest, ties to even)"},
    {.name = "shard-size",
     .kind = CLI_TEXT,
     .argument = "SIZE",
     .meaning = "largest file: 5GB, 500MB, 2GiB (default 5GB)"},
    {0}};
static const CliOption upcycle_options[] = {
    {.name = "experts", .kind = CLI_INTEGER, .argument = "N", .meaning = "experts of each layer"},
    {.name = "top-k", .kind = CLI_INTEGER, .argument = "K", .meaning = "experts that a token goes to"},
    {.name = "noise",
     .kind = CLI_NUMBER,
     .argument = "S",
     .meaning = "adds noise of S standard deviations of the dense matrix to each expert's copy (default 0)"},
    {.name = "dense-residual",
     .kind = CLI_FLAG,
     .meaning = "keeps the dense FFN, beside experts whose down matrix begins at 0"},
    {.name = "output",
     .letter = 'o',
     .kind = CLI_TEXT,
     .argument = "CKPT",
     .meaning = "the new checkpoint's folder"},
    {0}};

static const CliOption verify_options[] = {
    {.name = "all",
     .kind = CLI_FLAG,
     .meaning = "abandoned checkpoints too, and a line that counts; those in quarantine are counted alone"},
    {0}};
static const CliOption pin_options[] = {
    {.name = "remove", .kind = CLI_FLAG, .meaning = "lets retention remove it again"}, {0}};
static const CliOption prune_options[] = {
    {.name = "keep",
     .kind = CLI_INTEGER,
     .argument = "N",
     .meaning = "newest ones that stay (default checkpoint.keep of the run; 0: all)"},
    {.name = "dry-run", .kind = CLI_FLAG, .meaning = "says what would go, removes and re-reads nothing"},
    {0}};

static const CliOption reshard_options[] = {
    {.name = "files", .kind = CLI_INTEGER, .argument = "N", .meaning = "data files of the new one"},
    {.name = "compress",
     .kind = CLI_CHOICE,
     .argument = "zlib|none",
     .meaning = "compress its values, or not (default: as the old one)"},
    {.name = "output",
     .letter = 'o',
     .kind = CLI_TEXT,
     .argument = "CKPT",
     .meaning = "the new checkpoint's folder"},
    {0}};

const CliCommand cli_ckpt[] = {
    {.name = "ckpt ls",
     .usage = "RUN|DIR…",
     .meaning = "list checkpoints: step, tokens, size",
     .option = json_options,
     .least = 1,
     .most = -1},
    {.name = "ckpt inspect",
     .usage = "CKPT|RUN[@STEP]",
     .meaning = "print a checkpoint's facts, configuration and tensors",
     .option = json_options,
     .least = 1,
     .most = 1},
    {.name = "ckpt verify",
     .usage = "CKPT|RUN…",
     .meaning = "re-read every byte; exit code 4 where one is not as it was written",
     .option = verify_options,
     .least = 1,
     .most = -1},
    {.name = "ckpt pin",
     .usage = "CKPT|RUN[@STEP] [--remove]",
     .meaning = "keep a run's checkpoint for ever",
     .option = pin_options,
     .least = 1,
     .most = 1},
    {.name = "ckpt prune",
     .usage = "RUN [--keep N] [--dry-run]",
     .meaning = "remove a run's old checkpoints by its rules",
     .details =
         "What stays: the newest checkpoint.keep verified ones, those at multiples of "
         "checkpoint.keep_every, the first of\n"
         "each stage, pinned and damaged ones. Where older ones would go, the newest are re-read first; exit "
         "code 4 where\n"
         "one is damaged, which is then moved to RUN/ckpt/damaged-step-…. Not while the run is going.",
     .option = prune_options,
     .least = 1,
     .most = 1},
    {.name = "ckpt diff",
     .usage = "A B",
     .meaning = "compare two checkpoints value by value; exit code 1 where they differ",
     .details = "A and B: a checkpoint's folder, a run (its newest checkpoint) or RUN@STEP. For each tensor "
                "that is not\n"
                "bit-equal, the number of values that differ and the largest difference are printed.",
     .option = json_options,
     .least = 2,
     .most = 2},
    {.name = "ckpt import",
     .usage = "HF_DIR -o CKPT",
     .meaning = "make a checkpoint of weights from a Hugging Face folder",
     .details = "HF_DIR holds config.json and model.safetensors, or its shards and "
                "model.safetensors.index.json, in F32,\n"
                "BF16 or F16, of an Arctic, Mixtral, DBRX, Grok-1 or Llama model. Shape and mathematics are "
                "taken; what\n"
                "is ignored is printed. Train from the result with train.init_from=CKPT, or use it with floe "
                "eval and\n"
                "floe generate.",
     .option = import_options,
     .least = 1,
     .most = 1},
    {.name = "ckpt export",
     .usage = "CKPT|RUN[@STEP] -o HF_DIR",
     .meaning = "write a checkpoint's weights as a Hugging Face folder",
     .details =
         "HF_DIR gets config.json and model.safetensors, or shards and model.safetensors.index.json, as the "
         "class of the\n"
         "model's family reads them (model.arch). A model that those files cannot hold is refused.",
     .option = export_options,
     .least = 1,
     .most = 1},
    {.name = "ckpt upcycle",
     .usage = "CKPT|RUN[@STEP] --experts N --top-k K -o CKPT",
     .meaning = "make a starting point with experts from a dense model",
     .details =
         "Every expert of a layer is a copy of the dense FFN and the weights of a token's experts sum to 1: "
         "without\n"
         "--noise the new model computes what the dense one does. With --dense-residual the dense FFN stays "
         "and\n"
         "experts, whose output is 0 at first, are added to it; that too computes the same, with noise as "
         "well.\n"
         "Router weights are N(0, 0.02^2), from the checkpoint's train.seed. Train on with "
         "train.init_from=CKPT.",
     .option = upcycle_options,
     .least = 1,
     .most = 1},
    {.name = "ckpt reshard",
     .usage = "CKPT|RUN[@STEP] --files N -o CKPT",
     .meaning = "write a checkpoint again as N files of nearly equal size",
     .details =
         "Every byte is checked on the way; weights, optimizer states, record and digest stay the same. "
         "Memory "
         "is needed for\n"
         "one of the N files, with zlib for two. Any files load on any number of ranks; others are easier to "
         "copy, to archive,\n"
         "or to read by many at once. floe train --fork CKPT goes on from the new ones.",
     .option = reshard_options,
     .least = 1,
     .most = 1},
    {0}};

int command_ckpt(int argc, char **argv) {
    static int (*const part[])(const CliArgs *) = {ckpt_list,    ckpt_inspect, ckpt_verify, ckpt_pin,
                                                   ckpt_prune,   ckpt_diff,    ckpt_import, ckpt_export,
                                                   ckpt_upcycle, ckpt_reshard};
    CliArgs args;
    int exit_code;
    const CliCommand *command = cli_choose(argc, argv, cli_ckpt, &exit_code);
    if (!command || !cli_parse(&args, argc - 1, argv + 1, command, &exit_code)) return exit_code;
    exit_code = part[command - cli_ckpt](&args);
    cli_free(&args);
    return exit_code;
}

int ckpt_import(const CliArgs *args) {
    const char *dir = cli_text(args, "output");
    int64_t collapse = cli_integer(args, "collapse-kv", 0);
    HfImportReport report;
    if (!dir) return cli_misuse(args->command, "-o CKPT is missing");
    if (collapse > INT32_MAX) return cli_misuse(args->command, "--collapse-kv takes a number of heads");
    HfImportOptions options = {.collapse_kv = (int)collapse, .watch = watch_begin()};
    int exit_code = watch_end(hf_import(args->argument[0], dir, &options, &report));
    if (exit_code) return exit_code;
    printf("%s: %lld tensors, %s parameters, %s\n", dir, (long long)report.tensors,
           short_count((double)report.parameters).text, short_bytes((double)report.bytes).text);
    return OK;
}

// ---- which checkpoints there are

enum { DEEPEST = 4 }; // runs/NAME/ckpt/abandoned-…/step-…

static void add(CkptList *list, const char *dir) {
    list->dir = realloc(list->dir, (size_t)(list->count + 1) * sizeof *list->dir);
    REQUIRE(list->dir && (list->dir[list->count] = strdup(dir)), "out of memory: %d checkpoints",
            list->count);
    list->count++;
}

bool ckpt_is_quarantined(const char *dir) {
    const char *slash = strrchr(dir, '/');
    return strncmp(slash ? slash + 1 : dir, "damaged-step-", 13) == 0;
}

// A folder with a manifest, or one whose name says that it should have one.
static Status is_checkpoint(const char *path, bool *is) {
    char manifest[FILE_PATH_BYTES];
    const char *slash = strrchr(path, '/'), *name = slash ? slash + 1 : path;
    int exists;
    snprintf(manifest, sizeof manifest, "%s/MANIFEST.json", path);
    TRY(file_exists(manifest, &exists));
    if (ckpt_is_quarantined(path)) exists = 1;
    *is = exists || (!strncmp(name, "step-", 5) && strspn(name + 5, "0123456789") == strlen(name + 5));
    return OK;
}

static Status collect(const char *path, bool all, int depth, CkptList *list) {
    bool is = false;
    TRY(is_checkpoint(path, &is));
    if (is) {
        add(list, path);
        return OK;
    }
    DIR *folder = opendir(path);
    if (!folder) FAIL(ERR_CONFIG, "%s: %s", path, strerror(errno));
    Status status = OK;
    for (struct dirent *entry; status == OK && depth < DEEPEST && (entry = readdir(folder));) {
        char child[FILE_PATH_BYTES];
        struct stat info;
        if (entry->d_name[0] == '.') continue;
        if (!all && (!strncmp(entry->d_name, "abandoned-", 10) || ckpt_is_quarantined(entry->d_name)))
            continue;
        if (snprintf(child, sizeof child, "%s/%s", path, entry->d_name) >= (int)sizeof child) continue;
        if (lstat(child, &info) == 0 && S_ISDIR(info.st_mode)) status = collect(child, all, depth + 1, list);
    }
    closedir(folder);
    return status;
}

static int dir_order(const void *a, const void *b) {
    return strcmp(*(char *const *)a, *(char *const *)b);
}

Status ckpt_collect(const char *path, bool all, CkptList *out) {
    char plain[FILE_PATH_BYTES];
    size_t length = strlen(path);
    while (length > 1 && path[length - 1] == '/') length--;
    snprintf(plain, sizeof plain, "%.*s", (int)length, path);
    *out = (CkptList){0};
    Status status = collect(plain, all, 0, out);
    if (status == OK && out->count == 0)
        status = status_fail(ERR_CONFIG, __FILE__, __LINE__, "%s: is no checkpoint and holds none", path);
    if (status != OK)
        ckpt_list_free(out);
    else
        qsort(out->dir, (size_t)out->count, sizeof *out->dir, dir_order);
    return status;
}

void ckpt_list_free(CkptList *list) {
    for (int i = 0; i < list->count; i++) free(list->dir[i]);
    free(list->dir);
    *list = (CkptList){0};
}
