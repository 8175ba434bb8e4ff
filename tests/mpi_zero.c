// SPDX-License-Identifier: Apache-2.0
// ranks: 1 2 3 4
// A toy model, every weight pulled towards a target by each of a step's samples: all ZeRO stages give the
// same bits, all worlds nearly the same numbers, and what the stages promise to save is saved.
#include "comm_check.h"
#include "optim/zero.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { EXPERTS = 12, LAYERS = 12, SAMPLES = 36, STEPS = 5 };

// The groups of a model: sizes that are no multiples of anything, experts in every second layer. Tied: the
// first group's gradients stay open while all others come and go.
static ParamTable describe(int first_expert, int experts, bool tied) {
    ParamTable t = {0};
    params_group(&t, 0, "embed");
    t.group[0].long_lived = tied;
    params_add(&t, 397, 9, 0, 0.5f, PARAM_DECAY | PARAM_EMBEDDING, "embed");
    for (int l = 0; l < LAYERS; l++) {
        params_group(&t, 0, "layers.%d", l);
        params_add(&t, 33, 0, 1, 0, 0, "layers.%d.norm", l);
        params_add(&t, 19 + l % 5, 31, 0, 0.5f, PARAM_DECAY, "layers.%d.q", l);
        if (l % 2 == 0) continue;
        params_group(&t, 1, "layers.%d.experts", l);
        for (int e = first_expert; e < first_expert + experts; e++)
            params_add(&t, 13, 29, 0, 0.5f, PARAM_DECAY, "layers.%d.experts.%d.up", l, e);
    }
    params_group(&t, 0, "head");
    params_add(&t, 5, 0, 1, 0, 0, "norm");
    if (!tied) params_add(&t, 397, 9, 0, 0.5f, PARAM_DECAY, "head");
    return t;
}

typedef struct {
    Mesh *mesh;
    Stream stream;
    ParamTable params;
    Zero *zero;
    int micros; // a step's samples come in so many micro-steps
    bool tied;
} Toy;

static void toy_create(Toy *toy, Mesh *mesh, int stage, int micros, bool tied) {
    Group *expert = mesh_group(mesh, AXIS_EXPERT);
    int local = EXPERTS / group_size(expert);
    *toy = (Toy){.mesh = mesh, .stream = check_stream(mesh), .micros = micros, .tied = tied};
    toy->params = describe(group_rank(expert) * local, local, tied);
    Status status =
        zero_create(&toy->zero, &toy->params, mesh, kernels_for(toy->stream->device), stage, toy->stream);
    REQUIRE(status == OK, "%s", status_text());
    zero_init_weights(toy->zero, 3);
}

static void toy_free(Toy *toy) {
    zero_destroy(toy->zero);
    params_free(&toy->params);
    stream_destroy(toy->stream);
}

// Where sample `sample` of a step pulls a weight: in (−1, 1).
static uint64_t pull(const Param *p, int step, int sample) {
    return hash_mix(hash_text(p->name), (uint64_t)(1000 * step + sample));
}

static float target(uint64_t pull, int64_t i) {
    return (float)(int32_t)hash_mix(pull, (uint64_t)i) * 0x1p-31f;
}

// Adds the gradients of samples [first, end): (w − target)/SAMPLES each.
static void add_gradients(Toy *toy, int group, int step, int first, int end) {
    const ParamGroup *g = &toy->params.group[group];
    for (int n = g->first; n < g->first + g->count; n++) {
        const Param *p = &toy->params.param[n];
        const float *w = tensor_f32(p->weight);
        float *grad = tensor_f32(p->grad);
        for (int sample = first; sample < end; sample++) {
            uint64_t where = pull(p, step, sample);
            for (int64_t i = 0; i < param_size(p); i++)
                grad[i] += (w[i] - target(where, i)) * (1.0f / SAMPLES);
        }
    }
}

