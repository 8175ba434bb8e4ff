// SPDX-License-Identifier: Apache-2.0
// Saves beside training steps on made-up tokens: how long training stands still, how fast the files are
// written and how much slower the steps beside them are; against the copy alone and plain writes alone.
#include "core/clock.h"
#include "core/crc32c.h"
#include "core/file.h"
#include "tools/bench.h"
#include "train/step.h"
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

// Seconds, the slowest rank's, of each repeat.
typedef enum { COPY_ALONE, STALL, WRITE, DURABLE, PLAIN_WRITE, STEP, STEP_BESIDE, TIME_COUNT } Time;
static const char *const time_name[TIME_COUNT] = {"copy_alone",  "stall", "write",      "durable",
                                                  "plain_write", "step",  "step_beside"};

typedef struct {
    TrainState state;
    CheckpointState part;
    CheckpointWriter *writer;
    Group *world;
    const char *folder;
    char *copy; // [bytes]
    size_t bytes;
    double *seconds[TIME_COUNT]; // [repeats]
    int64_t saved, step;         // bytes on disk
} Bench;

static double slowest(const Bench *b, double seconds) {
    group_max_f64(b->world, &seconds, 1);
    return seconds;
}

// What a save cannot do without: one copy of the state with its checksums.
static double copy_alone(Bench *b) {
    enum { PIECE = 1 << 17 };
    double begun = clock_seconds();
    char *to = b->copy;
    uint32_t crc = 0;
    for (int i = 0; i < b->part.owned_count; i++) {
        const ZeroSlice *s = &b->part.owned[i];
        const float *source[] = {s->master, s->m, s->v};
        for (int k = 0; k < 3; k++)
            for (size_t done = 0, all = (size_t)s->count * sizeof(float), some; done < all; done += some) {
                some = all - done < PIECE ? all - done : PIECE;
                memcpy(to, (const char *)source[k] + done, some);
                crc = crc32c(crc, to, some);
                to += some;
            }
    }
    *(volatile char *)b->copy ^= (char)(crc & 1); // used
    return slowest(b, clock_seconds() - begun);
}

// As `dd conv=fsync` does it, on every rank at once.
static Status plain_write(Bench *b, double *seconds) {
    char path[FILE_PATH_BYTES];
    snprintf(path, sizeof path, "%s/plain-%d", b->folder, group_rank(b->world));
    group_barrier(b->world);
    double begun = clock_seconds();
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    ssize_t n = 1;
    for (size_t done = 0; fd >= 0 && n > 0 && done < b->bytes; done += (size_t)n)
        n = write(fd, b->copy + done, b->bytes - done < 64 << 20 ? b->bytes - done : 64 << 20);
    int failed = fd < 0 || n <= 0 || fsync(fd) ? errno : 0;
    if (fd >= 0) close(fd);
    *seconds = slowest(b, clock_seconds() - begun);
    unlink(path);
    Status status = OK;
    if (failed) status = status_fail(ERR_RUNTIME, __FILE__, __LINE__, "%s: %s", path, strerror(failed));
    return group_agree(b->world, status);
}

static double step(Bench *b) {
    StepMetrics metrics = {0};
    step_on_batch(&b->state, b->state.config->batch.plan.sequences, &metrics);
    return metrics.step_s;
}

// Saves once, with training steps until it is there.
static Status save_beside(Bench *b, CheckpointReport *report, double *step_beside) {
    json_t *record = json_object();
    int steps = 0;
    *step_beside = 0;
    group_barrier(b->world);
    checkpoint_writer_begin(b->writer, &b->part, record, b->folder, ++b->step);
    json_decref(record);
    for (int64_t news[2];; steps++) {
        checkpoint_writer_news(b->writer, news);
        group_max_i64(b->world, news, 2);
        if (checkpoint_writer_advance(b->writer, news)) break;
        *step_beside += step(b);
    }
    *step_beside /= steps;
    return checkpoint_writer_finish(b->writer, report);
}

static Status repeat(Bench *b, int i) {
    enum { STEPS = 3 };
    CheckpointReport report;
    double time[TIME_COUNT] = {[COPY_ALONE] = copy_alone(b)};
    for (int k = 0; k < STEPS; k++) time[STEP] += step(b) / STEPS;
    TRY(save_beside(b, &report, &time[STEP_BESIDE]));
    time[STALL] = report.stall_seconds;
    time[WRITE] = report.write_seconds;
    time[DURABLE] = report.seconds;
    b->saved = report.bytes;
    TRY(plain_write(b, &time[PLAIN_WRITE]));
    for (int t = 0; i >= 0 && t < TIME_COUNT; t++) b->seconds[t][i] = time[t];
    return OK;
}

