// SPDX-License-Identifier: Apache-2.0
// floe ckpt export
#include "tools/cmd_ckpt.h"
#include "tools/watch.h"
#include "train/format.h"
#include "train/hf_export.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

// "5GB", "500 MB", "2GiB"; a bare number is bytes.
static bool size_parse(const char *text, int64_t *bytes) {
    static const struct {
        const char *name;
        double factor;
    } units[] = {{"", 1},      {"B", 1},        {"KB", 1e3},     {"MB", 1e6},     {"GB", 1e9},
                 {"TB", 1e12}, {"KiB", 0x1p10}, {"MiB", 0x1p20}, {"GiB", 0x1p30}, {"TiB", 0x1p40}};
    char *unit;
    double number = strtod(text, &unit);
    if (unit == text) return false;
    while (*unit == ' ') unit++;
    for (size_t i = 0; i < sizeof units / sizeof *units; i++) {
        double value = number * units[i].factor;
        if (strcmp(unit, units[i].name) || !(value >= 1) || value > 0x1p62) continue;
        *bytes = (int64_t)value;
        return true;
    }
    return false;
}

int ckpt_export(const CliArgs *args) {
    const char *dir = cli_text(args, "output"), *size = cli_text(args, "shard-size"),
               *dtype = cli_text(args, "dtype");
    HfExportOptions options = {.type = dtype && !strcmp(dtype, "f32") ? SAFETENSORS_F32 : SAFETENSORS_BF16};
    HfExportReport report;
    if (!dir) return cli_misuse(args->command, "-o HF_DIR is missing");
    if (!size_parse(size ? size : "5GB", &options.shard_bytes))
        return cli_misuse(args->command, "--shard-size takes a size such as 5GB, 500MB or 2GiB, not '%s'",
                          size);
    options.watch = watch_begin();
    int exit_code = watch_end(hf_export(args->argument[0], dir, &options, &report));
    if (exit_code == OK)
        printf("%s: %lld tensors in %d file%s, %s parameters, %s\n", dir, (long long)report.tensors,
               report.files, report.files > 1 ? "s" : "", short_count((double)report.parameters).text,
               short_bytes((double)report.bytes).text);
    return exit_code;
}
