// SPDX-License-Identifier: Apache-2.0
#include "core/yaml.h"
#include "core/file.h"
#include <libfyaml.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

// ---- the tree

static void *checked(void *memory) {
    REQUIRE(memory, "out of memory");
    return memory;
}

static YamlNode *node_create(YamlKind kind, YamlPlace place) {
    YamlNode *node = checked(calloc(1, sizeof *node));
    node->kind = kind;
    node->place = place;
    return node;
}

YamlNode *yaml_map(YamlPlace place) {
    return node_create(YAML_MAP, place);
}

YamlNode *yaml_list(YamlPlace place) {
    return node_create(YAML_LIST, place);
}

YamlNode *yaml_scalar(const char *text, bool quoted, YamlPlace place) {
    YamlNode *node = node_create(YAML_SCALAR, place);
    node->text = checked(strdup(text));
    node->quoted = quoted;
    return node;
}

void yaml_free(YamlNode *node) {
    if (!node) return;
    for (int i = 0; i < node->count; i++) yaml_free(node->child[i]);
    free(node->child);
    free(node->key);
    free(node->text);
    free(node);
}

static int child_index(const YamlNode *map, const char *key) {
    for (int i = 0; map && map->kind == YAML_MAP && i < map->count; i++)
        if (strcmp(map->child[i]->key, key) == 0) return i;
    return -1;
}

YamlNode *yaml_child(const YamlNode *map, const char *key) {
    int i = child_index(map, key);
    return i < 0 ? NULL : map->child[i];
}

void yaml_append(YamlNode *list, YamlNode *value) {
    list->child = checked(realloc(list->child, sizeof *list->child * (size_t)(list->count + 1)));
    list->child[list->count++] = value;
}

void yaml_put(YamlNode *map, const char *key, YamlPlace key_place, YamlNode *value) {
    char *own_key = checked(strdup(key));
    free(value->key);
    value->key = own_key;
    value->key_place = key_place;
    int i = child_index(map, key);
    if (i < 0) {
        yaml_append(map, value);
        return;
    }
    yaml_free(map->child[i]);
    map->child[i] = value;
}

YamlNode *yaml_copy(const YamlNode *node) {
    YamlNode *copy = node_create(node->kind, node->place);
    if (node->text) copy->text = checked(strdup(node->text));
    copy->quoted = node->quoted;
    for (int i = 0; i < node->count; i++) {
        YamlNode *child = yaml_copy(node->child[i]);
        if (node->kind == YAML_MAP)
            yaml_put(copy, node->child[i]->key, node->child[i]->key_place, child);
        else
            yaml_append(copy, child);
    }
    return copy;
}

bool yaml_is_null(const YamlNode *node) {
    if (!node) return true;
    if (node->kind != YAML_SCALAR || node->quoted) return false;
    return !*node->text || strcmp(node->text, "null") == 0 || strcmp(node->text, "~") == 0;
}

void yaml_merge(YamlNode *into, const YamlNode *from) {
    for (int i = 0; i < from->count; i++) {
        const YamlNode *value = from->child[i];
        YamlNode *old = yaml_child(into, value->key);
        if (old && old->kind == YAML_MAP && value->kind == YAML_MAP)
            yaml_merge(old, value);
        else
            yaml_put(into, value->key, value->key_place, yaml_copy(value));
    }
}

bool yaml_equal(const YamlNode *a, const YamlNode *b) {
    if (a->kind != b->kind || a->count != b->count) return false;
    if (a->kind == YAML_SCALAR) return a->quoted == b->quoted && strcmp(a->text, b->text) == 0;
    for (int i = 0; i < a->count; i++) {
        const YamlNode *other = a->kind == YAML_MAP ? yaml_child(b, a->child[i]->key) : b->child[i];
        if (!other || !yaml_equal(a->child[i], other)) return false;
    }
    return true;
}

// ---- dotted paths

// The list item that a segment names: −1 if it is no number or too large.
static int item_index(const YamlNode *list, const char *segment) {
    char *end;
    long i = strtol(segment, &end, 10);
    return *segment >= '0' && *segment <= '9' && !*end && i < list->count ? (int)i : -1;
}

static YamlNode *step_into(const YamlNode *node, const char *segment) {
    if (node->kind == YAML_MAP) return yaml_child(node, segment);
    int i = node->kind == YAML_LIST ? item_index(node, segment) : -1;
    return i < 0 ? NULL : node->child[i];
}

YamlNode *yaml_get(const YamlNode *root, const char *path) {
    char *copy = checked(strdup(path)), *rest = copy, *segment;
    const YamlNode *node = root;
    while (node && (segment = strsep(&rest, "."))) node = step_into(node, segment);
    free(copy);
    return (YamlNode *)node;
}

