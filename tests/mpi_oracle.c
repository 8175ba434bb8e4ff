// SPDX-License-Identifier: Apache-2.0
// ranks: 1 2
// The whole model and 20 training steps against a reference in float64 (golden/README.md): log-probabilities,
// losses, every gradient, and what each step reports, on every layout.
#include "model_harness.h"
#include "oracle_golden.h"
#include "train/step.h"

// Bounds: five times what the same mathematics in float32 deviates from float64 in the reference's own
// implementation: 2e-6 for log-probabilities and, of a tensor's largest entry, gradients; 4e-7 for the loss;
// over 20 steps 2e-6 for losses and 7e-6 for the gradient's norm. tiny-grok's attention scores are
// 14 times as steep as usual (attn_output_multiplier): 1e-5 for gradients, 4.3e-5 for the norm over 20 steps.
// aux and z are sums of the same kind as the loss, but smaller: their bound is relative.
typedef enum {
    LOGPROBS,
    LOSS,
    AUX,
    Z,
    GRADIENT,
    GRADIENT_NORM,
    GRADIENT_PROJECTION,
    FIRST_LOSS,
    STEP_LOSS,
    STEP_AUX,
    STEP_Z,
    STEP_NORM,
    STEP_RATE,
    STEP_DROPPED,
    KINDS
} Kind;
static const struct {
    const char *what, *brief;
    double bound, grok; // for tiny-grok, where the reference deviates more
    bool relative;
} kind[KINDS] = {[LOGPROBS] = {"log-probabilities", "log p", 1e-5, 1e-5, false},
                 [LOSS] = {"loss", "loss", 2e-6, 2e-6, false},
                 [AUX] = {"aux", "aux", 2e-6, 2e-6, true},
                 [Z] = {"z", "z", 2e-6, 2e-6, true},
                 [GRADIENT] = {"gradient of its largest entry", "gradient", 1e-5, 5e-5, true},
                 [GRADIENT_NORM] = {"norm of a gradient", "its norm", 1e-5, 1e-5, true},
                 [GRADIENT_PROJECTION] = {"projection of a gradient", "projection", 1e-5, 5e-5, true},
                 [FIRST_LOSS] = {"loss of step 1", "step 1", 2e-6, 2e-6, false},
                 [STEP_LOSS] = {"loss of steps 1 to 20", "20 losses", 1e-5, 1e-5, false},
                 [STEP_AUX] = {"aux of steps 1 to 20", "20 aux", 1e-5, 1e-5, true},
                 [STEP_Z] = {"z of steps 1 to 20", "20 z", 1e-5, 1e-5, true},
                 [STEP_NORM] = {"gnorm of steps 1 to 20", "20 gnorm", 3.5e-5, 2.1e-4, true},
                 [STEP_RATE] = {"lr of steps 1 to 20", "20 lr", 1e-12, 1e-12, true},
                 [STEP_DROPPED] = {"drop of steps 1 to 20", "20 drop", 1e-6, 1e-6, false}};

// What was found for each model, in the order in which the cases name them.
enum { MODELS_MOST = 16 };
typedef struct {
    const char *name;
    double worst[KINDS]; // deviation, relative where the bound is
    int64_t number[KINDS];
} Findings;
static Findings findings[MODELS_MOST], *now = findings;
static int failures;

static void begin_model(const char *name) {
    for (now = findings; now->name && strcmp(now->name, name); now++) {
    }
    REQUIRE(now < findings + MODELS_MOST - 1, "more than %d models", MODELS_MOST - 1);
    now->name = name;
}

static double bound_of(Kind k) {
    return strcmp(now->name, "tiny-grok") ? kind[k].bound : kind[k].grok;
}

static void compare(Kind k, const char *where, const char *what, double deviation, double expected) {
    double unit = kind[k].relative ? fabs(expected) : 1, off = deviation == 0 ? 0 : deviation / unit;
    now->number[k]++;
    if (!(off <= now->worst[k])) now->worst[k] = isnan(off) ? INFINITY : off;
    if (off <= bound_of(k)) return;
    if (failures++ < 20)
        printf("[rank %d] %s: %s %s: differs by %g from %.9g, bound %g\n", comm_world_rank(), where,
               kind[k].what, what, deviation, expected, bound_of(k) * unit);
}

static void compare_values(Kind k, const char *where, const char *what, double got, double expected) {
    compare(k, where, what, fabs(got - expected), expected);
}

