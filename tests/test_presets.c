// SPDX-License-Identifier: Apache-2.0
// The presets of published models against the figures that their makers published or that follow from the
// shapes they published: parameters, those active for a token, floating-point operations, bytes of training
// state.
#include "optim/zero.h"
#include "train/run_config.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>

typedef struct {
    const char *name;
    int64_t total, active;
    int64_t norms;          // parameters of norms: no matrix product
    int64_t embedding;      // parameters of the input embedding where it is not the output matrix too
    int64_t layers, attend; // heads · head_dim
    int64_t seq_len;        // of the preset
} Published;

static const Published published[] = {
    {"arctic-480b", 478584608768, 17318647808, 35 * 3 * 7168 + 7168, 32000 * 7168LL, 35, 7168, 4096},
    {"dbrx-132b", 131596523520, 36469708800, 40 * 2 * 6144 + 6144, 100352 * 6144LL, 40, 6144, 4096},
    {"mixtral-8x7b", 46702792704, 12879925248, 32 * 2 * 4096 + 4096, 32000 * 4096LL, 32, 4096, 4096},
    {"mixtral-8x22b", 140630071296, 39161468928, 56 * 2 * 6144 + 6144, 32768 * 6144LL, 56, 6144, 4096},
    {"apus-xdan-136b", 113662983168, 60814752768, 60 * 2 * 7168 + 7168, 64000 * 7168LL, 60, 7168, 4096},
    {"grok-1", 315684820992, 83756587008, 64 * 4 * 6144 + 6144, 0, 64, 6144, 8192},
    {"llama-2-7b", 6738415616, 6738415616, 32 * 2 * 4096 + 4096, 32000 * 4096LL, 32, 4096, 4096},
    {"llama-3-8b", 8030261248, 8030261248, 32 * 2 * 4096 + 4096, 128256 * 4096LL, 32, 4096, 8192},
    {"llama-3-70b", 70553706496, 70553706496, 80 * 2 * 8192 + 8192, 128256 * 8192LL, 80, 8192, 8192},
};

static RunConfig *load(const char *name) {
    RunConfig *config;
    assert_int_equal(config_load(&config, NULL, &name, 1, NULL, 0, 0), OK);
    return config;
}

static void counts_are_the_published_ones(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof published / sizeof *published; i++) {
        const Published *p = &published[i];
        RunConfig *config = load(p->name);
        ModelSize size = model_size(&config->model, config->batch.seq_len);
        assert_int_equal(config->batch.seq_len, p->seq_len);
        assert_int_equal(size.total, p->total);
        assert_int_equal(size.active, p->active);
        // 6 a matrix parameter (forward 2, backward 4), and causal attention's scores and sums
        double flops = 6.0 * (double)(p->active - p->norms - p->embedding) +
                       6.0 * (double)p->layers * (double)p->seq_len * (double)p->attend;
        assert_true(size.flops_per_token == flops);
        config_free(config, NULL);
    }
}

// The table of weights holds what is counted, and a rank alone keeps 16 bytes of each: weight, gradient, two
// moments. Groups are padded to 16 elements for each weight.
static void weights_are_the_counted_ones(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof published / sizeof *published; i++) {
        RunConfig *config = load(published[i].name);
        ParamTable table = {0};
        model_describe(&config->model, 0, config->model.experts, &table);
        int64_t total = 0;
        for (int p = 0; p < table.count; p++) total += param_size(&table.param[p]);
        assert_int_equal(total, published[i].total);
        ZeroBytes bytes = zero_plan_bytes(&table, 0, 1, 1);
        double state_bytes = (double)bytes.weights + (double)bytes.grads + (double)bytes.optimizer;
        assert_true(state_bytes >= 16.0 * (double)total);
        assert_true(state_bytes <=
                    16.0 * (double)total + 16.0 * 16 * table.count + 64.0 * 4 * table.group_count);
        params_free(&table);
        config_free(config, NULL);
    }
}

static void every_preset_loads(void **state) {
    (void)state;
    static const char *const runnable[] = {"tiny",        "tiny-mixtral", "tiny-dbrx",
                                           "tiny-grok",   "tiny-llama",   "bench-mid",
                                           "bench-small", "bench-wide",   "bench-mixtral"};
    for (size_t i = 0; i < sizeof runnable / sizeof *runnable; i++) {
        RunConfig *config = load(runnable[i]);
        assert_int_equal(model_config_check(&config->model), OK);
        config_free(config, NULL);
    }
}

int main(void) {
    setenv("FLOE_PRESETS", TESTS_DIR "/../configs/presets", 1);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(counts_are_the_published_ones),
        cmocka_unit_test(weights_are_the_counted_ones),
        cmocka_unit_test(every_preset_loads),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
