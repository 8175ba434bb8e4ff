// SPDX-License-Identifier: Apache-2.0
// floe ckpt upcycle
#include "tools/cmd_ckpt.h"
#include "tools/watch.h"
#include "train/format.h"
#include "train/upcycle.h"
#include <stdio.h>

int ckpt_upcycle(const CliArgs *args) {
    const char *dir = cli_text(args, "output");
    int64_t experts = cli_integer(args, "experts", 0), top_k = cli_integer(args, "top-k", 0);
    UpcycleReport report;
    if (!dir) return cli_misuse(args->command, "-o CKPT is missing");
    if (experts < 1 || experts > 4096) return cli_misuse(args->command, "give --experts N, from 1 to 4096");
    if (top_k < 1 || top_k > experts)
        return cli_misuse(args->command, "give --top-k K, from 1 to the %lld experts", (long long)experts);
    UpcycleOptions options = {.experts = (int)experts,
                              .top_k = (int)top_k,
                              .noise = cli_number(args, "noise", 0),
                              .dense_residual = cli_flag(args, "dense-residual"),
                              .watch = watch_begin()};
    int exit_code = watch_end(upcycle(args->argument[0], dir, &options, &report));
    if (exit_code == OK)
        printf("%s: %lld tensors, %s parameters, %s; train on with train.init_from=%s\n", dir,
               (long long)report.tensors, short_count((double)report.parameters).text,
               short_bytes((double)report.bytes).text, dir);
    return exit_code;
}
