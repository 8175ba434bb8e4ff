// SPDX-License-Identifier: Apache-2.0
// The same gradients whatever the layout: expert parallelism, overlap, chunks, waves, recompute.
// ranks: 1 2 3 4
#include "model_harness.h"

static void test_layouts(Mesh *mesh) {
    ModelConfig c = harness_config();
    ModelRun run = harness_run(1);
    check_against_alone(mesh, &c, run, "plain");
    c.router.aux_scope = SCOPE_GLOBAL_BATCH;
    c.router.aux_kind = BALANCE_HF;
    check_against_alone(mesh, &c, run, "global balance, hf");
    c = harness_config();
    c.moe_every = 2;
    c.tie_embeddings = true;
    c.top_k = 3;
    check_against_alone(mesh, &c, run, "every second layer, tied, top 3");
    c = harness_config();
    c.top_k = 1;
    c.router.force = FORCE_ONE;
    check_against_alone(mesh, &c, run, "every token to one expert");
    c.router.force = FORCE_BALANCED;
    check_against_alone(mesh, &c, run, "forced balance");
    c = harness_config();
    c.experts = 0;
    if (group_size(mesh_group(mesh, AXIS_EXPERT)) == 1) check_against_alone(mesh, &c, run, "no experts");
}

// Chunks and waves reorder the sums of expert weight gradients, nothing else.
static void test_chunks_and_waves(Mesh *mesh) {
    ModelConfig c = harness_config();
    ModelRun run = harness_run(1);
    run.chunks = 1;
    check_against_alone(mesh, &c, run, "one chunk");
    run.chunks = 5;
    check_against_alone(mesh, &c, run, "five chunks");
    run.expert_rows = 0.3;
    check_against_alone(mesh, &c, run, "many waves");
    run.recompute = RECOMPUTE_MOE;
    check_against_alone(mesh, &c, run, "many waves, recompute moe");
    run.recompute = RECOMPUTE_LAYER;
    check_against_alone(mesh, &c, run, "many waves, recompute layer");
    c.router.force = FORCE_ONE;
    check_against_alone(mesh, &c, run, "many waves to few experts");
}

static void test_bit_equal(Mesh *mesh) {
    ModelConfig c = harness_config();
    ModelRun run = harness_run(1);
    double loss, other;
    Harness first = run_on(mesh, &c, run, &loss);
    const struct {
        const char *what;
        bool overlap;
        Recompute recompute;
    } variants[] = {{"the same again", true, RECOMPUTE_NONE},
                    {"overlap off", false, RECOMPUTE_NONE},
                    {"recompute moe", true, RECOMPUTE_MOE},
                    {"recompute layer", true, RECOMPUTE_LAYER}};
    for (size_t i = 0; i < sizeof variants / sizeof *variants; i++) {
        run.overlap = variants[i].overlap;
        run.recompute = variants[i].recompute;
        Harness h = run_on(mesh, &c, run, &other);
        CHECK(harness_equal(&first, &h), "%s: other bits", variants[i].what);
        if (variants[i].recompute == RECOMPUTE_LAYER)
            CHECK(model_bytes(h.model).saved < model_bytes(first.model).saved / 3,
                  "recompute layer keeps %zu of %zu bytes", model_bytes(h.model).saved,
                  model_bytes(first.model).saved);
        harness_destroy(&h);
    }
    harness_destroy(&first);
}

