// SPDX-License-Identifier: Apache-2.0
#include "train/guard.h"
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static const GuardConfig skipping = {GUARD_STOP, GUARD_SKIP, .window = 4, .max_bad = 3, .z = 6};
static const BatchPlan batches = {.sequences = 8, .seq_len = 64};

static void fill(Guard *guard) {
    for (int i = 0; i < 4; i++) assert_false(guard_judge(guard, 1, i % 2 ? 2.1 : 1.9, 0, 0.5).bad);
}

// Mean 2, deviation 0.1: the bound of 6 deviations is 2.6. The norm's deviation counts as 0.0005.
static void spikes_are_deviations_above_the_window(void **state) {
    (void)state;
    static const struct {
        double loss, gnorm;
        int cause; // −1: good
        double z;
    } row[] = {{2.599, 0.5, -1, 0},           {2.601, 0.5, CAUSE_LOSS, 6.01},  {0.1, 0.5, -1, 0},
               {2.0, 0.5029, -1, 0},          {2.0, 0.5031, CAUSE_GNORM, 6.2}, {2.0, 0.1, -1, 0},
               {2.601, 0.6, CAUSE_LOSS, 6.01}};
    for (size_t i = 0; i < sizeof row / sizeof *row; i++) {
        Guard guard = guard_create(&skipping);
        fill(&guard);
        Verdict v = guard_judge(&guard, 1, row[i].loss, 0, row[i].gnorm);
        assert_int_equal(v.bad, row[i].cause >= 0);
        if (v.bad) {
            assert_int_equal(v.cause, row[i].cause);
            assert_int_equal(v.action, GUARD_SKIP);
            assert_true(fabs(v.z - row[i].z) < 1e-9);
            assert_true(fabs(v.mean - (v.cause == CAUSE_LOSS ? 2 : 0.5)) < 1e-12);
        }
        guard_free(&guard);
    }
}

static void the_window_is_full_first_holds_good_steps_and_begins_anew_with_a_stage(void **state) {
    (void)state;
    Guard guard = guard_create(&skipping);
    for (int i = 0; i < 3; i++) assert_false(guard_judge(&guard, 1, 2, 0, 0.5).bad);
    assert_false(guard_judge(&guard, 1, 50, 0, 50).bad); // the fourth of four
    assert_false(guard_judge(&guard, 2, 500, 0, 500).bad);
    assert_int_equal(guard.count, 1);
    for (int i = 0; i < 4; i++) assert_false(guard_judge(&guard, 2, 2, 0, 0.5).bad);
    assert_int_equal(guard.count, 4);
    assert_true(guard_judge(&guard, 2, 2.02, 0, 0.5).bad);
    assert_true(guard_judge(&guard, 2, 2.02, 0, 0.5).bad); // the bad one is not in the window
    assert_false(guard_judge(&guard, 3, 2.02, 0, 0.5).bad);
    guard_free(&guard);
}

static void what_is_not_finite_is_bad_and_too_many_in_a_row_stop(void **state) {
    (void)state;
    const GuardConfig config = {GUARD_ROLLBACK, GUARD_OFF, .window = 4, .max_bad = 3, .z = 6};
    static const double figures[][3] = {{NAN, 0, 1}, {INFINITY, 0, 1}, {1, NAN, 1},
                                        {1, 0, NAN}, {1, 0, INFINITY}, {1, 0, 1.9e19}};
    Guard guard = guard_create(&config);
    for (int i = 0; i < 6; i++) {
        for (int n = 1; n <= 3; n++) {
            Verdict v = guard_judge(&guard, 1, figures[i][0], figures[i][1], figures[i][2]);
            assert_true(v.bad);
            assert_int_equal(v.cause, CAUSE_NONFINITE);
            assert_int_equal(v.in_row, n);
            assert_int_equal(v.action, n == 3 ? GUARD_STOP : GUARD_ROLLBACK);
        }
        assert_false(guard_judge(&guard, 1, 1e30, 0, 1.8e19).bad); // no spikes here
    }
    guard_free(&guard);
}

static void passed_steps_are_counted_and_joined(void **state) {
    (void)state;
    Guard guard = guard_create(&skipping);
    guard_pass(&guard, 3, 3);
    guard_pass(&guard, 4, 6);
    guard_pass(&guard, 8, 8);
    assert_int_equal(guard.ranges, 2);
    assert_int_equal(guard.passed[0].first, 3);
    assert_int_equal(guard.passed[0].last, 6);
    assert_int_equal(guard_updates(&guard, 10), 5);
    for (int i = 10; i < 100; i += 2) guard_pass(&guard, i, i);
    assert_int_equal(guard.ranges, 47);
    assert_int_equal(guard_updates(&guard, 100), 50);
    guard_free(&guard);
}

static Guard stored(void) {
    Guard guard = guard_create(&skipping);
    for (int i = 0; i < 6; i++) guard_judge(&guard, 2, 2 + 0.1 / (i + 3), 0, 1.0 / (i + 7));
    guard_judge(&guard, 2, NAN, 0, 1);
    guard_pass(&guard, 3, 6);
    guard_pass(&guard, 8, 8);
    return guard;
}

