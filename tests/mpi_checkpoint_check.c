// SPDX-License-Identifier: Apache-2.0
// ranks: 1 2 4
// The check behind a save: every rank reads its share; one rank's finding is everybody's; what is damaged is
// moved and what was there before stays.
#include "checkpoint_harness.h"
#include "comm_check.h"
#include "core/file.h"
#include "train/keeper.h"
#include <stdio.h>
#include <unistd.h>

typedef struct {
    const char *run;
    Mesh *mesh;
    Group *world;
    bool zlib;
    Metrics metrics;
    Keeper keeper;
} Case;

static bool is_root(const Case *c) {
    return group_rank(c->world) == 0;
}

static void step_dir(const Case *c, int64_t step, char dir[512]) {
    snprintf(dir, 512, "%s/ckpt/step-%09lld", c->run, (long long)step);
}

static bool is_there(const Case *c, int64_t step) {
    char dir[512];
    step_dir(c, step, dir);
    group_barrier(c->world);
    bool there = access(dir, F_OK) == 0;
    group_barrier(c->world);
    return there;
}

// Several files a rank.
static CheckpointReport save(const Case *c, int64_t step, int64_t state_of) {
    ModelConfig config = harness_config();
    Layout l = {.world = comm_world_size(), .ep = 1, .rank = comm_world_rank(), .stage = 1};
    Shards *shards = harness_create(&config, l);
    harness_fill(shards, state_of);
    CheckpointState state = harness_state(shards, l, c->mesh);
    CheckpointOptions options = {.part_bytes = 20000, .zlib = c->zlib};
    CheckpointReport report;
    json_t *record = json_pack("{s:I}", "step", (json_int_t)step);
    Status status = checkpoint_save(&state, record, c->run, step, &options, &report);
    CHECK(status == OK, "%s", status_text());
    json_decref(record);
    harness_free(shards);
    return report;
}

// Rank 0 flips a bit of the last rank's second file.
static void damage(const Case *c, int64_t step) {
    char dir[512], path[600];
    step_dir(c, step, dir);
    int ranks = group_size(c->world);
    snprintf(path, sizeof path, "%s/shard_%05d_of_%05d_part001.h5", dir, ranks - 1, ranks);
    if (is_root(c)) {
        FILE *file = fopen(path, "r+b");
        CHECK(file, "%s", path);
        fseek(file, -2000, SEEK_END);
        int byte = fgetc(file);
        fseek(file, -2000, SEEK_END);
        fputc(byte ^ 1, file);
        fclose(file);
    }
    group_barrier(c->world);
}

static int count_events(const Case *c, const char *text) {
    char path[512], line[4096];
    int count = 0;
    snprintf(path, sizeof path, "%s/metrics.jsonl", c->run);
    FILE *file = is_root(c) ? fopen(path, "r") : NULL;
    while (file && fgets(line, sizeof line, file)) count += strstr(line, text) != NULL;
    if (file) fclose(file);
    return count;
}

static void case_open(Case *c, const char *run, bool zlib) {
    *c = (Case){.run = run, .zlib = zlib, .metrics = {.fd = -1}};
    REQUIRE(mesh_create(&c->mesh, 1) == OK, "%s", status_text());
    c->world = mesh_group(c->mesh, AXIS_WORLD);
    if (is_root(c))
        REQUIRE(file_remove_tree(run) == OK && file_make_folders(run) == OK &&
                    metrics_open(&c->metrics, run, 0, NULL) == OK,
                "%s", status_text());
    group_barrier(c->world);
    CheckpointRules rules = {.keep = 2};
    keeper_start(&c->keeper, c->world, run, &rules, &c->metrics, 0, false);
}

static void case_close(Case *c) {
    keeper_end(&c->keeper);
    metrics_close(&c->metrics);
    mesh_destroy(c->mesh);
}

static void newest_stay(Case *c) {
    for (int64_t step = 1; step <= 3; step++) {
        CheckpointReport report = save(c, step, step);
        CHECK(is_there(c, 1), "nothing goes before the check");
        keeper_committed(&c->keeper, &report);
        CHECK(keeper_checking(&c->keeper), "no check");
        CHECK(keeper_settle(&c->keeper, false), "step %ld is lost", (long)step);
        char all[64]; // every file was read, by one rank
        snprintf(all, sizeof all, "\"bytes\":%lld}", (long long)report.bytes);
        CHECK(!is_root(c) || count_events(c, all) >= 1, "not %s", all);
        CHECK(!keeper_checking(&c->keeper), "still a check");
    }
    CHECK(!is_there(c, 1) && is_there(c, 2) && is_there(c, 3), "keep");
    CHECK(count_events(c, "\"event\":\"verified\"") == (is_root(c) ? 3 : 0), "events");
    CHECK(keeper_durable(&c->keeper) == 3, "durable %ld", (long)keeper_durable(&c->keeper));
}

