// SPDX-License-Identifier: Apache-2.0
#include "test_data_plan.h"
#include <jansson.h>

static Plan base_plan, plan;
static char *base_text;
static uint64_t base_digest[5];
// Before stage 2; its first sample; inside stage 2; inside stage 3; beyond the end.
static const int64_t samples[5] = {1000, 1001, 2500, 2501, 4001};

static int setup(void **state) {
    if (folder_setup(state)) return -1;
    plan_make(&base_plan);
    Loader *loader = plan_open(&base_plan);
    base_text = loader_plan_json(loader);
    for (int i = 0; i < 5; i++) base_digest[i] = loader_plan_digest(loader, samples[i]);
    loader_destroy(loader);
    plan_make(&plan);
    return 0;
}

static int teardown(void **state) {
    free(base_text);
    return folder_teardown(state);
}

// From which of samples[] on the plan counts as changed (5: never). Digest and check must agree, and where
// nothing has changed the samples must be the same.
static void expect_changed_from(int from, const char *a, const char *b) {
    Loader *loader = plan_open(&plan), *base = plan_open(&base_plan);
    for (int i = 0; i < 5; i++) {
        assert_int_equal(loader_plan_digest(loader, samples[i]) != base_digest[i], i >= from);
        Status status = loader_plan_check(loader, base_text, samples[i]);
        if (i < from)
            assert_int_equal(status, OK);
        else
            assert_failed(status, ERR_CONFIG, a, b);
    }
    for (int64_t n = 0; from > 0 && n < samples[from - 1]; n++) {
        SampleOrigin x = loader_origin(base, n), y = loader_origin(loader, n);
        assert_int_equal(x.index, y.index);
        assert_string_equal(loader_source_name(base, x.source), loader_source_name(loader, y.source));
    }
    loader_destroy(base);
    loader_destroy(loader);
}

static void same_plan(void **state) {
    (void)state;
    expect_changed_from(5, "", "");
}

static void seed_and_length_count_from_the_start(void **state) {
    (void)state;
    plan.config.seed = 8;
    expect_changed_from(0, "seed was 7 and is 8", "put it back");
    plan.config.seed = 7;
    plan.config.seq_len = 4;
    Loader *loader = plan_open(&plan);
    assert_true(loader_plan_digest(loader, 1) != base_digest[0]);
    assert_failed(loader_plan_check(loader, base_text, 1), ERR_CONFIG, "seq_len was 8 and is 4", "1 samples");
    loader_destroy(loader);
}

static void a_stage_counts_once_it_has_begun(void **state) {
    (void)state;
    plan.weight[2][0] = 0.3;
    expect_changed_from(3, "stage 3: mix", "prose");
    plan.weight[2][0] = 0.2;
    plan.stage[2].until += 8;
    expect_changed_from(3, "stage 3: samples was 1500 and is 1501", "");
    plan.stage[2].until -= 8;
    plan.stage[1].until += 8; // stage 2's length, with it its quotas
    expect_changed_from(1, "stage 2: samples was 1500 and is 1501", "");
    plan.stage[1].until -= 8;
    plan.stage[1].ramp = 4001;
    expect_changed_from(1, "stage 2: ramp was 4000 and is 4001", "");
    plan.stage[1].ramp = 4000;
    plan.stage[0].until++; // within the same sample, but the ramp is cut at other tokens
    expect_changed_from(1, "stage 2: ramp_start was 8003 and is 8004", "");
}

static void later_stages_may_go_or_come(void **state) {
    (void)state;
    plan.config.stages = 2;
    expect_changed_from(3, "the number of stages begun was 3 and is 2", "");
    static DataStage four[4];
    memcpy(four, base_plan.stage, sizeof base_plan.stage);
    four[3] = (DataStage){40000, plan.weight[0], 0};
    plan.config.stage = four;
    plan.config.stages = 4;
    expect_changed_from(4, "the number of stages begun was 3 and is 4", "");
}

static void content_and_holdout_count(void **state) {
    (void)state;
    plan.config.holdout = 0.03;
    expect_changed_from(0, "source prose: trained was 588 and is 582", "");
    plan.config.holdout = 0.02;
    // Another shard of the same size, as source code: the loaders' files are one and the same, so no sample
    // is compared.
    make_shard(in_test_folder("code"), 2401, PLAN_VOCAB, 10001, 1);
    Loader *loader = plan_open(&plan);
    for (int i = 0; i < 5; i++) {
        assert_true(loader_plan_digest(loader, samples[i]) != base_digest[i]);
        assert_failed(loader_plan_check(loader, base_text, samples[i]), ERR_CONFIG,
                      "source code: content was", "");
    }
    loader_destroy(loader);
}

// A source without weight in the stages begun may change, come and go; names of shards do not matter.
static void what_is_not_used_does_not_count(void **state) {
    (void)state;
    static DataSource four[4];
    static double weight[3][4];
    memcpy(four, plan.source, sizeof plan.source);
    four[3] = (DataSource){.name = "more", .path = plan.path[1], .paths = 1};
    for (int s = 0; s < 3; s++) memcpy(weight[s], plan.weight[s], sizeof plan.weight[s]);
    weight[2][3] = 0.1;
    for (int s = 0; s < 3; s++) plan.stage[s].weight = weight[s];
    plan.config.source = four;
    plan.config.sources = 4;
    assert_int_equal(rename(in_test_folder("sql.bin"), in_test_folder("renamed.bin")), 0);
    assert_int_equal(rename(in_test_folder("sql.idx"), in_test_folder("renamed.idx")), 0);
    const char *renamed = in_test_folder("renamed");
    four[2].path = &renamed;
    const char *base_path = renamed;
    base_plan.source[2].path = &base_path;
    expect_changed_from(3, "stage 3: mix", "more");
}

static void damaged_text_is_an_error(void **state) {
    (void)state;
    Loader *loader = plan_open(&plan);
    assert_failed(loader_plan_check(loader, "{", 1), ERR_DATA, "not JSON", "verify");
    loader_destroy(loader);
}

static void text_has_the_exact_counts(void **state) {
    (void)state;
    json_error_t error;
    json_t *json = json_loads(base_text, 0, &error);
    assert_non_null(json);
    int first, length, weight, quota;
    const char *source;
    assert_int_equal(json_unpack(json_array_get(json_object_get(json, "stages"), 2),
                                 "{s:i, s:i, s:[{}, {}, {s:s, s:i, s:i}]}", "first_sample", &first, "samples",
                                 &length, "mix", "source", &source, "weight", &weight, "samples", &quota),
                     0);
    assert_int_equal(first, 2500);
    assert_int_equal(length, 1500);
    assert_string_equal(source, "sql");
    assert_int_equal(weight, 500000000);
    assert_int_equal(quota, 750);
    json_decref(json);
}

int main(void) {
#define IN_FOLDER(test) cmocka_unit_test_setup_teardown(test, setup, teardown)
    const struct CMUnitTest tests[] = {
        IN_FOLDER(same_plan),
        IN_FOLDER(seed_and_length_count_from_the_start),
        IN_FOLDER(a_stage_counts_once_it_has_begun),
        IN_FOLDER(later_stages_may_go_or_come),
        IN_FOLDER(content_and_holdout_count),
        IN_FOLDER(what_is_not_used_does_not_count),
        IN_FOLDER(damaged_text_is_an_error),
        IN_FOLDER(text_has_the_exact_counts),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
