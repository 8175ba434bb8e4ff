// SPDX-License-Identifier: Apache-2.0
// floe config: what a run would use, and where each value comes from.
#include "tools/cli.h"
#include "tools/commands.h"
#include "train/format.h"
#include "train/run_config.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const CliOption check_options[] = {
    {"ranks", 'n', CLI_INTEGER, "N", "checks the split over N ranks too"}, {0}};
static const CliOption show_options[] = {
    {"ranks", 'n', CLI_INTEGER, "N", "checks the split over N ranks too, and shows bytes a rank"},
    {"origin", 0, CLI_FLAG, NULL, "adds file:line to each value"},
    {"json", 0, CLI_FLAG, NULL, "as JSON"},
    {0}};
static const CliOption keys_options[] = {{"format", 0, CLI_CHOICE, "text|json|markdown", "text by default"},
                                         {"json", 0, CLI_FLAG, NULL, "--format json"},
                                         {0}};
static const CliOption diff_options[] = {{"json", 0, CLI_FLAG, NULL, "as JSON"}, {0}};

const CliCommand cli_config[] = {
    {"config check", "CONFIG... [KEY=VALUE...]", "finds every problem of a configuration", NULL,
     check_options, true, 0, -1},
    {"config show", "CONFIG... [KEY=VALUE...]", "prints every key's value, and the model's size", NULL,
     show_options, true, 0, -1},
    {"config keys", "[PREFIX]", "lists the keys with types, defaults and meanings", NULL, keys_options, false,
     0, 1},
    {"config diff", "A B [KEY=VALUE...]", "keys whose values differ; KEY=VALUE counts for B", NULL,
     diff_options, true, 2, 2},
    {0}};

static Status load(const CliArgs *args, RunConfig **config, ConfigDocument **document, int ranks) {
    return config_load(config, document, args->argument, args->arguments, args->override, args->overrides,
                       ranks);
}

static int rank_option(const CliArgs *args) {
    return (int)cli_integer(args, "ranks", 0);
}

static int run_check(const CliArgs *args) {
    RunConfig *config;
    Status status = load(args, &config, NULL, rank_option(args));
    if (status != OK) return status;
    printf("ok: %lld steps, %s tokens, %d source%s, %d stage%s\n", (long long)config->train.steps,
           short_count((double)config->train.tokens).text, config->data.sources,
           config->data.sources == 1 ? "" : "s", config->data.stages, config->data.stages == 1 ? "" : "s");
    config_free(config, NULL);
    return OK;
}

// ---- show

// Weights, gradients, master copies and Adam's two moments, over all ranks.
static double state_bytes(const RunConfig *c, int ranks) {
    int ep = c->parallel.ep;
    ParamTable params = {0};
    model_describe(&c->model, 0, c->model.experts / ep, &params);
    ZeroBytes bytes = zero_plan_bytes(&params, c->parallel.zero, ranks, ep);
    params_free(&params);
    return (double)bytes.weights + (double)bytes.grads + (double)bytes.optimizer;
}

static void with_commas(int64_t value, char *text, size_t size) {
    char digits[24];
    int length = snprintf(digits, sizeof digits, "%lld", (long long)value);
    size_t at = 0;
    for (int i = 0; i < length && at + 2 < size; i++) {
        if (i && (length - i) % 3 == 0) text[at++] = ',';
        text[at++] = digits[i];
    }
    text[at] = 0;
}

static void print_size(const RunConfig *c, int ranks) {
    ModelSize size = model_size(&c->model, c->batch.seq_len);
    char total[32], active[32], expert[32], tokens[32];
    with_commas(size.total, total, sizeof total);
    with_commas(size.active, active, sizeof active);
    with_commas(size.expert, expert, sizeof expert);
    with_commas(c->train.tokens, tokens, sizeof tokens);
    int shown = ranks ? ranks : c->parallel.ep;
    printf("\n# parameters      %s total, %s active a token, %s in experts\n", total, active, expert);
    printf("# training        %.4g flop a token, %s tokens in %lld steps: %.3g flop\n", size.flops_per_token,
           tokens, (long long)c->train.steps, size.flops_per_token * (double)c->train.tokens);
    printf("# training state  %s a rank on %d rank%s (weights, gradients, optimizer)\n",
           short_bytes(state_bytes(c, shown)).text, shown, shown == 1 ? "" : "s");
}