static void damaged_one_is_moved(Case *c) {
    CheckpointReport report = save(c, 4, 4);
    damage(c, 4);
    keeper_committed(&c->keeper, &report);
    CHECK(!keeper_settle(&c->keeper, false), "the damage was not found");
    CHECK(is_there(c, 2) && is_there(c, 3) && !is_there(c, 4), "what was there before");
    CHECK(keeper_durable(&c->keeper) == 3 && c->keeper.step == 3, "durable %ld",
          (long)keeper_durable(&c->keeper));
    CHECK(c->keeper.failures == 1 && c->keeper.failures_in_row == 1, "failures");
    char path[512];
    snprintf(path, sizeof path, "%s/ckpt/damaged-step-000000004/MANIFEST.json", c->run);
    CHECK(access(path, F_OK) == 0, "%s", path);
    if (is_root(c)) {
        CHECK(count_events(c, "\"event\":\"quarantine\"") == 1, "events");
        CHECK(count_events(c, "\"damaged_step\":4") == 1, "events");
        CHECK(c->zlib || count_events(c, ", at byte ") == 1, "the place is not named");
    }
    report = save(c, 5, 5);
    keeper_committed(&c->keeper, &report);
    CHECK(keeper_settle(&c->keeper, false), "step 5");
    CHECK(!is_there(c, 2) && is_there(c, 3) && is_there(c, 5), "keep");
    CHECK(c->keeper.failures == 1 && c->keeper.failures_in_row == 0, "failures");
}

// A check that was cut off verifies nothing, unless all ranks had finished.
static void cut_off(Case *c) {
    CheckpointReport report = save(c, 6, 6);
    CheckpointChecked checked;
    char dir[512];
    step_dir(c, 6, dir);
    checkpoint_check_begin(c->keeper.check, dir);
    checkpoint_check_cancel(c->keeper.check);
    CHECK(checkpoint_check_finish(c->keeper.check, &checked) == OK, "%s", status_text());
    CHECK(checked.complete == (checked.bytes == report.bytes), "%ld of %ld bytes", (long)checked.bytes,
          (long)report.bytes);
    keeper_committed(&c->keeper, &report);
    CHECK(keeper_settle(&c->keeper, true), "step 6");
    bool third = is_there(c, 3), newest = is_there(c, 5) && is_there(c, 6); // rank 0 is done
    CHECK(third == !checkpoint_has_mark(dir, MARK_VERIFIED) && newest, "keep");
}

// What a stop left unverified is verified by who goes on from it.
static void checked_later(Case *c) {
    char dir[512];
    step_dir(c, 6, dir);
    if (is_root(c)) CHECK(checkpoint_remove_mark(dir, MARK_VERIFIED) == OK, "%s", status_text());
    keeper_end(&c->keeper);
    CheckpointRules rules = {.keep = 1};
    keeper_start(&c->keeper, c->world, c->run, &rules, &c->metrics, 6, true);
    CHECK(keeper_checking(&c->keeper), "no check");
    CHECK(keeper_settle(&c->keeper, false), "step 6");
    CHECK(!is_there(c, 5) && is_there(c, 6), "keep");
    CHECK(checkpoint_has_mark(dir, MARK_VERIFIED), "not verified");
    keeper_end(&c->keeper);
    rules.keep = 2;
    keeper_start(&c->keeper, c->world, c->run, &rules, &c->metrics, 6, true);
    CHECK(!keeper_checking(&c->keeper), "checked again");
}

static void same_state_again(Case *c) {
    CheckpointReport report = save(c, 7, 7);
    keeper_committed(&c->keeper, &report);
    keeper_settle(&c->keeper, false);
    report = save(c, 8, 7);
    keeper_committed(&c->keeper, &report);
    keeper_settle(&c->keeper, false);
    CHECK(count_events(c, "\"event\":\"stale_save\"") == is_root(c), "events");
    // A resume compares with what it began from.
    keeper_end(&c->keeper);
    CheckpointRules rules = {.keep = 2};
    keeper_start(&c->keeper, c->world, c->run, &rules, &c->metrics, 8, true);
    report = save(c, 9, 7);
    keeper_committed(&c->keeper, &report);
    keeper_settle(&c->keeper, false);
    CHECK(count_events(c, "\"same_as\":8") == is_root(c), "events");
}

static void run_case(const char *run, bool zlib) {
    Case c;
    case_open(&c, run, zlib);
    newest_stay(&c);
    damaged_one_is_moved(&c);
    cut_off(&c);
    checked_later(&c);
    same_state_again(&c);
    group_barrier(c.world);
    case_close(&c);
}

int main(int argc, char **argv) {
    comm_start(&argc, &argv);
    char run[64];
    snprintf(run, sizeof run, "mpi_checkpoint_check_%d.tmp", comm_world_size());
    run_case(run, false);
    run_case(run, true);
    if (comm_world_rank() == 0) CHECK(file_remove_tree(run) == OK, "%s", status_text());
    comm_finish();
    return failures != 0;
}
