// SPDX-License-Identifier: Apache-2.0
// floe completion: a script for the shell, made from the command and option tables.
#include "tools/cli.h"
#include "tools/commands.h"
#include "train/run_options.h"
#include <stdio.h>
#include <string.h>

const CliCommand cli_completion[] = {
    {"completion", "bash|zsh|fish", "prints completion for the shell",
     "bash: source <(floe completion bash)\nzsh:  floe completion zsh > a folder of $fpath as _floe\n"
     "fish: floe completion fish > ~/.config/fish/completions/floe.fish",
     NULL, false, 1, 1},
    {0}};

static const CliCommand *const tables[] = {cli_train,  cli_config,     cli_data,   cli_ckpt,
                                           cli_eval,   cli_generate,   cli_bench,  cli_slurm,
                                           cli_doctor, cli_completion, cli_version};
enum { TABLES = sizeof tables / sizeof *tables };

// "data pack": the group is "data", the part "pack"; of "train" both are "train" and "".
static int group_length(const CliCommand *command) {
    return (int)strcspn(command->name, " ");
}

static const char *part_of(const CliCommand *command) {
    const char *space = strchr(command->name, ' ');
    return space ? space + 1 : "";
}

static bool is_plain_key(const Option *option) {
    return !strpbrk(option->key, "#*");
}

static void print_groups(void) {
    for (int i = 0; i < TABLES; i++) printf("%.*s ", group_length(tables[i]), tables[i]->name);
}

static void print_parts(const CliCommand *table) {
    for (const CliCommand *command = table; command->name; command++) printf("%s ", part_of(command));
}

static void print_options(const CliCommand *command) {
    for (const CliOption *option = command->option; option && option->name; option++) {
        printf("--%s ", option->name);
        if (option->letter) printf("-%c ", option->letter);
    }
    printf("--help");
}

static void print_keys(void) {
    for (int i = 0; i < run_options; i++)
        if (is_plain_key(&run_option[i])) printf(" %s=", run_option[i].key);
}

static void print_choices(const char *choices) { // "a|b" → "a b"
    for (const char *c = choices; *c; c++) putchar(*c == '|' ? ' ' : *c);
}

// "train:*) ACTION;;" for each command; ACTION sets options, and keys to yes where KEY=VALUE counts.
static void print_cases(const char *open, const char *close) {
    for (int i = 0; i < TABLES; i++) {
        for (const CliCommand *command = tables[i]; command->name; command++) {
            const char *part = part_of(command);
            printf("    %.*s:%s) options=%s", group_length(command), command->name, *part ? part : "*", open);
            if (strcmp(command->name, "completion") == 0) printf("bash zsh fish ");
            print_options(command);
            printf("%s keys=%s ;;\n", close, command->config ? "yes" : "");
        }
        if (!*part_of(tables[i])) continue;
        printf("    %.*s:*) options=%s", group_length(tables[i]), tables[i]->name, open);
        print_parts(tables[i]);
        printf("--help%s ;;\n", close);
    }
}

// Values of options and keys that take one of a few words.
static void print_value_cases(void) {
    printf("    case $word in\n");
    for (int i = 0; i < TABLES; i++)
        for (const CliCommand *command = tables[i]; command->name; command++)
            for (const CliOption *option = command->option; option && option->name; option++) {
                if (option->kind != CLI_CHOICE) continue;
                printf("    --%s) values=\"", option->name);
                print_choices(option->argument);
                printf("\" ;;\n");
            }
    for (int i = 0; i < run_options; i++) {
        if (run_option[i].type != OPTION_CHOICE && run_option[i].type != OPTION_BOOL) continue;
        printf("    %s) values=\"", run_option[i].key);
        print_choices(run_option[i].type == OPTION_BOOL ? "true|false" : run_option[i].choices);
        printf("\" ;;\n");
    }
    printf("    esac\n");
}

