// SPDX-License-Identifier: Apache-2.0
#include "data/data_config.h"
#include "test_data_fixture.h"

// The rule itself, a step at a time.
static int64_t size_at(const BatchPlan *plan, int64_t sample) {
    for (int i = 0; i < plan->ramps; i++)
        if (sample * plan->seq_len < plan->ramp[i].until) return plan->ramp[i].sequences;
    return plan->sequences;
}

static void check_plan(const BatchPlan *plan) {
    int64_t sample = 0, tokens = 0;
    for (int64_t step = 1; step <= 400; step++) {
        assert_int_equal(batch_first_sample(plan, step), sample);
        assert_int_equal(batch_sequences(plan, step), size_at(plan, sample));
        int64_t after = sample + size_at(plan, sample);
        for (; tokens <= after * plan->seq_len; tokens++)
            assert_int_equal(batch_steps_for(plan, tokens), tokens == 0 ? 0 : step);
        sample = after;
    }
}

static void closed_form_equals_simulation(void **state) {
    (void)state;
    check_plan(&(BatchPlan){16, 8, NULL, 0});
    const BatchRamp one[] = {{1000, 4}};
    check_plan(&(BatchPlan){16, 8, one, 1});
    check_plan(&(BatchPlan){3, 7, one, 1});
    const BatchRamp three[] = {{1, 1}, {501, 3}, {502, 5}};
    check_plan(&(BatchPlan){16, 10, three, 3});
    const BatchRamp overtaken[] = {
        {100, 64}, {200, 2}, {5000, 8}}; // the first ramp's one step ends the second
    check_plan(&(BatchPlan){16, 10, overtaken, 3});
}

static void large_numbers(void **state) {
    (void)state;
    const BatchRamp ramp[] = {{1000000000000, 256}};
    const BatchPlan plan = {1024, 4096, ramp, 1};
    // ceil(1e12 / 4096) = 244,140,625 samples in 953,675 steps of 256 (244,140,800 samples).
    assert_int_equal(batch_first_sample(&plan, 953676), 244140800);
    assert_int_equal(batch_sequences(&plan, 953675), 256);
    assert_int_equal(batch_sequences(&plan, 953676), 1024);
    assert_int_equal(batch_first_sample(&plan, 10000953676), 244140800 + 10000000000 * 1024);
    assert_int_equal(batch_steps_for(&plan, 1000000000000), 953675);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(closed_form_equals_simulation),
        cmocka_unit_test(large_numbers),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
