// SPDX-License-Identifier: Apache-2.0
// config.json of every family: what it becomes, and what is refused.
#include "core/file.h"
#include "core/log.h"
#include "hf_folder.h"
#include "train/hf_config.h"
#include "train/hf_names.h"
#include "train/run_config.h"
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <unistd.h>

#include <cmocka.h>

#define PATH "test_hf_config.tmp.json"
#define LOG  "test_hf_config.tmp.log"

static int end(void **state) {
    (void)state;
    unlink(PATH);
    unlink(LOG);
    return 0;
}

static void write_config(Arch arch, const char *key, const char *value) {
    json_t *config = hf_config_json(arch, key, value);
    assert_int_equal(json_dump_file(config, PATH, 0), 0);
    json_decref(config);
}

static void write_text(const char *text) {
    FILE *file = fopen(PATH, "wb");
    assert_non_null(file);
    fputs(text, file);
    fclose(file);
}

static Status read_config(ModelConfig *config, int ignored_keys) {
    json_t *ignored;
    Status status = hf_config_read(config, &ignored, PATH);
    if (status == OK && ignored_keys >= 0) assert_int_equal(json_object_size(ignored), ignored_keys);
    json_decref(ignored);
    return status;
}

static ModelConfig read_good(Arch arch, const char *key, const char *value) {
    ModelConfig config;
    write_config(arch, key, value);
    if (read_config(&config, -1) != OK) fail_msg("%s", status_text());
    return config;
}

// What all families share, and their choices, as the table of families has them.
static void assert_config(Arch arch, const ModelConfig *expected, int ignored) {
    ModelConfig config;
    write_config(arch, NULL, NULL);
    assert_int_equal(read_config(&config, ignored), OK);
    ModelConfig want = *expected;
    const ModelConfig *family = model_family(arch);
    want.arch = arch;
    want.init_std = 0.02;
    want.norm = family->norm;
    want.sandwich_norms = family->sandwich_norms;
    want.moe_input = family->moe_input;
    want.activation = family->activation;
    want.router = family->router;
    if (!want.embed_scale) want.embed_scale = want.output_scale = 1;
#define SAME(member) assert_true(config.member == want.member)
    SAME(arch), SAME(layers), SAME(hidden), SAME(heads), SAME(kv_heads), SAME(head_dim), SAME(vocab);
    SAME(dense_ffn), SAME(experts), SAME(top_k), SAME(expert_ffn), SAME(moe_every), SAME(rope_theta);
    SAME(norm_eps), SAME(tie_embeddings), SAME(init_std), SAME(norm), SAME(sandwich_norms), SAME(moe_input);
    SAME(activation), SAME(shared_experts), SAME(clip_qkv), SAME(attn_softcap), SAME(attn_scale);
    SAME(embed_scale), SAME(output_scale), SAME(router.scores), SAME(router.normalize);
    assert_int_equal(hf_expressible(&config), OK);
    // floe's own configuration of it reads back as the same.
    char *yaml = config_model_yaml(&config);
    RunConfig *run;
    ConfigDocument *document;
    if (config_parse(&run, &document, yaml, "imported") != OK) fail_msg("%s", yaml);
    config = run->model;
    SAME(arch), SAME(layers), SAME(hidden), SAME(heads), SAME(kv_heads), SAME(head_dim), SAME(vocab);
    SAME(dense_ffn), SAME(experts), SAME(top_k), SAME(expert_ffn), SAME(moe_every), SAME(rope_theta);
    SAME(norm_eps), SAME(tie_embeddings), SAME(norm), SAME(sandwich_norms), SAME(moe_input);
    SAME(activation), SAME(shared_experts), SAME(clip_qkv), SAME(attn_softcap), SAME(attn_scale);
    SAME(embed_scale), SAME(output_scale), SAME(router.scores), SAME(router.normalize);
#undef SAME
    config_free(run, document);
    free(yaml);
}

