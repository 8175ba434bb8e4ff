// SPDX-License-Identifier: Apache-2.0
#include "core/clock.h"
#include "train/format.h"
#include "train/resume.h"
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

static const char *const run = "test_run_dir.tmp/runs/a";

static int clean(void **state) {
    (void)state;
    return system("rm -rf test_run_dir.tmp") != 0;
}

static bool exists(const char *path) {
    struct stat info;
    return lstat(path, &info) == 0;
}

static void names_are_fresh(void **state) {
    (void)state;
    char one[RUN_PATH_BYTES], two[RUN_PATH_BYTES];
    setenv("FLOE_RUNS", "test_run_dir.tmp/runs", 1);
    assert_int_equal(run_dir_choose(one, sizeof one, NULL, "configs/tiny.v2.yaml"), OK);
    assert_int_equal(run_dir_choose(two, sizeof two, NULL, "configs/tiny.v2.yaml"), OK);
    assert_memory_equal(one, "test_run_dir.tmp/runs/tiny.v2-20", 32);
    assert_int_equal(strlen(one), strlen("test_run_dir.tmp/runs/tiny.v2-20260822-141503-7f3a"));
    assert_string_not_equal(one, two);
    assert_int_equal(run_dir_choose(one, sizeof one, "x/y//", "c.yaml"), OK);
    assert_string_equal(one, "x/y");
    assert_int_equal(run_dir_choose(one, sizeof one, "", "c.yaml"), ERR_CONFIG);
}

static void folder_and_link(void **state) {
    (void)state;
    setenv("FLOE_RUNS", "test_run_dir.tmp/runs", 1);
    assert_int_equal(run_dir_create(run), OK);
    assert_true(exists("test_run_dir.tmp/runs/a/ckpt") && exists("test_run_dir.tmp/runs/a/ctl"));
    assert_false(run_dir_is_used(run));
    run_dir_mark_latest(run);
    run_dir_mark_latest(run);
    char target[64] = "";
    assert_int_equal(readlink("test_run_dir.tmp/runs/latest", target, sizeof target - 1), 1);
    assert_string_equal(target, "a");
    assert_int_equal(run_dir_write(run, "metrics.jsonl", "{}\n"), OK);
    assert_true(run_dir_is_used(run));
    run_dir_remove_unused(run);
    assert_true(exists(run));
    unlink("test_run_dir.tmp/runs/a/metrics.jsonl");
    run_dir_remove_unused(run);
    assert_false(exists(run));
}

static void a_file_in_the_way_is_named(void **state) {
    (void)state;
    assert_int_equal(run_dir_create(run), OK);
    assert_int_equal(run_dir_write(run, "file", "text"), OK);
    assert_int_equal(run_dir_create("test_run_dir.tmp/runs/a/file/b"), ERR_RUNTIME);
    assert_non_null(strstr(status_text(), "test_run_dir.tmp/runs/a/file"));
}

// A process that shares the lock until it is killed.
static pid_t start_sharer(void) {
    int ready[2];
    char byte;
    assert_int_equal(pipe(ready), 0);
    pid_t child = fork();
    if (child == 0) {
        RunLock lock;
        byte = run_lock_join(&lock, run) == OK;
        if (write(ready[1], &byte, 1) != 1) _exit(1);
        for (;;) pause();
    }
    assert_int_equal(read(ready[0], &byte, 1), 1);
    assert_int_equal(byte, 1);
    close(ready[0]);
    close(ready[1]);
    return child;
}

static void the_lock_lasts_as_long_as_any_process(void **state) {
    (void)state;
    RunLock front, second;
    char holder[64];
    assert_int_equal(run_dir_create(run), OK);
    assert_int_equal(run_lock_take(&front, run, 0), OK);
    pid_t rank = start_sharer();
    double begun = clock_seconds();
    assert_int_equal(run_lock_take(&second, run, 0.3), ERR_RUNTIME);
    assert_true(clock_seconds() - begun >= 0.3);
    snprintf(holder, sizeof holder, "process %ld on ", (long)getpid());
    assert_non_null(strstr(status_text(), holder));
    run_lock_release(&front); // the front end is gone, a rank still lives
    assert_int_equal(run_lock_take(&second, run, 0), ERR_RUNTIME);
    kill(rank, SIGKILL);
    assert_int_equal(waitpid(rank, NULL, 0), rank);
    assert_int_equal(run_lock_take(&second, run, 0), OK);
    run_lock_release(&second);
}

