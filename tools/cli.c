// SPDX-License-Identifier: Apache-2.0
#include "tools/cli.h"
#include "train/run_options.h"
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

// ---- help

static const char *command_part(const CliCommand *command) { // "pack" of "data pack"
    const char *space = strrchr(command->name, ' ');
    return space ? space + 1 : command->name;
}

static void print_option(const CliOption *option) {
    char left[64];
    snprintf(left, sizeof left, "%s%c%s--%s%s%s", option->letter ? "-" : " ",
             option->letter ? option->letter : ' ', option->letter ? ", " : "  ", option->name,
             option->argument ? " " : "", option->argument ? option->argument : "");
    printf("  %-34s %s\n", left, option->meaning);
}

static void print_help(const CliCommand *command) {
    printf("floe %s%s%s: %s\n\nusage: floe %s%s %s\n", command->name, "", "", command->meaning, command->name,
           command->option ? " [options]" : "", command->usage ? command->usage : "");
    printf("\noptions:\n");
    for (const CliOption *option = command->option; option && option->name; option++) print_option(option);
    print_option(&(CliOption){.name = "help", .letter = 'h', .meaning = "this text"});
    if (command->config)
        printf("\nKEY=VALUE sets a configuration key, as do --KEY.KEY=VALUE and --KEY.KEY VALUE; KEY=null "
               "resets it.\n"
               "CONFIG is a YAML file or the name of a preset. All keys: floe config keys\n");
    if (command->details) printf("\n%s\n", command->details);
}

int cli_misuse(const CliCommand *command, const char *format, ...) {
    va_list args;
    va_start(args, format);
    fprintf(stderr, "command line: error: ");
    vfprintf(stderr, format, args);
    va_end(args);
    fprintf(stderr, "\nNothing was started. See: floe %s%s--help\n", command ? command->name : "",
            command ? " " : "");
    return ERR_CONFIG;
}

int cli_failure(Status status) {
    if (status != OK) fprintf(stderr, "error: %s\n", status_text());
    return (int)status;
}

// ---- parsing

static int option_count(const CliCommand *command) {
    int count = 0;
    while (command->option && command->option[count].name) count++;
    return count;
}

static int option_index(const CliCommand *command, const char *name, size_t length) {
    for (int i = 0; i < option_count(command); i++)
        if (strlen(command->option[i].name) == length && strncmp(command->option[i].name, name, length) == 0)
            return i;
    return -1;
}

static void push(const char ***list, int *count, const char *text) {
    *list = realloc(*list, sizeof **list * (size_t)(*count + 1));
    REQUIRE(*list, "out of memory");
    (*list)[(*count)++] = text;
}

static char *own(CliArgs *args, char *text) {
    REQUIRE(text, "out of memory");
    args->owned = realloc(args->owned, sizeof *args->owned * (size_t)(args->owned_count + 1));
    REQUIRE(args->owned, "out of memory");
    return args->owned[args->owned_count++] = text;
}

typedef struct {
    CliArgs *args;
    int argc, at; // at: the argument at hand
    char **argv;
} Line;

static const char *next_word(Line *line) {
    return line->at + 1 < line->argc ? line->argv[++line->at] : NULL;
}

static int unknown_option(const CliCommand *command, const char *name, size_t length) {
    const char *names[64];
    char word[64];
    int count = 0;
    for (; count < option_count(command) && count < 64; count++) names[count] = command->option[count].name;
    snprintf(word, sizeof word, "%.*s", (int)length, name);
    const char *nearest = word_nearest(word, names, count);
    if (nearest) return cli_misuse(command, "unknown option '--%s'; did you mean '--%s'?", word, nearest);
    return cli_misuse(command, "unknown option '--%s'", word);
}

static bool is_one_of(const char *choices, const char *text) {
    size_t length = strlen(text);
    for (const char *c = choices; c; c = strchr(c, '|') ? strchr(c, '|') + 1 : NULL)
        if (strcspn(c, "|") == length && strncmp(c, text, length) == 0) return true;
    return false;
}

static int check_value(const CliCommand *command, const CliOption *option, const char *text) {
    char *end;
    if (option->kind == CLI_INTEGER && (strtoll(text, &end, 10) < 0 || end == text || *end))
        return cli_misuse(command, "--%s %s: expected a whole number, 0 or more", option->name, text);
    if (option->kind == CLI_NUMBER &&
        (!(strtod(text, &end) >= 0) || !isfinite(strtod(text, &end)) || end == text || *end))
        return cli_misuse(command, "--%s %s: expected a number, 0 or more", option->name, text);
    if (option->kind == CLI_CHOICE && !is_one_of(option->argument, text))
        return cli_misuse(command, "--%s %s: expected one of %s", option->name, text, option->argument);
    return 0;
}

// value: what stands in the same word, or NULL.
static int set_option(Line *line, int index, const char *value) {
    const CliCommand *command = line->args->command;
    const CliOption *option = &command->option[index];
    if (option->kind == CLI_FLAG) {
        if (value) return cli_misuse(command, "--%s takes no value", option->name);
        line->args->value[index] = "";
        return 0;
    }
    if (!value) value = next_word(line);
    if (!value) return cli_misuse(command, "--%s needs a value: %s", option->name, option->argument);
    line->args->value[index] = value;
    return check_value(command, option, value);
}

static int take_override(Line *line, const char *key, size_t length, const char *value) {
    if (!value) value = next_word(line);
    if (!value) return cli_misuse(line->args->command, "--%.*s needs a value", (int)length, key);
    char *text = malloc(length + strlen(value) + 2);
    REQUIRE(text, "out of memory");
    sprintf(text, "%.*s=%s", (int)length, key, value);
    push(&line->args->override, &line->args->overrides, own(line->args, text));
    return 0;
}