// Dense weights see the rank's own samples, experts those of all the ranks that share them out.
static void backward(Toy *toy, int group, int step, int micro) {
    int rank = group_rank(mesh_group(toy->mesh, AXIS_WORLD)),
        world = group_size(mesh_group(toy->mesh, AXIS_WORLD));
    int ep = group_size(mesh_group(toy->mesh, AXIS_EXPERT));
    int mine = SAMPLES / world, part = mine / toy->micros, first = rank, count = 1;
    if (toy->params.group[group].expert) {
        first = rank / ep * ep;
        count = ep;
    }
    for (int r = first; r < first + count; r++)
        add_gradients(toy, group, step, r * mine + micro * part, r * mine + (micro + 1) * part);
}

// In the order of a model: the output end in forward, then backward from the last group to the first.
static void micro_step(Toy *toy, int step, int micro) {
    ParamAccess access = zero_access(toy->zero);
    for (int i = 0; i < toy->params.group_count; i++) {
        access.weights_begin(access.context, i);
        access.weights_end(access.context, i);
    }
    if (toy->tied) access.grads_begin(access.context, 0);
    for (int i = toy->params.group_count - 1; i >= 0; i--) {
        access.weights_begin(access.context, i);
        if (i > 0 || !toy->tied) access.grads_begin(access.context, i);
        backward(toy, i, step, micro);
        access.grads_end(access.context, i);
        access.weights_end(access.context, i);
        stream_poll(toy->stream);
    }
}

static double train(Toy *toy) {
    AdamwConfig config = {0.9f, 0.95f, 1e-3f, 0.1f, toy->tied};
    double norm = 0;
    for (int step = 1; step <= STEPS; step++) {
        for (int micro = 0; micro < toy->micros; micro++) micro_step(toy, step, micro);
        zero_grads_end(toy->zero);
        norm = zero_grad_norm(toy->zero);
        zero_adamw(toy->zero, &config, 0.01, clip_scale(norm, 1), step);
        zero_weights_gather(toy->zero);
    }
    return norm;
}

// ---- what came out

static int64_t weight_count(const ParamTable *t) {
    int64_t count = 0;
    for (int i = 0; i < t->count; i++) count += param_size(&t->param[i]);
    return count;
}

// All weights that this rank holds, one after the other.
static float *weights_of(const Toy *toy) {
    float *all = malloc((size_t)weight_count(&toy->params) * sizeof *all), *at = all;
    for (int i = 0; i < toy->params.count; i++) {
        const Param *p = &toy->params.param[i];
        memcpy(at, p->weight.data, tensor_bytes(p->weight));
        at += param_size(p);
    }
    return all;
}

static double largest_difference(const float *a, const float *b, int64_t count) {
    double most = 0;
    for (int64_t i = 0; i < count; i++) most = fmax(most, fabs((double)a[i] - (double)b[i]));
    return most;
}

// The same training in double, from the definitions.
typedef struct {
    double *w, *m, *v, *g;
} Exact;

static double exact_gradients(const ParamTable *t, Exact x, int step) {
    double squares = 0;
    for (int n = 0; n < t->count; n++) {
        const Param *p = &t->param[n];
        int64_t size = param_size(p);
        for (int64_t i = 0; i < size; i++) x.g[i] = 0;
        for (int sample = 0; sample < SAMPLES; sample++) {
            uint64_t where = pull(p, step, sample);
            for (int64_t i = 0; i < size; i++) x.g[i] += (x.w[i] - (double)target(where, i)) / SAMPLES;
        }
        for (int64_t i = 0; i < size; i++) squares += x.g[i] * x.g[i];
        x.g += size;
        x.w += size;
    }
    return sqrt(squares);
}

