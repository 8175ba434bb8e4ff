// SPDX-License-Identifier: Apache-2.0
// YAML as a tree that remembers where each value stood. Aliases are copied in; tags and several documents in
// one file are errors, as is a key that comes twice.
#pragma once
#include "core/status.h"
#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>

typedef struct {
    const char *file; // borrowed from the caller of the parse
    int line, column; // from 1; 0: the file as a whole
} YamlPlace;

typedef enum { YAML_SCALAR, YAML_LIST, YAML_MAP } YamlKind;
typedef struct YamlNode YamlNode;
struct YamlNode {
    YamlKind kind;
    char *key; // in its map, or NULL
    YamlPlace key_place, place;
    char *text;  // of a scalar
    bool quoted; // the scalar stood in quotes: a text, whatever it looks like
    YamlNode **child;
    int count;
};

// ERR_CONFIG with a message "file:line:column: error: …". name: what places call the text; must outlive the
// tree. An empty text is an empty map. *out is NULL on failure.
Status yaml_parse(YamlNode **out, const char *text, size_t bytes, const char *name);
Status yaml_load(YamlNode **out, const char *path);
void yaml_free(YamlNode *node);

YamlNode *yaml_map(YamlPlace place);
YamlNode *yaml_list(YamlPlace place);
YamlNode *yaml_scalar(const char *text, bool quoted, YamlPlace place);
YamlNode *yaml_copy(const YamlNode *node); // without its key
// Takes value over; replaces what the key had.
void yaml_put(YamlNode *map, const char *key, YamlPlace key_place, YamlNode *value);
void yaml_append(YamlNode *list, YamlNode *value);

bool yaml_is_null(const YamlNode *node);                    // NULL, or the scalar null, ~ or nothing
YamlNode *yaml_child(const YamlNode *map, const char *key); // NULL if there is none
// "data.sources.prose.path", "curriculum.0.until": NULL if there is none.
YamlNode *yaml_get(const YamlNode *root, const char *path);
// Maps are merged key by key; everything else in `from` replaces what `into` has. Copies.
void yaml_merge(YamlNode *into, const YamlNode *from);
// Sets what a dotted path names, making the maps on the way. Takes value over, also on failure. ERR_CONFIG:
// the path goes through something that is no map, or names an item that a list does not have.
Status yaml_set(YamlNode *root, const char *path, YamlPlace place, YamlNode *value);

// Block style, lists and the maps in them in flow style. origin: adds "# file:line" to each value. Owned by
// the caller.
char *yaml_emit(const YamlNode *root, bool origin);
// Scalars that read as null, true, false or a number become that, unless they were quoted. Owned by the
// caller.
json_t *yaml_json(const YamlNode *node);
bool yaml_equal(const YamlNode *a, const YamlNode *b); // same keys, in any order, with the same text
const char *yaml_library_version(void);