// Dropping is decided per rank, so the reference has to be this rank's own tokens: compare with the same rows
// run alone.
static void test_capacity(Mesh *mesh) {
    ModelConfig c = harness_config();
    c.router.capacity_factor = 0.75;
    for (int policy = DROP_POSITION; policy <= DROP_PROBS; policy++) {
        c.router.drop_policy = (DropPolicy)policy;
        double loss;
        Harness h = run_on(mesh, &c, harness_run(1), &loss);
        Mesh *self;
        REQUIRE(mesh_create_self(&self) == OK, "%s", status_text());
        ModelRun run = harness_run(TOTAL / comm_world_size());
        Harness own = harness_create(&c, &run, self);
        harness_step(&own, &run, comm_world_rank() * run.sequences, TOTAL);
        CHECK(own.loss.dropped > 0, "nothing was dropped");
        CHECK(own.loss.dropped == h.loss.dropped, "dropped %ld, expected %ld", (long)h.loss.dropped,
              (long)own.loss.dropped);
        CHECK(fabs(own.loss.ce_sum - h.loss.ce_sum) <= LOSS_BOUND * own.loss.ce_sum,
              "loss %.9g, expected %.9g", h.loss.ce_sum, own.loss.ce_sum);
        harness_destroy(&h);
        harness_destroy(&own);
    }
}

// Received rows are bounded: with every token to one expert the model holds no more memory than in balance.
static void test_bounded_rows(Mesh *mesh) {
    ModelConfig c = harness_config();
    c.top_k = 1;
    ModelRun run = harness_run(1);
    run.expert_rows = 1;
    double loss;
    c.router.force = FORCE_BALANCED;
    Harness balanced = run_on(mesh, &c, run, &loss);
    c.router.force = FORCE_ONE;
    Harness one = run_on(mesh, &c, run, &loss);
    ModelBytes a = model_bytes(balanced.model), b = model_bytes(one.model);
    CHECK(a.saved == b.saved && a.working == b.working, "%zu + %zu bytes against %zu + %zu", b.saved,
          b.working, a.saved, a.working);
    LayerTimeline sum = timeline_sum(model_timeline(one.model));
    int ep = group_size(mesh_group(mesh, AXIS_EXPERT));
    CHECK(sum.waves == (int64_t)c.layers * (ep - 1), "%ld waves beyond the first", (long)sum.waves);
    harness_destroy(&balanced);
    harness_destroy(&one);
}

// Feeding a text piece by piece through the cache gives the logits of feeding it at once.
static void test_extend(void) {
    ModelConfig c = harness_config();
    Mesh *self;
    REQUIRE(mesh_create_self(&self) == OK, "%s", status_text());
    ModelRun run = harness_run(1);
    run.training = false;
    Harness h = harness_create(&c, &run, self);
    int32_t tokens[16];
    for (int t = 0; t < 16; t++) tokens[t] = harness_token(&c, 5, t);
    float whole[37], pieces[37];
    Tensor a = tensor_matrix(whole, 1, 37), b = tensor_matrix(pieces, 1, 37);
    model_extend(h.model, tensor_view(tokens, DTYPE_I32, 1, (int64_t[]){16}), 0, a);
    model_extend(h.model, tensor_view(tokens, DTYPE_I32, 1, (int64_t[]){5}), 0, b);
    model_extend(h.model, tensor_view(tokens + 5, DTYPE_I32, 1, (int64_t[]){1}), 5, b);
    model_extend(h.model, tensor_view(tokens + 6, DTYPE_I32, 1, (int64_t[]){10}), 6, b);
    for (int i = 0; i < 37; i++)
        CHECK(fabsf(whole[i] - pieces[i]) <= 1e-5f, "logit %d: %g at once, %g in pieces", i, (double)whole[i],
              (double)pieces[i]);
    harness_destroy(&h);
}

int main(int argc, char **argv) {
    comm_start(&argc, &argv);
    int world = comm_world_size();
    for (int ep = 1; ep <= world; ep++) {
        if (world % ep || 12 % ep) continue;
        Mesh *mesh;
        REQUIRE(mesh_create(&mesh, ep) == OK, "%s", status_text());
        test_layouts(mesh);
        test_chunks_and_waves(mesh);
        test_bit_equal(mesh);
        test_capacity(mesh);
        test_bounded_rows(mesh);
        mesh_destroy(mesh);
    }
    test_extend();
    printf("[rank %d] %d failures\n", comm_world_rank(), failures);
    comm_finish();
    return failures != 0;
}
