// SPDX-License-Identifier: Apache-2.0
#include "core/clock.h"
#include "data/curriculum.h"
#include "test_data_plan.h"
#include <math.h>

static const int64_t stage_first[] = {0, 1000, 2500, 4000};
// Training samples an epoch: 601 − ⌈0.02 · 601⌉ and so on.
static const int64_t trained[] = {601 - 13, 300 - 6, 100 - 2};

// What the closed formula says, from the tokens' own values: prose counts from 0, code from 10000, sql from
// 20000.
static void samples_hold_their_tokens(void **state) {
    (void)state;
    Plan plan;
    plan_make(&plan);
    Loader *loader = plan_open(&plan);
    int32_t tokens[PLAN_L + 1];
    for (int64_t n = 0; n < 4000; n++) {
        SampleOrigin origin;
        assert_int_equal(loader_read(loader, n, 1, tokens, &origin), OK);
        assert_in_range(origin.index, 0, trained[origin.source] - 1);
        for (int i = 0; i <= PLAN_L; i++)
            assert_int_equal(tokens[i], 10000 * origin.source + origin.index * PLAN_L + i);
    }
    loader_destroy(loader);
}

// Each source's samples come in epochs, each of which has every training sample once; no ordinal is left out.
static void epochs_are_permutations(void **state) {
    (void)state;
    Plan plan;
    plan_make(&plan);
    Loader *loader = plan_open(&plan);
    int64_t next[PLAN_SOURCES] = {0};
    char *ordinal_seen = calloc(PLAN_SOURCES * 7000, 1), *seen = calloc(PLAN_SOURCES * 64 * 601, 1);
    for (int64_t n = 0; n < 7000; n++) { // and twice the last stage's mixture again
        SampleOrigin origin = loader_origin(loader, n);
        char *mark = &ordinal_seen[origin.source * 7000 + origin.ordinal];
        assert_false(*mark);
        *mark = 1;
        assert_int_equal(origin.epoch, origin.ordinal / trained[origin.source]);
        mark = &seen[(origin.source * 64 + origin.epoch) * 601 + origin.index];
        assert_false(*mark);
        *mark = 1;
        next[origin.source]++;
    }
    for (int i = 0; i < PLAN_SOURCES; i++)
        for (int64_t k = 0; k < next[i]; k++) assert_true(ordinal_seen[i * 7000 + k]);
    assert_true(next[2] > 3 * trained[2]); // it took several epochs, in several orders
    int same = 0;
    for (int64_t k = 0; k < trained[2]; k++) {
        int64_t found[2] = {-1, -2};
        for (int64_t n = 0; n < 4000; n++) {
            SampleOrigin origin = loader_origin(loader, n);
            if (origin.source == 2 && origin.ordinal % trained[2] == k && origin.epoch < 2)
                found[origin.epoch] = origin.index;
        }
        same += found[0] == found[1];
    }
    assert_in_range(same, 0, 8); // 1 expected
    free(seen);
    free(ordinal_seen);
    loader_destroy(loader);
}

static void stages_switch_at_the_exact_sample(void **state) {
    (void)state;
    Plan plan;
    plan_make(&plan);
    Loader *loader = plan_open(&plan);
    for (int s = 0; s <= PLAN_STAGES; s++)
        assert_int_equal(loader_stage_first_sample(loader, s), stage_first[s]);
    int64_t count[PLAN_STAGES][PLAN_SOURCES] = {{0}};
    for (int64_t n = 0; n < 4000; n++) {
        SampleOrigin origin = loader_origin(loader, n);
        assert_int_equal(origin.stage, n < 1000 ? 0 : n < 2500 ? 1 : 2);
        count[origin.stage][origin.source]++;
    }
    assert_memory_equal(count[0], ((const int64_t[]){800, 150, 50}), sizeof count[0]);
    assert_memory_equal(count[2], ((const int64_t[]){300, 450, 750}), sizeof count[2]);
    // A batch across the switch: its first rows are the old stage's, the others the new one's.
    SampleOrigin batch[16];
    int32_t *tokens = malloc(16 * (PLAN_L + 1) * sizeof *tokens);
    assert_int_equal(loader_read(loader, 995, 16, tokens, batch), OK);
    for (int i = 0; i < 16; i++) assert_int_equal(batch[i].stage, i >= 5);
    // After the last stage its mixture goes on.
    int64_t after[PLAN_SOURCES] = {0};
    for (int64_t n = 4000; n < 7000; n++) {
        SampleOrigin origin = loader_origin(loader, n);
        assert_int_equal(origin.stage, 2);
        after[origin.source]++;
    }
    assert_memory_equal(after, ((const int64_t[]){600, 900, 1500}), sizeof after);
    free(tokens);
    loader_destroy(loader);
}