static void print_bash(void) {
    printf("# bash completion of floe\n_floe() {\n"
           "    local current=${COMP_WORDS[COMP_CWORD]} word=${COMP_WORDS[COMP_CWORD-1]} options= keys= "
           "values=\n"
           "    # bash cuts KEY=VALUE at the =\n"
           "    if [ \"$current\" = = ]; then current=\n"
           "    elif [ \"$word\" = = ]; then word=${COMP_WORDS[COMP_CWORD-2]}\n    fi\n");
    print_value_cases();
    printf("    if [ \"$values\" ]; then\n        COMPREPLY=($(compgen -W \"$values\" -- \"$current\"))\n"
           "        return\n    fi\n"
           "    if [ \"$COMP_CWORD\" = 1 ]; then options=\"");
    print_groups();
    printf("--help --version\"\n    else case \"${COMP_WORDS[1]}:${COMP_WORDS[2]}\" in\n");
    print_cases("\"", "\"");
    printf("    esac; fi\n    [ \"$keys\" ] && keys=\"");
    print_keys();
    printf("\"\n    COMPREPLY=($(compgen -W \"$options$keys\" -- \"$current\"))\n"
           "    case ${COMPREPLY[0]} in *=) compopt -o nospace 2>/dev/null ;; esac\n"
           "}\ncomplete -o default -F _floe floe\n");
}

static void print_zsh(void) {
    printf("#compdef floe\n_floe() {\n    local -a options\n    local keys= word=$words[CURRENT-1] values=\n"
           "    if [[ $words[CURRENT] == *=* ]]; then\n        word=${words[CURRENT]%%%%=*}\n        compset "
           "-P '*='\n    fi\n");
    print_value_cases();
    printf("    if [[ -n $values ]]; then\n        compadd -- ${=values}\n        return\n    fi\n"
           "    if (( CURRENT == 2 )); then options=(");
    print_groups();
    printf("--help --version)\n    else case \"$words[2]:$words[3]\" in\n");
    print_cases("(", ")");
    printf("    esac; fi\n    compadd -- $options\n    [[ -n $keys ]] && compadd -S '' --");
    print_keys();
    printf("\n    _files\n}\n_floe \"$@\"\n");
}

static void print_fish_text(const char *text) { // in single quotes
    putchar('\'');
    for (const char *c = text; *c; c++) {
        if (*c == '\'' || *c == '\\') putchar('\\');
        putchar(*c);
    }
    putchar('\'');
}

static void print_fish_command(const CliCommand *command) {
    const char *part = part_of(command);
    char seen[160];
    snprintf(seen, sizeof seen, "__fish_seen_subcommand_from %.*s%s%s", group_length(command), command->name,
             *part ? "; and __fish_seen_subcommand_from " : "", part);
    for (const CliOption *option = command->option; option && option->name; option++) {
        printf("complete -c floe -n '%s' -l %s", seen, option->name);
        if (option->letter) printf(" -s %c", option->letter);
        if (option->kind == CLI_CHOICE) {
            printf(" -x -a '");
            print_choices(option->argument);
            printf("'");
        } else if (option->kind != CLI_FLAG) {
            printf(" -r");
        }
        printf(" -d ");
        print_fish_text(option->meaning);
        printf("\n");
    }
    for (int i = 0; command->config && i < run_options; i++) {
        if (!is_plain_key(&run_option[i])) continue;
        printf("complete -c floe -n '%s' -a '%s=' -d ", seen, run_option[i].key);
        print_fish_text(run_option[i].meaning);
        printf("\n");
    }
}

static void print_fish(void) {
    printf("# fish completion of floe\n");
    for (int i = 0; i < TABLES; i++) {
        int length = group_length(tables[i]);
        printf("complete -c floe -f -n __fish_use_subcommand -a %.*s -d ", length, tables[i]->name);
        print_fish_text(*part_of(tables[i]) ? "" : tables[i]->meaning);
        printf("\n");
        for (const CliCommand *command = tables[i]; command->name; command++) {
            if (*part_of(command)) {
                printf("complete -c floe -f -n '__fish_seen_subcommand_from %.*s; and not "
                       "__fish_seen_subcommand_from ",
                       length, tables[i]->name);
                print_parts(tables[i]);
                printf("' -a %s -d ", part_of(command));
                print_fish_text(command->meaning);
                printf("\n");
            }
            print_fish_command(command);
        }
    }
}

int command_completion(int argc, char **argv) {
    CliArgs args;
    int exit_code;
    if (!cli_parse(&args, argc, argv, cli_completion, &exit_code)) return exit_code;
    const char *shell = args.argument[0];
    if (strcmp(shell, "bash") == 0)
        print_bash();
    else if (strcmp(shell, "zsh") == 0)
        print_zsh();
    else if (strcmp(shell, "fish") == 0)
        print_fish();
    else
        exit_code =
            cli_misuse(cli_completion, "'%s' is not a shell that this knows: bash, zsh or fish", shell);
    cli_free(&args);
    return exit_code;
}
