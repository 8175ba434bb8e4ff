// SPDX-License-Identifier: Apache-2.0
// Matrix products in the shapes of a model, one at a time on each rank: what the kernels reach by themselves.
#include "core/clock.h"
#include "core/rng.h"
#include "tools/bench.h"
#include "train/step.h"
#include <stdlib.h>

typedef struct {
    const char *name;
    int64_t rows, out, in; // y (rows, out) = x (rows, in) Wᵀ
} Shape;

static Tensor random_matrix(int64_t rows, int64_t columns, uint64_t stream) {
    Tensor t = tensor_matrix(device_alloc((Device){DEVICE_CPU, 0}, (size_t)(rows * columns) * sizeof(float)),
                             rows, columns);
    for (int64_t i = 0; i < rows * columns; i++)
        tensor_f32(t)[i] = (float)rng_uniform(1, stream, (uint64_t)i) - 0.5f;
    return t;
}

typedef struct {
    double forward, dgrad, wgrad; // GFLOP/s
} Rates;

static double rate_of(double flops, double seconds) {
    return flops / seconds * 1e-9;
}

static Rates measure(const Shape *shape, const Kernels *kernels, Stream stream, int repeats) {
    Device cpu = {DEVICE_CPU, 0};
    Tensor x = random_matrix(shape->rows, shape->in, 1), w = random_matrix(shape->out, shape->in, 2);
    Tensor y = random_matrix(shape->rows, shape->out, 3), dw = random_matrix(shape->out, shape->in, 4);
    double *times = calloc(3 * (size_t)repeats, sizeof *times);
    REQUIRE(times, "out of memory: %d repeats", repeats);
    for (int i = -1; i < repeats; i++) {
        double t0 = clock_seconds();
        kernels->matmul(y, x, false, w, true, INTO_ZERO, stream);
        double t1 = clock_seconds();
        kernels->matmul(x, y, false, w, false, INTO_ZERO, stream);
        double t2 = clock_seconds();
        kernels->matmul(dw, y, true, x, false, INTO_SUM, stream);
        double t3 = clock_seconds();
        if (i < 0) continue;
        times[i] = t1 - t0;
        times[repeats + i] = t2 - t1;
        times[2 * repeats + i] = t3 - t2;
    }
    double flops = 2.0 * (double)shape->rows * (double)shape->out * (double)shape->in;
    Rates rates = {rate_of(flops, bench_median(times, repeats)),
                   rate_of(flops, bench_median(times + repeats, repeats)),
                   rate_of(flops, bench_median(times + 2 * repeats, repeats))};
    free(times);
    device_free(cpu, x.data);
    device_free(cpu, w.data);
    device_free(cpu, y.data);
    device_free(cpu, dw.data);
    return rates;
}

Status bench_gemm(const RunConfig *config, const BenchOptions *options) {
    const ModelConfig *c = &config->model;
    int64_t tokens = config->batch.micro * config->batch.seq_len, q = (int64_t)c->heads * c->head_dim;
    int64_t kv = (int64_t)c->kv_heads * c->head_dim;
    int64_t rows = c->experts ? tokens * c->top_k * config->parallel.ep / c->experts : 0;
    const Shape shapes[] = {{"attn.q", tokens, q, c->hidden},
                            {"attn.k", tokens, kv, c->hidden},
                            {"attn.o", tokens, c->hidden, q},
                            {"dense.gate", tokens, c->dense_ffn, c->hidden},
                            {"dense.down", tokens, c->hidden, c->dense_ffn},
                            {"router", tokens, c->experts, c->hidden},
                            {"expert.gate", rows, c->expert_ffn, c->hidden},
                            {"expert.down", rows, c->hidden, c->expert_ffn},
                            {"head", tokens < 256 ? tokens : 256, c->vocab, c->hidden}};
    Stream stream = stream_create((Device){DEVICE_CPU, 0});
    const Kernels *kernels = kernels_for(stream->device);
    bool rank0 = comm_world_rank() == 0;
    if (rank0 && options->json) printf("{\"isa\": \"%s\", \"shapes\": [", kernels_isa());
    if (rank0 && !options->json)
        printf("%s, GFLOP/s of one rank, median of %d\n%-12s %6s %6s %6s  %9s %9s %9s\n", kernels_isa(),
               options->repeats, "weight", "rows", "out", "in", "forward", "dgrad", "wgrad");
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        const Shape *s = &shapes[i];
        if (s->rows * s->out * s->in == 0) continue;
        Rates r = measure(s, kernels, stream, options->repeats);
        if (!rank0) continue;
        if (options->json)
            printf("%s{\"weight\": \"%s\", \"rows\": %ld, \"out\": %ld, \"in\": %ld, \"forward\": %.4g, "
                   "\"dgrad\": %.4g, "
                   "\"wgrad\": %.4g}",
                   i ? ", " : "", s->name, (long)s->rows, (long)s->out, (long)s->in, r.forward, r.dgrad,
                   r.wgrad);
        else
            printf("%-12s %6ld %6ld %6ld  %9.1f %9.1f %9.1f\n", s->name, (long)s->rows, (long)s->out,
                   (long)s->in, r.forward, r.dgrad, r.wgrad);
    }
    if (rank0 && options->json) printf("]}\n");
    fflush(stdout);
    stream_destroy(stream);
    return OK;
}
