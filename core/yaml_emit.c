// SPDX-License-Identifier: Apache-2.0
#include "core/yaml.h"
#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { ORIGIN_COLUMN = 44 };

static bool needs_quotes(const YamlNode *scalar) {
    const char *text = scalar->text;
    if (scalar->quoted) return true;
    if (*text && strchr("!&*-?:,[]{}#|>@`\"'%", *text) && !(*text == '-' && isalnum((unsigned char)text[1])))
        return true;
    for (const char *c = text; *c; c++) {
        if ((unsigned char)*c < ' ' || strchr(",[]{}\"#", *c)) return true;
        if (*c == ':' && (!c[1] || c[1] == ' ')) return true;
    }
    return *text && text[strlen(text) - 1] == ' ';
}

static void emit_scalar(FILE *out, const YamlNode *node) {
    if (yaml_is_null(node)) {
        fputs("null", out);
    } else if (!needs_quotes(node)) {
        fputs(node->text, out);
    } else {
        fputc('"', out);
        for (const char *c = node->text; *c; c++) {
            if ((unsigned char)*c < ' ')
                fprintf(out, "\\x%02x", (unsigned char)*c);
            else
                fprintf(out, *c == '"' || *c == '\\' ? "\\%c" : "%c", *c);
        }
        fputc('"', out);
    }
}

static void emit_flow(FILE *out, const YamlNode *node) {
    if (node->kind == YAML_SCALAR) {
        emit_scalar(out, node);
        return;
    }
    fputc(node->kind == YAML_MAP ? '{' : '[', out);
    for (int i = 0; i < node->count; i++) {
        if (i) fputs(", ", out);
        if (node->kind == YAML_MAP) fprintf(out, "%s: ", node->child[i]->key);
        emit_flow(out, node->child[i]);
    }
    fputc(node->kind == YAML_MAP ? '}' : ']', out);
}

static void end_line(FILE *out, long begun, const YamlNode *node, bool origin) {
    if (origin) {
        long width = ftell(out) - begun;
        fprintf(out, "%*s# %s", width < ORIGIN_COLUMN ? (int)(ORIGIN_COLUMN - width) : 1, "",
                node->place.file);
        if (node->place.line) fprintf(out, ":%d", node->place.line);
    }
    fputc('\n', out);
}

static void emit_block(FILE *out, const YamlNode *map, int indent, bool origin) {
    for (int i = 0; i < map->count; i++) {
        const YamlNode *value = map->child[i];
        long begun = ftell(out);
        fprintf(out, "%*s%s:", indent, "", value->key);
        if (value->kind == YAML_MAP && value->count) {
            fputc('\n', out);
            emit_block(out, value, indent + 4, origin);
        } else if (value->kind == YAML_LIST && value->count && value->child[0]->kind != YAML_SCALAR) {
            fputc('\n', out);
            for (int j = 0; j < value->count; j++) {
                begun = ftell(out);
                fprintf(out, "%*s- ", indent + 2, "");
                emit_flow(out, value->child[j]);
                end_line(out, begun, value->child[j], origin);
            }
        } else {
            fputc(' ', out);
            emit_flow(out, value);
            end_line(out, begun, value, origin);
        }
    }
}

char *yaml_emit(const YamlNode *root, bool origin) {
    char *text = NULL;
    size_t bytes;
    FILE *out = open_memstream(&text, &bytes);
    REQUIRE(out, "out of memory");
    emit_block(out, root, 0, origin);
    fclose(out);
    return text;
}

static json_t *scalar_json(const YamlNode *node) {
    const char *text = node->text;
    if (yaml_is_null(node)) return json_null();
    if (node->quoted) return json_string(text);
    if (strcmp(text, "true") == 0) return json_true();
    if (strcmp(text, "false") == 0) return json_false();
    char *end;
    bool number =
        isdigit((unsigned char)*text) || ((*text == '-' || *text == '.') && isdigit((unsigned char)text[1]));
    if (number && !strpbrk(text, "xX")) {
        long long whole = strtoll(text, &end, 10);
        if (!*end) return json_integer(whole);
        double real = strtod(text, &end);
        if (!*end) return json_real(real);
    }
    return json_string(text);
}

json_t *yaml_json(const YamlNode *node) {
    if (node->kind == YAML_SCALAR) return scalar_json(node);
    json_t *json = node->kind == YAML_MAP ? json_object() : json_array();
    for (int i = 0; i < node->count; i++) {
        json_t *child = yaml_json(node->child[i]);
        if (node->kind == YAML_MAP)
            json_object_set_new(json, node->child[i]->key, child);
        else
            json_array_append_new(json, child);
    }
    return json;
}