static void report(Bench *b, const BenchOptions *o) {
    int64_t raw = (int64_t)b->bytes;
    double median[TIME_COUNT];
    group_sum_i64(b->world, &raw, 1);
    for (int t = 0; t < TIME_COUNT; t++) median[t] = bench_median(b->seconds[t], o->repeats);
    if (group_rank(b->world) > 0) return;
    if (o->json) {
        printf("{\"ranks\": %d, \"state_bytes\": %lld, \"saved_bytes\": %lld", group_size(b->world),
               (long long)raw, (long long)b->saved);
        for (int t = 0; t < TIME_COUNT; t++)
            printf(", \"%s_s\": {\"median\": %.6g, \"min\": %.6g, \"max\": %.6g}", time_name[t], median[t],
                   b->seconds[t][0], b->seconds[t][o->repeats - 1]);
        printf("}\n");
        return;
    }
    printf("save bench: %d ranks, %.1f MB of state, %.1f MB saved, median of %d (min … max)\n",
           group_size(b->world), 1e-6 * (double)raw, 1e-6 * (double)b->saved, o->repeats);
    for (int t = 0; t < TIME_COUNT; t++)
        printf("%-12s %9.2f ms   (%.2f … %.2f)\n", time_name[t], 1e3 * median[t], 1e3 * b->seconds[t][0],
               1e3 * b->seconds[t][o->repeats - 1]);
    printf("stall        %9.2f     times the copy alone\n", median[STALL] / median[COPY_ALONE]);
    printf("written at   %9.2f GB/s, plain writes at %.2f\n", 1e-9 * (double)b->saved / median[WRITE],
           1e-9 * (double)raw / median[PLAIN_WRITE]);
}

static Status run(const RunConfig *config, Mesh *mesh, const BenchOptions *options) {
    Bench b = {.world = mesh_group(mesh, AXIS_WORLD), .folder = options->folder};
    CheckpointBuffer bias;
    CheckpointOptions how = {.zlib = strcmp(config->checkpoint.compress, "zlib") == 0};
    ModelRun model_run = train_model_run(config);
    TRY(state_create(&b.state, config, mesh, &model_run, false));
    zero_init_weights(b.state.zero, config->train.seed);
    b.part = state_checkpoint(&b.state, &bias);
    for (int i = 0; i < b.part.owned_count; i++) b.bytes += 12 * (size_t)b.part.owned[i].count;
    b.copy = malloc(b.bytes + 1);
    REQUIRE(b.copy, "out of memory: %zu bytes", b.bytes);
    memset(b.copy, 1, b.bytes);
    for (int t = 0; t < TIME_COUNT; t++) {
        b.seconds[t] = calloc((size_t)options->repeats, sizeof(double));
        REQUIRE(b.seconds[t], "out of memory: %d repeats", options->repeats);
    }
    b.writer = checkpoint_writer_create(&b.part, &how);
    Status status = OK;
    for (int i = -1; status == OK && i < options->repeats; i++) status = repeat(&b, i);
    if (status == OK) report(&b, options);
    checkpoint_writer_destroy(b.writer);
    for (int t = 0; t < TIME_COUNT; t++) free(b.seconds[t]);
    free(b.copy);
    state_destroy(&b.state);
    return status;
}

// The folder must be there: made and removed by rank 0.
static Status in_folder(const RunConfig *config, Mesh *mesh, const BenchOptions *options) {
    Group *world = mesh_group(mesh, AXIS_WORLD);
    bool root = group_rank(world) == 0;
    Status status = root ? file_make_folders(options->folder) : OK;
    TRY(group_agree(world, status));
    status = run(config, mesh, options);
    group_barrier(world);
    char saved[FILE_PATH_BYTES];
    snprintf(saved, sizeof saved, "%s/ckpt", options->folder);
    if (root && file_remove_tree(saved) == OK) rmdir(options->folder); // unless it holds other things
    return status;
}

Status bench_save(const RunConfig *config, const BenchOptions *options) {
    Mesh *mesh;
    TRY(mesh_create(&mesh, config->parallel.ep));
    Status status = in_folder(config, mesh, options);
    mesh_destroy(mesh);
    return status;
}