static void requests(void **state) {
    (void)state;
    StartRequest request;
    assert_int_equal(start_request_parse(&request, NULL, NULL), OK);
    assert_int_equal(request.mode, RESUME_AUTO);
    assert_int_equal(start_request_parse(&request, "120", NULL), OK);
    assert_int_equal(request.mode, RESUME_STEP);
    assert_int_equal(request.step, 120);
    assert_int_equal(start_request_parse(&request, "newest", NULL), ERR_CONFIG);
    assert_int_equal(start_request_parse(&request, "0", NULL), ERR_CONFIG);
    assert_int_equal(start_request_parse(&request, "never", "runs/a@12"), OK);
    assert_string_equal(request.fork_run, "runs/a");
    assert_int_equal(request.fork_step, 12);
    assert_int_equal(start_request_parse(&request, NULL, "home@host/a"), OK);
    assert_string_equal(request.fork_run, "home@host/a");
    assert_int_equal(request.fork_step, -1);
    assert_int_equal(start_request_parse(&request, NULL, "runs/a@x"), ERR_CONFIG);
    assert_int_equal(start_request_parse(&request, "12", "runs/a@12"), ERR_CONFIG);
}

static void refusals_before_the_start(void **state) {
    (void)state;
    StartRequest request;
    assert_int_equal(run_dir_create(run), OK);
    assert_int_equal(start_request_parse(&request, "never", NULL), OK);
    assert_int_equal(start_request_check(&request, run), OK);
    assert_int_equal(run_dir_write(run, "metrics.jsonl", "{}\n"), OK);
    assert_int_equal(start_request_check(&request, run), ERR_CONFIG);
    assert_int_equal(start_request_parse(&request, "7", NULL), OK);
    assert_int_equal(start_request_check(&request, run), ERR_CONFIG);
    assert_int_equal(start_request_parse(&request, NULL, run), OK);
    assert_int_equal(start_request_check(&request, run), ERR_CONFIG);
}

static void check_duration(const char *text, double expected) {
    double seconds;
    assert_int_equal(duration_parse(text, &seconds), OK);
    assert_true(seconds == expected);
}

static void numbers_for_people(void **state) {
    (void)state;
    double seconds;
    check_duration("90", 90);
    check_duration("3h50m", 13800);
    check_duration("1d", 86400);
    check_duration("1.5m", 90);
    assert_int_equal(duration_parse("", &seconds), ERR_CONFIG);
    assert_int_equal(duration_parse("5x", &seconds), ERR_CONFIG);
    assert_int_equal(duration_parse("-5", &seconds), ERR_CONFIG);
    assert_string_equal(short_count(478584608768.0).text, "479 B");
    assert_string_equal(short_count(2048).text, "2.05 k");
    assert_string_equal(short_count(7).text, "7");
    assert_string_equal(short_rate(9752).text, "9.75k");
    assert_string_equal(short_bytes(48234496).text, "46.0 MiB");
    assert_string_equal(short_duration(0.21).text, "0.21 s");
    assert_string_equal(short_duration(80).text, "1m20s");
    assert_string_equal(short_duration(13800).text, "3h50m");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(names_are_fresh, clean, clean),
        cmocka_unit_test_setup_teardown(folder_and_link, clean, clean),
        cmocka_unit_test_setup_teardown(a_file_in_the_way_is_named, clean, clean),
        cmocka_unit_test_setup_teardown(the_lock_lasts_as_long_as_any_process, clean, clean),
        cmocka_unit_test(requests),
        cmocka_unit_test_setup_teardown(refusals_before_the_start, clean, clean),
        cmocka_unit_test(numbers_for_people),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
