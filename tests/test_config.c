// SPDX-License-Identifier: Apache-2.0
// Configurations from files, presets, variables and the command line, resolved to numbers; and the text of
// every problem.
#include "train/checkpoint_internal.h"
#include "train/run_config.h"
#include "train/run_options.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
// after the others
#include <cmocka.h>

#define PRESETS TESTS_DIR "/../configs/presets"

static char errors[16384]; // what the newest load printed

static void write_file(const char *name, const char *text) {
    FILE *file = fopen(name, "w");
    assert_non_null(file);
    fputs(text, file);
    fclose(file);
}

static int catch_errors(void) {
    fflush(stderr);
    int before = dup(2);
    assert_non_null(freopen("errors", "w+", stderr));
    return before;
}

static void release_errors(int before) {
    fflush(stderr);
    dup2(before, 2);
    close(before);
    FILE *file = fopen("errors", "r");
    errors[fread(errors, 1, sizeof errors - 1, file)] = 0;
    fclose(file);
}

typedef struct {
    RunConfig *config;
    ConfigDocument *document;
} Loaded;

// words: files and KEY=VALUE, ended by NULL.
static Status load_words(Loaded *out, int ranks, const char *const words[]) {
    const char *files[8], *overrides[16];
    int file_count = 0, override_count = 0;
    for (int i = 0; words[i]; i++) {
        if (strchr(words[i], '='))
            overrides[override_count++] = words[i];
        else
            files[file_count++] = words[i];
    }
    int before = catch_errors();
    Status status =
        config_load(&out->config, &out->document, files, file_count, overrides, override_count, ranks);
    release_errors(before);
    return status;
}

#define WORDS(...)                                                                                           \
    (const char *const[]) {                                                                                  \
        __VA_ARGS__, NULL                                                                                    \
    }

static Loaded load(int ranks, const char *const words[]) {
    Loaded loaded;
    Status status = load_words(&loaded, ranks, words);
    if (status != OK) print_error("%s", errors);
    assert_int_equal(status, OK);
    assert_string_equal(errors, "");
    return loaded;
}

static void drop(Loaded loaded) {
    config_free(loaded.config, loaded.document);
}

static void expect_problems(int ranks, const char *const words[], const char *text) {
    Loaded loaded;
    assert_int_equal(load_words(&loaded, ranks, words), ERR_CONFIG);
    assert_null(loaded.config);
    assert_string_equal(errors, text);
}

// One problem of the command line.
static void expect_problem(int ranks, const char *const words[], const char *problem) {
    Loaded loaded;
    assert_int_equal(load_words(&loaded, ranks, words), ERR_CONFIG);
    char expected[1024];
    snprintf(expected, sizeof expected, "command line: error: %s\n1 error. ", problem);
    if (strncmp(errors, expected, strlen(expected))) print_error("expected: %s\ngot: %s", expected, errors);
    assert_memory_equal(errors, expected, strlen(expected));
}

// ---- values

static void test_defaults(void **state) {
    (void)state;
    Loaded l = load(2, WORDS("train.seed=1"));
    const RunConfig *c = l.config;
    assert_int_equal(c->model.layers, 6);
    assert_int_equal(c->model.hidden, 256);
    assert_int_equal(c->model.vocab, 4096);
    assert_int_equal(c->model.experts, 16);
    assert_int_equal(c->model.expert_ffn, 176);
    assert_int_equal(c->model.arch, ARCH_ARCTIC);
    assert_int_equal(c->model.dense_ffn, 256);
    assert_int_equal(c->model.top_k, 2);
    assert_int_equal(c->model.moe_input, MOE_READS_LAYER_INPUT);
    assert_int_equal(c->model.norm, NORM_RMS);
    assert_int_equal(c->model.activation, ACTIVATION_SILU);
    assert_int_equal(c->model.shared_experts, 0);
    assert_int_equal(c->model.router.scores, SCORES_SOFTMAX);
    assert_int_equal(c->model.router.normalize, NORMALIZE_SEVERAL);
    assert_true(!c->model.tie_embeddings && !c->model.sandwich_norms && c->model.clip_qkv == 0 &&
                c->model.attn_softcap == 0 && c->model.attn_scale == 0 && c->model.embed_scale == 1 &&
                c->model.output_scale == 1 && c->train.canary);
    assert_true(c->model.rope_theta == 1e4 && c->model.norm_eps == 1e-5 && c->model.init_std == 0.02);
    assert_int_equal(c->model.router.aux_kind, BALANCE_SWITCH);
    assert_int_equal(c->model.router.aux_scope, SCOPE_SEQUENCE);
    assert_int_equal(c->model.router.force, FORCE_NONE);
    assert_true(c->model.router.capacity_factor == 0 && c->model.router.aux_coef == 1e-2 &&
                c->model.router.z_coef == 1e-3);
    assert_int_equal(c->parallel.ep, 1);
    assert_int_equal(c->parallel.zero, 2);
    assert_int_equal(c->parallel.chunks, 2);
    assert_true(c->parallel.overlap && c->parallel.expert_rows == 2.0);
    assert_int_equal(c->batch.sequences, 16);
    assert_int_equal(c->batch.seq_len, 256);
    assert_int_equal(c->batch.micro, 4);
    assert_true(c->schedule.peak == 1e-3 && c->schedule.final_fraction == 0.1);
    assert_int_equal(c->schedule.kind, SCHEDULE_COSINE);
    assert_int_equal(c->schedule.warmup_steps, 10);
    assert_int_equal(c->schedule.decay_steps, 100);
    assert_int_equal(c->schedule.total_steps, 500);
    assert_true(c->adamw.beta1 == 0.9f && c->adamw.beta2 == 0.95f && c->adamw.eps == 1e-8f);
    assert_true(c->adamw.weight_decay == 0.1f && !c->adamw.decay_embeddings && c->clip == 1.0);
    assert_int_equal(c->train.steps, 500);
    assert_int_equal(c->train.tokens, 500 * 16 * 256);
    assert_null(c->train.init_from);
    assert_string_equal(c->tokenizer, "bytes");
    assert_true(c->data.holdout == 0.005);
    assert_int_equal(c->data.sources, 0);
    assert_int_equal(c->checkpoint.every, 100);
    assert_int_equal(c->checkpoint.keep, 3);
    assert_int_equal(c->checkpoint.keep_every, 0);
    assert_int_equal(c->checkpoint.required_every, 0);
    assert_string_equal(c->checkpoint.compress, "none");
    assert_int_equal(c->eval.every, 50);
    assert_int_equal(c->eval.sequences, 64);
    int before = catch_errors();
    assert_int_equal(config_need_data(c, l.document), ERR_CONFIG);
    release_errors(before);
    drop(l);
}

