// SPDX-License-Identifier: Apache-2.0
// ranks: 1 2 4
// The block's choices: every published model, and what ablations put together from them. Gradients against
// finite differences, and the same on any layout, with overlap or without, recomputed or kept.
#include "model_harness.h"

typedef struct {
    const char *name;
    ModelConfig config;
} Choice;

enum { CHOICES = 9 };
static int make_choices(Choice out[CHOICES]) {
    int n = 0;
    for (int arch = 0; arch < ARCH_COUNT; arch++)
        out[n++] = (Choice){arch_name((Arch)arch), harness_family((Arch)arch)};
    // Values at which clamping (of about 5 % of q, k and v) and capping happen, and embeddings of usual size.
    out[ARCH_DBRX].config.clip_qkv = 2;
    out[ARCH_GROK].config.attn_softcap = 0.4;
    out[ARCH_GROK].config.attn_scale = 0.7;
    out[ARCH_GROK].config.embed_scale = 4.5;
    ModelConfig c = harness_family(ARCH_MIXTRAL);
    c.shared_experts = 2;
    c.router.scores = SCORES_SIGMOID;
    c.router.z_coef = 0;
    c.top_k = 8;
    out[n++] = (Choice){"shared experts, sigmoid scores, top 8", c};
    c.sandwich_norms = true;
    c.router.normalize = NORMALIZE_NEVER;
    c.top_k = 1;
    c.moe_every = 2;
    out[n++] = (Choice){"the same with sandwich norms, top 1, every second layer", c};
    c = harness_family(ARCH_ARCTIC);
    c.moe_input = MOE_READS_ATTENTION;
    c.norm = NORM_LAYER;
    c.clip_qkv = 2;
    out[n++] = (Choice){"arctic in series, LayerNorm, clamped", c};
    c = harness_family(ARCH_ARCTIC);
    c.sandwich_norms = true;
    c.dense_ffn = 0;
    c.tie_embeddings = true;
    out[n++] = (Choice){"arctic without a dense branch, sandwich norms, tied", c};
    REQUIRE(n == CHOICES, "%d choices", n);
    return n;
}

// ---- finite differences

// The loss at weights + step·direction, where direction's entry i is a fixed normal number of (name, i).
static double loss_along(Harness *h, const ModelRun *run, const Param *p, double step, double *slope) {
    float *w = tensor_f32(p->weight);
    uint64_t key = 0;
    for (const char *c = p->name; *c; c++) key = key * 31 + (unsigned char)*c;
    int64_t n = param_size(p);
    float *kept = harness_calloc((size_t)n, sizeof *kept);
    memcpy(kept, w, (size_t)n * sizeof *w);
    for (int64_t i = 0; i < n; i++) w[i] += (float)step * rng_normal(11, key, (uint64_t)i);
    if (slope) {
        *slope = 0;
        for (int64_t i = 0; i < n; i++)
            *slope += (double)tensor_f32(p->grad)[i] * (double)rng_normal(11, key, (uint64_t)i);
        free(kept);
        return 0;
    }
    harness_step(h, run, 0, run->sequences);
    memcpy(w, kept, (size_t)n * sizeof *w);
    free(kept);
    return harness_loss(h, run->sequences * run->seq_len);
}

// Routing is fixed, so that the loss is smooth but for the clamp's edges, which these seeds do not cross. In
// float32 the loss has an error of about 1e-7, so a slope over 2e-4 one of about 5e-4; the largest slope of a
// model is 1 … 4, and 2e-3 of it bounds that. Any term left out is far above it.
static void test_finite_differences(Mesh *self, const Choice *choice) {
    ModelConfig c = choice->config;
    if (c.experts) c.router.force = FORCE_BALANCED;
    ModelRun run = harness_run(2);
    Harness h = harness_create(&c, &run, self);
    double slopes[512], differences[512], largest = 0, worst = 0;
    const char *where = "";
    REQUIRE(h.params.count <= 512, "%d weights", h.params.count);
    harness_step(&h, &run, 0, run.sequences);
    for (int i = 0; i < h.params.count; i++) loss_along(&h, &run, &h.params.param[i], 0, &slopes[i]);
    for (int i = 0; i < h.params.count; i++) {
        const Param *p = &h.params.param[i];
        double step = 1e-4;
        differences[i] =
            (loss_along(&h, &run, p, step, NULL) - loss_along(&h, &run, p, -step, NULL)) / (2 * step);
        largest = fmax(largest, fabs(slopes[i]));
    }
    for (int i = 0; i < h.params.count; i++) {
        double off = fabs(slopes[i] - differences[i]) / largest;
        if (!(off <= worst)) worst = off, where = h.params.param[i].name;
    }
    CHECK(worst <= 2e-3, "%s: %s: slope off by %g of the largest, %g", choice->name, where, worst, largest);
    harness_destroy(&h);
}

// ---- layouts

