// SPDX-License-Identifier: Apache-2.0
// Lengths, sources and stages as plain numbers, and the rules among keys.
#include "train/run_config_internal.h"
#include <glob.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { KEY_BYTES = 256 };

void *owner_alloc(ConfigOwner *owner, size_t bytes) {
    owner->memory = realloc(owner->memory, sizeof *owner->memory * (size_t)(owner->blocks + 1));
    void *block = calloc(1, bytes ? bytes : 1);
    REQUIRE(owner->memory && block, "out of memory");
    owner->memory[owner->blocks++] = block;
    return block;
}

// ---- how long the run is

static bool is_percent(const YamlNode *value) {
    return value && value->kind == YAML_SCALAR && strchr(value->text, '%');
}

static int64_t tokens_of(const YamlNode *value, int64_t whole) {
    Length length;
    int64_t tokens = 0;
    if (!value || !length_parse(value->text, LENGTH_TOKENS, &length) ||
        !length_amount(&length, whole, &tokens))
        return 0;
    return tokens;
}

// A member of list item i ("batch.ramp.2.until"); NULL where it is missing (said, if `needed`) or bad.
static const YamlNode *item_value(ConfigDocument *document, const char *list, int i, const char *name,
                                  bool needed) {
    char key[KEY_BYTES];
    snprintf(key, sizeof key, "%s.%d.%s", list, i, name);
    const YamlNode *value = config_value(document, key);
    const YamlNode *item = yaml_get(document->root, list)->child[i];
    if (!value && needed && !key_is_bad(document, key) && item->kind == YAML_MAP)
        problem_at(document, key, item->place, "%s.%d has no '%s'", list, i, name);
    return value;
}

static void resolve_ramp(ConfigOwner *owner, int64_t planned) {
    ConfigDocument *document = owner->document;
    BatchPlan *plan = &owner->config.batch.plan;
    const YamlNode *list = config_value(document, "batch.ramp");
    if (!list || list->kind != YAML_LIST) return;
    BatchRamp *ramp = owner_alloc(owner, sizeof *ramp * (size_t)list->count);
    for (int i = 0; i < list->count; i++) {
        const YamlNode *until = item_value(document, "batch.ramp", i, "until", true);
        const YamlNode *sequences = item_value(document, "batch.ramp", i, "sequences", true);
        if (!until || !sequences) continue;
        if (is_percent(until) && !planned) {
            problem_at(document, "batch.ramp", until->place,
                       "batch.ramp.%d.until = %s: a percent needs train.tokens, since the tokens of "
                       "train.steps steps "
                       "depend on the ramp; give tokens",
                       i, until->text);
            continue;
        }
        BatchRamp next = {tokens_of(until, planned), value_integer(sequences)};
        if (next.until <= (plan->ramps ? ramp[plan->ramps - 1].until : 0))
            problem_at(document, "batch.ramp", until->place,
                       "batch.ramp.%d.until = %s must be above the one before", i, until->text);
        else
            ramp[plan->ramps++] = next;
    }
    plan->ramp = ramp;
}

static void resolve_length(ConfigOwner *owner) {
    ConfigDocument *document = owner->document;
    RunConfig *c = &owner->config;
    c->batch.plan = (BatchPlan){.sequences = c->batch.sequences, .seq_len = c->batch.seq_len};
    int64_t planned = tokens_of(config_value(document, "train.tokens"), 0);
    resolve_ramp(owner, planned);
    double bound = (double)c->train.steps * (double)c->batch.sequences * (double)c->batch.seq_len;
    if (planned) {
        c->train.tokens = planned;
        c->train.steps = batch_steps_for(&c->batch.plan, planned);
    } else if (bound > 4e18) {
        problem_between(
            document, "train.steps,batch.sequences,batch.seq_len",
            "train.steps × batch.sequences × batch.seq_len = %.3g tokens are more than can be counted",
            bound);
        c->train.steps = 1;
    }
    if (!planned) c->train.tokens = batch_first_sample(&c->batch.plan, c->train.steps + 1) * c->batch.seq_len;
}

// A length in steps from the start of the run.
static int64_t steps_of(const ConfigOwner *owner, const char *key) {
    const RunConfig *c = &owner->config;
    const YamlNode *value = config_value(owner->document, key);
    Length length;
    int64_t amount = 0;
    length_parse(value ? value->text : option_find(key)->fallback, LENGTH_STEPS, &length);
    length_amount(&length, c->train.tokens, &amount);
    return length.unit == LENGTH_STEPS ? amount : batch_steps_for(&c->batch.plan, amount);
}

// A length in steps up to the end of the run.
static int64_t last_steps_of(const ConfigOwner *owner, const char *key) {
    const RunConfig *c = &owner->config;
    const YamlNode *value = config_value(owner->document, key);
    Length length;
    int64_t amount = 0;
    length_parse(value ? value->text : option_find(key)->fallback, LENGTH_STEPS, &length);
    length_amount(&length, c->train.tokens, &amount);
    if (length.unit == LENGTH_STEPS) return amount;
    int64_t before = amount < c->train.tokens ? batch_steps_for(&c->batch.plan, c->train.tokens - amount) : 0;
    return c->train.steps > before ? c->train.steps - before : 0;
}