// 4000 tokens from token 8003 in 64 steps: step j ends at sample ⌊(8003 + ⌊4000 (j + 1) / 64⌋) / 8⌋, and its
// quotas are those of the weights in the middle of the step.
static void ramps_move_in_64_steps(void **state) {
    (void)state;
    Plan plan;
    plan_make(&plan);
    Loader *loader = plan_open(&plan);
    int64_t first = 1000, share_of_code = 0;
    for (int j = 0; j < 64; j++) {
        int64_t end = (8003 + 4000 * (j + 1) / 64) / 8, count[PLAN_SOURCES] = {0}, samples = end - first;
        for (int64_t n = first; n < end; n++) count[loader_origin(loader, n).source]++;
        double t = (2 * j + 1) / 128.0;
        const double exact[] = {0.8 + t * (0.4 - 0.8), 0.15 + t * (0.5 - 0.15), 0.05 + t * (0.1 - 0.05)};
        for (int i = 0; i < PLAN_SOURCES; i++)
            assert_true(fabs((double)count[i] - exact[i] * (double)samples) < 1);
        share_of_code += count[1];
        first = end;
    }
    assert_int_equal(first, (8003 + 4000) / 8);
    assert_in_range(share_of_code, 130, 196); // 500 samples at 0.15 … 0.5, 0.325 on average
    int64_t count[PLAN_SOURCES] = {0};
    for (int64_t n = first; n < 2500; n++) count[loader_origin(loader, n).source]++;
    assert_memory_equal(count, ((const int64_t[]){400, 500, 100}), sizeof count);
    loader_destroy(loader);
}

// From all a to all b in steps of 100,000 samples: step j has (2j + 1) / 128 of b.
static void ramp_weights_are_exact(void **state) {
    (void)state;
    const DataSource source[] = {{.name = "a"}, {.name = "b"}};
    const double from[] = {1, 0}, to[] = {0, 1};
    const DataStage stage[] = {{1000000, from, 0}, {10000000, to, 6400000}};
    const DataConfig config = {.source = source, .sources = 2, .stage = stage, .stages = 2, .seq_len = 1};
    Curriculum curriculum;
    int64_t before[4], after[4];
    assert_int_equal(curriculum_create(&curriculum, &config), OK);
    for (int64_t j = 0; j < 64; j++) {
        curriculum_count(&curriculum, 1000000 + 100000 * j, before);
        curriculum_count(&curriculum, 1000000 + 100000 * (j + 1), after);
        int64_t in_128ths = 128 * (after[3] - before[3]) - 100000 * (2 * j + 1);
        assert_true(in_128ths > -128 && in_128ths < 128);
        assert_int_equal(after[2] - before[2] + after[3] - before[3], 100000);
    }
    curriculum_count(&curriculum, 10000000, after);
    assert_memory_equal(after, ((const int64_t[]){1000000, 0, 3200000, 5800000}), sizeof after);
    curriculum_free(&curriculum);
}

// Rank r of R reads rows rB/R … (r + 1)B/R − 1: together the batch of one rank, with the same hash.
static void ranks_share_out_a_batch(void **state) {
    (void)state;
    Plan plan;
    plan_make(&plan);
    const int64_t B = 24, first = 990;
    const size_t row = PLAN_L + 1;
    int32_t *whole = malloc((size_t)B * row * sizeof *whole), *part = malloc((size_t)B * row * sizeof *part);
    Loader *loader = plan_open(&plan);
    assert_int_equal(loader_read(loader, first, B, whole, NULL), OK);
    uint64_t hash = loader_stream_hash(loader, first, B, whole);
    loader_destroy(loader);
    for (int64_t R = 1; R <= 8; R++) {
        uint64_t all = 0;
        for (int64_t r = 0; r < R; r++) {
            Loader *own = plan_open(&plan);
            int64_t from = r * B / R, count = (r + 1) * B / R - from;
            assert_int_equal(loader_read(own, first + from, count, part, NULL), OK);
            assert_memory_equal(part, whole + (size_t)from * row, (size_t)count * row * sizeof *part);
            all ^= loader_stream_hash(own, first + from, count, part);
            loader_destroy(own);
        }
        assert_true(all == hash);
    }
    loader = plan_open(&plan);
    whole[17]++;
    assert_true(loader_stream_hash(loader, first, B, whole) != hash);
    whole[17]--;
    assert_true(loader_stream_hash(loader, first + 1, B, whole) != hash);
    loader_destroy(loader);
    free(part);
    free(whole);
}

