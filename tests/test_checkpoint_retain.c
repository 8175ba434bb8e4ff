// SPDX-License-Identifier: Apache-2.0
// Which checkpoints stay, what marks say, and what becomes of damaged ones.
#include "checkpoint_harness.h"
#include "core/file.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#define RUN "test_checkpoint_retain.tmp"
static Mesh *mesh;
static CheckpointReport report;

static const char *dir_of(int64_t step) {
    static char dir[256];
    snprintf(dir, sizeof dir, RUN "/ckpt/step-%09lld", (long long)step);
    return dir;
}

static void save_state(int64_t step, int64_t state_of, bool permanent, bool verified) {
    const Layout alone = {.world = 1, .ep = 1, .rank = 0, .stage = 1};
    ModelConfig config = harness_config();
    config.layers = 1;
    Shards *shards = harness_create(&config, alone);
    harness_fill(shards, state_of);
    CheckpointState state = harness_state(shards, alone, mesh);
    json_t *record = json_pack("{s:I}", "step", (json_int_t)step);
    CheckpointOptions options = {.permanent = permanent};
    assert_int_equal(checkpoint_save(&state, record, RUN, step, &options, &report), OK);
    if (verified) assert_int_equal(checkpoint_set_mark(dir_of(step), MARK_VERIFIED), OK);
    json_decref(record);
    harness_free(shards);
}

static void save(int64_t step) {
    save_state(step, step, false, true);
}

static void retain(int64_t keep, int64_t keep_every) {
    int64_t removed;
    assert_int_equal(
        checkpoint_retain(RUN, &(CheckpointRules){.keep = keep, .keep_every = keep_every}, &removed), OK);
}

// "1 3 7": the steps that are there.
static void assert_there(const char *expected) {
    char found[256] = "";
    for (int64_t step = 1; step < 100; step++) {
        struct stat info;
        size_t length = strlen(found);
        if (stat(dir_of(step), &info) == 0)
            snprintf(found + length, sizeof found - length, "%s%lld", length ? " " : "", (long long)step);
    }
    assert_string_equal(found, expected);
}

static void damage(int64_t step, const char *file, long at) {
    char path[512];
    snprintf(path, sizeof path, "%s/%s", dir_of(step), file);
    FILE *out = fopen(path, "r+b");
    assert_non_null(out);
    fseek(out, at, SEEK_SET);
    int byte = fgetc(out);
    fseek(out, at, SEEK_SET);
    fputc(byte ^ 8, out);
    fclose(out);
}

#define SHARD "shard_00000_of_00001_part000.h5"

static int start(void **state) {
    (void)state;
    return file_remove_tree(RUN) != OK || file_make_folders(RUN) != OK;
}

static int end(void **state) {
    (void)state;
    return file_remove_tree(RUN);
}

static void newest_and_permanent_stay(void **state) {
    (void)state;
    for (int64_t step = 1; step <= 8; step++) {
        save_state(step, step, step == 3, true);
        retain(2, 0);
    }
    assert_there("3 7 8");
    retain(0, 0); // 0 keeps all
    assert_there("3 7 8");
}

static void multiples_stay(void **state) {
    (void)state;
    for (int64_t step = 1; step <= 12; step++) {
        save(step);
        retain(2, 5);
    }
    assert_there("5 10 11 12");
}

static void pinned_stay(void **state) {
    (void)state;
    for (int64_t step = 1; step <= 4; step++) save(step);
    assert_int_equal(checkpoint_set_mark(dir_of(2), MARK_PINNED), OK);
    assert_true(checkpoint_has_mark(dir_of(2), MARK_PINNED));
    assert_false(checkpoint_has_mark(dir_of(1), MARK_PINNED));
    retain(1, 0);
    assert_there("2 4");
    assert_int_equal(checkpoint_verify(dir_of(2), false), OK); // nothing was added to the folder
    assert_int_equal(checkpoint_remove_mark(dir_of(2), MARK_PINNED), OK);
    retain(1, 0);
    assert_there("4");
}

// Verified ones go only when as many newer ones have been verified as are to stay.
static void unverified_ones_displace_nothing(void **state) {
    (void)state;
    save(1);
    save(2);
    for (int64_t step = 3; step <= 6; step++) save_state(step, step, false, false);
    retain(2, 0);
    assert_there("1 2 3 4 5 6");
    assert_int_equal(checkpoint_set_mark(dir_of(5), MARK_VERIFIED), OK);
    retain(2, 0); // 5 and 2 are the two newest verified ones
    assert_there("2 3 4 5 6");
    assert_int_equal(checkpoint_set_mark(dir_of(6), MARK_VERIFIED), OK);
    retain(2, 0);
    assert_there("5 6");
}

