// SPDX-License-Identifier: Apache-2.0
// Where values come from: presets, files, FLOE_SET, the command line, and a checkpoint's model.
#include "core/file.h"
#include "train/checkpoint.h"
#include "train/resume.h"
#include "train/run_config_internal.h"
#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef struct { // one value of FLOE_SET or the command line
    char *key;
    YamlNode *value;
    const char *source;
} Override;

typedef struct {
    ConfigDocument *document;
    YamlNode **tree; // of the files; NULL: unreadable
    int trees;
    Override *override;
    int overrides;
} Layers;

const char *document_keep_name(ConfigDocument *document, const char *name) {
    for (int i = 0; i < document->names; i++)
        if (strcmp(document->name[i], name) == 0) return document->name[i];
    document->name = realloc(document->name, sizeof *document->name * (size_t)(document->names + 1));
    REQUIRE(document->name, "out of memory");
    document->name[document->names] = strdup(name);
    return document->name[document->names++];
}

// ---- presets

static bool preset_folder(int number, char *folder, size_t size) {
    char program[FILE_PATH_BYTES];
    const char *given = getenv("FLOE_PRESETS");
    if (number == 0) return given && snprintf(folder, size, "%s", given) > 0;
    ssize_t length = readlink("/proc/self/exe", program, sizeof program - 1);
    if (length <= 0 || number > 2) return false;
    program[length] = 0;
    *strrchr(program, '/') = 0;
    int written =
        snprintf(folder, size, "%s/../%s", program, number == 1 ? "configs/presets" : "share/floe/presets");
    if (written >= (int)size) return false;
    char *whole = realpath(folder, NULL);
    if (whole) snprintf(folder, size, "%s", whole);
    free(whole);
    return true;
}

static bool preset_path(const char *name, char *path, size_t size) {
    char folder[FILE_PATH_BYTES];
    if (strchr(name, '/')) return false;
    for (int i = 0; i < 3; i++) {
        if (!preset_folder(i, folder, sizeof folder)) continue;
        if (snprintf(path, size, "%s/%s.yaml", folder, name) < (int)size && access(path, R_OK) == 0)
            return true;
    }
    return false;
}

static int by_text(const void *a, const void *b) {
    return strcmp(*(char *const *)a, *(char *const *)b);
}

enum { PRESETS_MOST = 64 };
static int preset_names(char *names[PRESETS_MOST]) { // sorted, owned by the caller
    char folder[FILE_PATH_BYTES];
    int count = 0;
    for (int i = 0; i < 3 && count == 0; i++) {
        DIR *dir = preset_folder(i, folder, sizeof folder) ? opendir(folder) : NULL;
        for (const struct dirent *entry; dir && (entry = readdir(dir)) && count < PRESETS_MOST;) {
            const char *end = strstr(entry->d_name, ".yaml");
            if (end && !end[5]) names[count++] = strndup(entry->d_name, (size_t)(end - entry->d_name));
        }
        if (dir) closedir(dir);
    }
    qsort(names, (size_t)count, sizeof *names, by_text);
    return count;
}

// "; did you mean 'tiny'?" or "; presets: bench-mid, tiny"
static void preset_advice(const char *name, char *text, size_t size) {
    char *names[PRESETS_MOST];
    int count = preset_names(names);
    const char *nearest = word_nearest(name, (const char *const *)names, count);
    size_t length = 0;
    if (!count)
        snprintf(text, size, "; no folder of presets was found, set FLOE_PRESETS to it");
    else if (nearest)
        snprintf(text, size, "; did you mean '%s'?", nearest);
    else
        for (int i = 0; i < count && length < size; i++)
            length +=
                (size_t)snprintf(text + length, size - length, "%s%s", i ? ", " : "; presets: ", names[i]);
    for (int i = 0; i < count; i++) free(names[i]);
}

// ---- files