static void the_seed_decides_the_order(void **state) {
    (void)state;
    Plan plan;
    plan_make(&plan);
    Loader *a = plan_open(&plan);
    plan.config.seed++;
    Loader *b = plan_open(&plan);
    int same = 0;
    for (int64_t n = 0; n < 1000; n++) {
        SampleOrigin x = loader_origin(a, n), y = loader_origin(b, n);
        assert_int_equal(x.source, y.source);
        same += x.index == y.index;
    }
    assert_in_range(same, 0, 20); // 800/588 + 150/294 + 50/98 expected
    loader_destroy(a);
    loader_destroy(b);
}

static void held_out_samples_are_the_tail(void **state) {
    (void)state;
    Plan plan;
    plan_make(&plan);
    Loader *loader = plan_open(&plan);
    static const int64_t held[] = {13, 6, 2};
    int32_t tokens[PLAN_L + 1];
    for (int s = 0; s < PLAN_SOURCES; s++) {
        assert_int_equal(loader_train_samples(loader, s), trained[s]);
        assert_int_equal(loader_eval_samples(loader, s), held[s]);
        for (int64_t i = 0; i < held[s]; i++) {
            assert_int_equal(loader_eval_read(loader, s, i, tokens), OK);
            for (int j = 0; j <= PLAN_L; j++)
                assert_int_equal(tokens[j], 10000 * s + (trained[s] + i) * PLAN_L + j);
        }
    }
    loader_destroy(loader);
    plan.config.holdout = 0.01; // exactly 3 and 1 of 300 and 100, though 0.01 is a little more in binary
    loader = plan_open(&plan);
    assert_int_equal(loader_eval_samples(loader, 0), 7);
    assert_int_equal(loader_eval_samples(loader, 1), 3);
    assert_int_equal(loader_eval_samples(loader, 2), 1);
    loader_destroy(loader);
    plan.config.holdout = 0;
    loader = plan_open(&plan);
    for (int s = 0; s < PLAN_SOURCES; s++) assert_int_equal(loader_eval_samples(loader, s), 0);
    assert_int_equal(loader_train_samples(loader, 2), 100);
    loader_destroy(loader);
}

static void a_valid_shard_replaces_the_tail(void **state) {
    (void)state;
    Plan plan;
    plan_make(&plan);
    char valid[128];
    snprintf(valid, sizeof valid, "%s/valid", test_folder);
    make_shard(valid, 40, PLAN_VOCAB, 30000, 1);
    plan.source[1].valid = valid;
    Loader *loader = plan_open(&plan);
    int32_t tokens[PLAN_L + 1];
    assert_int_equal(loader_train_samples(loader, 1), 300);
    assert_int_equal(loader_train_samples(loader, 0), trained[0]);
    assert_int_equal(loader_eval_samples(loader, 1), 4);
    assert_int_equal(loader_eval_read(loader, 1, 3, tokens), OK);
    assert_int_equal(tokens[0], 30024);
    loader_destroy(loader);
    make_shard(valid, PLAN_L, PLAN_VOCAB, 30000, 1);
    assert_failed(loader_create(&loader, &plan.config), ERR_DATA, "source code", "has 8 tokens");
    remove(in_test_folder("valid.bin"));
    assert_failed(loader_create(&loader, &plan.config), ERR_DATA, "valid.bin", "No such file");
}

static void id_beyond_the_vocabulary_is_found_when_read(void **state) {
    (void)state;
    Plan plan;
    plan_make(&plan);
    plan.config.vocab = 20500;
    Loader *loader = plan_open(&plan);
    int32_t tokens[PLAN_L + 1];
    Status status = OK;
    for (int64_t n = 0; n < 4000 && status == OK; n++) status = loader_read(loader, n, 1, tokens, NULL);
    assert_failed(status, ERR_DATA, "sql.bin: token ", "outside the vocabulary 0 … 20499");
    loader_destroy(loader);
}

