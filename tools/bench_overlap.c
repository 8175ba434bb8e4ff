// SPDX-License-Identifier: Apache-2.0
// How much of the exchange the compute hides. Forward and backward of one micro-batch, without gradient
// exchange, with overlap off and on in turn; then the same exchanges alone.
//   hidden     = (t_off − t_on) / t_exchange
//   efficiency = (t_off − t_on) / Σ over exchanges of min(its time alone, time of all work scheduled over it)
#include "core/clock.h"
#include "core/rng.h"
#include "tools/bench.h"
#include "train/step.h"
#include <stdlib.h>

typedef struct {
    double *off, *on, *exchange, *cover, *hideable; // [repeats], seconds
} Samples;

static void fill_tokens(TrainState *s, Tensor *tokens) {
    const RunConfig *c = s->config;
    int64_t count = c->batch.micro * (c->batch.seq_len + 1);
    uint64_t stream = (uint64_t)comm_world_rank();
    for (int64_t i = 0; i < count; i++)
        s->batch_tokens[i] = (int32_t)(rng_u64(1, stream, (uint64_t)i) % (uint64_t)c->model.vocab);
    *tokens = tensor_view(s->batch_tokens, DTYPE_I32, 2, (int64_t[]){c->batch.micro, c->batch.seq_len + 1});
}

// Slowest rank's seconds of one forward and backward.
static double run_once(TrainState *s, Tensor tokens, bool overlap) {
    Group *world = mesh_group(s->mesh, AXIS_WORLD);
    int64_t sequences = s->config->batch.micro * group_size(world);
    model_set_overlap(s->model, overlap);
    timeline_reset(model_timeline(s->model));
    group_barrier(world);
    double begun = clock_seconds();
    model_forward(s->model, tokens, (Tensor){0}, sequences * s->config->batch.seq_len,
                  model_balance_groups(s->model, sequences));
    model_backward(s->model);
    double seconds = clock_seconds() - begun;
    group_max_f64(world, &seconds, 1);
    return seconds;
}

// The work that block.c schedules over a layer's whole dispatch or combine, experts on other chunks than the
// one that is waited for included.
static double cover_of(const LayerTimeline *t, Pass pass, bool dispatch, int chunks, bool early) {
    double cover = 0, attention = early ? t->phase[pass][PHASE_ATTENTION] : 0;
    for (int c = dispatch ? 0 : 1; c < (dispatch ? chunks - 1 : chunks); c++) cover += t->chunk[pass][c];
    if (pass == PASS_FORWARD) return cover + (dispatch ? attention : t->phase[pass][PHASE_DENSE]);
    if (dispatch) return cover + t->phase[pass][PHASE_DENSE];
    return cover + t->phase[pass][PHASE_EXPERT_WGRAD] + attention;
}

static double sum_of(const double seconds[TIMELINE_CHUNKS]) {
    double sum = 0;
    for (int c = 0; c < TIMELINE_CHUNKS; c++) sum += seconds[c];
    return sum;
}

// From the run without overlap, where every exchange is alone at its place in the step.
static void add_up(const LayerTimeline *off, const RunConfig *c, double *cover, double *hideable) {
    bool early = c->model.moe_input == MOE_READS_LAYER_INPUT;
    *cover = *hideable = 0;
    for (int l = 0; l < c->model.layers; l++)
        for (int pass = 0; pass < PASS_COUNT; pass++)
            for (int dispatch = 0; dispatch < 2; dispatch++) {
                double over = cover_of(&off[l], (Pass)pass, dispatch, c->parallel.chunks, early);
                double alone = sum_of(dispatch ? off[l].dispatch[pass] : off[l].combine[pass]);
                *cover += over;
                *hideable += alone < over ? alone : over;
            }
}

static void measure(TrainState *s, Tensor tokens, int i, Samples *samples) {
    int layers = s->config->model.layers;
    LayerTimeline *off = calloc((size_t)layers, sizeof *off);
    REQUIRE(off, "out of memory: %d timelines", layers);
    samples->off[i] = run_once(s, tokens, false);
    for (int l = 0; l < layers; l++) off[l] = model_timeline(s->model)->layer[l];
    samples->on[i] = run_once(s, tokens, true);
    timeline_reset(model_timeline(s->model));
    group_barrier(mesh_group(s->mesh, AXIS_WORLD));
    model_replay_exchanges(s->model);
    LayerTimeline alone = timeline_sum(model_timeline(s->model));
    samples->exchange[i] = alone.exchange;
    add_up(off, s->config, &samples->cover[i], &samples->hideable[i]);
    free(off);
}