static YamlNode *load(ConfigDocument *document, const char *path) {
    YamlNode *tree = NULL;
    const char *name = document_keep_name(document, path);
    if (yaml_load(&tree, name) == OK) return tree;
    document->incomplete = true;
    const char *reason = status_text();
    if (strstr(reason, ": error: ")) {
        problem_add_message(document, reason);
    } else {
        if (strncmp(reason, path, strlen(path)) == 0) reason += strlen(path) + strlen(": ");
        problem_add(document, (YamlPlace){.file = name}, "cannot be read: %s", reason);
    }
    return NULL;
}

// A file, or else the name of a preset.
static YamlNode *load_argument(ConfigDocument *document, const char *argument) {
    char path[FILE_PATH_BYTES], advice[1024];
    if (access(argument, F_OK) == 0 || strpbrk(argument, "./")) return load(document, argument);
    YamlPlace place = {.file = document_keep_name(document, "command line")};
    if (!preset_path(argument, path, sizeof path)) {
        preset_advice(argument, advice, sizeof advice);
        problem_add(document, place, "'%s' is neither a file nor a preset%s", argument, advice);
        document->incomplete = true;
        return NULL;
    }
    YamlNode *tree = yaml_map(place);
    yaml_put(tree, "preset", place, yaml_scalar(argument, false, place));
    return tree;
}

// ---- KEY=VALUE

static void place_everywhere(YamlNode *node, YamlPlace place) {
    node->place = node->key_place = place;
    for (int i = 0; i < node->count; i++) place_everywhere(node->child[i], place);
}

static void add_override(Layers *layers, const char *text, size_t length, const char *source) {
    ConfigDocument *document = layers->document;
    YamlPlace place = {.file = source};
    const char *equals = memchr(text, '=', length);
    if (!equals || equals == text) {
        problem_add(document, place, "'%.*s' is not of the form KEY=VALUE", (int)length, text);
        return;
    }
    Override override = {.key = strndup(text, (size_t)(equals - text)), .source = source};
    size_t bytes = length - (size_t)(equals + 1 - text);
    if (!bytes) {
        problem_at(document, override.key, place, "'%s=' has no value; %s=null resets the key", override.key,
                   override.key);
    } else if (yaml_parse(&override.value, equals + 1, bytes, source) != OK) {
        const char *reason = strstr(status_text(), "error: ");
        problem_at(document, override.key, place, "%s: %s", override.key,
                   reason ? reason + 7 : status_text());
    }
    if (!override.value) {
        free(override.key);
        return;
    }
    place_everywhere(override.value, place);
    layers->override = realloc(layers->override, sizeof override * (size_t)(layers->overrides + 1));
    REQUIRE(layers->override, "out of memory");
    layers->override[layers->overrides++] = override;
}

static void add_environment(Layers *layers) {
    const char *set = getenv("FLOE_SET");
    const char *source = set && *set ? document_keep_name(layers->document, "FLOE_SET") : NULL;
    while (source && *set) {
        size_t length = strcspn(set, ";");
        if (length) add_override(layers, set, length, source);
        set += length + (set[length] == ';');
    }
}

// ---- merging

// A layer that gives the length of the run in one way takes back the other way of the layers below.
static void settle_length(ConfigDocument *document, bool steps, bool tokens) {
    YamlNode *train = yaml_child(document->root, "train");
    if (!train || train->kind != YAML_MAP || steps == tokens) return;
    const char *other = steps ? "tokens" : "steps";
    if (!yaml_is_null(yaml_child(train, other)))
        yaml_put(train, other, train->key_place, yaml_scalar("null", false, train->place));
}

static void merge_tree(ConfigDocument *document, const YamlNode *tree) {
    if (tree->kind != YAML_MAP) {
        problem_add(document, tree->place, "expected keys and values: model: {…}");
        return;
    }
    bool steps = !yaml_is_null(yaml_get(tree, "train.steps")),
         tokens = !yaml_is_null(yaml_get(tree, "train.tokens"));
    if (steps && tokens)
        problem_at(document, "train.tokens", yaml_get(tree, "train.tokens")->place,
                   "train.steps and train.tokens both say how long the run is; leave one out");
    yaml_merge(document->root, tree);
    settle_length(document, steps, tokens);
}