static void print_show_json(const RunConfig *c, const ConfigDocument *document, int ranks) {
    ModelSize size = model_size(&c->model, c->batch.seq_len);
    int shown = ranks ? ranks : c->parallel.ep;
    json_t *json = json_pack(
        "{s:o, s:{s:I, s:I, s:I, s:f}, s:{s:I, s:I}, s:{s:i, s:f}}", "config", config_json(document), "model",
        "total", (json_int_t)size.total, "active", (json_int_t)size.active, "expert", (json_int_t)size.expert,
        "flops_per_token", size.flops_per_token, "plan", "steps", (json_int_t)c->train.steps, "tokens",
        (json_int_t)c->train.tokens, "memory", "ranks", shown, "state_bytes_per_rank", state_bytes(c, shown));
    json_dumpf(json, stdout, JSON_INDENT(2));
    putchar('\n');
    json_decref(json);
}

static int run_show(const CliArgs *args) {
    RunConfig *config;
    ConfigDocument *document;
    Status status = load(args, &config, &document, rank_option(args));
    if (status != OK) return status;
    if (cli_flag(args, "json")) {
        print_show_json(config, document, rank_option(args));
    } else {
        char *text = config_show_yaml(document, cli_flag(args, "origin"));
        fputs(text, stdout);
        free(text);
        print_size(config, rank_option(args));
    }
    config_free(config, document);
    return OK;
}

// ---- keys

static int run_keys(const CliArgs *args) {
    const char *format = cli_flag(args, "json") ? "json" : cli_text(args, "format");
    const char *prefix = args->arguments ? args->argument[0] : "";
    char *text = config_keys(prefix, format ? format : "text");
    bool none = !*text || strcmp(text, "[]\n") == 0;
    if (!none) fputs(text, stdout);
    free(text);
    return none ? cli_misuse(args->command, "no key begins with '%s'", prefix) : OK;
}

// ---- diff

static void compare(json_t *out, const char *key, const json_t *a, const json_t *b);

static void compare_below(json_t *out, const char *key, const char *name, const json_t *a, const json_t *b) {
    size_t size = strlen(key) + strlen(name) + 2;
    char *below = malloc(size);
    REQUIRE(below, "out of memory");
    snprintf(below, size, "%s%s%s", key, *key ? "." : "", name);
    compare(out, below, a, b);
    free(below);
}

// Adds {"key", "a", "b"} for each value that differs.
static void compare(json_t *out, const char *key, const json_t *a, const json_t *b) {
    if (a && b && json_equal(a, b)) return;
    if (!json_is_object(a) || !json_is_object(b)) {
        json_t *none = json_null();
        json_array_append_new(out,
                              json_pack("{s:s, s:O, s:O}", "key", key, "a", a ? a : none, "b", b ? b : none));
        return;
    }
    const char *name;
    json_t *value;
    json_object_foreach((json_t *)a, name, value)
        compare_below(out, key, name, value, json_object_get(b, name));
    json_object_foreach((json_t *)b, name, value) if (!json_object_get(a, name))
        compare_below(out, key, name, NULL, value);
}

static void print_difference(const json_t *difference) {
    char *a = json_dumps(json_object_get(difference, "a"), JSON_ENCODE_ANY | JSON_REAL_PRECISION(9));
    char *b = json_dumps(json_object_get(difference, "b"), JSON_ENCODE_ANY | JSON_REAL_PRECISION(9));
    printf("%-32s %s -> %s\n", json_string_value(json_object_get(difference, "key")), a, b);
    free(a);
    free(b);
}

static int run_diff(const CliArgs *args) {
    RunConfig *config[2];
    ConfigDocument *document[2];
    Status status = config_load(&config[0], &document[0], args->argument, 1, NULL, 0, 0);
    if (status != OK) return status;
    status = config_load(&config[1], &document[1], args->argument + 1, 1, args->override, args->overrides, 0);
    json_t *differences = json_array();
    if (status == OK) {
        json_t *a = config_json(document[0]), *b = config_json(document[1]);
        compare(differences, "", a, b);
        json_decref(a);
        json_decref(b);
        if (cli_flag(args, "json")) {
            json_dumpf(differences, stdout, JSON_INDENT(2));
            putchar('\n');
        } else {
            for (size_t i = 0; i < json_array_size(differences); i++)
                print_difference(json_array_get(differences, i));
        }
        config_free(config[1], document[1]);
    }
    json_decref(differences);
    config_free(config[0], document[0]);
    return status;
}

int command_config(int argc, char **argv) {
    static int (*const run[])(const CliArgs *) = {run_check, run_show, run_keys, run_diff};
    int exit_code;
    const CliCommand *command = cli_choose(argc, argv, cli_config, &exit_code);
    CliArgs args;
    if (!command || !cli_parse(&args, argc - 1, argv + 1, command, &exit_code)) return exit_code;
    exit_code = run[command - cli_config](&args);
    cli_free(&args);
    return exit_code;
}
