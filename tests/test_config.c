// SPDX-License-Identifier: Apache-2.0
// Configurations from files, presets, variables and the command line, resolved to numbers.
#include "config_harness.h"

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

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_defaults), cmocka_unit_test(test_layers),
        cmocka_unit_test(test_lengths),  cmocka_unit_test(test_percents_are_exact),
        cmocka_unit_test(test_data),     cmocka_unit_test(test_stored_copy_is_the_same),
        cmocka_unit_test(test_presets),  cmocka_unit_test(test_table),
    };
    return cmocka_run_group_tests(tests, enter, leave);
}
