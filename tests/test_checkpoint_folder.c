// SPDX-License-Identifier: Apache-2.0
// Which checkpoints are found, and what a crash leaves. Which stay: test_checkpoint_retain.c.
#include "checkpoint_harness.h"
#include "core/file.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#define RUN "test_checkpoint_folder.tmp"
static Mesh *mesh;

static void save(int64_t step) {
    const Layout alone = {.world = 1, .ep = 1, .rank = 0, .stage = 1};
    ModelConfig config = harness_config();
    config.layers = 1;
    Shards *shards = harness_create(&config, alone);
    CheckpointState state = harness_state(shards, alone, mesh);
    CheckpointReport report;
    json_t *record = json_pack("{s:I}", "step", (json_int_t)step);
    CheckpointOptions options = {.permanent = false};
    assert_int_equal(checkpoint_save(&state, record, RUN, step, &options, &report), OK);
    json_decref(record);
    harness_free(shards);
}

static int64_t found_at_most(int64_t at_most) {
    int64_t step;
    char dir[256], expected[256];
    assert_int_equal(checkpoint_find(RUN, at_most, &step, dir, sizeof dir), OK);
    snprintf(expected, sizeof expected, RUN "/ckpt/step-%09lld", (long long)step);
    if (step >= 0) assert_string_equal(dir, expected);
    return step;
}

static int start(void **state) {
    (void)state;
    return file_remove_tree(RUN) != OK || file_make_folders(RUN) != OK;
}

static int end(void **state) {
    (void)state;
    return file_remove_tree(RUN);
}

static void find(void **state) {
    (void)state;
    assert_int_equal(found_at_most(-1), -1);
    for (int64_t step = 10; step <= 30; step += 10) save(step);
    assert_int_equal(found_at_most(-1), 30);
    assert_int_equal(found_at_most(29), 20);
    assert_int_equal(found_at_most(9), -1);
    assert_int_equal(truncate(RUN "/ckpt/step-000000030/shard_00000_of_00001_part000.h5", 100), 0);
    assert_int_equal(found_at_most(-1), 20);
    assert_int_equal(rename(RUN "/ckpt/step-000000020", RUN "/ckpt/step-000000025"),
                     0); // not what it says it is
    assert_int_equal(found_at_most(-1), 10);
    assert_int_equal(mkdir(RUN "/ckpt/step-000000040", 0777), 0);
    assert_int_equal(mkdir(RUN "/ckpt/.tmp-step-000000050.1-2", 0777), 0);
    assert_int_equal(found_at_most(-1), 10);
}

static void abandon(void **state) {
    (void)state;
    for (int64_t step = 1; step <= 4; step++) save(step);
    assert_int_equal(file_make_folders(RUN "/ckpt/.tmp-step-000000005.1-2/x"), OK);
    assert_int_equal(file_make_folders(RUN "/ckpt/.trash-step-000000001.1"), OK);
    assert_int_equal(checkpoint_abandon_after(RUN, 2), OK);
    assert_int_equal(found_at_most(-1), 2);
    int exists;
    assert_int_equal(file_exists(RUN "/ckpt/.tmp-step-000000005.1-2", &exists), OK);
    assert_false(exists);
    assert_int_equal(file_exists(RUN "/ckpt/.trash-step-000000001.1", &exists), OK);
    assert_false(exists);
    save(3); // another future, abandoned within the same second
    assert_int_equal(checkpoint_abandon_after(RUN, 2), OK);
    assert_int_equal(checkpoint_abandon_after(RUN, 2), OK);
    assert_int_equal(found_at_most(-1), 2);
    assert_int_equal(system("test $(ls -d " RUN "/ckpt/abandoned-*/step-* | wc -l) = 3"), 0);
    assert_int_equal(system("test $(ls -d " RUN "/ckpt/abandoned-* | wc -l) = 2"), 0);
}

static void tools_need_whole_paths(void **state) {
    (void)state;
    char path[5000];
    memset(path, 'x', sizeof path - 1);
    path[sizeof path - 1] = 0;
    json_t *manifest;
    assert_int_equal(checkpoint_manifest(path, &manifest), ERR_DATA);
    assert_int_equal(checkpoint_manifest("absent", &manifest), ERR_DATA);
}

int main(int argc, char **argv) {
    comm_start(&argc, &argv);
    if (mesh_create_self(&mesh) != OK) return 1;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(find, start, end),
        cmocka_unit_test_setup_teardown(abandon, start, end),
        cmocka_unit_test_setup_teardown(tools_need_whole_paths, start, end),
    };
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    mesh_destroy(mesh);
    comm_finish();
    return failed;
}
