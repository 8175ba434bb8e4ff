// SPDX-License-Identifier: Apache-2.0
// A model on a mesh with plain memory behind its weights and gradients, and one micro-batch of made-up text.
#pragma once
#include "comm_check.h"
#include "model/model.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
    ModelConfig config;
    Mesh *mesh;
    Stream stream;
    ParamTable params;
    float **weights, **grads; // by group
    Model *model;
    ModelLoss loss; // of the last run, this rank's
} Harness;

static void harness_nothing(void *context, int group) {
    (void)context, (void)group;
}

static void *harness_calloc(size_t count, size_t item) {
    void *memory = aligned_alloc(64, (count * item + 63) / 64 * 64 + 64);
    if (memory) memset(memory, 0, (count * item + 63) / 64 * 64 + 64);
    REQUIRE(memory, "out of memory");
    return memory;
}

// A published model's choices at a small size.
static inline ModelConfig harness_family(Arch arch) {
    ModelConfig c = *model_family(arch);
    c.layers = 3;
    c.hidden = 24;
    c.heads = 4;
    c.kv_heads = 2;
    c.head_dim = 6;
    c.vocab = 37;
    c.dense_ffn = c.dense_ffn ? 20 : 0;
    c.experts = c.experts ? 12 : 0;
    c.expert_ffn = 14;
    c.moe_every = 1;
    c.rope_theta = 1e4;
    c.norm_eps = 1e-5;
    c.init_std = 0.2;
    c.router.aux_coef = 0.01;
    c.router.z_coef = 0.001;
    return c;
}

static inline ModelConfig harness_config(void) {
    return harness_family(ARCH_ARCTIC);
}

static inline ModelRun harness_run(int sequences) {
    return (ModelRun){.sequences = sequences,
                      .seq_len = 16,
                      .training = true,
                      .overlap = true,
                      .chunks = 2,
                      .expert_rows = 2};
}

static inline Harness harness_create_with(const ModelConfig *config, const ModelRun *run, Mesh *mesh,
                                          const Kernels *kernels) {
    Harness h = {.config = *config, .mesh = mesh, .stream = stream_create((Device){DEVICE_CPU, 0})};
    h.stream->progress = mesh_progress;
    h.stream->progress_context = mesh;
    Group *ep = mesh_group(mesh, AXIS_EXPERT);
    int local = config->experts / group_size(ep);
    model_describe(config, group_rank(ep) * local, local, &h.params);
    h.weights = harness_calloc((size_t)h.params.group_count, sizeof *h.weights);
    h.grads = harness_calloc((size_t)h.params.group_count, sizeof *h.grads);
    for (int g = 0; g < h.params.group_count; g++) {
        h.weights[g] = harness_calloc((size_t)h.params.group[g].elements, sizeof(float));
        h.grads[g] = harness_calloc((size_t)h.params.group[g].elements, sizeof(float));
        params_place_weights(&h.params, g, h.weights[g]);
        params_place_grads(&h.params, g, h.grads[g]);
    }
    for (int i = 0; i < h.params.count; i++)
        for (int64_t j = 0; j < param_size(&h.params.param[i]); j++)
            tensor_f32(h.params.param[i].weight)[j] = param_initial(&h.params.param[i], 7, j);
    ParamAccess access = {NULL, harness_nothing, harness_nothing, harness_nothing, harness_nothing};
    Status status = model_create(&h.model, config, run, &h.params, access, mesh, kernels, h.stream);
    REQUIRE(status == OK, "%s", status_text());
    return h;
}

static inline Harness harness_create(const ModelConfig *config, const ModelRun *run, Mesh *mesh) {
    return harness_create_with(config, run, mesh, kernels_for((Device){DEVICE_CPU, 0}));
}

static inline void harness_destroy(Harness *h) {
    model_destroy(h->model);
    for (int g = 0; g < h->params.group_count; g++) free(h->weights[g]), free(h->grads[g]);
    free(h->weights);
    free(h->grads);
    params_free(&h->params);
    stream_destroy(h->stream);
}

static inline int32_t harness_token(const ModelConfig *c, int sequence, int position) {
    return (int32_t)(rng_u64(3, (uint64_t)sequence, (uint64_t)position / 2) % (uint64_t)c->vocab);
}

// Forward and backward on `run.sequences` sequences from first_sequence on, of total ones in the step.
static inline void harness_step(Harness *h, const ModelRun *run, int first_sequence, int total) {
    int width = run->seq_len + 1;
    int32_t *tokens = harness_calloc((size_t)(run->sequences * width), sizeof *tokens);
    for (int i = 0; i < run->sequences; i++)
        for (int t = 0; t < width; t++)
            tokens[i * width + t] = harness_token(&h->config, first_sequence + i, t);
    for (int g = 0; g < h->params.group_count; g++)
        memset(h->grads[g], 0, (size_t)h->params.group[g].elements * sizeof(float));
    Tensor view = tensor_view(tokens, DTYPE_I32, 2, (int64_t[]){run->sequences, width});
    h->loss = model_forward(h->model, view, (Tensor){0}, (int64_t)total * run->seq_len,
                            model_balance_groups(h->model, total));
    model_backward(h->model);
    free(tokens);
}