// A distance in steps, of full batches.
static int64_t distance_of(const ConfigOwner *owner, const char *key) {
    BatchPlan full = owner->config.batch.plan;
    full.ramps = 0;
    ConfigOwner steady = *owner;
    steady.config.batch.plan = full;
    return steps_of(&steady, key);
}

void config_resolve_plan(ConfigOwner *owner) {
    RunConfig *c = &owner->config;
    resolve_length(owner);
    c->schedule.total_steps = c->train.steps;
    c->schedule.warmup_steps = steps_of(owner, "optim.warmup");
    c->schedule.decay_steps = last_steps_of(owner, "optim.decay");
    c->checkpoint.every = distance_of(owner, "checkpoint.every");
    c->checkpoint.keep_every = distance_of(owner, "checkpoint.keep_every");
    c->checkpoint.required_every = distance_of(owner, "checkpoint.required_every");
    c->eval.every = distance_of(owner, "eval.every");
}

// ---- sources

// "a/b.bin" and "a/b.idx" mean the prefix "a/b".
static char *without_extension(ConfigOwner *owner, const char *path) {
    size_t length = strlen(path);
    if (length > 4 && (strcmp(path + length - 4, ".idx") == 0 || strcmp(path + length - 4, ".bin") == 0))
        length -= 4;
    char *prefix = owner_alloc(owner, length + 1);
    memcpy(prefix, path, length);
    return prefix;
}

static void add_path(ConfigOwner *owner, DataSource *source, const char *path) {
    const char **list = owner_alloc(owner, sizeof *list * (size_t)(source->paths + 1));
    for (int i = 0; i < source->paths; i++) list[i] = source->path[i];
    list[source->paths++] = without_extension(owner, path);
    source->path = list;
}

static void add_glob(ConfigOwner *owner, DataSource *source, const YamlNode *value, const char *key) {
    if (!strpbrk(value->text, "*?[")) {
        add_path(owner, source, value->text);
        return;
    }
    char *prefix = without_extension(owner, value->text), pattern[4096];
    snprintf(pattern, sizeof pattern, "%s.idx", prefix);
    glob_t found = {0};
    if (glob(pattern, 0, NULL, &found) == 0) { // sorted
        for (size_t i = 0; i < found.gl_pathc; i++) add_path(owner, source, found.gl_pathv[i]);
    } else if (owner->document->stored) {
        add_path(owner, source, value->text);
    } else {
        problem_at(owner->document, key, value->place,
                   "%s = %s: no file matches %s; make token shards with floe data pack", key, value->text,
                   pattern);
    }
    globfree(&found);
}

static void resolve_source(ConfigOwner *owner, DataSource *source, const YamlNode *node) {
    char key[KEY_BYTES];
    source->name = node->key;
    snprintf(key, sizeof key, "data.sources.%s.path", node->key);
    const YamlNode *path = config_value(owner->document, key);
    if (!path && !key_is_bad(owner->document, key) && node->kind == YAML_MAP)
        problem_at(owner->document, key, node->key_place, "data.sources.%s has no 'path'", node->key);
    if (path && path->kind == YAML_SCALAR) add_glob(owner, source, path, key);
    for (int i = 0; path && path->kind == YAML_LIST && i < path->count; i++)
        add_glob(owner, source, path->child[i], key);
    snprintf(key, sizeof key, "data.sources.%s.valid", node->key);
    const YamlNode *valid = config_value(owner->document, key);
    if (valid) source->valid = without_extension(owner, valid->text);
}

static void resolve_sources(ConfigOwner *owner) {
    DataConfig *data = &owner->config.data;
    const YamlNode *sources = config_value(owner->document, "data.sources");
    if (!sources || sources->kind != YAML_MAP) return;
    DataSource *source = owner_alloc(owner, sizeof *source * (size_t)sources->count);
    for (int i = 0; i < sources->count; i++)
        if (!yaml_is_null(sources->child[i]))
            resolve_source(owner, &source[data->sources++], sources->child[i]);
    data->source = source;
}

// ---- stages

static int source_index(const DataConfig *data, const char *name) {
    for (int i = 0; i < data->sources; i++)
        if (strcmp(data->source[i].name, name) == 0) return i;
    return -1;
}

static void unknown_source(ConfigOwner *owner, int stage, const YamlNode *weight) {
    const DataConfig *data = &owner->config.data;
    char list[512] = "";
    size_t length = 0;
    const char **names = owner_alloc(owner, sizeof *names * (size_t)data->sources);
    for (int i = 0; i < data->sources; i++) names[i] = data->source[i].name;
    for (int i = 0; i < data->sources && length < sizeof list; i++)
        length += (size_t)snprintf(list + length, sizeof list - length, "%s%s", i ? ", " : "", names[i]);
    const char *nearest = word_nearest(weight->key, names, data->sources);
    if (nearest)
        problem_at(owner->document, "curriculum", weight->key_place,
                   "curriculum.%d.mix names no source: '%s'; did you mean '%s'?", stage, weight->key,
                   nearest);
    else
        problem_at(owner->document, "curriculum", weight->key_place,
                   "curriculum.%d.mix names no source: '%s'; data.sources has: %s", stage, weight->key,
                   data->sources ? list : "none");
}