// A damaged one does not count, so a whole one is never removed in its favour.
static void damaged_ones_do_not_count(void **state) {
    (void)state;
    for (int64_t step = 1; step <= 3; step++) save(step);
    damage(2, "MANIFEST.json", 40);
    retain(2, 0);
    assert_there("1 2 3");
    assert_int_equal(truncate(RUN "/ckpt/step-000000003/" SHARD, 100), 0);
    retain(1, 0);
    assert_there("1 2 3");
}

// A mark is of a content: another checkpoint of the same step has none.
static void marks_hold_for_one_content(void **state) {
    (void)state;
    save(1);
    assert_int_equal(checkpoint_set_mark(dir_of(1), MARK_PINNED), OK);
    assert_true(checkpoint_has_mark(dir_of(1), MARK_VERIFIED));
    save_state(1, 77, false, false);
    assert_false(checkpoint_has_mark(dir_of(1), MARK_VERIFIED));
    assert_false(checkpoint_has_mark(dir_of(1), MARK_PINNED));
    damage(1, "MANIFEST.json", 40);
    assert_int_equal(checkpoint_set_mark(dir_of(1), MARK_PINNED), ERR_DATA);
    assert_int_equal(checkpoint_set_mark(RUN "/ckpt/step-000000009", MARK_PINNED), ERR_DATA);
}

static void damage_is_named_and_moved(void **state) {
    (void)state;
    json_t *entry;
    save(1);
    save(2);
    assert_int_equal(checkpoint_quarantine(RUN, 2, &entry), OK);
    assert_null(entry);
    damage(2, SHARD, 12345);
    assert_int_equal(checkpoint_quarantine(RUN, 2, &entry), OK);
    assert_there("1");
    assert_int_equal(json_integer_value(json_object_get(entry, "damaged_step")), 2);
    assert_string_equal(json_string_value(json_object_get(entry, "moved_to")),
                        RUN "/ckpt/damaged-step-000000002");
    const char *message = json_string_value(json_object_get(entry, "message"));
    assert_non_null(strstr(message, "step-000000002/" SHARD
                                    ": damaged: master of embed, elements 0 to 1464, at byte 12288; "));
    json_decref(entry);
    save(2); // again, and damaged again
    damage(2, SHARD, 9000);
    assert_int_equal(checkpoint_quarantine(RUN, 2, &entry), OK);
    assert_string_equal(json_string_value(json_object_get(entry, "moved_to")),
                        RUN "/ckpt/damaged-step-000000002-1");
    json_decref(entry);
    retain(1, 0);
    assert_there("1");
    assert_int_equal(access(RUN "/ckpt/damaged-step-000000002/" SHARD, F_OK), 0);
}

static void find_moves_what_it_passes_over(void **state) {
    (void)state;
    int64_t step;
    char dir[256];
    json_t *quarantined = json_array();
    for (int64_t i = 1; i <= 3; i++) save(i);
    damage(3, "MANIFEST.json", 40);
    assert_int_equal(truncate(RUN "/ckpt/step-000000002/" SHARD, 100), 0);
    assert_int_equal(checkpoint_find(RUN, -1, &step, dir, sizeof dir), OK);
    assert_int_equal(step, 1);
    assert_there("1 2 3"); // who only looks moves nothing
    assert_int_equal(checkpoint_find_newest(RUN, -1, quarantined, &step, dir, sizeof dir), OK);
    assert_int_equal(step, 1);
    assert_there("1");
    assert_int_equal(json_array_size(quarantined), 2);
    json_decref(quarantined);
}

static void digests_tell_states(void **state) {
    (void)state;
    char first[CHECKPOINT_DIGEST_BYTES], read[CHECKPOINT_DIGEST_BYTES];
    json_t *manifest;
    save(1);
    memcpy(first, report.digest, sizeof first);
    save_state(2, 1, false, true);
    assert_string_equal(report.digest, first);
    save(3);
    assert_string_not_equal(report.digest, first);
    assert_int_equal(checkpoint_manifest(dir_of(1), &manifest), OK);
    checkpoint_digest(json_object_get(manifest, "digest"), read);
    assert_string_equal(read, first);
    json_decref(manifest);
}

int main(int argc, char **argv) {
    comm_start(&argc, &argv);
    if (mesh_create_self(&mesh) != OK) return 1;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(newest_and_permanent_stay, start, end),
        cmocka_unit_test_setup_teardown(multiples_stay, start, end),
        cmocka_unit_test_setup_teardown(pinned_stay, start, end),
        cmocka_unit_test_setup_teardown(unverified_ones_displace_nothing, start, end),
        cmocka_unit_test_setup_teardown(damaged_ones_do_not_count, start, end),
        cmocka_unit_test_setup_teardown(marks_hold_for_one_content, start, end),
        cmocka_unit_test_setup_teardown(damage_is_named_and_moved, start, end),
        cmocka_unit_test_setup_teardown(find_moves_what_it_passes_over, start, end),
        cmocka_unit_test_setup_teardown(digests_tell_states, start, end),
    };
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    mesh_destroy(mesh);
    comm_finish();
    return failed;
}
