// SPDX-License-Identifier: Apache-2.0
// What the files train/run_config*.c share.
#pragma once
#include "core/yaml.h"
#include "train/run_options.h"

typedef struct {
    YamlPlace place;
    char *text;
} Problem;

struct ConfigDocument {
    YamlNode *root; // the merged document: what was given, without the defaults
    char **name;    // of files, for places; owned
    int names;
    Problem *problem;
    int problems;
    char **bad; // keys whose values have a problem already
    int bads;
    bool stored;     // parsed from a run's own copy: data need not be there
    bool incomplete; // a file or preset could not be read: what follows from its absence is not said
};

// ---- run_config_values.c: texts of values

// digits · 10^exponent, exactly.
typedef struct {
    int64_t digits;
    int exponent;
} Decimal;
typedef struct {
    enum { LENGTH_STEPS, LENGTH_TOKENS, LENGTH_PERCENT } unit;
    Decimal value;
} Length;
// "5 steps", "2e6tok", "30%"; a bare number is in `bare` units. false: it is none, or is negative.
bool length_parse(const char *text, int bare, Length *out);
// floor(length), or floor(length percent of whole). false: a token count that is not whole, or out of range.
bool length_amount(const Length *length, int64_t whole, int64_t *out);
bool value_fits(const Option *option, const YamlNode *value); // type and range
// Fills the member that the option names. value fits, or is NULL: the default.
void value_store(const Option *option, const YamlNode *value, RunConfig *config);
void value_store_betas(const YamlNode *value, RunConfig *config);
double value_number(const YamlNode *value); // of one that fits OPTION_NUMBER or OPTION_SHARE
int64_t value_integer(const YamlNode *value);

// ---- run_config_problems.c
// The value of a plain key, or NULL where it was left out, is null, or is bad.
const YamlNode *config_value(const ConfigDocument *document, const char *key);
void problem_add(ConfigDocument *document, YamlPlace place, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
void problem_add_message(ConfigDocument *document, const char *message); // one that has its place in it
void problem_at(ConfigDocument *document, const char *key, YamlPlace place, const char *format, ...)
    __attribute__((format(printf, 4, 5))); // and the key is bad from now on
// A rule among keys (comma-separated): said at the first one that was given, unless one of them is bad
// already.
void problem_between(ConfigDocument *document, const char *keys, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
bool key_is_bad(const ConfigDocument *document, const char *key);
// Prints all on stderr in order of place; returns ERR_CONFIG, or OK where there are none.
Status problems_print(ConfigDocument *document);
// Every key and value by itself against the option table.
void config_walk(ConfigDocument *document);

// ---- run_config_layers.c
const char *document_keep_name(ConfigDocument *document, const char *name);
// Merges presets, files, FLOE_SET and overrides into document->root.
void config_merge_layers(ConfigDocument *document, const char *const files[], int file_count,
                         const char *const overrides[], int override_count);
// Puts the model keys of the checkpoint that train.init_from names below those that were given.
void config_merge_checkpoint(ConfigDocument *document);

// ---- run_config_plan.c: lengths, batch plan, data, curriculum. Everything allocated hangs on the owner.
typedef struct {
    RunConfig config; // what the caller sees
    ConfigDocument *document;
    void **memory;
    int blocks;
} ConfigOwner;
void *owner_alloc(ConfigOwner *owner, size_t bytes); // zeroed
void config_resolve_plan(ConfigOwner *owner);
void config_resolve_data(ConfigOwner *owner);
void config_check_model(ConfigDocument *document, const ModelConfig *model);
void config_check_layout(ConfigDocument *document, const RunConfig *config, int ranks);

// The document with every key in the table's order. Owned by the caller.
YamlNode *config_resolved(const ConfigDocument *document);