static void resolve_mix(ConfigOwner *owner, DataStage *stage, int number) {
    const DataConfig *data = &owner->config.data;
    double *weights = owner_alloc(owner, sizeof *weights * (size_t)data->sources), sum = 0;
    stage->weight = weights;
    const YamlNode *mix = item_value(owner->document, "curriculum", number, "mix", true);
    if (!mix || mix->kind != YAML_MAP) return;
    bool known = true;
    for (int i = 0; i < mix->count; i++) {
        char key[KEY_BYTES];
        snprintf(key, sizeof key, "curriculum.%d.mix.%s", number, mix->child[i]->key);
        int source = source_index(data, mix->child[i]->key);
        if (source < 0 && !key_is_bad(owner->document, key)) unknown_source(owner, number, mix->child[i]);
        known &= source >= 0 && !key_is_bad(owner->document, key);
        if (source < 0 || !config_value(owner->document, key)) continue;
        weights[source] = value_number(mix->child[i]);
        sum += weights[source];
    }
    if (known && sum <= 0)
        problem_at(owner->document, "curriculum", mix->place, "curriculum.%d.mix: all weights are 0", number);
}

static void resolve_stage(ConfigOwner *owner, DataStage *stage, int number, int64_t begin) {
    int64_t planned = owner->config.train.tokens;
    const YamlNode *until = item_value(owner->document, "curriculum", number, "until", true);
    const YamlNode *ramp = item_value(owner->document, "curriculum", number, "ramp", false);
    stage->until = until ? tokens_of(until, planned) : begin;
    stage->ramp = tokens_of(ramp, planned);
    resolve_mix(owner, stage, number);
    if (!until) return;
    if (stage->until <= begin)
        problem_at(owner->document, "curriculum", until->place,
                   "curriculum.%d.until = %s (token %ld) must be above %ld, where the stage before ends",
                   number, until->text, (long)stage->until, (long)begin);
    else if (ramp && number == 0 && stage->ramp)
        problem_at(owner->document, "curriculum", ramp->place,
                   "curriculum.0.ramp = %s: the first stage has none before it to move from; leave it out",
                   ramp->text);
    else if (ramp && stage->ramp > stage->until - begin)
        problem_at(owner->document, "curriculum", ramp->place,
                   "curriculum.%d.ramp = %s (%ld tokens) is longer than its stage (%ld)", number, ramp->text,
                   (long)stage->ramp, (long)(stage->until - begin));
}

static void resolve_stages(ConfigOwner *owner, const YamlNode *list) {
    RunConfig *c = &owner->config;
    DataStage *stage = owner_alloc(owner, sizeof *stage * (size_t)list->count);
    c->data.stage = stage;
    c->data.stages = list->count;
    for (int i = 0; i < list->count; i++) resolve_stage(owner, &stage[i], i, i ? stage[i - 1].until : 0);
    if (!list->count) {
        problem_at(owner->document, "curriculum", list->place,
                   "curriculum has no stage; leave it out or give one");
        return;
    }
    const YamlNode *until = item_value(owner->document, "curriculum", list->count - 1, "until", false);
    if (until && !key_is_bad(owner->document, "curriculum") && stage[list->count - 1].until < c->train.tokens)
        problem_at(owner->document, "curriculum", until->place,
                   "curriculum.%d.until = %s: the last stage ends at token %ld, but the run has %ld; end it "
                   "at 100%%",
                   list->count - 1, until->text, (long)stage[list->count - 1].until, (long)c->train.tokens);
}

// One source needs no curriculum: a single stage of it.
static void resolve_one_stage(ConfigOwner *owner) {
    DataStage *stage = owner_alloc(owner, sizeof *stage);
    double *weight = owner_alloc(owner, sizeof *weight);
    *weight = 1;
    *stage = (DataStage){.until = owner->config.train.tokens, .weight = weight};
    owner->config.data.stage = stage;
    owner->config.data.stages = 1;
}

void config_resolve_data(ConfigOwner *owner) {
    RunConfig *c = &owner->config;
    c->data.seq_len = c->batch.seq_len;
    c->data.vocab = c->model.vocab;
    c->data.seed = c->train.seed;
    resolve_sources(owner);
    const YamlNode *list = config_value(owner->document, "curriculum");
    if (list && list->kind == YAML_LIST)
        resolve_stages(owner, list);
    else if (c->data.sources == 1)
        resolve_one_stage(owner);
    else if (c->data.sources > 1 && !key_is_bad(owner->document, "curriculum"))
        problem_between(owner->document, "data.sources",
                        "curriculum is missing: %d sources need a mix, like curriculum: [{until: 100%%, mix: "
                        "{%s: 1, %s: 1}}]",
                        c->data.sources, c->data.source[0].name, c->data.source[1].name);
}
