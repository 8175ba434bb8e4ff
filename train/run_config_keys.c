// SPDX-License-Identifier: Apache-2.0
// The option table as a reader sees it.
#include "train/run_config.h"
#include "train/run_options.h"
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

// "curriculum.#.mix.*" → "curriculum.N.mix.SOURCE"
static void key_text(const char *key, char *text, size_t size) {
    size_t length = 0;
    for (const char *c = key; *c && length + 7 < size; c++) {
        if (*c == '#')
            text[length++] = 'N';
        else if (*c == '*')
            length += (size_t)snprintf(text + length, size - length, "SOURCE");
        else
            text[length++] = *c;
    }
    text[length] = 0;
}

static const char *type_text(OptionType type) {
    static const char *const names[] = {"integer", "number", "bool",        "choice", "text", "share",
                                        "length",  "tokens", "token count", "pair",   "paths"};
    return names[type];
}

static json_t *option_json(const Option *option, const char *key, const char *expected) {
    return json_pack("{s:s, s:s, s:s, s:s?, s:s}", "key", key, "type", type_text(option->type), "values",
                     expected, "default", option->fallback, "meaning", option->meaning);
}

static void print_markdown(FILE *out, const Option *option, const char *key, const char *expected) {
    fprintf(out, "| `%s` | %s | %s%s%s | %s |\n", key, expected, option->fallback ? "`" : "",
            option->fallback ? option->fallback : "–", option->fallback ? "`" : "", option->meaning);
}

static void begin_markdown(FILE *out, const char *key, const char *before) {
    size_t length = strcspn(key, ".");
    if (before && strncmp(before, key, length) == 0 && (before[length] == '.' || !before[length])) return;
    fprintf(out, "%s## %.*s\n\n| key | values | default | meaning |\n|---|---|---|---|\n", before ? "\n" : "",
            (int)length, key);
}

static const char *const introduction =
    "# Configuration\n"
    "\n"
    "Made by `floe config keys --format markdown`; the table behind it is `train/run_options.c`.\n"
    "\n"
    "A configuration is YAML. Values come from, later ones winning: the defaults below, `preset: NAME`, the "
    "files\n"
    "left to right, the variable `FLOE_SET=\"a=1;b=2\"`, and `KEY=VALUE` on the command line "
    "(`optim.lr=3e-4`,\n"
    "`--optim.lr=3e-4` and `--optim.lr 3e-4` are the same; `curriculum.0.until=10%` reaches into a list; "
    "`KEY=null`\n"
    "goes back to the default). Maps are merged key by key, lists are replaced. Every problem is reported at "
    "once,\n"
    "with its file, line and column. `floe config show CONFIG --origin` shows each value and where it comes "
    "from.\n"
    "\n"
    "Presets are the files of `configs/presets`; `FLOE_PRESETS` names another folder. Where a command takes "
    "a file, it\n"
    "also takes the name of a preset: `floe train tiny`.\n"
    "\n"
    "A length is a number of steps (`500`, `5 steps`), of tokens (`2e6tok`) or a percent of the run's tokens "
    "(`2%`).\n"
    "Where tokens are expected (`until`, `ramp`), a bare number counts tokens: `1.0e12`, `1e12tok`. The run "
    "has\n"
    "`train.tokens` tokens, or `train.steps` steps; whichever a later layer gives replaces the other. "
    "Percents are\n"
    "exact decimals, rounded down to a token.\n"
    "\n"
    "With one source, `curriculum` may be left out: a single stage. The last `until` must reach the end of "
    "the run.\n"
    "`parallel.ep` divides `model.experts` and the number of ranks; `batch.sequences` is a multiple of the "
    "ranks, and a\n"
    "rank's share a multiple of `batch.micro`.\n"
    "\n";

// Each choice of the block, as the published models make it.
static void print_family(FILE *out) {
    fputs("`model.arch` takes a published model's block. Keys whose default is \"by arch\" are its choices; "
          "each can be set by itself:\n\n|  |",
          out);
    for (int arch = 0; arch < ARCH_COUNT; arch++) fprintf(out, " `%s` |", arch_name((Arch)arch));
    fputs("\n|---|", out);
    for (int arch = 0; arch < ARCH_COUNT; arch++) fputs("---|", out);
    for (int i = 0; i < run_options; i++) {
        const Option *option = &run_option[i];
        if (!option_by_arch(option)) continue;
        fprintf(out, "\n| `%s` |", option->key);
        for (int arch = 0; arch < ARCH_COUNT; arch++) {
            char text[64];
            option_member_text(option, option_model_member(option, model_family((Arch)arch)), text,
                               sizeof text);
            fprintf(out, " %s |", text);
        }
    }
    fputs("\n\nWith N a norm, x the layer's input and a = x + Attn(N x) unless said, a layer is:\n\n", out);
    for (int arch = 0; arch < ARCH_COUNT; arch++)
        fprintf(out, "- `%s`: %s\n", arch_name((Arch)arch), arch_formula((Arch)arch));
    fputc('\n', out);
}

char *config_keys(const char *prefix, const char *format) {
    bool json = strcmp(format, "json") == 0, markdown = strcmp(format, "markdown") == 0;
    char *text = NULL;
    size_t bytes;
    FILE *out = open_memstream(&text, &bytes);
    REQUIRE(out, "out of memory");
    json_t *array = json_array();
    const char *before = NULL;
    if (markdown && !*prefix) {
        fputs(introduction, out);
        print_family(out);
    }
    for (int i = 0; i < run_options; i++) {
        const Option *option = &run_option[i];
        char key[64], expected[200];
        key_text(option->key, key, sizeof key);
        option_expectation(option, expected, sizeof expected);
        if (strncmp(option->key, prefix, strlen(prefix)) && strncmp(key, prefix, strlen(prefix))) continue;
        if (json) {
            json_array_append_new(array, option_json(option, key, expected));
        } else if (markdown) {
            begin_markdown(out, option->key, before);
            print_markdown(out, option, key, expected);
        } else {
            fprintf(out, "%-30s %-12s %s\n%32s%s\n", key, option->fallback ? option->fallback : "-",
                    option->meaning, "", expected);
        }
        before = option->key;
    }
    if (json) {
        json_dumpf(array, out, JSON_INDENT(2));
        fputc('\n', out);
    }
    json_decref(array);
    fclose(out);
    return text;
}