// 64 sources, 10^12 tokens at 4096 in 3 stages, one of them with a ramp: created in 0.1 s at most here (limit
// 1 s).
static void creation_is_quick(void **state) {
    (void)state;
    enum { SOURCES = 64 };
    static DataSource source[SOURCES];
    static char name[SOURCES][128], label[SOURCES][16];
    static const char *path[SOURCES];
    static double weight[3][SOURCES];
    for (int i = 0; i < SOURCES; i++) {
        snprintf(name[i], sizeof name[i], "%s/s%d", test_folder, i);
        snprintf(label[i], sizeof label[i], "s%d", i);
        path[i] = name[i];
        make_shard(name[i], 4096 * (10 + i) + 1, 1000, i, 1);
        source[i] = (DataSource){.name = label[i], .path = &path[i], .paths = 1};
        for (int s = 0; s < 3; s++) weight[s][i] = 1 + (i * 37 + s * 11) % 64;
    }
    const DataStage stage[] = {
        {300000000000, weight[0], 0}, {700000000000, weight[1], 50000000000}, {1000000000000, weight[2], 0}};
    const DataConfig config = {source, SOURCES, stage, 3, 4096, 1000, 0.005, 1};
    Loader *loader;
    double start = clock_seconds();
    assert_int_equal(loader_create(&loader, &config), OK);
    double seconds = clock_seconds() - start;
    int32_t *tokens = malloc(4097 * sizeof *tokens);
    assert_int_equal(loader_read(loader, 244140624, 1, tokens, NULL), OK);
    assert_int_equal(loader_stage_first_sample(loader, 3), 244140625);
    assert_true(seconds < 1);
    print_message("loader_create: %.4f s\n", seconds);
    free(tokens);
    loader_destroy(loader);
}

static void expect_error(const Plan *plan, Status expected, const char *a, const char *b) {
    Loader *loader = (Loader *)(uintptr_t)1;
    assert_failed(loader_create(&loader, &plan->config), expected, a, b);
    assert_null(loader);
}

static void bad_plans_are_named(void **state) {
    (void)state;
    Plan good, plan;
    plan_make(&good);
#define WITH(change, status, a, b)                                                                           \
    do {                                                                                                     \
        plan_make(&plan);                                                                                    \
        change;                                                                                              \
        expect_error(&plan, status, a, b);                                                                   \
    } while (0)
    WITH(plan.stage[1].until = 8003, ERR_CONFIG, "stage 2 ends at token 8003", "let until grow");
    WITH(plan.stage[1].ramp = 12003, ERR_CONFIG, "stage 2 has 12002 tokens, its ramp 12003", "shorter");
    WITH(plan.stage[0].ramp = 1, ERR_CONFIG, "stage 1 has a ramp", "remove");
    WITH(plan.weight[2][1] = -0.1, ERR_CONFIG, "stage 3: source code has weight -0.1", "");
    WITH(plan.weight[2][1] = NAN, ERR_CONFIG, "stage 3: source code has weight", "");
    WITH(memset(plan.weight[0], 0, sizeof plan.weight[0]), ERR_CONFIG, "stage 1: the weights add up to 0",
         "");
    WITH(plan.config.stages = 0, ERR_CONFIG, "no stage", "");
    WITH(plan.config.sources = 0, ERR_CONFIG, "data.sources is empty", "");
    WITH(plan.source[1].name = "prose", ERR_CONFIG, "names prose twice", "");
    WITH(plan.source[1].paths = 0, ERR_CONFIG, "source code names no token shard", "data.sources.code.path");
    WITH(plan.config.holdout = 1, ERR_CONFIG, "data.holdout is 1", "");
    WITH(plan.config.holdout = -0.1, ERR_CONFIG, "data.holdout is -0.1", "");
    WITH(plan.config.holdout = 0.995, ERR_DATA, "source sql has 100 samples", "data.holdout: 0");
    WITH(plan.config.seq_len = 900, ERR_DATA, "source sql",
         "808 tokens; one sample takes batch.seq_len + 1 = 901");
    WITH(plan.config.seq_len = 0, ERR_CONFIG, "batch.seq_len is 0", "");
    WITH((plan.config.stages = 1, plan.stage[0].until = 7), ERR_CONFIG, "ends at token 7",
         "train for longer");
    WITH(remove(in_test_folder("prose-1.idx")), ERR_DATA, "prose-1.idx", "No such file");
}

int main(void) {
#define IN_FOLDER(test) cmocka_unit_test_setup_teardown(test, folder_setup, folder_teardown)
    const struct CMUnitTest tests[] = {
        IN_FOLDER(samples_hold_their_tokens),
        IN_FOLDER(epochs_are_permutations),
        IN_FOLDER(stages_switch_at_the_exact_sample),
        IN_FOLDER(ramps_move_in_64_steps),
        cmocka_unit_test(ramp_weights_are_exact),
        IN_FOLDER(ranks_share_out_a_batch),
        IN_FOLDER(the_seed_decides_the_order),
        IN_FOLDER(held_out_samples_are_the_tail),
        IN_FOLDER(a_valid_shard_replaces_the_tail),
        IN_FOLDER(id_beyond_the_vocabulary_is_found_when_read),
        IN_FOLDER(creation_is_quick),
        IN_FOLDER(bad_plans_are_named),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