// Rows of a micro-batch with which this world computes what the case says; 0: it cannot. A case that says how
// many micro-batches there are (they decide capacity and micro_batch balance) needs exactly these; with scope
// global_batch a rank's share is one micro-batch.
static int micro_rows(const json_t *item, const ModelConfig *config, int sequences) {
    int world = comm_world_size(), wanted = (int)golden_number(item, "micro_batches"),
        own = sequences / world;
    bool global = config->router.aux_coef != 0 && config->router.aux_scope == SCOPE_GLOBAL_BATCH;
    if (wanted % world || (global && wanted > world)) return 0;
    if (wanted) return sequences / wanted;
    return global ? own : own / 2;
}

// ---- gradients of one batch

typedef struct {
    const json_t *item; // of cases.json
    const char *name;
    ModelConfig config;
    int sequences, seq_len, micro;
} Case;

static void load_weights(Harness *h, const Case *c) {
    Safetensors *file = golden_weights(c->item);
    for (int i = 0; i < h->params.count; i++) {
        const Param *p = &h->params.param[i];
        golden_read(file, &c->config, p, 0, param_size(p), tensor_f32(p->weight));
    }
    safetensors_close(file);
}

// This rank's rows of the batch, micro-batch by micro-batch. sums: Σ ce, aux, z, dropped over ranks.
static void run_batch(Harness *h, const Case *c, const int32_t *tokens, const double *logprobs,
                      double sums[4]) {
    int world = comm_world_size(), own = c->sequences / world, width = c->seq_len + 1;
    int64_t targets = (int64_t)c->sequences * c->seq_len;
    float *got = harness_calloc((size_t)(c->micro * c->seq_len), sizeof *got);
    for (int row = own * comm_world_rank(), end = row + own; row < end; row += c->micro) {
        Tensor rows = tensor_view((void *)(uintptr_t)(tokens + row * width), DTYPE_I32, 2,
                                  (int64_t[]){c->micro, width});
        ModelLoss loss = model_forward(h->model, rows, tensor_matrix(got, c->micro, c->seq_len), targets,
                                       model_balance_groups(h->model, c->sequences));
        model_backward(h->model);
        sums[0] += loss.ce_sum;
        sums[1] += loss.aux;
        sums[2] += loss.z;
        sums[3] += (double)loss.dropped;
        for (int i = 0; i < c->micro * c->seq_len; i++)
            compare_values(LOGPROBS, c->name, "", (double)got[i], logprobs[row * c->seq_len + i]);
    }
    free(got);
    group_sum_f64(mesh_group(h->mesh, AXIS_WORLD), sums, 4);
}

// As projection() in golden/make.py: the sign of entry i of a tensor as the file has it.
static double sign_of(int64_t i) {
    uint64_t x = (uint64_t)i * 0x9E3779B97F4A7C15u;
    x = (x ^ x >> 32) * 0xD6E8FEB86659FD93u;
    return x >> 63 ? -1 : 1;
}

static void compare_sums(const Case *c, const Param *p, const float *got) {
    HfPlace place;
    char name[256];
    hf_place(&c->config, p, &place);
    golden_name(&place, p, name, sizeof name);
    const json_t *expected = golden_get(golden_get(c->item, "norms"), name);
    int64_t n = param_size(p), columns = place.transposed ? p->dim[1] : 1, rows = n / columns;
    double squares = 0, projection = 0;
    for (int64_t j = 0; j < n; j++) {
        squares += (double)got[j] * (double)got[j];
        projection += sign_of(place.transposed ? j % columns * rows + j / columns : j) * (double)got[j];
    }
    double norm = json_number_value(json_array_get(expected, 0));
    compare_values(GRADIENT_NORM, c->name, p->name, sqrt(squares), norm);
    compare(GRADIENT_PROJECTION, c->name, p->name,
            fabs(projection - json_number_value(json_array_get(expected, 1))), norm);
}

static void compare_entries(const Case *c, Safetensors *file, const Param *p, const float *got) {
    int64_t n = param_size(p);
    double largest = 0, deviation = 0;
    float *expected = harness_calloc((size_t)n, sizeof *expected);
    golden_read(file, &c->config, p, 0, n, expected);
    for (int64_t j = 0; j < n; j++) {
        largest = fmax(largest, fabs((double)expected[j]));
        double difference = fabs((double)got[j] - (double)expected[j]);
        if (!(difference <= deviation)) deviation = difference;
    }
    compare(GRADIENT, c->name, p->name, deviation, largest);
    free(expected);
}