typedef struct {
    double median, low, high;
} Spread;

static Spread spread_of(double *values, int count) {
    double median = bench_median(values, count);
    return (Spread){median, values[0], values[count - 1]};
}

static void print_spread(bool json, const char *name, Spread s) {
    if (json)
        printf("\"%s\": {\"median\": %.9g, \"min\": %.9g, \"max\": %.9g}, ", name, s.median, s.low, s.high);
    else
        printf("%-11s %9.2f ms   (%.2f … %.2f)\n", name, 1e3 * s.median, 1e3 * s.low, 1e3 * s.high);
}

static void report(Samples *v, const BenchOptions *o, int ranks, int ep) {
    Spread off = spread_of(v->off, o->repeats), on = spread_of(v->on, o->repeats);
    Spread exchange = spread_of(v->exchange, o->repeats), cover = spread_of(v->cover, o->repeats);
    Spread hideable = spread_of(v->hideable, o->repeats);
    double saved = off.median - on.median;
    double hidden = exchange.median > 0 ? saved / exchange.median : 0;
    double efficiency = hideable.median > 0 ? saved / hideable.median : 0;
    if (o->json)
        printf("{\"ranks\": %d, \"ep\": %d, \"repeats\": %d, \"progress\": %s, ", ranks, ep, o->repeats,
               o->progress ? "true" : "false");
    else
        printf("overlap bench: %d ranks, ep %d, median of %d (min … max)%s\n", ranks, ep, o->repeats,
               o->progress ? "" : ", without progress calls");
    print_spread(o->json, "t_off", off);
    print_spread(o->json, "t_on", on);
    print_spread(o->json, "t_exchange", exchange);
    print_spread(o->json, "t_cover", cover);
    print_spread(o->json, "t_hideable", hideable);
    if (o->json)
        printf("\"hidden\": %.6g, \"efficiency\": %.6g}\n", hidden, efficiency);
    else
        printf("hidden      %9.2f      (t_off − t_on) / t_exchange\nefficiency  %9.2f      (t_off − t_on) / "
               "t_hideable\n",
               hidden, efficiency);
    fflush(stdout);
}

static Status run(const RunConfig *config, Mesh *mesh, const BenchOptions *options) {
    TrainState s;
    ModelRun model_run = train_model_run(config);
    Tensor tokens;
    TRY(state_create(&s, config, mesh, &model_run, false));
    zero_init_weights(s.zero, config->train.seed);
    fill_tokens(&s, &tokens);
    mesh_set_progress(mesh, options->progress);
    double *values = calloc(5 * (size_t)options->repeats, sizeof *values);
    REQUIRE(values, "out of memory: %d repeats", options->repeats);
    int n = options->repeats;
    Samples samples = {values, values + n, values + 2 * n, values + 3 * n, values + 4 * n};
    run_once(&s, tokens, true); // first touch of memory and buffers
    for (int i = 0; i < n; i++) measure(&s, tokens, i, &samples);
    if (comm_world_rank() == 0) report(&samples, options, comm_world_size(), config->parallel.ep);
    free(values);
    state_destroy(&s);
    return OK;
}

Status bench_overlap(const RunConfig *config, const BenchOptions *options) {
    if (config->parallel.ep < 2)
        FAIL(ERR_CONFIG, "parallel.ep = %d: there is no exchange to hide; try parallel.ep=2 -n 2",
             config->parallel.ep);
    if (config->parallel.recompute != RECOMPUTE_NONE)
        FAIL(ERR_CONFIG, "the overlap bench needs parallel.recompute=none");
    RunConfig plain = *config;
    plain.parallel.zero = 1; // gradients stay where they are until the step's end, which the bench leaves out
    Mesh *mesh;
    TRY(mesh_create(&mesh, plain.parallel.ep));
    Status status = run(&plain, mesh, options);
    mesh_destroy(mesh);
    return status;
}