static Status cannot_enter(const YamlNode *node, const char *path, const char *segment) {
    if (node->kind == YAML_LIST)
        FAIL(ERR_CONFIG, "'%s': there is no item %s; the list has %d, numbered from 0", path, segment,
             node->count);
    FAIL(ERR_CONFIG, "'%s': what stands before '%s' is a single value and has no keys", path, segment);
}

static Status set_in(YamlNode *node, const char *path, char *rest, YamlPlace place, YamlNode *value) {
    char *segment = strsep(&rest, ".");
    if (node->kind == YAML_SCALAR) return cannot_enter(node, path, segment);
    int i = node->kind == YAML_LIST ? item_index(node, segment) : child_index(node, segment);
    if (i < 0 && node->kind == YAML_LIST) return cannot_enter(node, path, segment);
    if (!rest) {
        YamlNode *copy = yaml_copy(value);
        if (node->kind == YAML_MAP) {
            yaml_put(node, segment, place, copy);
            return OK;
        }
        yaml_free(node->child[i]);
        node->child[i] = copy;
        return OK;
    }
    if (i < 0 || yaml_is_null(node->child[i])) {
        YamlNode *map = yaml_map(place);
        if (node->kind == YAML_MAP) {
            yaml_put(node, segment, place, map);
            i = child_index(node, segment);
        } else {
            yaml_free(node->child[i]);
            node->child[i] = map;
        }
    }
    return set_in(node->child[i], path, rest, place, value);
}

Status yaml_set(YamlNode *root, const char *path, YamlPlace place, YamlNode *value) {
    char *copy = checked(strdup(path));
    Status status = set_in(root, path, copy, place, value);
    free(copy);
    yaml_free(value);
    return status;
}

// ---- parsing

typedef struct {
    char *name;
    YamlNode *node; // a copy
} Anchor;

typedef struct {
    struct fy_parser *parser;
    struct fy_diag *diag;
    struct fy_event *event; // the one at hand
    const char *name;
    Anchor *anchor;
    int anchors;
} Reader;

static YamlPlace event_place(const Reader *reader) {
    const struct fy_mark *mark = fy_event_start_mark(reader->event);
    if (!mark) return (YamlPlace){.file = reader->name};
    return (YamlPlace){reader->name, mark->line + 1, mark->column + 1};
}

static Status fail_at(YamlPlace place, const char *problem, const char *value) {
    if (!place.line) FAIL(ERR_CONFIG, "%s: error: %s%s", place.file, problem, value);
    FAIL(ERR_CONFIG, "%s:%d:%d: error: %s%s", place.file, place.line, place.column, problem, value);
}

static Status next_event(Reader *reader) {
    fy_parser_event_free(reader->parser, reader->event);
    reader->event = fy_parser_parse(reader->parser);
    if (reader->event) return OK;
    void *position = NULL;
    const struct fy_diag_error *error = fy_diag_errors_iterate(reader->diag, &position);
    if (!error) return fail_at((YamlPlace){.file = reader->name}, "the text ends too early", "");
    YamlPlace place = {reader->name, error->line > 0 ? error->line : 1,
                       error->column > 0 ? error->column : 1};
    return fail_at(place, error->msg, "");
}

static void keep_anchor(Reader *reader, struct fy_token *token, const YamlNode *node) {
    if (!token) return;
    size_t length;
    const char *name = fy_token_get_text(token, &length);
    reader->anchor = checked(realloc(reader->anchor, sizeof *reader->anchor * (size_t)(reader->anchors + 1)));
    reader->anchor[reader->anchors++] = (Anchor){checked(strndup(name, length)), yaml_copy(node)};
}

static Status read_alias(Reader *reader, YamlNode **out) {
    YamlPlace place = event_place(reader); // of the name
    place.column -= place.line > 0;
    size_t length;
    const char *name = fy_token_get_text(reader->event->alias.anchor, &length);
    for (int i = reader->anchors - 1; i >= 0; i--) {
        if (strlen(reader->anchor[i].name) != length || strncmp(reader->anchor[i].name, name, length))
            continue;
        *out = yaml_copy(reader->anchor[i].node);
        (*out)->place = place;
        return OK;
    }
    return fail_at(place, "an alias before its anchor", "");
}

static Status read_scalar(Reader *reader, YamlNode **out) {
    YamlPlace place = event_place(reader);
    struct fy_token *token = reader->event->scalar.value;
    size_t length = 0;
    const char *text = token ? fy_token_get_text(token, &length) : "";
    if (memchr(text, 0, length)) return fail_at(place, "a zero byte in a text", "");
    char *copy = checked(strndup(text, length));
    *out = yaml_scalar(copy, token && fy_token_scalar_style(token) != FYSS_PLAIN, place);
    free(copy);
    return OK;
}

static Status read_node(Reader *reader, YamlNode **out,
                        int depth); // the event at hand begins it; ends on its last one