static void merge_override(ConfigDocument *document, const Override *override) {
    YamlPlace place = {.file = override->source};
    if (yaml_set(document->root, override->key, place, yaml_copy(override->value)) != OK)
        problem_at(document, override->key, place, "%s", status_text());
    bool given = !yaml_is_null(override->value);
    settle_length(document, given && strcmp(override->key, "train.steps") == 0,
                  given && strcmp(override->key, "train.tokens") == 0);
}

static void merge_preset(Layers *layers) {
    const YamlNode *name = NULL;
    for (int i = 0; i < layers->trees; i++) {
        const YamlNode *own = layers->tree[i] ? yaml_child(layers->tree[i], "preset") : NULL;
        if (own) name = own;
    }
    for (int i = 0; i < layers->overrides; i++)
        if (strcmp(layers->override[i].key, "preset") == 0) name = layers->override[i].value;
    if (yaml_is_null(name) || name->kind != YAML_SCALAR) return; // the wrong kind is found with all others
    char path[FILE_PATH_BYTES];
    if (!preset_path(name->text, path, sizeof path)) {
        char advice[1024];
        preset_advice(name->text, advice, sizeof advice);
        problem_at(layers->document, "preset", name->place, "there is no preset '%s'%s", name->text, advice);
        layers->document->incomplete = true;
        return;
    }
    YamlNode *tree = load(layers->document, path);
    if (!tree) return;
    const YamlNode *again = yaml_child(tree, "preset");
    if (again) problem_add(layers->document, again->key_place, "a preset cannot start from another one");
    merge_tree(layers->document, tree);
    yaml_free(tree);
}

void config_merge_layers(ConfigDocument *document, const char *const files[], int file_count,
                         const char *const overrides[], int override_count) {
    Layers layers = {.document = document, .trees = file_count};
    layers.tree = calloc((size_t)file_count + 1, sizeof *layers.tree);
    for (int i = 0; i < file_count; i++) layers.tree[i] = load_argument(document, files[i]);
    add_environment(&layers);
    const char *command_line = document_keep_name(document, "command line");
    for (int i = 0; i < override_count; i++)
        add_override(&layers, overrides[i], strlen(overrides[i]), command_line);
    merge_preset(&layers);
    for (int i = 0; i < layers.trees; i++)
        if (layers.tree[i]) merge_tree(document, layers.tree[i]);
    for (int i = 0; i < layers.overrides; i++) merge_override(document, &layers.override[i]);
    for (int i = 0; i < layers.trees; i++) yaml_free(layers.tree[i]);
    for (int i = 0; i < layers.overrides; i++) {
        free(layers.override[i].key);
        yaml_free(layers.override[i].value);
    }
    free(layers.tree);
    free(layers.override);
}

// ---- the model of train.init_from

// The stored configuration's model, with places that name the manifest; NULL after a problem.
static YamlNode *checkpoint_model(ConfigDocument *document, const YamlNode *from) {
    char dir[FILE_PATH_BYTES], manifest[FILE_PATH_BYTES + 16];
    json_t *json = NULL;
    Status status = checkpoint_path_resolve(from->text, dir, sizeof dir);
    if (status == OK) status = checkpoint_manifest(dir, &json);
    if (status != OK) {
        problem_at(document, "train.init_from", from->place, "train.init_from = %s: %s", from->text,
                   status_text());
        return NULL;
    }
    snprintf(manifest, sizeof manifest, "%s/MANIFEST.json", dir);
    const char *name = document_keep_name(document, manifest);
    const char *text = json_string_value(json_object_get(json_object_get(json, "record"), "config"));
    YamlNode *stored = NULL, *model = NULL;
    if (text && yaml_parse(&stored, text, strlen(text), name) == OK &&
        !yaml_is_null(yaml_child(stored, "model"))) {
        model = yaml_copy(yaml_child(stored, "model"));
        place_everywhere(model, (YamlPlace){.file = name});
    } else {
        problem_at(document, "train.init_from", from->place,
                   "train.init_from = %s: %s holds no configuration of a model", from->text, manifest);
    }
    yaml_free(stored);
    json_decref(json);
    return model;
}