static void test_layers(void **state) {
    (void)state;
    write_file("a.yaml",
               "preset: bench-mid\nmodel: {layers: 3, heads: 4}\noptim: {lr: 1}\ntrain: {seed: 2}\n");
    write_file("b.yaml", "model: {heads: 8}\noptim: {lr: 2, clip: 2}\n");
    setenv("FLOE_SET", "optim.lr=3;train.seed=7", 1);
    Loaded l = load(0, WORDS("a.yaml", "b.yaml", "optim.lr=4", "optim.clip=null"));
    unsetenv("FLOE_SET");
    assert_int_equal(l.config->parallel.ep, 2);  // preset
    assert_int_equal(l.config->model.layers, 3); // a
    assert_int_equal(l.config->model.heads, 8);  // b over a
    assert_int_equal(l.config->train.seed, 7);   // FLOE_SET over a
    assert_true(l.config->schedule.peak == 4);   // the command line over all
    assert_true(l.config->clip == 1.0);          // reset
    char *text = config_show_yaml(l.document, true);
    assert_non_null(strstr(text, "    layers: 3                               # a.yaml:2\n"));
    assert_non_null(strstr(text, "    heads: 8                                # b.yaml:1\n"));
    assert_non_null(strstr(text, "    lr: 4                                   # command line\n"));
    assert_non_null(strstr(text, "    seed: 7                                 # FLOE_SET\n"));
    assert_non_null(strstr(text, "    clip: 1.0                               # default\n"));
    assert_non_null(strstr(text, "bench-mid.yaml:3\n"));
    free(text);
    drop(l);
    l = load(0, WORDS("a.yaml", "preset=bench-wide")); // the command line's preset
    assert_int_equal(l.config->model.hidden, 1024);
    drop(l);
}

static void test_lengths(void **state) {
    (void)state;
    // 16 × 256 = 4096 tokens a step
    Loaded l = load(
        0, WORDS("optim.warmup=5 steps", "optim.decay=409600tok", "checkpoint.every=2e4tok", "eval.every=0"));
    assert_int_equal(l.config->schedule.warmup_steps, 5);
    assert_int_equal(l.config->schedule.decay_steps, 100);
    assert_int_equal(l.config->checkpoint.every, 5);
    assert_int_equal(l.config->eval.every, 0);
    drop(l);
    l = load(0, WORDS("train.tokens=1.0e6", "optim.warmup=2.5%"));
    assert_int_equal(l.config->train.tokens, 1000000);
    assert_int_equal(l.config->train.steps, 245); // ceil(1e6 / 256) = 3907 sequences
    assert_int_equal(l.config->schedule.warmup_steps, 7);
    drop(l);
    l = load(0, WORDS("batch.ramp=[{until: 100000, sequences: 4}, {until: 3e5tok, sequences: 8}]",
                      "train.steps=400", "optim.warmup=300000tok"));
    // 391 sequences by 4: 98 steps to 392; 1172 by 8: 98 steps to 1176; then 16 a step
    assert_int_equal(l.config->schedule.warmup_steps, 196);
    assert_int_equal(l.config->train.tokens, (1176 + (400 - 196) * 16) * 256);
    assert_int_equal(l.config->batch.plan.ramps, 2);
    drop(l);
    // What a later layer says of the length replaces the other way of saying it.
    write_file("t.yaml", "train: {tokens: 3.5e12}\nbatch: {sequences: 1024, seq_len: 4096}\n");
    l = load(0, WORDS("t.yaml"));
    assert_int_equal(l.config->train.steps, 834466);
    char *text = config_resolved_yaml(l.document); // can be given as a file again
    assert_non_null(strstr(text, "    steps: null\n    tokens: 3.5e12\n"));
    free(text);
    drop(l);
    l = load(0, WORDS("t.yaml", "train.steps=7"));
    assert_int_equal(l.config->train.steps, 7);
    assert_int_equal(l.config->train.tokens, 7 * 1024 * 4096);
    drop(l);
}