static void compare_gradients(const Harness *h, const Case *c) {
    const char *whole = json_string_value(json_object_get(c->item, "gradients"));
    Safetensors *file = whole ? golden_tensors(whole) : NULL;
    for (int i = 0; i < h->params.count; i++) {
        const Param *p = &h->params.param[i];
        compare_sums(c, p, tensor_f32(p->grad));
        if (file) compare_entries(c, file, p, tensor_f32(p->grad));
    }
    safetensors_close(file);
}

static void check_gradients(Mesh *mesh, const Case *c, const int32_t *tokens, const double *logprobs) {
    ModelRun run = harness_run(c->micro);
    run.seq_len = c->seq_len;
    Harness h = harness_create(&c->config, &run, mesh);
    load_weights(&h, c);
    double sums[4] = {0};
    run_batch(&h, c, tokens, logprobs, sums);
    compare_values(LOSS, c->name, "", sums[0] / (c->sequences * c->seq_len), golden_number(c->item, "ce"));
    compare_values(AUX, c->name, "", sums[1], golden_number(c->item, "aux"));
    compare_values(Z, c->name, "", sums[2], golden_number(c->item, "z"));
    if (sums[3] != golden_number(c->item, "dropped")) {
        failures++;
        printf("%s: %g choices dropped, not %g\n", c->name, sums[3], golden_number(c->item, "dropped"));
    }
    harness_reduce(&h);
    compare_gradients(&h, c);
    harness_destroy(&h);
}

// ---- training steps

static RunConfig run_config(const Case *c, int ep, int zero) {
    static const char *const schedules[] = {"constant", "cosine", "wsd"};
    const json_t *o = golden_get(c->item, "optim");
    RunConfig config = {
        .model = c->config,
        .parallel = {ep, zero, .chunks = 2, .overlap = true, .recompute = RECOMPUTE_NONE, .expert_rows = 2},
        .batch = {c->sequences, c->seq_len, c->micro, {.sequences = c->sequences, .seq_len = c->seq_len}},
        .adamw = {(float)golden_number(o, "beta1"), (float)golden_number(o, "beta2"),
                  (float)golden_number(o, "eps"), (float)golden_number(o, "weight_decay"),
                  json_is_true(golden_get(o, "decay_embeddings"))},
        .schedule = {(ScheduleKind)golden_word(o, "schedule", schedules, 3), golden_number(o, "lr"),
                     golden_number(o, "final"), (int64_t)golden_number(o, "warmup"),
                     (int64_t)golden_number(o, "decay"),
                     (int64_t)json_array_size(golden_get(c->item, "loss"))},
        .clip = golden_number(o, "clip")};
    return config;
}

static void load_masters(TrainState *s, const Case *c) {
    Safetensors *file = golden_weights(c->item);
    int count;
    const ZeroSlice *held = zero_held(s->zero, &count);
    for (int i = 0; i < count; i++)
        golden_read(file, &c->config, &s->params.param[held[i].param], held[i].first, held[i].count,
                    held[i].master);
    safetensors_close(file);
    zero_weights_gather(s->zero);
}

static void compare_step(const Case *c, const StepMetrics *m, const char *layout) {
    const struct {
        Kind k;
        const char *key;
        double got;
    } figure[] = {{STEP_LOSS, "loss", m->loss}, {STEP_AUX, "aux", m->aux},
                  {STEP_Z, "z", m->z},          {STEP_NORM, "gnorm", m->gnorm},
                  {STEP_RATE, "lr", m->lr},     {STEP_DROPPED, "dropped", m->drop}};
    char what[64];
    snprintf(what, sizeof what, "(step %ld, %s)", (long)m->step, layout);
    for (size_t i = 0; i < sizeof figure / sizeof *figure; i++) {
        const json_t *steps = golden_get(c->item, figure[i].key);
        double expected = json_number_value(json_array_get(steps, (size_t)(m->step - 1)));
        compare_values(figure[i].k, c->name, what, figure[i].got, expected);
        if (figure[i].k == STEP_LOSS && m->step == 1)
            compare_values(FIRST_LOSS, c->name, what, figure[i].got, expected);
    }
}