static void families(void **state) {
    (void)state;
    assert_config(ARCH_ARCTIC,
                  &(ModelConfig){.layers = 2,
                                 .hidden = 12,
                                 .heads = 3,
                                 .kv_heads = 1,
                                 .head_dim = 4,
                                 .vocab = 31,
                                 .dense_ffn = 14,
                                 .experts = 3,
                                 .top_k = 2,
                                 .expert_ffn = 10,
                                 .moe_every = 2,
                                 .rope_theta = 5000,
                                 .norm_eps = 1e-6},
                  1);
    assert_config(ARCH_MIXTRAL,
                  &(ModelConfig){.layers = 2,
                                 .hidden = 16,
                                 .heads = 4,
                                 .kv_heads = 2,
                                 .head_dim = 4,
                                 .vocab = 29,
                                 .experts = 4,
                                 .top_k = 2,
                                 .expert_ffn = 11,
                                 .moe_every = 1,
                                 .rope_theta = 1e6,
                                 .norm_eps = 1e-5},
                  0);
    assert_config(ARCH_DBRX,
                  &(ModelConfig){.layers = 2,
                                 .hidden = 12,
                                 .heads = 6,
                                 .kv_heads = 3,
                                 .head_dim = 2,
                                 .vocab = 23,
                                 .experts = 5,
                                 .top_k = 4,
                                 .expert_ffn = 7,
                                 .moe_every = 1,
                                 .rope_theta = 5e5,
                                 .norm_eps = 1e-5,
                                 .clip_qkv = 2.5},
                  2); // max_seq_len, ffn_config.moe_loss_weight
    assert_config(ARCH_GROK,
                  &(ModelConfig){.layers = 2,
                                 .hidden = 8,
                                 .heads = 2,
                                 .kv_heads = 1,
                                 .head_dim = 4,
                                 .vocab = 19,
                                 .experts = 3,
                                 .top_k = 2,
                                 .expert_ffn = 13,
                                 .moe_every = 1,
                                 .rope_theta = 1e4,
                                 .norm_eps = 1e-5,
                                 .tie_embeddings = true,
                                 .attn_softcap = 20,
                                 .attn_scale = 0.25,
                                 .embed_scale = 6.5,
                                 .output_scale = 0.5773502691896257},
                  0);
    assert_config(ARCH_LLAMA,
                  &(ModelConfig){.layers = 3,
                                 .hidden = 12,
                                 .heads = 3,
                                 .kv_heads = 3,
                                 .head_dim = 4,
                                 .vocab = 37,
                                 .dense_ffn = 17,
                                 .top_k = 1,
                                 .expert_ffn = 17,
                                 .moe_every = 1,
                                 .rope_theta = 5e5,
                                 .norm_eps = 1e-5},
                  0);
}

// Reads a configuration that must be refused, and returns all that was said.
static char *said(void) {
    static char text[65536];
    ModelConfig config;
    json_t *ignored;
    int fd = open(LOG, O_RDWR | O_CREAT | O_TRUNC, 0666);
    log_copy_to(fd);
    Status status = hf_config_read(&config, &ignored, PATH);
    log_copy_to(-1);
    ssize_t n = pread(fd, text, sizeof text - 4096, 0);
    close(fd);
    assert_true(n >= 0);
    snprintf(text + n, sizeof text - (size_t)n, "%s", status == OK ? "accepted" : status_text());
    json_decref(ignored);
    if (status != OK) assert_null(ignored);
    return text;
}

static void assert_said(const char *expected) {
    char *text = said();
    if (!strstr(text, expected)) fail_msg("'%s' is not in: %s", expected, text);
}

