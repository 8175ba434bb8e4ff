// SPDX-License-Identifier: Apache-2.0
#include "data/ledger.h"
#include "test_data_plan.h"

static void formula_equals_a_count(void **state) {
    (void)state;
    Plan plan;
    plan_make(&plan);
    Loader *loader = plan_open(&plan);
    Ledger ledger = ledger_create(loader);
    const size_t bytes = sizeof(int64_t) * PLAN_STAGES * PLAN_SOURCES;
    for (int64_t n = 0; n < 9000; n++) { // beyond the last stage too
        ledger_count(&ledger, loader, n, 1);
        Ledger expected = ledger_expected(loader, n + 1);
        assert_memory_equal(ledger.samples, expected.samples, bytes);
        ledger_free(&expected);
    }
    Ledger batches = ledger_create(loader);
    for (int64_t n = 0; n < 9000; n += 36) ledger_count(&batches, loader, n, 36);
    assert_memory_equal(ledger.samples, batches.samples, bytes);
    assert_int_equal(ledger_check(&ledger, loader, 9000), OK);
    assert_failed(ledger_check(&ledger, loader, 9001), ERR_DATA, "stage 3", "first 9001 samples says");
    ledger.samples[PLAN_SOURCES + 1]++;
    assert_failed(ledger_check(&ledger, loader, 9000), ERR_DATA, "stage 2 took", "source code");
    ledger_free(&batches);
    ledger_free(&ledger);
    loader_destroy(loader);
}

static void json_round_trip(void **state) {
    (void)state;
    Plan plan;
    plan_make(&plan);
    Loader *loader = plan_open(&plan);
    Ledger ledger = ledger_expected(loader, 2600), parsed = ledger_create(loader);
    char *text = ledger_json(&ledger, loader);
    assert_non_null(strstr(text, "{\"stages\":[{\"stage\":1,\"tokens\":{\"prose\":6400,\"code\":1200,\"sql\":"
                                 "400},\"epochs\":{\"prose\":1.36"));
    parsed.samples[0] = 99;
    assert_int_equal(ledger_parse(&parsed, loader, text), OK);
    assert_int_equal(ledger_check(&parsed, loader, 2600), OK);
    loader_destroy(loader);

    plan.config.stages = 2; // stage 3, with 100 samples on its account, has gone
    loader = plan_open(&plan);
    Ledger shorter = ledger_create(loader);
    assert_failed(ledger_parse(&shorter, loader, text), ERR_CONFIG, "in stage 3", "does not have");
    ledger_free(&shorter);
    loader_destroy(loader);

    plan.config.stages = 3;
    plan.source[1].name = "programs";
    loader = plan_open(&plan);
    assert_failed(ledger_parse(&parsed, loader, text), ERR_CONFIG, "1200 tokens of source code in stage 1",
                  "");
    assert_failed(ledger_parse(&parsed, loader, "nonsense"), ERR_DATA, "not JSON", "");
    assert_failed(ledger_parse(&parsed, loader, "{\"stages\":[{\"stage\":1,\"tokens\":{\"prose\":7}}]}"),
                  ERR_DATA, "bad count of source prose", "");
    assert_int_equal(ledger_parse(&parsed, loader, "{\"stages\":[{\"stage\":9,\"tokens\":{\"gone\":0}}]}"),
                     OK);
    loader_destroy(loader);
    free(text);
    ledger_free(&parsed);
    ledger_free(&ledger);
}

int main(void) {
#define IN_FOLDER(test) cmocka_unit_test_setup_teardown(test, folder_setup, folder_teardown)
    const struct CMUnitTest tests[] = {IN_FOLDER(formula_equals_a_count), IN_FOLDER(json_round_trip)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
