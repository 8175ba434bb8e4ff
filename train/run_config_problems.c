// SPDX-License-Identifier: Apache-2.0
// What is wrong with a document, collected, so that everything is said at once.
#include "train/run_config_internal.h"
#include <ctype.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { KEY_BYTES = 256 };

static void add(ConfigDocument *document, YamlPlace place, char *text) {
    document->problem = realloc(document->problem, sizeof(Problem) * (size_t)(document->problems + 1));
    REQUIRE(document->problem && text, "out of memory");
    document->problem[document->problems++] = (Problem){place, text};
}

static char *formatted(const char *format, va_list args) {
    char text[2048];
    vsnprintf(text, sizeof text, format, args);
    return strdup(text);
}

void problem_add(ConfigDocument *document, YamlPlace place, const char *format, ...) {
    va_list args;
    va_start(args, format);
    add(document, place, formatted(format, args));
    va_end(args);
}

void problem_add_message(ConfigDocument *document, const char *message) {
    add(document, (YamlPlace){0}, strdup(message));
}

bool key_is_bad(const ConfigDocument *document, const char *key) {
    for (int i = 0; i < document->bads; i++)
        if (strcmp(document->bad[i], key) == 0) return true;
    return false;
}

static void mark_bad(ConfigDocument *document, const char *key) {
    document->bad = realloc(document->bad, sizeof *document->bad * (size_t)(document->bads + 1));
    REQUIRE(document->bad, "out of memory");
    document->bad[document->bads++] = strdup(key);
}

void problem_at(ConfigDocument *document, const char *key, YamlPlace place, const char *format, ...) {
    mark_bad(document, key);
    va_list args;
    va_start(args, format);
    add(document, place, formatted(format, args));
    va_end(args);
}

void problem_between(ConfigDocument *document, const char *keys, const char *format, ...) {
    char list[KEY_BYTES], *rest = list, *key;
    snprintf(list, sizeof list, "%s", keys);
    YamlPlace place = {.file = "command line"};
    bool placed = false;
    while ((key = strsep(&rest, ","))) {
        if (key_is_bad(document, key)) return;
        const YamlNode *value = yaml_get(document->root, key);
        if (placed || yaml_is_null(value)) continue;
        place = value->place;
        placed = true;
    }
    snprintf(list, sizeof list, "%.*s", (int)strcspn(keys, ","), keys);
    mark_bad(document, list);
    va_list args;
    va_start(args, format);
    add(document, place, formatted(format, args));
    va_end(args);
}

const YamlNode *config_value(const ConfigDocument *document, const char *key) {
    const YamlNode *value = yaml_get(document->root, key);
    return yaml_is_null(value) || key_is_bad(document, key) ? NULL : value;
}

// ---- printing

static int name_order(const ConfigDocument *document, const char *name) {
    int i = 0;
    while (i < document->names && document->name[i] != name) i++;
    return i;
}

static bool is_before(const ConfigDocument *document, const Problem *a, const Problem *b) {
    int order = name_order(document, a->place.file) - name_order(document, b->place.file);
    if (order) return order < 0;
    if (a->place.line != b->place.line) return a->place.line < b->place.line;
    return a->place.column < b->place.column;
}

static void sort_problems(ConfigDocument *document) { // few, and stable
    for (int i = 1; i < document->problems; i++)
        for (int j = i; j > 0 && is_before(document, &document->problem[j], &document->problem[j - 1]); j--) {
            Problem swap = document->problem[j];
            document->problem[j] = document->problem[j - 1];
            document->problem[j - 1] = swap;
        }
}

// The top-level group that all bad keys share, or "".
static void shared_group(const ConfigDocument *document, char *group, size_t size) {
    group[0] = 0;
    for (int i = 0; i < document->bads; i++) {
        int length = (int)strcspn(document->bad[i], ".");
        if (i == 0) snprintf(group, size, "%.*s", length, document->bad[i]);
        if (strncmp(group, document->bad[i], (size_t)length) || group[length]) group[0] = 0;
        if (!group[0]) return;
    }
    if (!option_is_group(group)) group[0] = 0;
}

Status problems_print(ConfigDocument *document) {
    if (!document->problems) return OK;
    sort_problems(document);
    for (int i = 0; i < document->problems; i++) {
        const Problem *p = &document->problem[i];
        if (!p->place.file)
            fprintf(stderr, "%s\n", p->text);
        else if (!p->place.line)
            fprintf(stderr, "%s: error: %s\n", p->place.file, p->text);
        else
            fprintf(stderr, "%s:%d:%d: error: %s\n", p->place.file, p->place.line, p->place.column, p->text);
    }
    char group[KEY_BYTES];
    shared_group(document, group, sizeof group);
    fprintf(stderr, "%d error%s. Nothing was started. See: floe config keys%s%s\n", document->problems,
            document->problems == 1 ? "" : "s", group[0] ? " " : "", group);
    FAIL(ERR_CONFIG, "%d error%s in the configuration", document->problems,
         document->problems == 1 ? "" : "s");
}

