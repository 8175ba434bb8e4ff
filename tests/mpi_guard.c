// SPDX-License-Identifier: Apache-2.0
// ranks: 1 2 4
// Bad steps, made by kernels that fail on one rank: all ranks see them, nothing of them stays in the state,
// and training goes on to the bit as if their batch had never been there. Copies of weights that differ are
// found, with rank and group.
#include "core/file.h"
#include "model_harness.h"
#include "train/bad_step.h"

enum { SEQUENCES = 12, LENGTH = 16, MICRO = 3, STEPS = 6, BAD = 3 };

// ---- kernels that fail once, where armed

typedef enum { FAULT_NONE, FAULT_LOSS, FAULT_GRADIENT, FAULT_INFINITE, FAULT_EXPERT, FAULT_SPIKE } Fault;
static Fault armed;
static Kernels sound, faulty;

static void bad_cross_entropy(Tensor logprob, Tensor logits, Tensor targets, float scale, Stream stream) {
    sound.cross_entropy(logprob, logits, targets, armed == FAULT_SPIKE ? 1e4f * scale : scale, stream);
    if (armed == FAULT_LOSS) tensor_f32(logprob)[5] = NAN;
    if (armed != FAULT_SPIKE && armed != FAULT_LOSS) return;
    armed = FAULT_NONE;
}

static void bad_embedding_backward(Tensor dtable, Tensor dy, Tensor tokens, Stream stream) {
    sound.embedding_backward(dtable, dy, tokens, stream);
    if (armed != FAULT_GRADIENT && armed != FAULT_INFINITE) return;
    tensor_f32(dtable)[7] = armed == FAULT_GRADIENT ? NAN : -INFINITY;
    armed = FAULT_NONE;
}

static void bad_glu_backward(Tensor dgate, Tensor dup, Tensor act, Tensor dscale, Tensor dact, Tensor gate,
                             Tensor up, Tensor scale, Activation activation, Stream stream) {
    sound.glu_backward(dgate, dup, act, dscale, dact, gate, up, scale, activation, stream);
    if (armed != FAULT_EXPERT || up.dim[1] != harness_config().expert_ffn || up.dim[0] == 0) return;
    tensor_f32(dup)[3] = NAN;
    armed = FAULT_NONE;
}

// ---- runs

typedef struct {
    Mesh *mesh;
    RunConfig config;
    TrainState state;
} Run;

static void run_create(Run *run, Mesh *mesh, int zero, GuardConfig guard) {
    run->mesh = mesh;
    run->config =
        (RunConfig){.model = harness_config(),
                    .parallel = {group_size(mesh_group(mesh, AXIS_EXPERT)), zero, .chunks = 2,
                                 .overlap = true, .expert_rows = 2},
                    .batch = {SEQUENCES, LENGTH, MICRO, {.sequences = SEQUENCES, .seq_len = LENGTH}},
                    .adamw = {0.9f, 0.95f, 1e-8f, 0.1f, false},
                    .schedule = {SCHEDULE_CONSTANT, 1e-2, 1, 0, 0, STEPS},
                    .clip = 1,
                    .guard = guard};
    run->config.model.router.bias_rate = 1e-2;
    ModelRun shape = train_model_run(&run->config);
    REQUIRE(state_create_with(&run->state, &run->config, mesh, &shape, false, &faulty) == OK, "%s",
            status_text());
    zero_init_weights(run->state.zero, 3);
}

// Batch number `batch`, with the fault on the last rank.
static StepMetrics run_step(Run *run, int batch, Fault fault) {
    TrainState *s = &run->state;
    int world = comm_world_size();
    int64_t own = SEQUENCES / world * (LENGTH + 1), first = own * comm_world_rank();
    for (int64_t i = 0; i < own; i++)
        s->batch_tokens[i] =
            (int32_t)(rng_u64(5, (uint64_t)batch, (uint64_t)(first + i)) % (uint64_t)run->config.model.vocab);
    StepMetrics m = {.stage = 1};
    armed = comm_world_rank() == world - 1 ? fault : FAULT_NONE;
    step_on_batch(s, SEQUENCES, &m);
    CHECK(armed == FAULT_NONE, "the fault %d did not happen", fault);
    return m;
}

static void run_free(Run *run) {
    state_destroy(&run->state);
}

static uint64_t digest_of(uint64_t digest, const float *values, int64_t count) {
    for (int64_t i = 0; i < count; i++) {
        uint32_t bits;
        memcpy(&bits, &values[i], sizeof bits);
        digest = hash_mix(digest, bits);
    }
    return digest;
}

// Of everything that a step changes on this rank.
static uint64_t digest(const Run *run) {
    const TrainState *s = &run->state;
    int held;
    const ZeroSlice *slice = zero_held(s->zero, &held);
    uint64_t sum = 0;
    for (int i = 0; i < held; i++) {
        sum = digest_of(sum, slice[i].master, slice[i].count);
        sum = digest_of(sum, slice[i].m, slice[i].count);
        sum = digest_of(sum, slice[i].v, slice[i].count);
    }
    for (int i = 0; i < s->params.count; i++)
        sum = digest_of(sum, tensor_f32(s->params.param[i].weight), param_size(&s->params.param[i]));
    Tensor bias = model_bias(s->model);
    return digest_of(sum, tensor_f32(bias), bias.dim[0] * bias.dim[1]);
}