static void test_percents_are_exact(void **state) {
    (void)state;
    // In binary, 0.07 · 1e15 and 0.57 · 1e17 would be off.
    Loaded l = load(0, WORDS("data.sources={a: {path: x}, b: {path: y}}", "train.tokens=100000000000000001",
                             "curriculum=[{until: 57%, mix: {a: 1}}, {until: 100.0%, mix: {b: 2}}]"));
    assert_int_equal(l.config->data.stage[0].until, 57000000000000000);
    assert_int_equal(l.config->data.stage[1].until, 100000000000000001);
    assert_true(l.config->data.stage[0].weight[0] == 1 && l.config->data.stage[0].weight[1] == 0);
    assert_true(l.config->data.stage[1].weight[1] == 2);
    drop(l);
}

static void test_data(void **state) {
    (void)state;
    mkdir("shards", 0700);
    write_file("shards/b.idx", "");
    write_file("shards/a.idx", "");
    write_file("shards/c.bin", "");
    Loaded l = load(0, WORDS("data.sources.one.path=shards/*", "data.sources.one.valid=v.bin"));
    const DataSource *source = l.config->data.source;
    assert_int_equal(l.config->data.sources, 1);
    assert_int_equal(source->paths, 2);
    assert_string_equal(source->path[0], "shards/a");
    assert_string_equal(source->path[1], "shards/b");
    assert_string_equal(source->valid, "v");
    assert_int_equal(l.config->data.stages, 1); // one source needs no curriculum
    assert_int_equal(l.config->data.stage[0].until, l.config->train.tokens);
    assert_true(l.config->data.stage[0].weight[0] == 1);
    assert_int_equal(l.config->data.vocab, 4096);
    assert_int_equal(l.config->data.seq_len, 256);
    drop(l);
    l = load(0, WORDS("data.sources.one.path=[x, shards/b.idx]", "train.seed=5"));
    assert_string_equal(l.config->data.source->path[1], "shards/b");
    assert_int_equal(l.config->data.seed, 5);
    drop(l);
}

static void test_stored_copy_is_the_same(void **state) {
    (void)state;
    Loaded l = load(0, WORDS("tiny", "batch.ramp=[{until: 1e5, sequences: 4}]", "optim.betas=[0.8, 0.99]",
                             "data.sources.prose.path=gone/*x", "data.sources.prose.path=p",
                             "train.init_from=null", "data.tokenizer=sentencepiece:a.model"));
    char *text = config_resolved_yaml(l.document);
    RunConfig *config;
    ConfigDocument *document;
    assert_int_equal(config_parse(&config, &document, text, "stored"), OK);
    char *again = config_resolved_yaml(document);
    assert_string_equal(text, again);
    assert_memory_equal(&config->model, &l.config->model, sizeof config->model);
    assert_memory_equal(&config->schedule, &l.config->schedule, sizeof config->schedule);
    assert_true(config->adamw.beta1 == 0.8f && config->adamw.beta2 == 0.99f);
    assert_int_equal(config->train.tokens, l.config->train.tokens);
    assert_int_equal(config->data.stages, 3);
    assert_int_equal(config->data.stage[1].ramp, l.config->data.stage[1].ramp);
    assert_int_equal(config->batch.plan.ramp[0].until, 100000);
    config_free(config, document);
    free(text);
    free(again);
    drop(l);
    // Data need not be there.
    const char *stored = "data: {sources: {a: {path: nowhere/*}}}\n";
    assert_int_equal(config_parse(&config, &document, stored, "stored"), OK);
    config_free(config, document);
}

static void test_presets(void **state) {
    (void)state;
    Loaded l = load(0, WORDS("arctic-480b"));
    ModelSize size = model_size(&l.config->model, l.config->batch.seq_len);
    assert_int_equal(size.total, 478584608768);
    assert_int_equal(size.active, 17318647808);
    assert_int_equal(l.config->data.stage[0].until, 1000000000000);
    assert_int_equal(l.config->data.stage[1].until, 2500000000000);
    assert_int_equal(l.config->data.stage[2].until, 3500000000000);
    assert_int_equal(l.config->model.router.aux_kind, BALANCE_DEEPSPEED);
    drop(l);
    l = load(0, WORDS("bench-mid", "model.arch=arctic")); // the defaults are this model
    Loaded plain = load(0, WORDS("model.arch=arctic"));
    assert_memory_equal(&l.config->model, &plain.config->model, sizeof plain.config->model);
    drop(l);
    drop(plain);
}

