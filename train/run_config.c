// SPDX-License-Identifier: Apache-2.0
#include "train/run_config.h"
#include "train/run_config_internal.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static ConfigOwner *owner_create(void) {
    ConfigOwner *owner = calloc(1, sizeof *owner);
    ConfigDocument *document = calloc(1, sizeof *document);
    REQUIRE(owner && document, "out of memory");
    owner->document = document;
    document->root = yaml_map((YamlPlace){.file = document_keep_name(document, "defaults")});
    return owner;
}

static void owner_free(ConfigOwner *owner) {
    ConfigDocument *document = owner->document;
    for (int i = 0; i < owner->blocks; i++) free(owner->memory[i]);
    for (int i = 0; i < document->problems; i++) free(document->problem[i].text);
    for (int i = 0; i < document->bads; i++) free(document->bad[i]);
    for (int i = 0; i < document->names; i++) free(document->name[i]);
    yaml_free(document->root);
    free(document->problem);
    free(document->bad);
    free(document->name);
    free(document);
    free(owner->memory);
    free(owner);
}

// From the merged document to numbers.
static Status resolve(ConfigOwner *owner, int ranks) {
    ConfigDocument *document = owner->document;
    config_walk(document);
    if (document->incomplete) return problems_print(document);
    config_merge_checkpoint(document);
    for (int i = 0; i < run_options; i++)
        if (run_option[i].size)
            value_store(&run_option[i], config_value(document, run_option[i].key), &owner->config);
    value_store_betas(config_value(document, "optim.betas"), &owner->config);
    config_resolve_plan(owner);
    config_resolve_data(owner);
    config_check_layout(document, &owner->config, ranks);
    config_check_model(document, &owner->config.model);
    return problems_print(document);
}

static Status hand_over(ConfigOwner *owner, Status status, RunConfig **out, ConfigDocument **document) {
    if (status != OK) {
        owner_free(owner);
        owner = NULL;
    }
    *out = owner ? &owner->config : NULL;
    if (document) *document = owner ? owner->document : NULL;
    return status;
}

Status config_load(RunConfig **out, ConfigDocument **document, const char *const files[], int file_count,
                   const char *const overrides[], int override_count, int ranks) {
    ConfigOwner *owner = owner_create();
    config_merge_layers(owner->document, files, file_count, overrides, override_count);
    return hand_over(owner, resolve(owner, ranks), out, document);
}

Status config_parse(RunConfig **out, ConfigDocument **document, const char *yaml, const char *name) {
    ConfigOwner *owner = owner_create();
    owner->document->stored = true;
    YamlNode *tree = NULL;
    if (yaml_parse(&tree, yaml, strlen(yaml), document_keep_name(owner->document, name)) != OK) {
        problem_add_message(owner->document, status_text());
        owner->document->incomplete = true;
    } else {
        yaml_free(owner->document->root);
        owner->document->root = tree;
    }
    return hand_over(owner, resolve(owner, 0), out, document);
}

void config_free(RunConfig *config, ConfigDocument *document) {
    (void)document; // it belongs to the config
    if (config) owner_free((ConfigOwner *)config);
}

Status config_need_data(const RunConfig *config, const ConfigDocument *document) {
    if (config->data.sources) return OK;
    const char *file = document->names > 1 ? document->name[1] : "configuration";
    fprintf(
        stderr,
        "%s: error: data.sources is empty: there is nothing to train on; give data.sources.NAME.path=PREFIX\n"
        "1 error. Nothing was started. See: floe config keys data\n",
        file);
    FAIL(ERR_CONFIG, "data.sources is empty");
}

// ---- the document as text

static Arch document_arch(const ConfigDocument *document) {
    RunConfig config = {0};
    const Option *arch = option_find("model.arch");
    value_store(arch, config_value(document, arch->key), &config);
    return config.model.arch;
}

static YamlNode *resolved_value(const ConfigDocument *document, const Option *option) {
    const YamlNode *given = yaml_get(document->root, option->key);
    bool by_tokens = !yaml_is_null(yaml_get(document->root, "train.tokens"));
    if (by_tokens && strcmp(option->key, "train.steps") == 0)
        return yaml_scalar("null", false, yaml_get(document->root, "train.tokens")->place);
    if (!yaml_is_null(given)) return yaml_copy(given);
    YamlPlace nowhere = {.file = "default"};
    if (option_by_arch(option)) {
        char text[64];
        option_member_text(option, option_model_member(option, model_family(document_arch(document))), text,
                           sizeof text);
        return yaml_scalar(text, false, nowhere);
    }
    YamlNode *value = NULL;
    Status status = yaml_parse(&value, option->fallback, strlen(option->fallback), "default");
    REQUIRE(status == OK, "default of %s: %s", option->key, status_text());
    value->place = nowhere;
    return value;
}

// The first part of a pattern, which is set as a whole: "batch.ramp.#.until" → "batch.ramp".
static bool pattern_group(const char *key, char *group, size_t size) {
    const char *wild = strpbrk(key, "#*");
    if (wild) snprintf(group, size, "%.*s", (int)(wild - key - 1), key);
    return wild;
}

YamlNode *config_resolved(const ConfigDocument *document) {
    YamlPlace nowhere = {.file = "default"};
    YamlNode *root = yaml_map(nowhere);
    for (int i = 0; i < run_options; i++) {
        const Option *option = &run_option[i];
        char group[64];
        YamlNode *value = NULL;
        if (strcmp(option->key, "preset") == 0) continue; // it has been applied
        if (!pattern_group(option->key, group, sizeof group)) {
            snprintf(group, sizeof group, "%s", option->key);
            value = resolved_value(document, option);
        } else if (!yaml_get(root, group)) {
            const YamlNode *given = yaml_get(document->root, group);
            value = yaml_is_null(given) ? yaml_scalar("null", false, nowhere) : yaml_copy(given);
        }
        if (!value) continue;
        Status status = yaml_set(root, group, nowhere, value);
        REQUIRE(status == OK, "%s: %s", group, status_text());
    }
    return root;
}

static char *emit(const ConfigDocument *document, bool origin) {
    YamlNode *root = config_resolved(document);
    char *text = yaml_emit(root, origin);
    yaml_free(root);
    return text;
}

char *config_resolved_yaml(const ConfigDocument *document) {
    return emit(document, false);
}

char *config_show_yaml(const ConfigDocument *document, bool origin) {
    return emit(document, origin);
}

json_t *config_json(const ConfigDocument *document) {
    YamlNode *root = config_resolved(document);
    json_t *json = yaml_json(root);
    yaml_free(root);
    return json;
}

char *config_model_yaml(const ModelConfig *model) {
    char *text = NULL;
    size_t bytes;
    FILE *out = open_memstream(&text, &bytes);
    REQUIRE(out, "out of memory");
    fputs("model:\n", out);
    bool router = false;
    for (int i = 0; i < run_options; i++) {
        const Option *option = &run_option[i];
        const char *key = option->key + strlen("model."), *leaf = strrchr(option->key, '.') + 1;
        if (strncmp(option->key, "model.", strlen("model.")) || strcmp(leaf, "init_std") == 0) continue;
        if (leaf != key && !option_by_arch(option))
            continue; // the router's losses and capacity are the run's
        if (leaf != key && !router) fputs("  router:\n", out);
        router |= leaf != key;
        char value[64];
        option_member_text(option, option_model_member(option, model), value, sizeof value);
        fprintf(out, "  %s%s: %s\n", leaf != key ? "  " : "", leaf, value);
    }
    REQUIRE(fclose(out) == 0, "out of memory");
    return text;
}