static Status read_map(Reader *reader, YamlNode *map, int depth) {
    for (;;) {
        TRY(next_event(reader));
        if (reader->event->type == FYET_MAPPING_END) return OK;
        if (reader->event->type != FYET_SCALAR)
            return fail_at(event_place(reader), "a key must be a single word", "");
        YamlPlace place = event_place(reader);
        YamlNode *key;
        TRY(read_scalar(reader, &key));
        YamlNode *old = yaml_child(map, key->text), *value = NULL;
        Status status = OK;
        if (old) {
            char problem[160];
            snprintf(problem, sizeof problem, "the key comes twice, first in line %d: ", old->key_place.line);
            status = fail_at(place, problem, key->text);
        }
        if (status == OK) status = next_event(reader);
        if (status == OK) status = read_node(reader, &value, depth + 1);
        if (status == OK) yaml_put(map, key->text, place, value);
        yaml_free(key);
        TRY(status);
    }
}

static Status read_list(Reader *reader, YamlNode *list, int depth) {
    for (;;) {
        TRY(next_event(reader));
        if (reader->event->type == FYET_SEQUENCE_END) return OK;
        YamlNode *item;
        TRY(read_node(reader, &item, depth + 1));
        yaml_append(list, item);
    }
}

static Status read_node(Reader *reader, YamlNode **out, int depth) {
    *out = NULL;
    YamlPlace place = event_place(reader);
    if (depth > 32) return fail_at(place, "values are nested more than 32 deep", "");
    if (fy_event_get_tag_token(reader->event)) return fail_at(place, "tags (!…) are not understood here", "");
    struct fy_token *anchor = fy_event_get_anchor_token(reader->event);
    char *anchor_name = NULL;
    Status status;
    switch (reader->event->type) {
    case FYET_ALIAS:
        return read_alias(reader, out);
    case FYET_SCALAR:
        status = read_scalar(reader, out);
        if (status == OK) keep_anchor(reader, anchor, *out);
        return status;
    case FYET_MAPPING_START:
    case FYET_SEQUENCE_START:
        break;
    default:
        return fail_at(place, "a value is missing", "");
    }
    if (anchor) { // its event is gone once the children are read
        size_t length;
        const char *name = fy_token_get_text(anchor, &length);
        anchor_name = checked(strndup(name, length));
    }
    YamlNode *node = reader->event->type == FYET_MAPPING_START ? yaml_map(place) : yaml_list(place);
    status = node->kind == YAML_MAP ? read_map(reader, node, depth) : read_list(reader, node, depth);
    if (status != OK) {
        free(anchor_name);
        yaml_free(node);
        return status;
    }
    if (anchor_name) {
        reader->anchor =
            checked(realloc(reader->anchor, sizeof *reader->anchor * (size_t)(reader->anchors + 1)));
        reader->anchor[reader->anchors++] = (Anchor){anchor_name, yaml_copy(node)};
    }
    *out = node;
    return OK;
}

static Status read_stream(Reader *reader, YamlNode **out) {
    TRY(next_event(reader)); // the stream begins
    TRY(next_event(reader));
    if (reader->event->type == FYET_STREAM_END) {
        *out = yaml_map((YamlPlace){.file = reader->name});
        return OK;
    }
    TRY(next_event(reader)); // past the document's begin
    TRY(read_node(reader, out, 0));
    TRY(next_event(reader)); // the document ends
    TRY(next_event(reader));
    if (reader->event->type == FYET_STREAM_END) return OK;
    return fail_at(event_place(reader), "a second document; one file holds one", "");
}

Status yaml_parse(YamlNode **out, const char *text, size_t bytes, const char *name) {
    *out = NULL;
    Reader reader = {.name = name};
    struct fy_diag_cfg diag_config;
    fy_diag_cfg_default(&diag_config);
    diag_config.fp = NULL;
    reader.diag = checked(fy_diag_create(&diag_config));
    fy_diag_set_collect_errors(reader.diag, true);
    struct fy_parse_cfg config = {.flags = FYPCF_QUIET | FYPCF_COLLECT_DIAG, .diag = reader.diag};
    reader.parser = checked(fy_parser_create(&config));
    Status status = OK;
    if (fy_parser_set_string(reader.parser, text, bytes))
        status = fail_at((YamlPlace){.file = name}, "the text cannot be read as YAML", "");
    if (status == OK) status = read_stream(&reader, out);
    if (status != OK) {
        yaml_free(*out);
        *out = NULL;
    }
    fy_parser_event_free(reader.parser, reader.event);
    fy_parser_destroy(reader.parser);
    fy_diag_destroy(reader.diag);
    for (int i = 0; i < reader.anchors; i++) {
        free(reader.anchor[i].name);
        yaml_free(reader.anchor[i].node);
    }
    free(reader.anchor);
    return status;
}

Status yaml_load(YamlNode **out, const char *path) {
    *out = NULL;
    char *text;
    size_t bytes;
    TRY(file_read_all(path, &text, &bytes));
    Status status = yaml_parse(out, text, bytes, path);
    free(text);
    return status;
}

const char *yaml_library_version(void) {
    return fy_library_version();
}