// All ranks' loss: ce + aux + z.
static inline double harness_loss(const Harness *h, int64_t targets) {
    double parts[2] = {h->loss.ce_sum / (double)targets, h->loss.aux + h->loss.z};
    group_sum_f64(mesh_group(h->mesh, AXIS_WORLD), parts, 2);
    return parts[0] + parts[1];
}

// Sums every gradient over the ranks that hold it.
static inline void harness_reduce(Harness *h) {
    for (int g = 0; g < h->params.group_count; g++) {
        int64_t n = h->params.group[g].elements;
        double *sum = harness_calloc((size_t)n, sizeof *sum);
        for (int64_t i = 0; i < n; i++) sum[i] = (double)h->grads[g][i];
        group_sum_f64(mesh_group(h->mesh, h->params.group[g].expert ? AXIS_REPLICA : AXIS_WORLD), sum,
                      (int)n);
        for (int64_t i = 0; i < n; i++) h->grads[g][i] = (float)sum[i];
        free(sum);
    }
}

// Largest difference of a gradient from its namesake in b, over the largest entry there; the worst weight's,
// printed.
static inline double harness_difference(const Harness *a, const Harness *b) {
    double worst = 0;
    for (int i = 0; i < a->params.count; i++) {
        const Param *p = &a->params.param[i];
        int j = params_find(&b->params, p->name);
        REQUIRE(j >= 0, "no %s in the reference", p->name);
        const float *x = tensor_f32(p->grad), *y = tensor_f32(b->params.param[j].grad);
        double largest = 0, difference = 0;
        for (int64_t e = 0; e < param_size(p); e++) {
            largest = fmax(largest, fabs((double)y[e]));
            difference = fmax(difference, fabs((double)x[e] - (double)y[e]));
        }
        double relative = largest > 0 ? difference / largest : difference;
        if (relative > worst) worst = relative;
        if (relative > 1e-4 || isnan(relative)) printf("%s differs by %g\n", p->name, relative);
    }
    return worst;
}

static inline bool harness_equal(const Harness *a, const Harness *b) {
    if (a->loss.ce_sum != b->loss.ce_sum || a->loss.aux != b->loss.aux || a->loss.z != b->loss.z)
        return false;
    for (int g = 0; g < a->params.group_count; g++)
        if (memcmp(a->grads[g], b->grads[g], (size_t)a->params.group[g].elements * sizeof(float)))
            return false;
    return true;
}

// ---- a step on any layout against the whole step on one rank

enum { TOTAL = 12, SEQ_LEN = 16 };
// Gradients differ by the order of float sums of about 200 terms: 200·2⁻²⁴ ≈ 1.2e-5 at the very worst,
// √200·2⁻²⁴ ≈ 1e-6 in the mean; the largest entry of a tensor is the measure.
static const double GRADIENT_BOUND = 1e-5, LOSS_BOUND = 1e-6;

// This rank's share of the step on a mesh of all ranks.
static inline Harness run_on(Mesh *mesh, const ModelConfig *config, ModelRun run, double *loss) {
    int world = comm_world_size();
    run.sequences = TOTAL / world;
    Harness h = harness_create(config, &run, mesh);
    harness_step(&h, &run, comm_world_rank() * run.sequences, TOTAL);
    *loss = harness_loss(&h, TOTAL * SEQ_LEN);
    return h;
}

// The whole step on this rank alone.
static inline Harness run_alone(const ModelConfig *config, double *loss) {
    Mesh *self;
    REQUIRE(mesh_create_self(&self) == OK, "%s", status_text());
    ModelRun run = harness_run(TOTAL);
    Harness h = harness_create(config, &run, self);
    harness_step(&h, &run, 0, TOTAL);
    *loss = harness_loss(&h, TOTAL * SEQ_LEN);
    return h;
}

static inline void check_against_alone(Mesh *mesh, const ModelConfig *config, ModelRun run,
                                       const char *what) {
    double loss, expected;
    Harness h = run_on(mesh, config, run, &loss), alone = run_alone(config, &expected);
    harness_reduce(&h);
    double difference = harness_difference(&h, &alone);
    CHECK(fabs(loss - expected) <= LOSS_BOUND * fabs(expected), "%s: loss %.9g, expected %.9g", what, loss,
          expected);
    CHECK(difference <= GRADIENT_BOUND, "%s: gradients differ by %g", what, difference);
    harness_destroy(&h);
    harness_destroy(&alone);
}