// ---- bad steps

static const GuardConfig skipping = {GUARD_SKIP, GUARD_SKIP, .window = 2, .max_bad = 10, .z = 1000};

static void check_verdict(Mesh *mesh, const Verdict *v, Fault fault) {
    CHECK(v->bad && v->action == GUARD_SKIP && v->in_row == 1, "bad %d, action %d", v->bad, v->action);
    CHECK(v->cause == (fault == FAULT_SPIKE ? CAUSE_GNORM : CAUSE_NONFINITE), "cause %d", v->cause);
    double figures[] = {v->value, v->z, -v->value, -v->z};
    group_max_f64(mesh_group(mesh, AXIS_WORLD), figures, 4);
    CHECK(figures[0] == -figures[2] && figures[1] == -figures[3], "ranks judge from other figures");
}

// With the same learning rate in every step, a run whose third step fails ends as one that never had it.
static void a_bad_step_leaves_nothing(Mesh *mesh, int zero, Fault fault) {
    Run with, without;
    run_create(&with, mesh, zero, skipping);
    run_create(&without, mesh, zero, skipping);
    for (int step = 1; step <= STEPS; step++) {
        uint64_t before = digest(&with);
        StepMetrics m = run_step(&with, step, step == BAD ? fault : FAULT_NONE);
        CHECK(with.state.step == step, "step %ld", (long)with.state.step);
        if (step == BAD) {
            check_verdict(mesh, &m.verdict, fault);
            CHECK(digest(&with) == before, "zero %d, fault %d: the bad step changed the state", zero, fault);
            continue;
        }
        CHECK(!m.verdict.bad && !m.replica.found && isfinite(m.loss) && isfinite(m.gnorm),
              "step %d is bad: loss %g, gradient norm %g", step, m.loss, m.gnorm);
        CHECK(digest(&with) != before, "step %d changed nothing", step);
        run_step(&without, step, FAULT_NONE);
    }
    CHECK(digest(&with) == digest(&without), "zero %d, fault %d: something of the bad step is left", zero,
          fault);
    CHECK(guard_updates(&with.state.guard, STEPS) == STEPS - 1, "updates");
    run_free(&with);
    run_free(&without);
}

static void policies(Mesh *mesh) {
    static const GuardAction action[] = {GUARD_STOP, GUARD_SKIP, GUARD_ROLLBACK};
    for (int i = 0; i < 3; i++) {
        Run run;
        run_create(&run, mesh, 1, (GuardConfig){action[i], GUARD_OFF, .window = 2, .max_bad = 2, .z = 1000});
        uint64_t before = digest(&run);
        StepMetrics m = run_step(&run, 1, FAULT_LOSS);
        CHECK(m.verdict.bad && m.verdict.action == action[i], "action %d", m.verdict.action);
        m = run_step(&run, 2, FAULT_GRADIENT);
        CHECK(m.verdict.bad && m.verdict.action == GUARD_STOP && m.verdict.in_row == 2,
              "the second in a row: %d", m.verdict.action);
        CHECK(digest(&run) == before, "action %d changed the state", action[i]);
        run_free(&run);
    }
}

// ---- copies of weights

typedef enum { FLIP_DENSE, FLIP_EXPERT, FLIP_BIAS } Flip;

static const char *flip(Run *run, Flip what) {
    static const char *const name[] = {"layers.1.attn.q", "layers.1.experts.%d.up"};
    TrainState *s = &run->state;
    if (what == FLIP_BIAS) {
        tensor_f32(model_bias(s->model))[1] += 0x1p-20f;
        return "router_bias";
    }
    int ep = group_size(mesh_group(run->mesh, AXIS_EXPERT)), local = run->config.model.experts / ep;
    char text[PARAM_NAME_BYTES];
    snprintf(text, sizeof text, what ? name[1] : name[0],
             (group_rank(mesh_group(run->mesh, AXIS_EXPERT)) + 1) * local - 1);
    const Param *p = &s->params.param[params_find(&s->params, text)];
    uint32_t *bits = (uint32_t *)tensor_f32(p->weight);
    bits[param_size(p) - 1] ^= 1;
    return s->params.group[p->group].name;
}

static const char *group_name(const Run *run, int group) {
    return group < run->state.params.group_count ? run->state.params.group[group].name : "router_bias";
}

static json_t *last_event(const char *folder) {
    char path[96], line[1024], text[1024] = "{}";
    snprintf(path, sizeof path, "%s/metrics.jsonl", folder);
    FILE *in = fopen(path, "r");
    while (in && fgets(line, sizeof line, in)) memcpy(text, line, sizeof text);
    if (in) fclose(in);
    return json_loads(text, 0, NULL);
}

