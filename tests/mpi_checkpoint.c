// SPDX-License-Identifier: Apache-2.0
// ranks: 1 2 3 4
// Without arguments: every layout of this world loads what every other one saved; a failure on one rank is
// everybody's. save DIR STEP EP STAGE and load DIR STEP EP STAGE: one of them alone, for cli_ckpt_worlds.sh.
#include "checkpoint_harness.h"
#include "comm_check.h"
#include "core/file.h"
#include <signal.h>
#include <stdio.h>
#include <sys/resource.h>

static Layout layout_of(int ep, int stage) {
    return (Layout){.world = comm_world_size(), .ep = ep, .rank = comm_world_rank(), .stage = stage};
}

static Status save(Mesh *mesh, Layout l, const char *run, int64_t step, CheckpointOptions options) {
    ModelConfig config = harness_config();
    Shards *shards = harness_create(&config, l);
    CheckpointState state = harness_state(shards, l, mesh);
    CheckpointReport report;
    json_t *record = json_pack("{s:I}", "step", (json_int_t)step);
    harness_fill(shards, step);
    Status status = checkpoint_save(&state, record, run, step, &options, &report);
    if (status == OK) {
        CHECK(report.raw_bytes == 12 * model_size(&config, 1).total, "%ld bytes", (long)report.raw_bytes);
        CHECK(options.zlib ? report.bytes > 0 : report.bytes >= report.raw_bytes, "%ld bytes on disk",
              (long)report.bytes);
    }
    json_decref(record);
    harness_free(shards);
    return status;
}

static CheckpointRead load(Mesh *mesh, Layout l, const char *run, int64_t step, bool weights_only) {
    ModelConfig config = harness_config();
    Shards *shards = harness_create(&config, l);
    CheckpointState state = harness_state(shards, l, mesh);
    CheckpointRead read = {0};
    json_t *record = NULL;
    char dir[512];
    snprintf(dir, sizeof dir, "%s/ckpt/step-%09lld", run, (long long)step);
    Status status = checkpoint_load(&state, dir, weights_only, &record, &read);
    CHECK(status == OK, "%s", status_text());
    if (status == OK) {
        int64_t wrong = harness_wrong(shards, step, !weights_only);
        CHECK(wrong == 0, "%ld values of %s are wrong at ep %d, stage %d", (long)wrong, dir, l.ep, l.stage);
        CHECK(json_integer_value(json_object_get(record, "step")) == step, "record");
    }
    json_decref(record);
    harness_free(shards);
    return read;
}

// Ranks that share the state out read it once, but for segments that two of them need; those that hold all of
// it read all of it, each.
static void check_read(CheckpointRead read, Layout l, bool weights_only) {
    int64_t copies = l.stage ? 1 : l.world, states = weights_only ? 1 : 3;
    int64_t least = read.held / 2 * states / 3 * (l.stage ? 1 : l.world / l.ep);
    CHECK(read.read >= least && read.read <= 2 * copies * read.held,
          "%ld of %ld bytes read by %d ranks at ep %d, stage %d", (long)read.read, (long)read.held, l.world,
          l.ep, l.stage);
    CHECK(read.most * l.world >= read.read && read.most <= read.read, "%ld of %ld bytes read by one rank",
          (long)read.most, (long)read.read);
}

static Mesh *make_mesh(int ep) {
    Mesh *mesh;
    Status status = mesh_create(&mesh, ep);
    REQUIRE(status == OK, "%s", status_text());
    return mesh;
}

static void every_pair(const char *run) {
    int world = comm_world_size();
    for (int from = 1; from <= world; from++) {
        if (world % from || HARNESS_EXPERTS % from) continue;
        Mesh *mesh = make_mesh(from);
        CheckpointOptions options = {.zlib = from % 2 == 0, .part_bytes = from == 1 ? 20000 : 0};
        for (int stage = 0; stage < 3; stage++)
            CHECK(save(mesh, layout_of(from, stage), run, 10 * from + stage, options) == OK, "%s",
                  status_text());
        mesh_destroy(mesh);
        for (int to = 1; to <= world; to++) {
            if (world % to || HARNESS_EXPERTS % to) continue;
            mesh = make_mesh(to);
            for (int stage = 0; stage < 3; stage++)
                for (int saved = 0; saved < 3; saved++) {
                    bool weights_only = (stage + saved) % 3 == 0;
                    CheckpointRead read =
                        load(mesh, layout_of(to, stage), run, 10 * from + saved, weights_only);
                    if (from % 2) check_read(read, layout_of(to, stage), weights_only); // not compressed
                }
            mesh_destroy(mesh);
        }
    }
}