static void a_record_comes_back_to_the_bit(void **state) {
    (void)state;
    Guard guard = stored(), back = guard_create(&skipping);
    json_t *record = guard_json(&guard, &batches);
    char *text = json_dumps(record, JSON_COMPACT);
    json_t *read = json_loads(text, 0, NULL);
    assert_non_null(strstr(text, "{\"first_step\":3,\"last_step\":6,\"first_sample\":16,\"samples\":32}"));
    guard_judge(&back, 1, NAN, 0, 1);
    guard_pass(&back, 1, 1);
    assert_int_equal(guard_parse(&back, read, &batches, 8), OK);
    assert_int_equal(back.count, 4);
    assert_memory_equal(back.good, guard.good, 4 * sizeof *guard.good);
    assert_int_equal(back.in_row, 1);
    assert_int_equal(back.stage, 2);
    assert_int_equal(back.ranges, 2);
    assert_int_equal(back.passed_steps, 5);
    Verdict a = guard_judge(&guard, 2, 5, 0, 1), b = guard_judge(&back, 2, 5, 0, 1);
    assert_true(a.bad && a.z == b.z && a.mean == b.mean && a.in_row == b.in_row);
    assert_int_equal(guard_parse(&back, NULL, &batches, 8), OK); // a run that kept none
    assert_int_equal(back.count + back.in_row + back.ranges + back.passed_steps, 0);
    json_decref(read);
    json_decref(record);
    free(text);
    guard_free(&guard);
    guard_free(&back);
}

static void a_shorter_window_keeps_the_newest(void **state) {
    (void)state;
    const GuardConfig shorter = {GUARD_STOP, GUARD_SKIP, .window = 2, .max_bad = 3, .z = 6};
    Guard guard = stored(), back = guard_create(&shorter);
    json_t *record = guard_json(&guard, &batches);
    assert_int_equal(guard_parse(&back, record, &batches, 8), OK);
    assert_int_equal(back.count, 2);
    assert_memory_equal(back.good, guard.good + 2, 2 * sizeof *guard.good);
    json_decref(record);
    guard_free(&guard);
    guard_free(&back);
}

static void wrong_records_are_refused(void **state) {
    (void)state;
    static const struct {
        const char *text, *says;
        Status status;
    } row[] = {
        {"{}", "lacks a key", ERR_DATA},
        {"{\"stage\":1,\"good\":[],\"in_row\":-1,\"passed\":[]}", "lacks a key", ERR_DATA},
        {"{\"stage\":1,\"good\":[[1.5]],\"in_row\":0,\"passed\":[]}", "good step 1", ERR_DATA},
        {"{\"stage\":1,\"good\":[],\"in_row\":0,\"passed\":[{\"first_step\":3,\"last_step\":9,\"first_"
         "sample\":16,"
         "\"samples\":56}]}",
         "range 1", ERR_DATA},
        {"{\"stage\":1,\"good\":[],\"in_row\":0,\"passed\":[{\"first_step\":3,\"last_step\":2,\"first_"
         "sample\":16,"
         "\"samples\":0}]}",
         "range 1", ERR_DATA},
        {"{\"stage\":1,\"good\":[],\"in_row\":0,\"passed\":[{\"first_step\":3,\"last_step\":4,\"first_"
         "sample\":16,"
         "\"samples\":16},{\"first_step\":4,\"last_step\":4,\"first_sample\":24,\"samples\":8}]}",
         "range 2", ERR_DATA},
        {"{\"stage\":1,\"good\":[],\"in_row\":0,\"passed\":[{\"first_step\":3,\"last_step\":4,\"first_"
         "sample\":17,"
         "\"samples\":16}]}",
         "steps 3 to 4 passed over 16 samples from 17 on", ERR_CONFIG},
        {"{\"stage\":1,\"good\":[],\"in_row\":0,\"passed\":[{\"first_step\":3,\"last_step\":4,\"first_"
         "sample\":16,"
         "\"samples\":15}]}",
         "it would be 16 from 16 on", ERR_CONFIG},
    };
    for (size_t i = 0; i < sizeof row / sizeof *row; i++) {
        Guard guard = guard_create(&skipping);
        json_t *record = json_loads(row[i].text, 0, NULL);
        assert_non_null(record);
        assert_int_equal(guard_parse(&guard, record, &batches, 8), row[i].status);
        if (!strstr(status_text(), row[i].says)) fail_msg("%s: %s", row[i].text, status_text());
        json_decref(record);
        guard_free(&guard);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(spikes_are_deviations_above_the_window),
        cmocka_unit_test(the_window_is_full_first_holds_good_steps_and_begins_anew_with_a_stage),
        cmocka_unit_test(what_is_not_finite_is_bad_and_too_many_in_a_row_stop),
        cmocka_unit_test(passed_steps_are_counted_and_joined),
        cmocka_unit_test(a_record_comes_back_to_the_bit),
        cmocka_unit_test(a_shorter_window_keeps_the_newest),
        cmocka_unit_test(wrong_records_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