static void check_trajectory(Mesh *mesh, const Case *c, const int32_t *tokens, int zero) {
    int ep = group_size(mesh_group(mesh, AXIS_EXPERT)), world = comm_world_size();
    RunConfig config = run_config(c, ep, zero);
    ModelRun run = train_model_run(&config);
    TrainState state;
    MUST(state_create(&state, &config, mesh, &run, false));
    load_masters(&state, c);
    int64_t own = c->sequences / world, width = c->seq_len + 1;
    char layout[32];
    snprintf(layout, sizeof layout, "ep %d, zero %d", ep, zero);
    for (int64_t step = 0; step < config.schedule.total_steps; step++) {
        memcpy(state.batch_tokens, tokens + (step * c->sequences + own * comm_world_rank()) * width,
               (size_t)(own * width) * sizeof *tokens);
        StepMetrics metrics = {0};
        step_on_batch(&state, c->sequences, &metrics);
        compare_step(c, &metrics, layout);
    }
    state_destroy(&state);
}

// ---- all cases

static Case case_of(const Mesh *mesh, const json_t *cases, const json_t *item) {
    int ep = group_size(mesh_group(mesh, AXIS_EXPERT));
    Case c = {.item = item,
              .name = golden_text(item, "name"),
              .config = golden_model(item),
              .sequences = (int)golden_number(cases, "sequences"),
              .seq_len = (int)golden_number(cases, "seq_len")};
    bool splits = c.config.experts ? c.config.experts % ep == 0 : ep == 1;
    c.micro = splits ? micro_rows(item, &c.config, c.sequences) : 0;
    begin_model(golden_text(item, "model"));
    return c;
}

static int check_all(Mesh *mesh, const json_t *cases) {
    NpyArray tokens = golden_array("tokens.npy", "<i4"), train = golden_array("train_tokens.npy", "<i4");
    NpyArray logprobs = golden_array("logprobs.npy", "<f8"); // (cases, sequences, seq_len)
    size_t i;
    const json_t *item;
    int run = 0;
    json_array_foreach(golden_get(cases, "gradients"), i, item) {
        Case c = case_of(mesh, cases, item);
        const double *expected = (const double *)logprobs.data + i * (size_t)(c.sequences * c.seq_len);
        if (!c.micro) continue;
        run++;
        check_gradients(mesh, &c, tokens.data, expected);
    }
    json_array_foreach(golden_get(cases, "trajectories"), i, item) {
        Case c = case_of(mesh, cases, item);
        if (!c.micro) continue;
        run++;
        const int32_t *rows =
            (const int32_t *)train.data + (int64_t)golden_number(item, "first_row") * (c.seq_len + 1);
        check_trajectory(mesh, &c, rows, 2);
        if (comm_world_size() > 1) check_trajectory(mesh, &c, rows, (int)(i % 2));
    }
    npy_free(&tokens);
    npy_free(&train);
    npy_free(&logprobs);
    return run;
}

// The table of docs/correctness.md: the largest deviation of each kind, and the bounds.
static void print_findings(Mesh *mesh) {
    bool root = comm_world_rank() == 0;
    if (root) printf("\n| model |");
    for (int k = 0; root && k < KINDS; k++) printf(" %s |", kind[k].brief);
    if (root) printf("\n|---|");
    for (int k = 0; root && k < KINDS; k++) printf("---|");
    for (now = findings; now->name; now++) {
        if (root) printf("\n| `%s` |", now->name);
        for (int k = 0; k < KINDS; k++) {
            group_max_f64(mesh_group(mesh, AXIS_WORLD), &now->worst[k], 1);
            if (root && now->number[k])
                printf(" %.1e |", now->worst[k]);
            else if (root)
                printf(" – |");
        }
    }
    if (!root) return;
    printf("\n| bound |");
    for (int k = 0; k < KINDS; k++) printf(" %.1e |", kind[k].bound);
    printf("\n| bound for `tiny-grok` |");
    for (int k = 0; k < KINDS; k++) printf(" %.1e |", kind[k].grok);
    printf("\n\n");
}

int main(int argc, char **argv) {
    comm_start(&argc, &argv);
    json_error_t error;
    json_t *cases = json_load_file(GOLDEN "cases.json", 0, &error);
    REQUIRE(cases, GOLDEN "cases.json:%d: %s", error.line, error.text);
    for (int ep = 1; ep <= comm_world_size(); ep++) {
        Mesh *mesh;
        MUST(mesh_create(&mesh, ep));
        int run = check_all(mesh, cases);
        if (comm_world_rank() == 0) printf("%d ranks, ep %d: %d cases\n", comm_world_size(), ep, run);
        if (ep == comm_world_size()) print_findings(mesh);
        mesh_destroy(mesh);
    }
    json_decref(cases);
    comm_finish();
    return failures != 0;
}