// ---- the choices of the block

// Both are filled by the same rules, except for what an architecture decides.
static void expect_family(const char *arch_word, const char *other) {
    Loaded l = load(0, (const char *const[]){arch_word, other, NULL});
    const ModelConfig *choices = model_family(l.config->model.arch);
    for (int i = 0; i < run_options; i++) {
        const Option *option = &run_option[i];
        if (!option_by_arch(option) || (other && strncmp(other, option->key, strlen(option->key)) == 0))
            continue;
        char own[64], row[64];
        option_member_text(option, option_model_member(option, &l.config->model), own, sizeof own);
        option_member_text(option, option_model_member(option, choices), row, sizeof row);
        assert_string_equal(own, row);
    }
    drop(l);
}

static void test_choices_of_the_architecture(void **state) {
    (void)state;
    char word[64];
    for (int arch = 0; arch < ARCH_COUNT; arch++) {
        snprintf(word, sizeof word, "model.arch=%s", arch_name((Arch)arch));
        expect_family(word, NULL);
        expect_family(word, "model.activation=gelu_tanh");
    }
    // What is given wins, before or behind the architecture, and null gives the choice back.
    write_file("g.yaml", "model: {attn_softcap: 5, norm: layer, router: {normalize: always}, arch: grok}\n");
    Loaded l =
        load(0, WORDS("g.yaml", "model.norm=null", "model.dense_ffn=96", "model.tie_embeddings=false"));
    const ModelConfig *m = &l.config->model;
    assert_int_equal(m->arch, ARCH_GROK);
    assert_true(m->attn_softcap == 5 && m->embed_scale == 78.38367176906169 && !m->tie_embeddings);
    assert_int_equal(m->norm, NORM_RMS);
    assert_int_equal(m->router.normalize, NORMALIZE_ALWAYS);
    assert_int_equal(m->activation, ACTIVATION_GELU_TANH);
    assert_int_equal(m->dense_ffn, 96);
    assert_int_equal(m->experts, 8);
    // What show prints and runs store has the numbers themselves.
    char *text = config_show_yaml(l.document, true);
    assert_non_null(strstr(text, "    norm: rms                               # default\n"));
    assert_non_null(strstr(text, "    embed_scale: 78.38367176906169          # default\n"));
    assert_null(strstr(text, OPTION_BY_ARCH));
    RunConfig *again;
    assert_int_equal(config_parse(&again, NULL, text, "stored"), OK);
    assert_memory_equal(&again->model, m, sizeof *m);
    config_free(again, NULL);
    free(text);
    drop(l);
}

// Runs of before the choices were keys stored an Arctic without them.
static void test_stored_without_the_choices(void **state) {
    (void)state;
    static const char *const stored =
        "model: {arch: arctic, layers: 2, dense_ffn: 64, experts: 4, top_k: 1, tie_embeddings: false}\n";
    RunConfig *config;
    assert_int_equal(config_parse(&config, NULL, stored, "stored"), OK);
    assert_int_equal(config->model.moe_input, MOE_READS_LAYER_INPUT);
    assert_int_equal(config->model.router.normalize, NORMALIZE_SEVERAL);
    assert_true(config->model.embed_scale == 1 && config->model.output_scale == 1);
    config_free(config, NULL);
}

static void test_model_as_text(void **state) {
    (void)state;
    static const char *const presets[] = {"arctic-480b", "dbrx-132b", "grok-1", "llama-3-8b", "mixtral-8x7b"};
    for (size_t i = 0; i < sizeof presets / sizeof *presets; i++) {
        Loaded l = load(0, WORDS(presets[i], "model.norm_eps=1e-6", "model.rope_theta=5e6",
                                 "model.output_scale=0.1", "model.init_std=0.02"));
        ModelConfig wanted = l.config->model;
        char *text = config_model_yaml(&wanted);
        RunConfig *config, *plain;
        assert_int_equal(config_parse(&config, NULL, text, "model"), OK);
        assert_int_equal(config_parse(&plain, NULL, "train: {steps: 1}\n", "plain"), OK);
        // The run's own part of the router keeps its defaults.
        RouterConfig router = plain->model.router;
        router.scores = wanted.router.scores;
        router.normalize = wanted.router.normalize;
        wanted.router = router;
        assert_memory_equal(&config->model, &wanted, sizeof wanted);
        assert_non_null(strstr(text, "rope_theta: 5.0e+06\n"));
        assert_non_null(strstr(text, "norm_eps: 1.0e-06\n")); // YAML 1.1 takes 1e-06 for a text
        assert_non_null(strstr(text, "output_scale: 0.1\n"));
        assert_null(strstr(text, "capacity"));
        config_free(plain, NULL);
        config_free(config, NULL);
        free(text);
        drop(l);
    }
}