static void test_layouts(Mesh *mesh, const Choice *choice) {
    if (choice->config.experts % group_size(mesh_group(mesh, AXIS_EXPERT)) || !choice->config.experts) return;
    ModelRun run = harness_run(1);
    check_against_alone(mesh, &choice->config, run, choice->name);
    run.chunks = 4;
    run.expert_rows = 0.4;
    run.recompute = RECOMPUTE_LAYER;
    check_against_alone(mesh, &choice->config, run, choice->name);
}

static void test_bit_equal(Mesh *mesh, const Choice *choice) {
    if (!choice->config.experts && group_size(mesh_group(mesh, AXIS_EXPERT)) > 1) return;
    ModelRun run = harness_run(1);
    double loss, other;
    Harness first = run_on(mesh, &choice->config, run, &loss);
    for (int recompute = RECOMPUTE_NONE; recompute <= RECOMPUTE_LAYER; recompute++) {
        run.overlap = recompute != RECOMPUTE_NONE;
        run.recompute = (Recompute)recompute;
        Harness h = run_on(mesh, &choice->config, run, &other);
        CHECK(harness_equal(&first, &h), "%s: other bits with recompute %d", choice->name, recompute);
        harness_destroy(&h);
    }
    harness_destroy(&first);
}

// What a plan says is what a model takes.
static void test_plan(Mesh *mesh, const Choice *choice) {
    int ep = group_size(mesh_group(mesh, AXIS_EXPERT));
    if (!choice->config.experts && ep > 1) return;
    for (int recompute = RECOMPUTE_NONE; recompute <= RECOMPUTE_LAYER; recompute++) {
        ModelRun run = harness_run(2);
        run.recompute = (Recompute)recompute;
        Harness h = harness_create(&choice->config, &run, mesh);
        ModelBytes got = model_bytes(h.model), plan = model_plan_bytes(&choice->config, &run, ep);
        CHECK(got.saved == plan.saved && got.working == plan.working && got.tables == plan.tables,
              "%s: %zu + %zu + %zu bytes planned, %zu + %zu + %zu taken", choice->name, plan.saved,
              plan.working, plan.tables, got.saved, got.working, got.tables);
        harness_destroy(&h);
    }
}

// ---- the check before the first step

static void (*gather)(Tensor, Tensor, Tensor, Stream);
static void gather_wrongly(Tensor rows, Tensor x, Tensor row, Stream stream) { // two tokens change places
    gather(rows, x, row, stream);
    float *a = tensor_f32(rows), *b = a + x.dim[1] * (row.dim[0] * row.dim[1] - 1);
    for (int64_t c = 0; c < x.dim[1]; c++) {
        float kept = a[c];
        a[c] = b[c];
        b[c] = kept;
    }
}

static Canary canary_of(Mesh *mesh, const Choice *choice, bool wrong) {
    ModelRun run = harness_run(2);
    run.seq_len = 4; // all tokens are looked at
    run.chunks = 3;
    run.expert_rows = 0.7;
    Kernels kernels = *kernels_for((Device){DEVICE_CPU, 0});
    gather = kernels.rows_gather;
    if (wrong) kernels.rows_gather = gather_wrongly;
    Harness h = harness_create_with(&choice->config, &run, mesh, &kernels);
    int32_t tokens[2 * 5];
    for (int i = 0; i < 2 * 5; i++) tokens[i] = harness_token(&choice->config, i, i % 5);
    Canary canary = model_canary(h.model, tensor_view(tokens, DTYPE_I32, 2, (int64_t[]){2, 5}));
    harness_destroy(&h);
    return canary;
}

static void test_canary(Mesh *mesh, const Choice *choice) {
    int ep = group_size(mesh_group(mesh, AXIS_EXPERT));
    if (!choice->config.experts || choice->config.experts % ep) return;
    int64_t rows = 8 * (int64_t)choice->config.top_k * (choice->config.layers / choice->config.moe_every);
    Canary right = canary_of(mesh, choice, false), wrong = canary_of(mesh, choice, true);
    CHECK(right.rows == rows && right.worst == 0, "%s: %ld rows, off by %g", choice->name, (long)right.rows,
          right.worst);
    CHECK(wrong.worst > 1e-3, "%s: two tokens changed places unseen (off by %g)", choice->name, wrong.worst);
    CHECK(wrong.owner == wrong.expert / (choice->config.experts / ep), "%s: expert %d on rank %d",
          choice->name, wrong.expert, wrong.owner);
}

int main(int argc, char **argv) {
    comm_start(&argc, &argv);
    Choice choice[CHOICES];
    make_choices(choice);
    int world = comm_world_size();
    for (int ep = 1; ep <= world; ep++) {
        if (world % ep) continue;
        Mesh *mesh;
        REQUIRE(mesh_create(&mesh, ep) == OK, "%s", status_text());
        for (int i = 0; i < CHOICES; i++) {
            if (world == 1) test_finite_differences(mesh, &choice[i]);
            test_layouts(mesh, &choice[i]);
            test_bit_equal(mesh, &choice[i]);
            test_plan(mesh, &choice[i]);
            test_canary(mesh, &choice[i]);
        }
        mesh_destroy(mesh);
    }
    printf("[rank %d] %d failures\n", comm_world_rank(), failures);
    comm_finish();
    return failures != 0;
}