static void exact_adamw(const ParamTable *t, Exact x, int step, double scale, bool decay_embeddings) {
    for (int n = 0; n < t->count; n++) {
        unsigned flags = t->param[n].flags;
        bool decays = (flags & PARAM_DECAY) && (decay_embeddings || !(flags & PARAM_EMBEDDING));
        for (int64_t i = 0; i < param_size(&t->param[n]); i++) {
            double g = *x.g++ * scale, m = *x.m = 0.9 * *x.m + 0.1 * g, v = *x.v = 0.95 * *x.v + 0.05 * g * g;
            if (decays) *x.w *= 1 - 0.01 * 0.1;
            *x.w -= 0.01 * (m / (1 - pow(0.9, step))) / (sqrt(v / (1 - pow(0.95, step))) + 1e-3);
            x.w++, x.m++, x.v++;
        }
    }
}

static double *exact_training(const ParamTable *t, bool decay_embeddings, double *norm) {
    int64_t count = weight_count(t), at = 0;
    double *all = calloc((size_t)(4 * count), sizeof *all);
    Exact x = {all, all + count, all + 2 * count, all + 3 * count};
    for (int n = 0; n < t->count; n++)
        for (int64_t i = 0; i < param_size(&t->param[n]); i++) x.w[at++] = param_initial(&t->param[n], 3, i);
    for (int step = 1; step <= STEPS; step++) {
        *norm = exact_gradients(t, x, step);
        exact_adamw(t, x, step, fmin(1, 1 / (*norm + 1e-6)), decay_embeddings);
    }
    return all;
}

// Against a world of one on the same table, and against double.
static void check_against_one(const Toy *toy, double norm) {
    Mesh *self;
    REQUIRE(mesh_create_self(&self) == OK, "%s", status_text());
    Toy one;
    toy_create(&one, self, 0, 1, toy->tied);
    double one_norm = train(&one), true_norm;
    double *truth = exact_training(&one.params, toy->tied, &true_norm);
    int64_t at = 0, compared = 0;
    for (int n = 0; n < one.params.count; n++) {
        const Param *p = &one.params.param[n];
        int mine = params_find(&toy->params, p->name);
        const float *w = tensor_f32(p->weight);
        for (int64_t i = 0; i < param_size(p); i++, at++) {
            // float sums of 36 gradients against double: 1e-7 each, times lr/eps at most per step
            CHECK(fabs((double)w[i] - truth[at]) < 1e-5, "%s[%ld] = %.9g, in double %.9g", p->name, (long)i,
                  (double)w[i], truth[at]);
        }
        if (mine < 0) continue; // another rank's expert
        const float *held = tensor_f32(toy->params.param[mine].weight);
        double difference = largest_difference(held, w, param_size(p));
        CHECK(difference < 1e-6, "%s differs by %g from a world of one", p->name, difference);
        compared += param_size(p);
    }
    CHECK(compared == weight_count(&toy->params), "compared %ld weights", (long)compared);
    CHECK(fabs(norm - true_norm) < 1e-6 * true_norm, "norm %.9g, in double %.9g", norm, true_norm);
    CHECK(fabs(one_norm - true_norm) < 1e-6 * true_norm, "norm of one rank %.9g", one_norm);
    free(truth);
    toy_free(&one);
    mesh_destroy(self);
}

// Each element of each weight is owned once, and every rank keeps the states of what it must.
static void check_ownership(Toy *toy, int stage) {
    ParamTable all = describe(0, EXPERTS, toy->tied);
    int64_t total = weight_count(&all), *owners = calloc((size_t)total, sizeof *owners);
    int owned, held;
    const ZeroSlice *own = zero_owned(toy->zero, &owned), *keep = zero_held(toy->zero, &held);
    for (int i = 0; i < owned; i++) {
        const Param *p = &toy->params.param[own[i].param];
        int64_t start = own[i].first;
        for (int n = 0; n < params_find(&all, p->name); n++) start += param_size(&all.param[n]);
        for (int64_t j = 0; j < own[i].count; j++) owners[start + j]++;
        CHECK(own[i].master == tensor_f32(p->weight) + own[i].first, "master of %s", p->name);
        for (int64_t j = 0; j < own[i].count; j++) own[i].m[j] = own[i].v[j] = 1; // memory that is there
    }
    group_sum_i64(mesh_group(toy->mesh, AXIS_WORLD), owners, (int)total);
    for (int64_t i = 0; i < total; i++)
        CHECK(owners[i] == 1, "element %ld has %ld owners", (long)i, (long)owners[i]);
    int64_t kept = 0;
    for (int i = 0; i < held; i++) kept += keep[i].count;
    if (stage == 0)
        CHECK(kept == weight_count(&toy->params), "stage 0 keeps %ld states", (long)kept);
    else
        CHECK(held == owned && memcmp(own, keep, sizeof *own * (size_t)owned) == 0,
              "stage %d keeps what it owns", stage);
    free(owners);
    params_free(&all);
}