static void test_problems_of_the_choices(void **state) {
    (void)state;
    expect_problem(0, WORDS("model.arch=mixtrl"),
                   "model.arch = mixtrl: expected one of arctic, mixtral, dbrx, grok, "
                   "llama; did you mean 'mixtral'?");
    expect_problem(0, WORDS("model.router.scores=sigmoid"),
                   "model.router.z_coef = 0.001 belongs to softmax scores; with sigmoid scores set it to 0");
    expect_problem(0, WORDS("model.embed_scale=0"), "model.embed_scale = 0: expected a number above 0");
    expect_problem(0, WORDS("model.arch=mixtral", "model.experts=0"),
                   "model.dense_ffn = 0 leaves a model without experts without any FFN");
    expect_problem(2, WORDS("model.arch=llama", "parallel.ep=2"),
                   "parallel.ep = 2, but model.experts = 0: there is nothing to share out");
    expect_problem(0, WORDS("model.arch=mixtral", "parallel.ep=3"),
                   "parallel.ep = 3 must divide model.experts = 8; possible: 1, 2, 4 or 8");
    write_file("shared.yaml", "model:\n    shared_experts: 1\n");
    expect_problems(
        0, WORDS("shared.yaml"),
        "shared.yaml:2:21: error: model.shared_experts = 1 stand beside experts that read attention's "
        "output, without a dense FFN: set model.dense_ffn to 0 and model.moe_input to attention\n"
        "1 error. Nothing was started. See: floe config keys model\n");
    drop(load(0, WORDS("shared.yaml", "model.dense_ffn=0", "model.moe_input=attention")));
}

// ---- problems

static void test_all_at_once(void **state) {
    (void)state;
    write_file("bad.yaml", "model:\n"
                           "    topk: 3\n"
                           "    heads: 12.5\n"
                           "    kv_heads: 3\n"
                           "    head_dim: 33\n"
                           "    router: {aux_kind: switc, capacity_factor: -1}\n"
                           "parallel: {ep: 3}\n"
                           "batch: {sequences: 10, micro: fast}\n"
                           "optim: {lr: quick, warmup: 300%, betas: [0.9], schedule: cosin}\n"
                           "optm: 3\n"
                           "data:\n"
                           "    sources:\n"
                           "        prose: {pth: x}\n"
                           "        code: {path: c}\n"
                           "curriculum:\n"
                           "    - {until: 30%, mix: {prose: 0, cod: 1}}\n"
                           "    - {until: 20%, mix: {prose: 0}}\n"
                           "    - {mix: {code: 1}}\n");
    expect_problems(
        4, WORDS("bad.yaml", "foo.bar=2", "optim.eps=", "curriculum.7.until=3"),
        "bad.yaml:2:5: error: unknown key 'model.topk'; did you mean 'top_k'?\n"
        "bad.yaml:3:12: error: model.heads = 12.5: expected a whole number from 1 to 4096\n"
        "bad.yaml:5:15: error: model.head_dim = 33 must be even: positions rotate pairs\n"
        "bad.yaml:6:24: error: model.router.aux_kind = switc: expected one of switch, megablocks, hf, "
        "arctic, deepspeed; "
        "did you mean 'switch'?\n"
        "bad.yaml:6:48: error: model.router.capacity_factor = -1: expected a number, at least 0\n"
        "bad.yaml:7:16: error: parallel.ep = 3 must divide model.experts = 16 and the number of ranks = 4; "
        "possible: 1, 2 "
        "or 4\n"
        "bad.yaml:8:20: error: batch.sequences = 10 must be a multiple of the number of ranks = 4; possible: "
        "8 or 12\n"
        "bad.yaml:8:31: error: batch.micro = fast: expected a whole number, at least 1\n"
        "bad.yaml:9:13: error: optim.lr = quick: expected a number, at least 0\n"
        "bad.yaml:9:28: error: optim.warmup = 300%: expected a length: steps (500), tokens (2e6tok) or a "
        "percent of the run "
        "(2%)\n"
        "bad.yaml:9:41: error: optim.betas = […]: expected two numbers from 0 to below 1, like [0.9, 0.95]\n"
        "bad.yaml:9:58: error: optim.schedule = cosin: expected one of constant, cosine, wsd; did you mean "
        "'cosine'?\n"
        "bad.yaml:10:1: error: unknown key 'optm'; did you mean 'optim'?\n"
        "bad.yaml:13:9: error: data.sources.prose has no 'path'\n"
        "bad.yaml:13:17: error: unknown key 'data.sources.prose.pth'; did you mean 'path'?\n"
        "bad.yaml:16:36: error: curriculum.0.mix names no source: 'cod'; did you mean 'code'?\n"
        "bad.yaml:17:15: error: curriculum.1.until = 20% (token 256000) must be above 384000, where the "
        "stage before ends\n"
        "bad.yaml:17:25: error: curriculum.1.mix: all weights are 0\n"
        "bad.yaml:18:7: error: curriculum.2 has no 'until'\n"
        "command line: error: 'optim.eps=' has no value; optim.eps=null resets the key\n"
        "command line: error: 'curriculum.7.until': there is no item 7; the list has 3, numbered from 0\n"
        "command line: error: unknown key 'foo'\n"
        "22 errors. Nothing was started. See: floe config keys\n");
}

