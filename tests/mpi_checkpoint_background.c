// SPDX-License-Identifier: Apache-2.0
// ranks: 1 2 4
// Saves beside the training: what is saved is the state at the begin, whatever happens to it later; one
// rank's failure is everybody's and leaves nothing.
#include "checkpoint_harness.h"
#include "comm_check.h"
#include "core/file.h"
#include <signal.h>
#include <stdio.h>
#include <sys/resource.h>

typedef struct {
    const char *run;
    Mesh *mesh;
    Layout layout;
    Shards *shards;
    CheckpointState state;
    json_t *record;
} Case;

static Group *world(const Case *c) {
    return mesh_group(c->mesh, AXIS_WORLD);
}

static void case_open(Case *c, const char *run, int ep, int stage) {
    ModelConfig config = harness_config();
    REQUIRE(mesh_create(&c->mesh, ep) == OK, "%s", status_text());
    c->run = run;
    c->layout = (Layout){.world = comm_world_size(), .ep = ep, .rank = comm_world_rank(), .stage = stage};
    c->shards = harness_create(&config, c->layout);
    c->state = harness_state(c->shards, c->layout, c->mesh);
    c->record = json_pack("{s:s}", "what", "test");
}

static void case_close(Case *c) {
    json_decref(c->record);
    harness_free(c->shards);
    mesh_destroy(c->mesh);
}

static void step_dir(const Case *c, int64_t step, char dir[512]) {
    snprintf(dir, 512, "%s/ckpt/step-%09lld", c->run, (long long)step);
}

// Changes the state step by step, as training does, until the save is ready on all ranks.
static int mutate_until_ready(Case *c, CheckpointWriter *writer, int64_t step) {
    for (int steps = 1;; steps++) {
        int64_t news[2];
        harness_fill(c->shards, step + 100 + steps);
        checkpoint_writer_news(writer, news);
        group_max_i64(world(c), news, 2);
        if (checkpoint_writer_advance(writer, news)) return steps;
    }
}

static void save_beside(Case *c, CheckpointWriter *writer, int64_t step, bool poll) {
    CheckpointReport report;
    harness_fill(c->shards, step);
    checkpoint_writer_begin(writer, &c->state, c->record, c->run, step);
    CHECK(checkpoint_writer_busy(writer), "idle");
    if (poll)
        mutate_until_ready(c, writer, step);
    else
        harness_fill(c->shards, step + 1);
    CHECK(checkpoint_writer_finish(writer, &report) == OK, "%s", status_text());
    CHECK(!checkpoint_writer_busy(writer), "busy");
    ModelConfig config = harness_config();
    CHECK(report.step == step, "step %ld", (long)report.step);
    CHECK(report.raw_bytes == 12 * model_size(&config, 1).total, "%ld bytes", (long)report.raw_bytes);
    // Not compared with write_seconds: that is the slowest rank's, and rank 0 may have begun last.
    CHECK(report.stall_seconds >= report.copy_seconds && report.seconds > 0, "%g of %g s",
          report.stall_seconds, report.seconds);
}

static void load(Case *c, int64_t step) {
    char dir[512];
    json_t *record;
    step_dir(c, step, dir);
    harness_fill(c->shards, 7777);
    Status status = checkpoint_load(&c->state, dir, false, &record, NULL);
    CHECK(status == OK, "%s", status_text());
    if (status != OK) return;
    CHECK(json_equal(record, c->record), "record");
    CHECK(harness_wrong(c->shards, step, true) == 0, "step %ld has values of another one", (long)step);
    json_decref(record);
}

static json_t *manifest_of(const char *dir) {
    json_t *manifest = NULL;
    CHECK(checkpoint_verify(dir, false) == OK && checkpoint_manifest(dir, &manifest) == OK, "%s",
          status_text());
    return manifest;
}

// Two saves of equal state, one of each kind, have the same digests and cover the same ranges.
static void compare(Case *c, int64_t step, CheckpointOptions options) {
    CheckpointReport report;
    char dir[512];
    json_t *beside = NULL;
    step_dir(c, step, dir);
    if (c->layout.rank == 0) beside = manifest_of(dir);
    group_barrier(world(c));
    harness_fill(c->shards, step);
    Status status = checkpoint_save(&c->state, c->record, c->run, step, &options, &report);
    CHECK(status == OK, "%s", status_text());
    if (c->layout.rank != 0) return;
    json_t *waited = manifest_of(dir);
    const char *const same[] = {"digest", "tensors", "step", "states", "permanent", "record"};
    for (int i = 0; i < 6; i++)
        CHECK(json_object_get(waited, same[i]) &&
                  json_equal(json_object_get(beside, same[i]), json_object_get(waited, same[i])),
              "step %ld: %s differs", (long)step, same[i]);
    CHECK(json_array_size(json_object_get(beside, "files")) ==
              json_array_size(json_object_get(waited, "files")),
          "step %ld: files", (long)step);
    json_decref(beside);
    json_decref(waited);
}

static void mutation_changes_nothing(const char *run, int ep, int stage, CheckpointOptions options) {
    Case c;
    case_open(&c, run, ep, stage);
    CHECK(checkpoint_staging_bytes(&c.state, &options) > 0, "no staging");
    CheckpointWriter *writer = checkpoint_writer_create(&c.state, &options);
    for (int64_t step = 10; step < 14; step++) {
        save_beside(&c, writer, step, step % 2);
        load(&c, step);
    }
    compare(&c, 13, options);
    checkpoint_writer_destroy(writer);
    case_close(&c);
}