static void check_bytes(const Toy *toy, int stage, int ep, ZeroBytes *before) {
    int world = comm_world_size();
    ZeroBytes bytes = zero_bytes(toy->zero), plan = zero_plan_bytes(&toy->params, stage, world, ep);
    CHECK(memcmp(&bytes, &plan, sizeof bytes) == 0, "planned %zu %zu %zu %zu, placed %zu %zu %zu %zu",
          plan.weights, plan.grads, plan.optimizer, plan.staging, bytes.weights, bytes.grads, bytes.optimizer,
          bytes.staging);
    size_t total = bytes.grads + bytes.optimizer + bytes.staging;
    size_t last = before->grads + before->optimizer + before->staging;
    if (stage > 0 && world > 1)
        CHECK(total < last, "stage %d needs %zu bytes, the stage before %zu", stage, total, last);
    if (stage == 1 && world > 1 && ep == 1)
        CHECK(bytes.optimizer < before->optimizer * 10 / 9 / (size_t)world + 64 * 40, "optimizer: %zu of %zu",
              bytes.optimizer, before->optimizer);
    *before = bytes;
}

static void run(int ep, int micros, bool tied) {
    Mesh *mesh = check_mesh(ep);
    float *first = NULL;
    double first_norm = 0;
    ZeroBytes bytes = {0};
    for (int stage = 0; stage <= 2; stage++) {
        Toy toy;
        toy_create(&toy, mesh, stage, micros, tied);
        check_bytes(&toy, stage, ep, &bytes);
        double norm = train(&toy);
        float *weights = weights_of(&toy);
        int64_t count = weight_count(&toy.params);
        if (stage == 0) {
            check_against_one(&toy, norm);
            first = weights;
            first_norm = norm;
        } else {
            bool same = memcmp(weights, first, (size_t)count * sizeof *weights) == 0 && norm == first_norm;
            double difference = largest_difference(weights, first, count);
            CHECK(micros > 1 && stage == 2 ? difference < 1e-6 : same,
                  "stage %d differs from stage 0 by %g (ep %d, %d micro-steps, norms %.17g %.17g)", stage,
                  difference, ep, micros, norm, first_norm);
            free(weights);
        }
        double seconds;
        int64_t sent;
        zero_take_timing(toy.zero, &seconds, &sent);
        CHECK(seconds >= 0 && (sent > 0) == (comm_world_size() > 1), "%ld bytes were sent", (long)sent);
        check_ownership(&toy, stage);
        toy_free(&toy);
    }
    free(first);
    mesh_destroy(mesh);
}

int main(int argc, char **argv) {
    comm_start(&argc, &argv);
    for (int ep = 1; ep <= comm_world_size(); ep++)
        for (int micros = 1; micros <= 3 && comm_world_size() % ep == 0; micros += 2)
            for (int tied = 0; tied < 2; tied++) run(ep, micros, tied);
    Mesh *mesh = check_mesh(1);
    Zero *zero = NULL;
    ParamTable params = describe(0, EXPERTS, false);
    Stream stream = check_stream(mesh);
    CHECK(zero_create(&zero, &params, mesh, kernels_for(stream->device), 3, stream) == ERR_CONFIG && !zero,
          "stage 3 is refused");
    stream_destroy(stream);
    params_free(&params);
    mesh_destroy(mesh);
    return check_result();
}