static void test_problems_of_files(void **state) {
    (void)state;
    expect_problems(0, WORDS("nowhere.yaml"),
                    "nowhere.yaml: error: cannot be read: No such file or directory\n"
                    "1 error. Nothing was started. See: floe config keys\n");
    write_file("twice.yaml", "model: {layers: 2, layers: 3}\n");
    expect_problems(0, WORDS("twice.yaml"),
                    "twice.yaml:1:20: error: the key comes twice, first in line 1: layers\n"
                    "1 error. Nothing was started. See: floe config keys\n");
    write_file("list.yaml", "- a\n");
    expect_problems(0, WORDS("list.yaml"),
                    "list.yaml:1:1: error: expected keys and values: model: {…}\n"
                    "1 error. Nothing was started. See: floe config keys\n");
    expect_problem(3, WORDS("tyny"), "'tyny' is neither a file nor a preset; did you mean 'tiny'?");
    expect_problem(0, WORDS("preset=x"),
                   "there is no preset 'x'; presets: apus-xdan-136b, arctic-480b, bench-mid, bench-mixtral, "
                   "bench-small, bench-wide, dbrx-132b, grok-1, llama-2-7b, llama-3-70b, llama-3-8b, "
                   "mixtral-8x22b, mixtral-8x7b, tiny, tiny-dbrx, tiny-grok, tiny-llama, tiny-mixtral");
    write_file("both.yaml", "train: {steps: 5, tokens: 1e6}\n");
    expect_problems(
        0, WORDS("both.yaml"),
        "both.yaml:1:27: error: train.steps and train.tokens both say how long the run is; leave one out\n"
        "1 error. Nothing was started. See: floe config keys train\n");
}

static void test_problems_of_values(void **state) {
    (void)state;
    expect_problem(0, WORDS("optim.lr=nan"), "optim.lr = nan: expected a number, at least 0");
    expect_problem(0, WORDS("optim.lr=0x10"), "optim.lr = 0x10: expected a number, at least 0");
    expect_problem(0, WORDS("optim.lr=[1]"), "optim.lr = […]: expected a number, at least 0");
    expect_problem(0, WORDS("model.layers=99999999999999999999"),
                   "model.layers = 99999999999999999999: expected a whole number from 1 to 4096");
    expect_problem(0, WORDS("model.layers=0"), "model.layers = 0: expected a whole number from 1 to 4096");
    expect_problem(0, WORDS("model=3"), "model = 3: expected keys below it: {…}");
    expect_problem(0, WORDS("parallel.overlap=yes"), "parallel.overlap = yes: expected true or false");
    expect_problem(0, WORDS("parallel.zero=3"), "parallel.zero = 3: expected a whole number from 0 to 2");
    expect_problem(0, WORDS("train.precision=bf16"),
                   "train.precision = bf16 needs a GPU, which this build does not use; take fp32 or auto");
    expect_problem(0, WORDS("data.holdout=100%"),
                   "data.holdout = 100%: expected a share from 0 to below 1, like 0.005 or 0.5%");
    expect_problem(0, WORDS("train.tokens=1.5"), "train.tokens = 1.5: expected tokens (1.0e12) or null");
    expect_problem(0, WORDS("train.tokens=0"), "train.tokens = 0: expected tokens (1.0e12) or null");
    expect_problem(0, WORDS("train.tokens=10%"), "train.tokens = 10%: expected tokens (1.0e12) or null");
    expect_problem(0, WORDS("model.top_k=17"), "model.top_k = 17 must not be above model.experts = 16");
    expect_problem(0, WORDS("model.kv_heads=3"), "model.kv_heads = 3 must divide model.heads = 8");
    expect_problem(0, WORDS("topk=2"), "unknown key 'topk'; did you mean 'model.top_k'?");
    expect_problem(0, WORDS("optim.learning_rate=2"), "unknown key 'optim.learning_rate'");
    expect_problem(0, WORDS("batch.ramp=[{until: 10%, sequences: 4}]"),
                   "batch.ramp.0.until = 10%: a percent needs train.tokens, since the tokens of train.steps "
                   "steps depend "
                   "on the ramp; give tokens");
    expect_problem(0, WORDS("batch.ramp=[{until: 9, sequences: 4}, {until: 9, sequences: 8}]"),
                   "batch.ramp.1.until = 9 must be above the one before");
    expect_problem(
        0, WORDS("train.steps=9e15", "batch.seq_len=9e6"),
        "train.steps × batch.sequences × batch.seq_len = 1.3e+24 tokens are more than can be counted");
}

