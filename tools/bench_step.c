// SPDX-License-Identifier: Apache-2.0
// Training steps on made-up tokens: tokens per second, and where the time goes.
#include "core/clock.h"
#include "core/rng.h"
#include "tools/bench.h"
#include "tools/bench_kernels.h"
#include "train/step.h"
#include <stdlib.h>
#include <string.h>

typedef struct {
    double step; // median of the slowest rank's, seconds
    double low, high;
    double kind[KIND_COUNT];      // means over steps and ranks, seconds a step
    double exposed, reduce, rest; // waiting for exchanges; gradient reduction and weight gather; all else
    double flops;                 // of matrix products, a step and rank
} Split;

static void fill_tokens(TrainState *s, int64_t rows, int step) {
    const RunConfig *c = s->config;
    uint64_t stream = hash_mix((uint64_t)comm_world_rank(), (uint64_t)step);
    for (int64_t i = 0; i < rows * (c->batch.seq_len + 1); i++)
        s->batch_tokens[i] = (int32_t)(rng_u64(1, stream, (uint64_t)i) % (uint64_t)c->model.vocab);
}

static Split measure(TrainState *s, int warmup, int repeats) {
    Group *world = mesh_group(s->mesh, AXIS_WORLD);
    int64_t sequences = s->config->batch.plan.sequences;
    Split split = {0};
    double *seconds = calloc((size_t)repeats, sizeof *seconds), means[KIND_COUNT + 4] = {0};
    REQUIRE(seconds, "out of memory: %d repeats", repeats);
    for (int i = -warmup; i < repeats; i++) {
        StepMetrics metrics = {0};
        fill_tokens(s, sequences / group_size(world), i);
        timed_kernels_reset();
        step_on_batch(s, sequences, &metrics);
        if (i < 0) continue;
        KernelTimes times = timed_kernels_take();
        seconds[i] = metrics.step_s;
        for (int k = 0; k < KIND_COUNT; k++) means[k] += times.seconds[k] / repeats;
        means[KIND_COUNT] += metrics.exposed_s / repeats;
        means[KIND_COUNT + 1] += metrics.reduce_s / repeats;
        means[KIND_COUNT + 2] += times.gemm_flops / repeats;
        means[KIND_COUNT + 3] += metrics.step_s / repeats;
    }
    group_sum_f64(world, means, KIND_COUNT + 4);
    split.rest = means[KIND_COUNT + 3] / group_size(world);
    for (int k = 0; k < KIND_COUNT; k++) split.rest -= split.kind[k] = means[k] / group_size(world);
    split.rest -= split.exposed = means[KIND_COUNT] / group_size(world);
    split.rest -= split.reduce = means[KIND_COUNT + 1] / group_size(world);
    split.flops = means[KIND_COUNT + 2] / group_size(world);
    split.step = bench_median(seconds, repeats);
    split.low = seconds[0];
    split.high = seconds[repeats - 1];
    free(seconds);
    return split;
}

static void print_part(bool json, const char *name, double seconds, double step) {
    if (json)
        printf("\"%s_s\": %.6g, ", name, seconds);
    else
        printf("  %-14s %9.2f ms  %5.1f %%\n", name, 1e3 * seconds, 100 * seconds / step);
}

static void report(const RunConfig *c, const BenchOptions *o, const Split *v, int ranks) {
    double tokens = (double)(c->batch.plan.sequences * c->batch.seq_len);
    double rate = v->kind[KIND_GEMM] > 0 ? v->flops / v->kind[KIND_GEMM] * 1e-9 : 0;
    if (o->json)
        printf("{\"ranks\": %d, \"tokens_per_s\": %.6g, \"step_s\": {\"median\": %.6g, \"min\": %.6g, "
               "\"max\": %.6g}, "
               "\"gemm_gflops\": %.4g, ",
               ranks, tokens / v->step, v->step, v->low, v->high, rate);
    else
        printf("step bench: %d ranks, %s, %.0f tokens a step\n%.0f tokens/s; step %.2f ms (%.2f … %.2f), "
               "median of %d\n"
               "matrix products at %.1f GFLOP/s a rank\n",
               ranks, kernels_isa(), tokens, tokens / v->step, 1e3 * v->step, 1e3 * v->low, 1e3 * v->high,
               o->repeats, rate);
    for (int k = 0; k < KIND_COUNT; k++)
        print_part(o->json, kernel_kind_name((KernelKind)k), v->kind[k], v->step);
    print_part(o->json, "exchange_wait", v->exposed, v->step);
    print_part(o->json, "reduce_gather", v->reduce, v->step);
    if (o->json)
        printf("\"rest_s\": %.6g}\n", v->rest);
    else
        print_part(false, "rest", v->rest, v->step);
    fflush(stdout);
}

static Status run(const RunConfig *config, Mesh *mesh, const BenchOptions *options) {
    enum { WARMUP = 2 };
    TrainState s;
    ModelRun model_run = train_model_run(config);
    const Kernels *kernels = timed_kernels(kernels_for((Device){DEVICE_CPU, 0}));
    TRY(state_create_with(&s, config, mesh, &model_run, false, kernels));
    zero_init_weights(s.zero, config->train.seed);
    mesh_set_progress(mesh, options->progress);
    Split split = measure(&s, WARMUP, options->repeats);
    if (comm_world_rank() == 0) report(config, options, &split, comm_world_size());
    state_destroy(&s);
    return OK;
}

Status bench_step(const RunConfig *config, const BenchOptions *options) {
    Mesh *mesh;
    TRY(mesh_create(&mesh, config->parallel.ep));
    Status status = run(config, mesh, options);
    mesh_destroy(mesh);
    return status;
}