// What is said and recorded when copies differ in step 4; the run ends on all ranks.
static void check_end(Run *run, const StepMetrics *m, const char *group) {
    char folder[64], says[128];
    Metrics metrics = {.fd = -1};
    Status trouble = OK;
    bool root = comm_world_rank() == 0;
    snprintf(folder, sizeof folder, "mpi_guard_%d.tmp", comm_world_size());
    if (root)
        CHECK(file_make_folders(folder) == OK && metrics_open(&metrics, folder, 0, NULL) == OK, "%s", folder);
    BadStep bad = {&run->state, m, &metrics, folder, 3};
    CHECK(bad_step_settle(&bad, &trouble) == ERR_DATA && trouble == OK, "the run goes on");
    snprintf(says, sizeof says, "step 4: the weights of %s on rank %d (", group, m->replica.rank);
    CHECK(strstr(status_text(), says) && strstr(status_text(), "from step 2 on"), "%s", status_text());
    if (!root) return;
    json_t *event = last_event(folder);
    CHECK(strcmp(json_string_value(json_object_get(event, "event")), "replica_mismatch") == 0 &&
              strcmp(json_string_value(json_object_get(event, "group")), group) == 0 &&
              json_integer_value(json_object_get(event, "rank")) == m->replica.rank,
          "another record");
    json_decref(event);
    metrics_close(&metrics);
    CHECK(file_remove_tree(folder) == OK, "%s", folder);
}

static void a_flipped_weight_is_found(Mesh *mesh, int zero, Flip what) {
    Run run;
    GuardConfig guard = skipping;
    int last = comm_world_size() - 1, ep = group_size(mesh_group(mesh, AXIS_EXPERT));
    int copies = what == FLIP_EXPERT ? comm_world_size() / ep : comm_world_size();
    guard.replica_check = 2;
    run_create(&run, mesh, zero, guard);
    for (int step = 1; step <= 2; step++)
        CHECK(!run_step(&run, step, FAULT_NONE).replica.found, "a difference in step %d", step);
    CHECK(!run_step(&run, 3, FAULT_NONE).replica.found, "compared in step 3");
    const char *group = comm_world_rank() == last ? flip(&run, what) : "";
    char expected[PARAM_NAME_BYTES];
    snprintf(expected, sizeof expected, "%s", group);
    group_broadcast(mesh_group(mesh, AXIS_WORLD), last, expected, sizeof expected);
    uint64_t before = digest(&run);
    StepMetrics m = run_step(&run, 4, FAULT_NONE);
    ReplicaFault f = m.replica;
    CHECK(f.found == (copies > 1), "found %d", f.found);
    if (f.found) {
        CHECK(strcmp(group_name(&run, f.group), expected) == 0, "%s instead of %s", group_name(&run, f.group),
              expected);
        CHECK(f.rank == last && f.copies == copies, "rank %d of %d", f.rank, f.copies);
        CHECK(f.certain == (copies > 2) && (f.certain || f.other == last % ep || what != FLIP_EXPERT),
              "certain %d, other %d", f.certain, f.other);
        CHECK(digest(&run) == before, "the step changed the state");
        check_end(&run, &m, expected);
    }
    run_free(&run);
}

// A rank whose flipped weight makes a step bad is named though no comparison was due.
static void a_bad_step_compares(Mesh *mesh) {
    Run run;
    GuardConfig guard = skipping;
    guard.replica_check = 1000000;
    run_create(&run, mesh, 0, guard);
    CHECK(!run_step(&run, 1, FAULT_NONE).replica.found, "a difference");
    if (comm_world_rank() == comm_world_size() - 1) flip(&run, FLIP_DENSE);
    StepMetrics m = run_step(&run, 2, FAULT_EXPERT);
    CHECK(m.verdict.bad && m.replica.found == (comm_world_size() > 1), "found %d", m.replica.found);
    run_free(&run);
}

int main(int argc, char **argv) {
    comm_start(&argc, &argv);
    sound = faulty = *kernels_for((Device){DEVICE_CPU, 0});
    faulty.cross_entropy = bad_cross_entropy;
    faulty.embedding_backward = bad_embedding_backward;
    faulty.glu_backward = bad_glu_backward;
    for (int ep = 1; ep <= comm_world_size() && ep <= 2; ep++) {
        Mesh *mesh;
        REQUIRE(mesh_create(&mesh, ep) == OK, "%s", status_text());
        for (int zero = 0; zero < 3; zero++) {
            for (Fault fault = FAULT_LOSS; fault <= FAULT_SPIKE; fault++)
                a_bad_step_leaves_nothing(mesh, zero, fault);
            for (Flip what = FLIP_DENSE; what <= FLIP_BIAS; what++)
                a_flipped_weight_is_found(mesh, zero, what);
        }
        policies(mesh);
        a_bad_step_compares(mesh);
        mesh_destroy(mesh);
    }
    comm_finish();
    return failures != 0;
}