static void test_problems_of_splits(void **state) {
    (void)state;
    expect_problem(0, WORDS("checkpoint.required_every=100"),
                   "checkpoint.required_every = 100 steps must be above checkpoint.every = 100");
    expect_problem(0, WORDS("checkpoint.required_every=100", "checkpoint.every=0"),
                   "checkpoint.required_every = 100 steps must be above checkpoint.every = 0");
    drop(load(0, WORDS("checkpoint.required_every=50%", "checkpoint.keep_every=20%")));
    expect_problem(0, WORDS("parallel.ep=3"),
                   "parallel.ep = 3 must divide model.experts = 16; possible: 1, 2, 4, 8 or 16");
    expect_problem(3, WORDS("batch.sequences=8", "batch.micro=1"),
                   "batch.sequences = 8 must be a multiple of the number of ranks = 3; possible: 6 or 9");
    expect_problem(3, WORDS("batch.sequences=2", "batch.micro=1"),
                   "batch.sequences = 2 must be a multiple of the number of ranks = 3; possible: 3");
    expect_problem(8, WORDS("batch.micro=4"),
                   "batch.micro = 4 must divide the 2 sequences that each of 8 ranks has of batch.sequences "
                   "= 16; possible: "
                   "1 or 2");
    expect_problem(
        2, WORDS("batch.ramp=[{until: 9, sequences: 4}]"),
        "batch.micro = 4 must divide the 2 sequences that each of 2 ranks has of batch.ramp.0.sequences = 4; "
        "possible: 1 or 2");
    expect_problem(0, WORDS("model.experts=0", "parallel.ep=2"),
                   "parallel.ep = 2, but model.experts = 0: there is nothing to share out");
}

static void test_problems_of_data(void **state) {
    (void)state;
#define TWO "data.sources={a: {path: x}, b: {path: y}}"
    expect_problem(0, WORDS("data.sources.a.path=nowhere/*"),
                   "data.sources.a.path = nowhere/*: no file matches nowhere/*.idx; make token shards with "
                   "floe data pack");
    expect_problem(
        0, WORDS(TWO),
        "curriculum is missing: 2 sources need a mix, like curriculum: [{until: 100%, mix: {a: 1, b: 1}}]");
    expect_problem(0, WORDS(TWO, "curriculum=[{until: 90%, mix: {a: 1}}]"),
                   "curriculum.0.until = 90%: the last stage ends at token 1843200, but the run has 2048000; "
                   "end it at 100%");
    expect_problem(0, WORDS(TWO, "curriculum=[{until: 100%, mix: {a: -1, b: 2}}]"),
                   "curriculum.0.mix.a = -1: expected a number, at least 0");
    expect_problem(0, WORDS(TWO, "curriculum=[{until: 100%, mix: {z: 1}}]"),
                   "curriculum.0.mix names no source: 'z'; data.sources has: a, b");
    expect_problem(0, WORDS(TWO, "curriculum=[{until: 100%, mix: {a: 1}, ramp: 5%}]"),
                   "curriculum.0.ramp = 5%: the first stage has none before it to move from; leave it out");
    expect_problem(0,
                   WORDS(TWO, "curriculum=[{until: 98%, mix: {a: 1}}, {until: 100%, mix: {b: 1}, ramp: 5%}]"),
                   "curriculum.1.ramp = 5% (102400 tokens) is longer than its stage (40960)");
    expect_problem(0, WORDS(TWO, "curriculum=[{until: 5 steps, mix: {a: 1}}]"),
                   "curriculum.0.until = 5 steps: expected tokens (1.0e12) or a percent of the run (30%)");
    expect_problem(0, WORDS(TWO, "curriculum={until: 100%, mix: {a: 1}}"),
                   "curriculum = {…}: expected a list: [{…}, {…}]");
    expect_problem(0, WORDS(TWO, "curriculum=[]"), "curriculum has no stage; leave it out or give one");
    expect_problem(0, WORDS("curriculum=[null]"), "curriculum.0 is empty: expected {…}");
    expect_problem(0, WORDS("data.sources.*.path=x"),
                   "'*' cannot be a source's name: only letters, digits, _ and - can be in it");
    expect_problem(0, WORDS("data.sources.a b.path=x"),
                   "'a b' cannot be a source's name: only letters, digits, _ and - can be in it");
}

// ---- train.init_from

static void write_checkpoint(const char *dir, const char *config) {
    json_t *record = json_pack("{s:s}", "config", config), *tensors = json_array(), *files = json_array();
    ManifestContent content = {.states = 1, .record = record, .tensors = tensors, .files = files};
    char *text, path[64];
    size_t bytes;
    assert_int_equal(manifest_text(&content, &text, &bytes), OK);
    mkdir(dir, 0700);
    snprintf(path, sizeof path, "%s/MANIFEST.json", dir);
    write_file(path, text);
    free(text);
    json_decref(record);
    json_decref(tensors);
    json_decref(files);
}

