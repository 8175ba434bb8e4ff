// SPDX-License-Identifier: Apache-2.0
// floe ckpt reshard
#include "tools/cmd_ckpt.h"
#include "tools/watch.h"
#include "train/checkpoint_reshard.h"
#include "train/format.h"
#include <stdio.h>
#include <string.h>

int ckpt_reshard(const CliArgs *args) {
    const char *dir = cli_text(args, "output"), *compress = cli_text(args, "compress");
    int64_t files = cli_integer(args, "files", 0);
    ReshardReport report;
    if (!dir) return cli_misuse(args->command, "-o CKPT is missing");
    if (files < 1 || files > 100000) return cli_misuse(args->command, "give --files N, from 1 to 100000");
    ReshardOptions options = {.files = (int)files, .watch = watch_begin()};
    if (compress) options.compress = strcmp(compress, "zlib") ? RESHARD_PLAIN : RESHARD_ZLIB;
    int exit_code = watch_end(checkpoint_reshard(args->argument[0], dir, &options, &report));
    if (exit_code == OK)
        printf("%s: %lld file%s from %d, %lld tensors, %s parameters, %s\n", dir, (long long)files,
               files == 1 ? "" : "s", report.files, (long long)report.tensors,
               short_count((double)report.parameters).text, short_bytes((double)report.bytes).text);
    return exit_code;
}