static int take_long(Line *line, const char *word) { // without its dashes
    const CliCommand *command = line->args->command;
    const char *equals = strchr(word, '=');
    size_t length = equals ? (size_t)(equals - word) : strlen(word);
    const char *value = equals ? equals + 1 : NULL;
    int index = option_index(command, word, length);
    if (index >= 0) return set_option(line, index, value);
    if (command->config && memchr(word, '.', length)) return take_override(line, word, length, value);
    return unknown_option(command, word, length);
}

static int take_short(Line *line, const char *word) { // "-vn4": letters, the last one with a value
    const CliCommand *command = line->args->command;
    for (const char *letter = word + 1; *letter; letter++) {
        int index = -1;
        for (int i = 0; i < option_count(command); i++)
            if (command->option[i].letter == *letter) index = i;
        if (index < 0) return cli_misuse(command, "unknown option '-%c'", *letter);
        bool flag = command->option[index].kind == CLI_FLAG;
        int failed = set_option(line, index, !flag && letter[1] ? letter + 1 : NULL);
        if (failed || !flag) return failed;
    }
    return 0;
}

static bool is_override(const char *word) { // KEY=VALUE, but not DIR/FILE=X
    size_t length = strcspn(word, "=");
    return word[length] && length && !memchr(word, '/', length);
}

static int take_word(Line *line, const char *word) {
    CliArgs *args = line->args;
    if (strncmp(word, "--", 2) == 0) return take_long(line, word + 2);
    if (word[0] == '-' && word[1] && !(word[1] >= '0' && word[1] <= '9')) return take_short(line, word);
    if (args->command->config && is_override(word))
        push(&args->override, &args->overrides, word);
    else
        push(&args->argument, &args->arguments, word);
    return 0;
}

static int check_arguments(const CliArgs *args) {
    const CliCommand *command = args->command;
    if (args->arguments < command->least)
        return cli_misuse(command, "an argument is missing: floe %s %s", command->name, command->usage);
    if (command->most >= 0 && args->arguments > command->most)
        return cli_misuse(command, "'%s' is one argument too many", args->argument[command->most]);
    return 0;
}

static bool asks_help(int argc, char **argv) {
    for (int i = 1; i < argc && strcmp(argv[i], "--"); i++)
        if (strcmp(argv[i], "--help") == 0 || strcmp(argv[i], "-h") == 0) return true;
    return false;
}

bool cli_parse(CliArgs *out, int argc, char **argv, const CliCommand *command, int *exit_code) {
    *out = (CliArgs){.command = command};
    *exit_code = 0;
    if (asks_help(argc, argv)) {
        print_help(command);
        return false;
    }
    out->value = calloc((size_t)option_count(command) + 1, sizeof *out->value);
    REQUIRE(out->value, "out of memory");
    Line line = {.args = out, .argc = argc, .argv = argv};
    for (line.at = 1; line.at < argc && !*exit_code; line.at++) {
        if (strcmp(argv[line.at], "--") == 0) {
            while (++line.at < argc) push(&out->argument, &out->arguments, argv[line.at]);
            break;
        }
        *exit_code = take_word(&line, argv[line.at]);
    }
    if (!*exit_code) *exit_code = check_arguments(out);
    if (!*exit_code) return true;
    cli_free(out);
    return false;
}

void cli_free(CliArgs *args) {
    for (int i = 0; i < args->owned_count; i++) free(args->owned[i]);
    free(args->owned);
    free(args->argument);
    free(args->override);
    free(args->value);
    *args = (CliArgs){0};
}

const CliCommand *cli_choose(int argc, char **argv, const CliCommand table[], int *exit_code) {
    const char *names[32];
    int count = 0;
    for (; table[count].name && count < 32; count++) names[count] = command_part(&table[count]);
    *exit_code = 0;
    bool help = argc > 1 && (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0);
    if (argc < 2 || help) {
        FILE *out = help ? stdout : stderr;
        for (int i = 0; i < count; i++) fprintf(out, "floe %-16s %s\n", table[i].name, table[i].meaning);
        fprintf(out, "\nEach has its own --help.\n");
        *exit_code = help ? 0 : ERR_CONFIG;
        return NULL;
    }
    for (int i = 0; i < count; i++)
        if (strcmp(names[i], argv[1]) == 0) return &table[i];
    CliCommand whole = {.name = argv[0]};
    const char *nearest = word_nearest(argv[1], names, count);
    *exit_code =
        nearest ? cli_misuse(&whole, "unknown 'floe %s %s'; did you mean '%s'?", argv[0], argv[1], nearest)
                : cli_misuse(&whole, "unknown 'floe %s %s'", argv[0], argv[1]);
    return NULL;
}

// ---- values

const char *cli_text(const CliArgs *args, const char *option) {
    int index = option_index(args->command, option, strlen(option));
    REQUIRE(index >= 0, "floe %s has no option '%s'", args->command->name, option);
    return args->value[index];
}

bool cli_flag(const CliArgs *args, const char *option) {
    return cli_text(args, option) != NULL;
}

int64_t cli_integer(const CliArgs *args, const char *option, int64_t when_not_given) {
    const char *text = cli_text(args, option);
    return text ? strtoll(text, NULL, 10) : when_not_given;
}

double cli_number(const CliArgs *args, const char *option, double when_not_given) {
    const char *text = cli_text(args, option);
    return text ? strtod(text, NULL) : when_not_given;
}