static void test_model_of_a_checkpoint(void **state) {
    (void)state;
    write_checkpoint("ck", "model: {layers: 3, hidden: 64, router: {aux_kind: hf}}\noptim: {lr: 5}\n");
    Loaded l = load(
        0, WORDS("train.init_from=ck", "model.hidden=6.4e1", "model.router.z_coef=0", "model.layers=null"));
    assert_int_equal(l.config->model.layers, 3);
    assert_int_equal(l.config->model.router.aux_kind, BALANCE_HF);
    assert_true(l.config->model.router.z_coef == 0);
    assert_true(l.config->schedule.peak == 1e-3); // the model's keys alone
    assert_string_equal(l.config->train.init_from, "ck");
    char *text = config_show_yaml(l.document, true);
    assert_non_null(strstr(text, "    layers: 3                               # ck/MANIFEST.json\n"));
    free(text);
    drop(l);
    expect_problem(0, WORDS("train.init_from=ck", "model.hidden=128"),
                   "model.hidden = 128, but the weights of train.init_from = ck have 64; leave the key out");
    // An Arctic stored before the choices were keys: those that change weights' names or shapes are fixed …
    expect_problem(
        0, WORDS("train.init_from=ck", "model.sandwich_norms=true"),
        "model.sandwich_norms = true, but the weights of train.init_from = ck have false; leave the key out");
    expect_problem(
        0, WORDS("train.init_from=ck", "model.shared_experts=2"),
        "model.shared_experts = 2, but the weights of train.init_from = ck have 0; leave the key out");
    expect_problem(
        0, WORDS("train.init_from=ck", "model.arch=mixtral"),
        "model.arch = mixtral, but the weights of train.init_from = ck have arctic; leave the key out");
    // … and others can be tried.
    l = load(0, WORDS("train.init_from=ck", "model.dense_ffn=2.56e2", "model.moe_input=attention",
                      "model.activation=gelu_tanh"));
    assert_int_equal(l.config->model.moe_input, MOE_READS_ATTENTION);
    drop(l);
    write_checkpoint("dbrx", "model: {arch: dbrx, layers: 2, clip_qkv: 4}\n");
    l = load(0, WORDS("train.init_from=dbrx"));
    assert_int_equal(l.config->model.norm, NORM_LAYER);
    assert_int_equal(l.config->model.top_k, 4);
    assert_true(l.config->model.clip_qkv == 4);
    drop(l);
    expect_problem(
        0, WORDS("train.init_from=dbrx", "model.dense_ffn=256"),
        "model.dense_ffn = 256, but the weights of train.init_from = dbrx have 0; leave the key out");
    write_checkpoint("empty", "optim: {lr: 5}\n");
    expect_problem(0, WORDS("train.init_from=empty"),
                   "train.init_from = empty: empty/MANIFEST.json holds no configuration of a model");
    expect_problem(0, WORDS("train.init_from=nowhere"),
                   "train.init_from = nowhere: nowhere: No such file or directory");
}

// ---- the table

static void test_table(void **state) {
    (void)state;
    for (int i = 0; i < run_options; i++) {
        assert_ptr_equal(option_find(run_option[i].key), &run_option[i]); // no key twice
        assert_true(run_option[i].meaning && *run_option[i].meaning);
        if (run_option[i].size) assert_non_null(run_option[i].fallback);
    }
    json_error_t error;
    char *text = config_keys("", "json");
    json_t *keys = json_loads(text, 0, &error);
    assert_int_equal(json_array_size(keys), run_options);
    free(text);
    json_decref(keys);
    text = config_keys("curriculum", "text");
    assert_non_null(strstr(text, "curriculum.N.mix.SOURCE"));
    assert_null(strstr(text, "optim"));
    free(text);
}

static int enter(void **state) {
    (void)state;
    static char folder[] = "/tmp/floe-config-XXXXXX";
    setenv("FLOE_PRESETS", PRESETS, 1);
    return !mkdtemp(folder) || chdir(folder);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_defaults),
        cmocka_unit_test(test_layers),
        cmocka_unit_test(test_lengths),
        cmocka_unit_test(test_percents_are_exact),
        cmocka_unit_test(test_data),
        cmocka_unit_test(test_stored_copy_is_the_same),
        cmocka_unit_test(test_presets),
        cmocka_unit_test(test_choices_of_the_architecture),
        cmocka_unit_test(test_stored_without_the_choices),
        cmocka_unit_test(test_model_as_text),
        cmocka_unit_test(test_problems_of_the_choices),
        cmocka_unit_test(test_all_at_once),
        cmocka_unit_test(test_problems_of_files),
        cmocka_unit_test(test_problems_of_values),
        cmocka_unit_test(test_problems_of_splits),
        cmocka_unit_test(test_problems_of_data),
        cmocka_unit_test(test_model_of_a_checkpoint),
        cmocka_unit_test(test_table),
    };
    return cmocka_run_group_tests(tests, enter, NULL);
}