// The classes' own defaults are not the published models.
static void keys_must_be_stated(void **state) {
    (void)state;
    static const struct {
        Arch arch;
        const char *keys;
    } stated[] = {
        {ARCH_ARCTIC, "vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads "
                      "num_key_value_heads num_local_experts num_experts_per_tok moe_layer_frequency "
                      "parallel_attn_mlp_res rms_norm_eps rope_theta"},
        {ARCH_MIXTRAL, "vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads "
                       "num_key_value_heads num_local_experts num_experts_per_tok rms_norm_eps "
                       "rope_parameters.rope_theta"},
        {ARCH_DBRX, "vocab_size d_model n_layers n_heads attn_config.kv_n_heads attn_config.clip_qkv "
                    "attn_config.rope_theta ffn_config.ffn_hidden_size ffn_config.moe_num_experts "
                    "ffn_config.moe_top_k"},
        {ARCH_GROK,
         "vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads "
         "num_key_value_heads num_experts num_experts_per_tok rms_norm_eps tie_word_embeddings "
         "attn_output_multiplier max_attn_value embedding_multiplier_scale output_multiplier_scale"},
        {ARCH_LLAMA,
         "vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads rms_norm_eps"},
    };
    for (size_t i = 0; i < sizeof stated / sizeof *stated; i++)
        for (const char *c = stated[i].keys; *c; c += strspn(c, " ")) {
            char key[64], expected[128];
            snprintf(key, sizeof key, "%.*s", (int)strcspn(c, " "), c);
            c += strlen(key);
            write_config(stated[i].arch, key, NULL);
            const char *named = strstr(key, "rope_parameters") ? "rope_theta" : key;
            snprintf(expected, sizeof expected, PATH ": %s = (missing): must be stated", named);
            assert_said(expected);
        }
    // Every key that is missing is named, not the first alone.
    write_text("{\"architectures\":[\"DbrxForCausalLM\"]}");
    assert_said("10 problems");
}

