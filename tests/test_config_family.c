// SPDX-License-Identifier: Apache-2.0
// The block's choices: an architecture's, a configuration's own, and those of a checkpoint's model.
#include "config_harness.h"

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

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_choices_of_the_architecture),
        cmocka_unit_test(test_stored_without_the_choices),
        cmocka_unit_test(test_model_as_text),
        cmocka_unit_test(test_problems_of_the_choices),
        cmocka_unit_test(test_model_of_a_checkpoint),
    };
    return cmocka_run_group_tests(tests, enter, leave);
}
