// SPDX-License-Identifier: Apache-2.0
// What the experts sent back, compared with a computation that shares nothing with the exchange but the
// experts' weights: every rank's sample of tokens goes to all ranks of the expert group by a sum, the rank
// that holds an expert computes its rows one by one, and another sum brings them home.
#include "model/internal.h"
#include <stdlib.h>

enum { SAMPLE = 8 }; // tokens of each rank

typedef struct {
    int64_t tokens, k, h; // sampled of each rank
    double *rows;         // (ranks, tokens, h): what the router normed
    double *expert;       // (ranks, tokens, k): −1 where dropped
    double *weight;       // (ranks, tokens, k)
    double *expected;     // (ranks, tokens, k, h)
} Sample;

static double *zeros(int64_t count) {
    double *memory = calloc((size_t)count, sizeof *memory);
    REQUIRE(memory, "out of memory: %ld numbers of the start-up check", (long)count);
    return memory;
}

static void sum_over_group(const Model *m, double *values, int64_t count) {
    group_sum_f64(mesh_group(m->mesh, AXIS_EXPERT), values, (int)count);
}

// The token of this rank that stands at place i of its sample: spread over the micro-batch.
static int64_t sampled_token(const Model *m, const Sample *s, int64_t i) {
    return i * m->tokens / s->tokens;
}

static void to_host(const Model *m, float *out, Tensor from, int64_t first, int64_t count) {
    device_copy((Device){DEVICE_CPU, 0}, out, m->device, tensor_f32(from) + first,
                (size_t)count * sizeof *out, m->stream);
}

static void publish_tokens(const Model *m, int layer, int rank, Sample *s, float *row) {
    const LayerState *l = &m->layer[layer];
    for (int64_t i = 0; i < s->tokens; i++) {
        int64_t t = sampled_token(m, s, i), at = rank * s->tokens + i;
        to_host(m, row, m->scratch.moe_norm, t * s->h, s->h);
        for (int64_t c = 0; c < s->h; c++) s->rows[at * s->h + c] = (double)row[c];
        for (int64_t j = 0; j < s->k; j++) {
            int64_t pair = t * s->k + j;
            bool sent = tensor_i32(l->row)[pair] >= 0;
            s->expert[at * s->k + j] = sent ? tensor_i32(l->index)[pair] : -1;
            s->weight[at * s->k + j] = (double)tensor_f32(l->weight)[pair];
        }
    }
}

typedef struct {
    Tensor x, gate, up, out, weight; // one row of each
} Row;

static void place_row(const Model *m, Row *row, Arena *arena) {
    row->x = arena_matrix(arena, 1, m->config.hidden);
    row->gate = arena_matrix(arena, 1, m->config.expert_ffn);
    row->up = arena_matrix(arena, 1, m->config.expert_ffn);
    row->out = arena_matrix(arena, 1, m->config.hidden);
    row->weight = arena_vector(arena, 1);
}

static void compute_row(const Model *m, const FfnWeights *w, Row *r) {
    const Kernels *kernels = m->kernels;
    kernels->matmul(r->gate, r->x, false, w->gate->weight, true, INTO_ZERO, m->stream);
    kernels->matmul(r->up, r->x, false, w->up->weight, true, INTO_ZERO, m->stream);
    kernels->glu_forward(r->gate, r->gate, r->up, r->weight, m->config.activation, m->stream);
    kernels->matmul(r->out, r->gate, false, w->down->weight, true, INTO_ZERO, m->stream);
}

// The rows of every rank's sample whose expert this rank holds.
static void compute_own(const Model *m, int layer, Sample *s, float *host) {
    Device cpu = {DEVICE_CPU, 0};
    Arena arena = arena_empty(m->device);
    Row row;
    place_row(m, &row, &arena);
    arena_commit(&arena);
    place_row(m, &row, &arena);
    for (int64_t pair = 0; pair < m->ep_ranks * s->tokens * s->k; pair++) {
        int local = (int)s->expert[pair] - m->first_expert;
        if (local < 0 || local >= m->local_experts) continue;
        float weight = (float)s->weight[pair];
        for (int64_t c = 0; c < s->h; c++) host[c] = (float)s->rows[pair / s->k * s->h + c];
        device_copy(m->device, row.x.data, cpu, host, tensor_bytes(row.x), m->stream);
        device_copy(m->device, row.weight.data, cpu, &weight, sizeof weight, m->stream);
        compute_row(m, &m->weights[layer].expert[local], &row);
        to_host(m, host, row.out, 0, s->h);
        for (int64_t c = 0; c < s->h; c++) s->expected[pair * s->h + c] = (double)host[c];
    }
    arena_free(&arena);
}

// A NaN on one side only counts as the worst there is.
static double difference_of(const float *got, const double *expected, int64_t h) {
    double largest = 0, difference = 0;
    for (int64_t c = 0; c < h; c++) {
        double off = fabs((double)got[c] - expected[c]);
        if (isnan(off) && isnan(got[c]) && isnan(expected[c])) continue;
        if (!(off <= difference)) difference = isnan(off) ? INFINITY : off;
        if (fabs(expected[c]) > largest) largest = fabs(expected[c]);
    }
    return difference == 0 ? 0 : difference / largest;
}

static void compare_own(Model *m, int layer, int rank, const Sample *s, float *row) {
    for (int64_t i = 0; i < s->tokens; i++)
        for (int64_t j = 0; j < s->k; j++) {
            int64_t pair = (rank * s->tokens + i) * s->k + j;
            int expert = (int)s->expert[pair];
            if (expert < 0) continue;
            int64_t place = tensor_i32(m->layer[layer].row)[sampled_token(m, s, i) * s->k + j];
            to_host(m, row, m->scratch.back, place * s->h, s->h);
            double off = difference_of(row, s->expected + pair * s->h, s->h);
            m->canary->rows++;
            if (off <= m->canary->worst) continue;
            m->canary->worst = off;
            m->canary->layer = layer;
            m->canary->expert = expert;
            m->canary->source = rank;
            m->canary->owner = expert / m->local_experts;
        }
}

void canary_check(Model *m, int layer) {
    int64_t ranks = m->ep_ranks, T = m->tokens < SAMPLE ? m->tokens : SAMPLE, k = m->config.top_k,
            h = m->config.hidden;
    int rank = group_rank(mesh_group(m->mesh, AXIS_EXPERT));
    float *row = malloc((size_t)h * sizeof *row);
    REQUIRE(row, "out of memory: a row of %ld", (long)h);
    Sample s = {
        T, k, h, zeros(ranks * T * h), zeros(ranks * T * k), zeros(ranks * T * k), zeros(ranks * T * k * h)};
    publish_tokens(m, layer, rank, &s, row);
    sum_over_group(m, s.rows, ranks * T * h);
    sum_over_group(m, s.expert, ranks * T * k);
    sum_over_group(m, s.weight, ranks * T * k);
    compute_own(m, layer, &s, row);
    sum_over_group(m, s.expected, ranks * T * k * h);
    compare_own(m, layer, rank, &s, row);
    free(row);
    free(s.rows);
    free(s.expert);
    free(s.weight);
    free(s.expected);
}