// The last rank's disk is full: all ranks say so, nothing is left, and the next save succeeds.
static void one_writer_fails(const char *run) {
    Case c;
    case_open(&c, run, 1, 1);
    CheckpointOptions options = {.part_bytes = 20000};
    CheckpointWriter *writer = checkpoint_writer_create(&c.state, &options);
    CheckpointReport report;
    struct rlimit before, small;
    getrlimit(RLIMIT_FSIZE, &before);
    small = before;
    small.rlim_cur = 5000;
    signal(SIGXFSZ, SIG_IGN);
    CHECK(checkpoint_save(&c.state, c.record, run, 90, &options, &report) == OK, "%s", status_text());
    if (c.layout.rank == c.layout.world - 1) setrlimit(RLIMIT_FSIZE, &small);
    checkpoint_writer_begin(writer, &c.state, c.record, run, 91);
    mutate_until_ready(&c, writer, 91);
    Status status = checkpoint_writer_finish(writer, &report);
    setrlimit(RLIMIT_FSIZE, &before);
    CHECK(status == ERR_RUNTIME, "status %d", status);
    CHECK(strstr(status_text(), "step 91 was not written") && strstr(status_text(), "File too large"), "%s",
          status_text());
    char command[600], dir[512];
    int64_t step;
    snprintf(command, sizeof command,
             "test -z \"$(ls -d %s/ckpt/.tmp-* %s/ckpt/step-000000091 2>/dev/null)\"", run, run);
    if (c.layout.rank == 0) CHECK(system(command) == 0, "something is left in %s", run);
    CHECK(checkpoint_find(run, -1, &step, dir, sizeof dir) == OK && step == 90, "step %ld", (long)step);
    // What could not be removed then goes with the next save.
    char left[600];
    int exists;
    snprintf(left, sizeof left, "%s/ckpt/.tmp-step-000000091.1", run);
    if (c.layout.rank == 0) CHECK(file_make_folders(left) == OK, "%s", status_text());
    group_barrier(world(&c));
    save_beside(&c, writer, 92, true);
    load(&c, 92);
    CHECK(file_exists(left, &exists) == OK && !exists, "%s is there", left);
    checkpoint_writer_destroy(writer);
    case_close(&c);
}

// A folder that cannot be made: told by all ranks, and nothing is in flight.
static void no_folder(const char *run) {
    Case c;
    char file[256];
    case_open(&c, run, 1, 0);
    CheckpointOptions options = {.part_bytes = 0};
    CheckpointWriter *writer = checkpoint_writer_create(&c.state, &options);
    snprintf(file, sizeof file, "%s/ckpt/step-000000092/MANIFEST.json", run);
    CheckpointReport report;
    checkpoint_writer_begin(writer, &c.state, c.record, file, 93);
    CHECK(checkpoint_writer_finish(writer, &report) == ERR_RUNTIME, "a folder below a file");
    CHECK(strstr(status_text(), "step 93 was not written"), "%s", status_text());
    CHECK(!checkpoint_writer_busy(writer), "busy");
    checkpoint_writer_destroy(writer);
    case_close(&c);
}

static void memory_is_bounded(const char *run) {
    Case c;
    case_open(&c, run, 1, 1);
    CheckpointOptions options = {.host_bytes = 1 << 30};
    int64_t most = checkpoint_staging_bytes(&c.state, &options), own = most;
    group_max_i64(world(&c), &most, 1);
    CHECK(own > 0 && own < options.host_bytes, "%ld bytes", (long)own);
    // A copy of all and the image of one small file fit in less; less than a copy does not.
    options.host_bytes = most * 3 / 4;
    CHECK(checkpoint_staging_bytes(&c.state, &options) > 0 || options.host_bytes / 2 * 3 > most, "refused");
    options.host_bytes = most / 2;
    CHECK(checkpoint_staging_bytes(&c.state, &options) == 0, "%ld bytes fit %ld", (long)most,
          (long)options.host_bytes);
    CheckpointReport report;
    harness_fill(c.shards, 95);
    options.host_bytes = 40000; // streamed in pieces of 20,000 bytes
    CHECK(checkpoint_save(&c.state, c.record, run, 95, &options, &report) == OK, "%s", status_text());
    load(&c, 95);
    case_close(&c);
}

int main(int argc, char **argv) {
    comm_start(&argc, &argv);
    char run[64];
    int ranks = comm_world_size();
    Mesh *mesh;
    snprintf(run, sizeof run, "mpi_checkpoint_background_%d.tmp", ranks);
    REQUIRE(mesh_create(&mesh, 1) == OK, "%s", status_text());
    if (comm_world_rank() == 0) CHECK(file_remove_tree(run) == OK && file_make_folders(run) == OK, "%s", run);
    group_barrier(mesh_group(mesh, AXIS_WORLD));
    for (int stage = 0; stage < 3; stage++)
        mutation_changes_nothing(run, stage == 1 ? ranks : 1, stage,
                                 (CheckpointOptions){.zlib = stage == 2, .part_bytes = stage ? 20000 : 0});
    one_writer_fails(run);
    no_folder(run);
    memory_is_bounded(run);
    group_barrier(mesh_group(mesh, AXIS_WORLD));
    if (comm_world_rank() == 0) CHECK(file_remove_tree(run) == OK, "%s", run);
    mesh_destroy(mesh);
    comm_finish();
    return failures != 0;
}