// What decides names and shapes of weights.
static const char *const shape_keys[] = {
    "arch",      "layers",  "hidden",     "heads",     "kv_heads",       "head_dim",       "vocab",
    "dense_ffn", "experts", "expert_ffn", "moe_every", "tie_embeddings", "shared_experts", "sandwich_norms"};

// What a checkpoint's model has for a shape key; one that its configuration does not know yet is as its
// architecture has it, or the default. "": not a plain value.
static void stored_text(const YamlNode *model, const char *name, const Option *option, char *text,
                        size_t size) {
    const YamlNode *value = yaml_child(model, name), *arch = yaml_child(model, "arch");
    text[0] = 0;
    if (!yaml_is_null(value) && value->kind == YAML_SCALAR) {
        snprintf(text, size, "%s", value->text);
    } else if (yaml_is_null(value) && option_by_arch(option)) {
        const Option *arch_option = option_find("model.arch");
        RunConfig theirs = {0};
        bool known = !yaml_is_null(arch) && value_fits(arch_option, arch);
        value_store(arch_option, known ? arch : NULL, &theirs);
        option_member_text(option, option_model_member(option, model_family(theirs.model.arch)), text, size);
    } else if (yaml_is_null(value)) {
        snprintf(text, size, "%s", option->fallback);
    }
}

static void compare_shapes(ConfigDocument *document, const YamlNode *model, const char *checkpoint) {
    for (size_t i = 0; i < sizeof shape_keys / sizeof *shape_keys; i++) {
        char key[64];
        snprintf(key, sizeof key, "model.%s", shape_keys[i]);
        const YamlNode *own = config_value(document, key);
        const Option *option = option_find(key);
        char theirs[64];
        stored_text(model, shape_keys[i], option, theirs, sizeof theirs);
        if (!own || own->kind != YAML_SCALAR || !theirs[0]) continue;
        YamlNode *stored = yaml_scalar(theirs, false, own->place);
        bool number = option->type == OPTION_INTEGER;
        bool same = number ? value_integer(own) == value_integer(stored) : strcmp(own->text, theirs) == 0;
        yaml_free(stored);
        if (!same)
            problem_at(document, key, own->place,
                       "%s = %s, but the weights of train.init_from = %s have %s; leave the key out", key,
                       own->text, checkpoint, theirs);
    }
}

void config_merge_checkpoint(ConfigDocument *document) {
    const YamlNode *from = config_value(document, "train.init_from");
    if (!from || from->kind != YAML_SCALAR || document->stored) return;
    YamlNode *model = checkpoint_model(document, from);
    if (!model) return;
    compare_shapes(document, model, from->text);
    YamlPlace place = model->place;
    YamlNode *root = yaml_map(place), *given = yaml_copy(document->root);
    yaml_put(root, "model", place, model);
    // Keys that were reset to null count as left out.
    YamlNode *given_model = yaml_child(given, "model");
    for (int i = 0; given_model && given_model->kind == YAML_MAP && i < given_model->count; i++) {
        YamlNode *key = given_model->child[i];
        const YamlNode *theirs = yaml_child(model, key->key);
        if (yaml_is_null(key) && theirs) yaml_put(given_model, key->key, key->key_place, yaml_copy(theirs));
    }
    yaml_merge(root, given);
    yaml_free(given);
    yaml_free(document->root);
    document->root = root;
}
