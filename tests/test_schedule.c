// SPDX-License-Identifier: Apache-2.0
// Learning rates and clipping against values computed by hand.
#include "optim/schedule.h"
#include "optim/zero.h"
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

// Doubles all the way: a few roundings.
static void expect(ScheduleConfig config, int64_t step, double lr) {
    assert_true(fabs(schedule_lr(&config, step) - lr) <= 4e-16 * fabs(config.peak));
}

static void test_constant(void **state) {
    (void)state;
    ScheduleConfig c = {SCHEDULE_CONSTANT, 8, 0.1, 4, 0, 100};
    for (int step = 1; step <= 4; step++) expect(c, step, 2 * step);
    expect(c, 5, 8);
    expect(c, 100, 8);
    c.warmup_steps = 0;
    expect(c, 1, 8);
}

static void test_cosine(void **state) {
    (void)state;
    ScheduleConfig c = {SCHEDULE_COSINE, 1, 0.2, 10, 0, 40};
    expect(c, 5, 0.5);
    expect(c, 10, 1);
    expect(c, 20, 0.2 + 0.8 * 0.75); // a third of the way: (1 + cos 60°)/2
    expect(c, 25, 0.2 + 0.8 * 0.5);
    expect(c, 30, 0.2 + 0.8 * 0.25);
    expect(c, 40, 0.2);
    expect(c, 1000, 0.2);                                                  // it stays there
    expect((ScheduleConfig){SCHEDULE_COSINE, 1, 0.2, 40, 0, 40}, 40, 1);   // warm-up to the end
    expect((ScheduleConfig){SCHEDULE_COSINE, 1, 0.2, 40, 0, 40}, 41, 0.2); // no division by zero
    expect((ScheduleConfig){SCHEDULE_COSINE, 3e-4, 0, 0, 0, 2}, 1, 1.5e-4);
}

static void test_wsd(void **state) {
    (void)state;
    ScheduleConfig c = {SCHEDULE_WSD, 2, 0.5, 10, 20, 100};
    expect(c, 1, 0.2);
    expect(c, 10, 2);
    expect(c, 80, 2);
    expect(c, 85, 2 * 0.875);
    expect(c, 90, 2 * 0.75);
    expect(c, 100, 1);
    expect(c, 101, 1);
    c.decay_steps = 0;
    expect(c, 100, 2);
    expect(c, 101, 1);
}

static void test_clipping(void **state) {
    (void)state;
    assert_true(clip_scale(0.5, 1) == 1);
    assert_true(clip_scale(0, 1) == 1);
    assert_true(clip_scale(4, 1) == 1 / (4 + 1e-6));
    assert_true(clip_scale(4, 2) == 2 / (4 + 1e-6));
    assert_true(clip_scale(1, 1) == 1 / (1 + 1e-6)); // torch's formula, also where the norm is the limit
    assert_true(clip_scale(1e9, 0) == 1);            // off
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_constant),
        cmocka_unit_test(test_cosine),
        cmocka_unit_test(test_wsd),
        cmocka_unit_test(test_clipping),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