// The last rank's disk is full: all ranks say so, and only what was there before is left.
static void one_rank_fails(const char *run) {
    int world = comm_world_size();
    Mesh *mesh = make_mesh(1);
    Layout l = layout_of(1, 1);
    CHECK(save(mesh, l, run, 90, (CheckpointOptions){.zlib = false}) == OK, "%s", status_text());
    struct rlimit before, small;
    getrlimit(RLIMIT_FSIZE, &before);
    small = before;
    small.rlim_cur = 5000;
    signal(SIGXFSZ, SIG_IGN);
    if (l.rank == world - 1) setrlimit(RLIMIT_FSIZE, &small);
    Status status = save(mesh, l, run, 91, (CheckpointOptions){.zlib = false});
    setrlimit(RLIMIT_FSIZE, &before);
    CHECK(status == ERR_RUNTIME, "status %d", status);
    CHECK(strstr(status_text(), "step 91 was not written"), "%s", status_text());
    char command[600], dir[512];
    int64_t step;
    snprintf(command, sizeof command,
             "test -z \"$(ls -d %s/ckpt/.tmp-* %s/ckpt/step-000000091 2>/dev/null)\"", run, run);
    group_barrier(mesh_group(mesh, AXIS_WORLD));
    if (l.rank == 0) CHECK(system(command) == 0, "something is left in %s", run);
    CHECK(checkpoint_find(run, -1, &step, dir, sizeof dir) == OK && step == 90, "step %ld", (long)step);
    load(mesh, l, run, 90, false);
    mesh_destroy(mesh);
}

// A flipped bit in one file is everybody's failure.
static void one_file_is_damaged(const char *run) {
    Mesh *mesh = make_mesh(1);
    Layout l = layout_of(1, 1);
    ModelConfig config = harness_config();
    char path[512];
    snprintf(path, sizeof path, "%s/ckpt/step-000000090/shard_%05d_of_%05d_part000.h5", run, l.world - 1,
             l.world);
    if (l.rank == 0) {
        FILE *file = fopen(path, "r+b");
        fseek(file, 20000, SEEK_SET);
        int byte = fgetc(file);
        fseek(file, 20000, SEEK_SET);
        fputc(byte ^ 4, file);
        fclose(file);
    }
    group_barrier(mesh_group(mesh, AXIS_WORLD));
    Shards *shards = harness_create(&config, l);
    CheckpointState state = harness_state(shards, l, mesh);
    json_t *record;
    snprintf(path, sizeof path, "%s/ckpt/step-000000090", run);
    CHECK(checkpoint_load(&state, path, false, &record, NULL) == ERR_DATA, "loaded");
    CHECK(strstr(status_text(), "damaged"), "%s", status_text());
    harness_free(shards);
    mesh_destroy(mesh);
}

static void save_alone(char **argv) {
    int ep = atoi(argv[3]), stage = atoi(argv[4]);
    Mesh *mesh = make_mesh(ep);
    CheckpointOptions options = {.zlib = stage == 2};
    CHECK(save(mesh, layout_of(ep, stage), argv[5], atoll(argv[2]), options) == OK, "%s", status_text());
    mesh_destroy(mesh);
}

// With experts everywhere, and with experts spread over all ranks.
static void load_alone(int64_t step, char **runs) {
    int world = comm_world_size();
    for (int ep = 1; ep <= world; ep += world > 1 ? world - 1 : 1) {
        Mesh *mesh = make_mesh(ep);
        for (int i = 0; runs[i]; i++) load(mesh, layout_of(ep, (ep + i) % 3), runs[i], step, false);
        mesh_destroy(mesh);
    }
}

int main(int argc, char **argv) {
    comm_start(&argc, &argv);
    if (argc == 6 && !strcmp(argv[1], "save"))
        save_alone(argv);
    else if (argc > 3)
        load_alone(atoll(argv[2]), argv + 3);
    else {
        char run[64];
        snprintf(run, sizeof run, "mpi_checkpoint_%d.tmp", comm_world_size());
        Mesh *mesh = make_mesh(1);
        if (comm_world_rank() == 0)
            CHECK(file_remove_tree(run) == OK && file_make_folders(run) == OK, "%s", run);
        group_barrier(mesh_group(mesh, AXIS_WORLD));
        every_pair(run);
        one_rank_fails(run);
        one_file_is_damaged(run);
        group_barrier(mesh_group(mesh, AXIS_WORLD));
        if (comm_world_rank() == 0) CHECK(file_remove_tree(run) == OK, "%s", run);
        mesh_destroy(mesh);
    }
    comm_finish();
    return failures != 0;
}