// ---- every key and value by itself

static bool is_name(const char *text) {
    if (!*text) return false;
    for (const char *c = text; *c; c++)
        if (!isalnum((unsigned char)*c) && *c != '_' && *c != '-') return false;
    return true;
}

static void value_text(const YamlNode *value, char *text, size_t size) {
    snprintf(text, size, "%s",
             value->kind == YAML_MAP    ? "{…}"
             : value->kind == YAML_LIST ? "[…]"
                                        : value->text);
}

static void check_value(ConfigDocument *document, const Option *option, const char *key,
                        const YamlNode *value) {
    if (yaml_is_null(value) || value_fits(option, value)) return;
    char given[80], expected[200];
    value_text(value, given, sizeof given);
    if (strcmp(key, "train.precision") == 0 && strcmp(given, "bf16") == 0) {
        problem_at(document, key, value->place,
                   "train.precision = bf16 needs a GPU, which this build does not use; take fp32 or auto");
        return;
    }
    option_expectation(option, expected, sizeof expected);
    const char *names[16];
    char choices[200], *rest = choices;
    int count = 0;
    snprintf(choices, sizeof choices, "%s", option->choices ? option->choices : "");
    while (option->choices && rest && count < 16) names[count++] = strsep(&rest, "|");
    const char *nearest = word_nearest(given, names, count);
    problem_at(document, key, value->place, "%s = %s: expected %s%s%s%s", key, given, expected,
               nearest ? "; did you mean '" : "", nearest ? nearest : "", nearest ? "'?" : "");
}

static void unknown_key(ConfigDocument *document, const char *group, const char *key, const YamlNode *value) {
    char meant[KEY_BYTES];
    bool found = option_suggestion(group, value->key, meant, sizeof meant);
    problem_at(document, key, value->key_place, "unknown key '%s'%s%s%s", key,
               found ? "; did you mean '" : "", found ? meant : "", found ? "'?" : "");
}

static void walk(ConfigDocument *document, const YamlNode *node, const char *key, const char *pattern);

static void walk_map(ConfigDocument *document, const YamlNode *map, const char *key, const char *pattern) {
    for (int i = 0; i < map->count; i++) {
        const YamlNode *value = map->child[i];
        const char *dot = *key ? "." : "";
        char below[KEY_BYTES], below_pattern[KEY_BYTES];
        snprintf(below, sizeof below, "%s%s%s", key, dot, value->key);
        snprintf(below_pattern, sizeof below_pattern, "%s%s%s", pattern, dot, value->key);
        bool wild = strpbrk(value->key, "*#"); // signs of the table, not names
        if (wild || (!option_find(below_pattern) && !option_is_group(below_pattern))) {
            snprintf(below_pattern, sizeof below_pattern, "%s%s*", pattern, dot);
            wild = true;
        }
        bool known = option_find(below_pattern) || option_is_group(below_pattern);
        if (!known)
            unknown_key(document, pattern, below, value);
        else if (wild && !is_name(value->key))
            problem_at(document, below, value->key_place,
                       "'%s' cannot be a source's name: only letters, digits, _ and - can be in it",
                       value->key);
        else
            walk(document, value, below, below_pattern);
    }
}

static void walk(ConfigDocument *document, const YamlNode *node, const char *key, const char *pattern) {
    const Option *option = option_find(pattern);
    if (option) {
        check_value(document, option, key, node);
        return;
    }
    if (yaml_is_null(node)) return;
    char item_pattern[KEY_BYTES];
    snprintf(item_pattern, sizeof item_pattern, "%s.#", pattern);
    bool list = option_is_group(item_pattern);
    if (node->kind != (list ? YAML_LIST : YAML_MAP)) {
        char given[80];
        value_text(node, given, sizeof given);
        problem_at(document, key, node->place, "%s = %s: expected %s", key, given,
                   list ? "a list: [{…}, {…}]" : "keys below it: {…}");
        return;
    }
    if (!list) walk_map(document, node, key, pattern);
    for (int i = 0; list && i < node->count; i++) {
        char item[KEY_BYTES];
        snprintf(item, sizeof item, "%s.%d", key, i);
        if (yaml_is_null(node->child[i]))
            problem_at(document, item, node->child[i]->place, "%s is empty: expected {…}", item);
        else
            walk(document, node->child[i], item, item_pattern);
    }
}

void config_walk(ConfigDocument *document) {
    if (document->root->kind != YAML_MAP)
        problem_add(document, document->root->place, "expected keys and values: model: {…}");
    else
        walk_map(document, document->root, "", "");
}
