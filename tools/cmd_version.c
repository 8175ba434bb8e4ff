// SPDX-License-Identifier: Apache-2.0
#include "tools/cli.h"
#include "tools/commands.h"
#include <jansson.h>
#include <stdio.h>

static const CliOption options[] = {{"json", 0, CLI_FLAG, NULL, "as JSON"}, {0}};
const CliCommand cli_version[] = {{"version", "", "version of floe", NULL, options, false, 0, 0}, {0}};

int command_version(int argc, char **argv) {
    CliArgs args;
    int exit_code;
    if (!cli_parse(&args, argc, argv, cli_version, &exit_code)) return exit_code;
    if (cli_flag(&args, "json")) {
        json_t *json = json_pack("{s:s, s:s}", "name", "floe", "version", FLOE_VERSION);
        json_dumpf(json, stdout, 0);
        putchar('\n');
        json_decref(json);
    } else {
        printf("floe %s\nLicense: Apache-2.0\n", FLOE_VERSION);
    }
    cli_free(&args);
    return OK;
}