static void other_mathematics_is_refused(void **state) {
    (void)state;
    static const struct {
        Arch arch;
        const char *key, *value, *expected;
    } bad[] = {
        {ARCH_MIXTRAL, "sliding_window", "4096", "sliding_window = 4096: is not supported, only null: early"},
        {ARCH_MIXTRAL, "router_jitter_noise", "0.1", "router_jitter_noise = 0.1: is not supported, only 0:"},
        {ARCH_MIXTRAL, "attention_bias", "true", "attention_bias = true"},
        {ARCH_MIXTRAL, "hidden_act", "null", "hidden_act = null"},
        {ARCH_MIXTRAL, "rope_parameters", "{\"rope_type\":\"yarn\",\"rope_theta\":1e6}",
         "rope_parameters.rope_type = \"yarn\""},
        {ARCH_MIXTRAL, "rope_parameters", "7", "rope_parameters = 7: must be an object"},
        {ARCH_MIXTRAL, "rope_theta", "1e5", "rope_parameters.rope_theta = 1000000.0: differs from"},
        {ARCH_LLAMA, "rope_scaling", "{\"factor\":8}", "rope_scaling = {\"factor\":8}: is not supported"},
        {ARCH_LLAMA, "mlp_bias", "true", "mlp_bias = true: is not supported, only false: floe's matrices"},
        {ARCH_LLAMA, "quantization_config", "{\"bits\":4}", "quantization_config"},
        {ARCH_LLAMA, "num_key_value_heads", "2", "kv_heads = 2"},
        {ARCH_LLAMA, "head_dim", "3", "head_dim = 3"},
        {ARCH_LLAMA, "rope_theta", "-1", "rope_theta = -1: must be a number above 0"},
        {ARCH_ARCTIC, "attention_dropout", "0.1", "attention_dropout = 0.1"},
        {ARCH_ARCTIC, "hidden_act", "\"gelu\"", "hidden_act = \"gelu\""},
        {ARCH_ARCTIC, "quantization", "{\"q_bits\":8}", "quantization"},
        {ARCH_ARCTIC, "parallel_attn_mlp_res", "1", "parallel_attn_mlp_res = 1"},
        {ARCH_ARCTIC, "hidden_size", "0", "hidden_size = 0"},
        {ARCH_ARCTIC, "hidden_size", "\"12\"", "hidden_size = \"12\""},
        {ARCH_ARCTIC, "hidden_size", "12.5", "hidden_size = 12.5"},
        {ARCH_ARCTIC, "hidden_size", "null", "hidden_size = null: must be stated"},
        {ARCH_ARCTIC, "hidden_size", "20000000", "hidden_size = 20000000: must be a whole number from 1 to"},
        {ARCH_ARCTIC, "hidden_size", "13", "head_dim = (missing): the heads do not divide the width"},
        {ARCH_ARCTIC, "num_hidden_layers", "9000000", "num_hidden_layers = 9000000: too many layers"},
        {ARCH_ARCTIC, "num_experts_per_tok", "4", "top_k = 4"},
        {ARCH_ARCTIC, "tie_word_embeddings", "null", "tie_word_embeddings = null"},
        {ARCH_DBRX, "ffn_config.moe_normalize_expert_weights", "2", "moe_normalize_expert_weights = 2"},
        {ARCH_DBRX, "ffn_config.moe_normalize_expert_weights", "null", "moe_normalize_expert_weights = null"},
        {ARCH_DBRX, "ffn_config.moe_jitter_eps", "0.01", "ffn_config.moe_jitter_eps = 0.01"},
        {ARCH_DBRX, "ffn_config.ffn_act_fn", "{\"name\":\"gelu\"}", "ffn_config.ffn_act_fn.name = \"gelu\""},
        {ARCH_DBRX, "ffn_config.uniform_expert_assignment", "true", "uniform_expert_assignment = true"},
        {ARCH_DBRX, "attn_config.attn_pdrop", "0.1", "attn_config.attn_pdrop = 0.1"},
        {ARCH_DBRX, "attn_config.clip_qkv", "-8", "attn_config.clip_qkv = -8: must be a number above 0"},
        {ARCH_DBRX, "attn_config", "[]", "attn_config = []: must be an object"},
        {ARCH_DBRX, "resid_pdrop", "0.1", "resid_pdrop = 0.1"},
        {ARCH_DBRX, "tie_word_embeddings", "true", "tie_word_embeddings = true"},
        {ARCH_DBRX, "n_heads", "7", "n_heads = 7: the heads do not divide the width"},
        {ARCH_DBRX, "rope_theta", "10000",
         "rope_theta = 10000: differs from the rope_theta stated elsewhere"},
        {ARCH_GROK, "hidden_act", "\"gelu\"",
         "hidden_act = \"gelu\": is not supported, only \"gelu_pytorch_tanh\""},
        {ARCH_GROK, "rope_theta", "500000", "rope_theta = 500000: is not supported, only 10000"},
        {ARCH_GROK, "max_attn_value", "0", "max_attn_value = 0: must be a number above 0"},
        {ARCH_GROK, "architectures", "[\"QwenForCausalLM\"]",
         "architectures = QwenForCausalLM: not a model that floe knows (ArcticForCausalLM, "
         "MixtralForCausalLM"},
        {ARCH_GROK, "architectures", "[]", "architectures = (missing)"},
        {ARCH_GROK, "architectures", NULL, "model_type = (missing)"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        write_config(bad[i].arch, bad[i].key, bad[i].value);
        assert_said(bad[i].expected);
    }
    write_text("[]");
    assert_said(PATH ":1: is not a JSON object");
    write_text("{\"a\":1,\"a\":2}");
    assert_said("duplicate");
    unlink(PATH);
    assert_said(PATH);
}

static void accepted_spellings(void **state) {
    (void)state;
    assert_int_equal(read_good(ARCH_LLAMA, "num_key_value_heads", NULL).kv_heads, 3);
    assert_true(read_good(ARCH_LLAMA, "rope_theta", NULL).rope_theta == 1e4);
    assert_int_equal(read_good(ARCH_LLAMA, "head_dim", "6").head_dim, 6);
    assert_true(read_good(ARCH_LLAMA, "tie_word_embeddings", "true").tie_embeddings);
    assert_int_equal(read_good(ARCH_MIXTRAL, "num_key_value_heads", "null").kv_heads, 4);
    assert_true(read_good(ARCH_MIXTRAL, "rope_theta", "1000000").rope_theta == 1e6); // both, and equal
    assert_int_equal(read_good(ARCH_ARCTIC, "num_key_value_heads", "null").kv_heads, 3);
    assert_int_equal(read_good(ARCH_ARCTIC, "residual_ffn_size", NULL).dense_ffn, 12);
    assert_true(read_good(ARCH_DBRX, "attn_config.clip_qkv", "null").clip_qkv == 0);
    assert_true(read_good(ARCH_DBRX, "rope_theta", "500000").rope_theta == 5e5);
    read_good(ARCH_DBRX, "ffn_config.moe_normalize_expert_weights", "1");
    read_good(ARCH_DBRX, "ffn_config.moe_jitter_eps", "null");
    read_good(ARCH_DBRX, "ffn_config.ffn_act_fn", "{\"name\":\"silu\"}");
    read_good(ARCH_GROK, "hidden_act", "\"gelu_pytorch_tanh\"");
    read_good(ARCH_GROK, "rope_theta", "10000.0");
    // Arctic's block without the parallel FFN: experts after attention.
    ModelConfig serial = read_good(ARCH_ARCTIC, "parallel_attn_mlp_res", "false");
    assert_true(serial.dense_ffn == 0 && serial.moe_input == MOE_READS_ATTENTION);
    assert_int_equal(hf_expressible(&serial), OK);
    // Without architectures, model_type says what it is.
    json_t *config = hf_config_json(ARCH_GROK, "architectures", NULL);
    json_object_set_new(config, "model_type", json_string("grok-1"));
    assert_int_equal(json_dump_file(config, PATH, 0), 0);
    json_decref(config);
    ModelConfig grok;
    assert_int_equal(read_config(&grok, 0), OK);
    assert_int_equal(grok.arch, ARCH_GROK);
}

// A model of the family with one change, given as "member = value".
#define CANNOT_HOLD(arch, change, expected)                                                                  \
    do {                                                                                                     \
        ModelConfig c = read_good(arch, NULL, NULL);                                                         \
        c.change;                                                                                            \
        assert_int_equal(hf_expressible(&c), ERR_CONFIG);                                                    \
        if (!strstr(status_text(), expected)) fail_msg("'%s' is not in: %s", expected, status_text());       \
    } while (0)

static void what_files_cannot_hold(void **state) {
    (void)state;
    CANNOT_HOLD(ARCH_MIXTRAL, shared_experts = 1, "model.shared_experts = 1");
    CANNOT_HOLD(ARCH_MIXTRAL, dense_ffn = 8, "model.dense_ffn = 8 beside experts");
    CANNOT_HOLD(ARCH_MIXTRAL, moe_every = 2, "model.moe_every = 2");
    CANNOT_HOLD(ARCH_MIXTRAL, router.scores = SCORES_SIGMOID, "model.router.scores other than softmax");
    CANNOT_HOLD(ARCH_MIXTRAL, sandwich_norms = true, "model.sandwich_norms true");
    CANNOT_HOLD(ARCH_MIXTRAL, clip_qkv = 8, "model.clip_qkv = 8");
    CANNOT_HOLD(ARCH_MIXTRAL, norm = NORM_LAYER, "model.norm layer");
    CANNOT_HOLD(ARCH_LLAMA, experts = 4, "model.experts = 4");
    CANNOT_HOLD(ARCH_MIXTRAL, router.normalize = NORMALIZE_NEVER, "model.router.normalize off");
    CANNOT_HOLD(ARCH_GROK, rope_theta = 5e5, "model.rope_theta = 500000, not 10000");
    CANNOT_HOLD(ARCH_GROK, attn_softcap = 0, "model.attn_softcap = 0");
    CANNOT_HOLD(ARCH_DBRX, norm_eps = 1e-6, "model.norm_eps = 1e-06, not 1e-5");
    CANNOT_HOLD(ARCH_DBRX, head_dim = 4, "model.head_dim = 4");
    CANNOT_HOLD(ARCH_DBRX, tie_embeddings = true, "model.tie_embeddings true");
    CANNOT_HOLD(ARCH_ARCTIC, moe_input = MOE_READS_ATTENTION,
                "model.moe_input attention with model.dense_ffn = 14");
    CANNOT_HOLD(ARCH_ARCTIC, embed_scale = 2, "model.embed_scale = 2");
    CANNOT_HOLD(ARCH_LLAMA, attn_scale = 0.5, "model.attn_scale = 0.5");
    CANNOT_HOLD(ARCH_ARCTIC, experts = 0, "model.experts = 0");
    CANNOT_HOLD(ARCH_MIXTRAL, activation = ACTIVATION_GELU_TANH, "model.activation gelu");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(families, end),
        cmocka_unit_test_teardown(keys_must_be_stated, end),
        cmocka_unit_test_teardown(other_mathematics_is_refused, end),
        cmocka_unit_test_teardown(accepted_spellings, end),
        cmocka_unit_test_teardown(what_files_cannot_hold, end),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
