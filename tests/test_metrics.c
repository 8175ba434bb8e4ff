// SPDX-License-Identifier: Apache-2.0
#include "train/metrics.h"
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

static const char *const folder = "test_metrics.tmp", *const file = "test_metrics.tmp/metrics.jsonl",
                         *const abandoned = "test_metrics.tmp/metrics.abandoned.jsonl";

static int set_up(void **state) {
    (void)state;
    mkdir(folder, 0777);
    unlink(file);
    unlink(abandoned);
    return 0;
}

static int tear_down(void **state) {
    (void)state;
    unlink(file);
    unlink(abandoned);
    return rmdir(folder);
}

static void write_step(Metrics *metrics, int64_t step, double loss) {
    LayerTimeline layer[2] = {{.exchange = 0.004, .waited = 0.001, .lost = 0.002}, {.exchange = 0}};
    StepMetrics m = {.step = step,
                     .tokens = step * 4096,
                     .loss = loss,
                     .aux = 0.0123,
                     .gnorm = 1.0 / 3,
                     .lr = 1e-3,
                     .stream_hash = 0x00ff00000000000aULL,
                     .stage = 2,
                     .step_s = 0.5,
                     .a2a_s = 0.004,
                     .exposed_s = 0.001,
                     .imbalance = 1.5,
                     .layer = layer,
                     .layers = 2,
                     .layer_imbalance = (double[]){1.5, 0}};
    MetricsTokens tokens = {(const char *[]){"prose", "a \"b\""}, (int64_t[]){5000000000, 7}, 2, 4096};
    assert_int_equal(metrics_step(metrics, &m, &tokens), OK);
}

// Line n (from 0) of a file as JSON; NULL beyond the last.
static json_t *line(const char *path, int n) {
    FILE *in = fopen(path, "r");
    char *text = NULL;
    size_t size = 0;
    json_t *out = NULL;
    for (int i = 0; in && getline(&text, &size, in) > 0; i++)
        if (i == n) out = json_loads(text, 0, NULL);
    if (in) fclose(in);
    free(text);
    return out;
}

static int64_t step_of_line(const char *path, int n) {
    json_t *record = line(path, n);
    int64_t step = record ? json_integer_value(json_object_get(record, "step")) : -1;
    json_decref(record);
    return step;
}

static double real(const json_t *record, const char *key) {
    return json_number_value(json_object_get(record, key));
}

static void a_record_has_all_keys(void **state) {
    (void)state;
    static const char *const keys[] = {"step",    "tokens", "loss",        "aux",       "z",
                                       "gnorm",   "lr",     "stream_hash", "stage",     "src_tokens",
                                       "step_s",  "tok_s",  "a2a_s",       "exposed_s", "hidden",
                                       "imb_max", "drop",   "lost_s",      "layers"};
    Metrics metrics;
    double loss = 3.1234567890123456;
    assert_int_equal(metrics_open(&metrics, folder, 0, NULL), OK);
    write_step(&metrics, 1, loss);
    metrics_close(&metrics);
    json_t *record = line(file, 0);
    assert_non_null(record);
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++)
        if (!json_object_get(record, keys[i])) fail_msg("no key %s", keys[i]);
    assert_null(json_object_get(record, "event"));
    assert_true(real(record, "loss") == loss); // every bit
    assert_true(real(record, "gnorm") == 1.0 / 3);
    assert_string_equal(json_string_value(json_object_get(record, "stream_hash")), "00ff00000000000a");
    assert_int_equal(json_integer_value(json_object_get(json_object_get(record, "src_tokens"), "prose")),
                     5000000000);
    assert_int_equal(json_integer_value(json_object_get(json_object_get(record, "src_tokens"), "a \"b\"")),
                     7);
    assert_true(fabs(real(record, "tok_s") - 8192) < 1e-6);
    assert_true(fabs(real(record, "hidden") - 0.75) < 1e-9);
    json_t *layers = json_object_get(record, "layers");
    assert_int_equal(json_array_size(layers), 2);
    assert_true(fabs(real(json_array_get(layers, 0), "hidden") - 0.75) < 1e-9);
    assert_true(real(json_array_get(layers, 1), "hidden") == 0);
    json_decref(record);
}

static void what_is_not_finite_is_null(void **state) {
    (void)state;
    Metrics metrics;
    assert_int_equal(metrics_open(&metrics, folder, 0, NULL), OK);
    write_step(&metrics, 1, NAN);
    write_step(&metrics, 2, 1);
    metrics_close(&metrics);
    json_t *bad = line(file, 0), *good = line(file, 1);
    assert_true(json_is_null(json_object_get(bad, "loss")));
    assert_true(json_is_true(json_object_get(bad, "nonfinite")));
    assert_null(json_object_get(good, "nonfinite"));
    json_decref(bad);
    json_decref(good);
}

static void append(const char *text) {
    FILE *out = fopen(file, "a");
    fputs(text, out);
    fclose(out);
}

static void a_torn_line_goes(void **state) {
    (void)state;
    Metrics metrics;
    int64_t removed = -1;
    assert_int_equal(metrics_open(&metrics, folder, 0, NULL), OK);
    write_step(&metrics, 1, 3);
    metrics_close(&metrics);
    append("{\"step\":2,\"tok");
    assert_int_equal(metrics_open(&metrics, folder, 5, &removed), OK);
    write_step(&metrics, 2, 2);
    metrics_close(&metrics);
    assert_int_equal(removed, 0);
    assert_int_equal(step_of_line(file, 0), 1);
    assert_int_equal(step_of_line(file, 1), 2);
    assert_int_equal(step_of_line(file, 2), -1);
    assert_int_not_equal(access(abandoned, F_OK), 0);
}

static void later_steps_go_with_their_events(void **state) {
    (void)state;
    Metrics metrics;
    int64_t removed = -1;
    assert_int_equal(metrics_open(&metrics, folder, 0, NULL), OK);
    for (int step = 1; step <= 4; step++) {
        write_step(&metrics, step, step);
        assert_int_equal(metrics_event(&metrics, "eval", step, json_pack("{s:f}", "loss", 2.5)), OK);
    }
    metrics_close(&metrics);
    assert_int_equal(metrics_open(&metrics, folder, 2, &removed), OK);
    write_step(&metrics, 3, 30);
    metrics_close(&metrics);
    assert_int_equal(removed, 4);
    static const int64_t steps[] = {1, 1, 2, 2, 3, -1};
    for (int i = 0; i < 6; i++) assert_int_equal(step_of_line(file, i), steps[i]);
    json_t *event = line(file, 3), *fresh = line(file, 4);
    assert_string_equal(json_string_value(json_object_get(event, "event")), "eval");
    assert_true(real(event, "loss") == 2.5);
    assert_true(real(fresh, "loss") == 30);
    json_decref(event);
    json_decref(fresh);
    for (int i = 0; i < 4; i++) assert_int_equal(step_of_line(abandoned, i), 3 + i / 2);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(a_record_has_all_keys, set_up, tear_down),
        cmocka_unit_test_setup_teardown(what_is_not_finite_is_null, set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_torn_line_goes, set_up, tear_down),
        cmocka_unit_test_setup_teardown(later_steps_go_with_their_events, set_up, tear_down),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
