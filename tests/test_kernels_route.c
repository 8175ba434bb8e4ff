// SPDX-License-Identifier: Apache-2.0
// Choice of experts, capacity, weights, order, statistics, the router's gradient; rows to expert order and
// back.
#include "tests/kernels_harness.h"
#include <stdio.h>
#include <sys/wait.h>
#include <unistd.h>

static const Tensor none;

// ---- choice

static void check_choice(int64_t T, int64_t E, int64_t k, bool biased, ScoreKind scores) {
    Tensor logits = input(T, E, 2), bias = biased ? input(E, 0, 0.3f) : none;
    Tensor probs = output(T, E), lse = output(T, 0), index = output_ints(T, k), same = output_copy(logits);
    kernels->route_scores(same, lse, index, same, bias, scores, stream);
    kernels->route_scores(probs, lse, index, logits, bias, scores, stream);
    assert_memory_equal(probs.data, same.data, tensor_bytes(probs));
    for (int64_t t = 0; t < T; t++) {
        const float *x = tensor_f32(logits) + t * E, *p = tensor_f32(probs) + t * E;
        const int32_t *choice = tensor_i32(index) + t * k;
        double sum = 0;
        for (int64_t e = 0; e < E; e++) sum += exp((double)x[e]);
        close_to(tensor_f32(lse)[t], log(sum), 1e-6);
        for (int64_t e = 0; e < E; e++)
            close_to(p[e], exp((double)x[e]) / (scores == SCORES_SOFTMAX ? sum : 1 + exp((double)x[e])),
                     3e-7);
        for (int64_t j = 0; j < k; j++) { // by rank: how many experts come before this one
            int64_t before = 0, me = choice[j];
            float mine = p[me] + (biased ? tensor_f32(bias)[me] : 0);
            for (int64_t e = 0; e < E; e++) {
                float score = p[e] + (biased ? tensor_f32(bias)[e] : 0);
                before += score > mine || (score == mine && e < me);
            }
            assert_int_equal(before, j);
        }
    }
    harness_end();
}

static void chooses_the_best(void) {
    for (int scores = SCORES_SOFTMAX; scores <= SCORES_SIGMOID; scores++) {
        check_choice(1, 1, 1, false, (ScoreKind)scores);
        check_choice(9, 5, 2, false, (ScoreKind)scores);
        check_choice(9, 16, 2, true, (ScoreKind)scores);
        check_choice(7, 35, 4, true, (ScoreKind)scores);
        check_choice(3, 6, 6, true, (ScoreKind)scores);
        for (int64_t k = 1; k <= 12; k++) check_choice(5, 128, k, k % 2, (ScoreKind)scores);
    }
}

static void ties_go_to_the_lower_expert(void) {
    Tensor logits = input(2, 6, 0), probs = output(2, 6), lse = output(2, 0), index = output_ints(2, 3);
    tensor_f32(logits)[6 + 2] = tensor_f32(logits)[6 + 5] = 1;
    tensor_f32(logits)[6 + 3] = 2;
    kernels->route_scores(probs, lse, index, logits, none, SCORES_SOFTMAX, stream);
    static const int32_t want[] = {0, 1, 2, 3, 2, 5};
    assert_memory_equal(index.data, want, sizeof want);
}

// A diverged model must not write outside anything: indices stay valid and different.
static void not_a_number_keeps_indices_valid(void) {
    Tensor logits = input(1, 5, 1), probs = output(1, 5), lse = output(1, 0), index = output_ints(1, 4);
    for (int i = 0; i < 5; i++) tensor_f32(logits)[i] = NAN;
    kernels->route_scores(probs, lse, index, logits, none, SCORES_SOFTMAX, stream);
    static const int32_t want[] = {0, 1, 2, 3};
    assert_memory_equal(index.data, want, sizeof want);
    assert_true(isnan(tensor_f32(lse)[0]));
}

// ---- capacity

// Does pair a come before pair b?
static bool comes_first(DropPolicy policy, const float *p, int64_t k, int64_t a, int64_t b) {
    if (policy == DROP_PROBS && p[a] != p[b]) return p[a] > p[b];
    if (policy == DROP_POSITION && a % k != b % k) return a % k < b % k;
    return a < b;
}

static void capacity_keeps_the_first(void) {
    enum { T = 50, E = 5, K = 3 };
    Tensor logits = input(T, E, 1), probs = output(T, E), lse = output(T, 0), index = output_ints(T, K);
    for (int64_t i = 0; i < T * E; i += 2) tensor_f32(logits)[i] = 0.5f; // equal probabilities, too
    memcpy(tensor_f32(logits) + 5 * E, tensor_f32(logits) + 4 * E, E * sizeof(float));
    kernels->route_scores(probs, lse, index, logits, none, SCORES_SOFTMAX, stream);
    float p[T * K];
    for (int64_t i = 0; i < T * K; i++) p[i] = tensor_f32(probs)[i / K * E + tensor_i32(index)[i]];
    for (int64_t capacity = 0; capacity <= T * K; capacity += capacity < 40 ? 13 : 70)
        for (int policy = DROP_POSITION; policy <= DROP_PROBS; policy++) {
            Tensor kept = output_ints(T, K);
            kernels->route_capacity(kept, index, probs, capacity, (DropPolicy)policy, stream);
            for (int64_t a = 0; a < T * K; a++) {
                int64_t before = 0;
                for (int64_t b = 0; b < T * K; b++)
                    before += b != a && tensor_i32(index)[b] == tensor_i32(index)[a] &&
                              comes_first((DropPolicy)policy, p, K, b, a);
                assert_int_equal(tensor_i32(kept)[a], before < capacity);
            }
        }
}

// ---- order, statistics, rows

static void sorts_by_expert(void) {
    enum { T = 37, E = 7, K = 2, H = 19 };
    for (int dropped = 0; dropped < 2; dropped++) {
        Tensor index = input_ints(T, K, E), kept = dropped ? input_ints(T, K, 2) : none;
        Tensor row = output_ints(T, K), counts = output_ints(E, 0);
        kernels->route_sort(row, counts, index, kept, stream);
        int64_t N = 0;
        for (int64_t e = 0; e < E; e++) {
            int32_t count = 0;
            for (int64_t i = 0; i < T * K; i++)
                if (tensor_i32(index)[i] == e && (!dropped || tensor_i32(kept)[i]))
                    assert_int_equal(tensor_i32(row)[i], N + count++);
            assert_int_equal(tensor_i32(counts)[e], count);
            N += count;
        }
        Tensor x = input(T, H, 1), rows = output(N, H), y = output(T, H), before = input(T, H, 1);
        Tensor sum = output_copy(before), value = input(T, K, 1), scalars = output(N, 0), back = output(T, K);
        kernels->rows_gather(rows, x, row, stream);
        kernels->rows_combine(y, rows, row, INTO_ZERO, stream);
        kernels->rows_combine(sum, rows, row, INTO_SUM, stream);
        kernels->pairs_gather(scalars, value, row, stream);
        kernels->pairs_scatter(back, scalars, row, stream);
        for (int64_t t = 0; t < T; t++) {
            int copies = 0;
            for (int64_t j = 0; j < K; j++) {
                bool keep = !dropped || tensor_i32(kept)[t * K + j];
                copies += keep;
                if (!keep) assert_int_equal(tensor_i32(row)[t * K + j], -1);
                assert_true(tensor_f32(back)[t * K + j] == (keep ? tensor_f32(value)[t * K + j] : 0));
            }
            for (int64_t c = 0; c < H; c++) {
                float of_x = (float)copies * tensor_f32(x)[t * H + c];
                assert_true(tensor_f32(y)[t * H + c] == of_x);
                close_to(tensor_f32(sum)[t * H + c], tensor_f32(before)[t * H + c] + of_x, 3e-7);
            }
        }
        harness_end();
    }
}

static void rows_combine_in_order(void) {
    Tensor rows = input(3, 1, 0), row = input_ints(1, 3, 1), y = output(1, 1);
    static const float values[] = {1, 1e8f, -1e8f};
    static const int32_t order[] = {1, 2, 0};
    memcpy(rows.data, values, sizeof values);
    memcpy(row.data, order, sizeof order);
    kernels->rows_combine(y, rows, row, INTO_ZERO, stream);
    assert_true(tensor_f32(y)[0] == 1); // (1e8 − 1e8) + 1
}

static void check_counts(ScoreKind scores) {
    enum { T = 24, E = 11, K = 3, G = 4 };
    Tensor probs = input(T, E, 1), index = input_ints(T, K, E), sum = output(G, E);
    Tensor chosen = output_ints(G, E), first = output_ints(G, E);
    for (int64_t i = 0; i < T * E; i++) tensor_f32(probs)[i] = fabsf(tensor_f32(probs)[i]);
    kernels->route_stats(chosen, first, sum, probs, index, scores, stream);
    for (int64_t g = 0; g < G; g++)
        for (int64_t e = 0; e < E; e++) {
            int32_t all = 0, firsts = 0;
            double p = 0;
            for (int64_t t = g * 6; t < g * 6 + 6; t++) {
                double all_scores = 0;
                for (int64_t i = 0; i < E; i++) all_scores += (double)tensor_f32(probs)[t * E + i];
                p += (double)tensor_f32(probs)[t * E + e] / (scores == SCORES_SIGMOID ? all_scores : 1);
                for (int64_t j = 0; j < K; j++) all += tensor_i32(index)[t * K + j] == e;
                firsts += tensor_i32(index)[t * K] == e;
            }
            assert_int_equal(tensor_i32(chosen)[g * E + e], all);
            assert_int_equal(tensor_i32(first)[g * E + e], firsts);
            close_to(tensor_f32(sum)[g * E + e], p, 1e-6);
        }
    harness_end();
}

static void counts_by_group(void) {
    check_counts(SCORES_SOFTMAX);
    check_counts(SCORES_SIGMOID);
}

// ---- weights and gradient

typedef struct {
    int64_t T, E, k, groups;
    double *logits, *dweight, *balance; // balance may be NULL
    const int32_t *index, *kept;        // kept may be NULL
    bool renormalize;
    ScoreKind scores;
    double z;
    double *weight; // where given
} Router;

// Σ weight·dweight + Σ balance·probs (with sigmoid scores probs/Σ probs) + z·Σ lse²
static double router_reference(const void *context) {
    const Router *r = context;
    double loss = 0, p[64], w[8];
    for (int64_t t = 0; t < r->T; t++) {
        double sum = 0, chosen = 0, all = 0;
        for (int64_t e = 0; e < r->E; e++) sum += p[e] = exp(r->logits[t * r->E + e]);
        for (int64_t e = 0; e < r->E; e++) all += p[e] /= r->scores == SCORES_SIGMOID ? 1 + p[e] : sum;
        for (int64_t j = 0; j < r->k; j++) {
            w[j] = p[r->index[t * r->k + j]] * (r->kept ? r->kept[t * r->k + j] : 1);
            chosen += w[j];
        }
        for (int64_t j = 0; j < r->k; j++) {
            if (r->renormalize) w[j] /= fmax(chosen, 0x1p-23);
            if (r->weight) r->weight[t * r->k + j] = w[j];
            loss += w[j] * r->dweight[t * r->k + j];
        }
        if (r->balance)
            for (int64_t e = 0; e < r->E; e++)
                loss += r->balance[t / (r->T / r->groups) * r->E + e] * p[e] / all;
        loss += r->z * log(sum) * log(sum);
    }
    return loss;
}

typedef struct {
    int64_t k;
    bool dropped, balanced, renormalize, tiny;
    double z;
    ScoreKind scores;
} RouterCase;

static void check_router(RouterCase c) {
    enum { T = 12, E = 9, G = 3 };
    Tensor logits = input(T, E, 1), probs = output(T, E), lse = output(T, 0), index = output_ints(T, c.k);
    kernels->route_scores(probs, lse, index, logits, none, c.scores, stream);
    if (c.tiny) { // the chosen experts' probabilities are around the divisor's limit
        for (int64_t i = 0; i < T * c.k; i++) tensor_i32(index)[i] = (int32_t)(i % c.k);
        for (int64_t t = 0; t < T; t++)
            for (int64_t e = 0; e < c.k; e++) tensor_f32(logits)[t * E + e] = -12 - (float)t;
        Tensor unused = output_ints(T, c.k);
        kernels->route_scores(probs, lse, unused, logits, none, c.scores, stream);
    }
    Tensor kept = c.dropped ? input_ints(T, c.k, 2) : none, balance = c.balanced ? input(G, E, 1) : none;
    Tensor weight = output(T, c.k), dweight = input(T, c.k, 1), dlogits = output(T, E);
    kernels->route_weights(weight, probs, index, kept, c.renormalize, stream);
    kernels->route_backward(dlogits, dweight, weight, probs, lse, index, kept, balance, c.renormalize,
                            c.scores, (float)c.z, stream);
    Router r = {T,
                E,
                c.k,
                G,
                doubles_of(logits),
                doubles_of(dweight),
                c.balanced ? doubles_of(balance) : NULL,
                tensor_i32(index),
                c.dropped ? tensor_i32(kept) : NULL,
                c.renormalize,
                c.scores,
                c.z,
                doubles(T * c.k)};
    router_reference(&r);
    for (int64_t i = 0; i < T * c.k; i++) close_to(tensor_f32(weight)[i], r.weight[i], 1e-6);
    r.weight = NULL;
    gradient_check(router_reference, &r, r.logits, dlogits, 2e-6);
    harness_end();
}

static void router_gradient(void) {
    for (int bits = 0; bits < 16; bits++)
        for (int64_t k = 1; k <= 3; k++)
            check_router(
                (RouterCase){k, bits & 1, bits & 2, bits & 4, false, bits & 8 ? 0.25 : 0, SCORES_SOFTMAX});
    for (int64_t k = 1; k <= 3; k++)
        check_router((RouterCase){k, false, false, true, true, 0, SCORES_SOFTMAX});
}

static void sigmoid_router_gradient(void) {
    for (int bits = 0; bits < 8; bits++)
        for (int64_t k = 1; k <= 8; k++)
            check_router((RouterCase){k, bits & 1, bits & 2, bits & 4, false, 0, SCORES_SIGMOID});
    for (int64_t k = 1; k <= 3; k++)
        check_router((RouterCase){k, false, true, true, true, 0, SCORES_SIGMOID});
}

// Shares of the scores' sum stay what they are down to e⁻⁸⁰, and finite where all scores vanish.
static void check_tiny_scores(int64_t E, float logit) {
    Tensor logits = input(1, E, 0), balance = input(1, E, 1), probs = output(1, E), lse = output(1, 0);
    Tensor index = output_ints(1, 1), chosen = output_ints(1, E), first = output_ints(1, E);
    Tensor sum = output(1, E), weight = output(1, 1), dweight = input(1, 1, 0), dlogits = output(1, E);
    double mean = 0;
    for (int64_t e = 0; e < E; e++) tensor_f32(logits)[e] = logit;
    for (int64_t e = 0; e < E; e++) mean += (double)tensor_f32(balance)[e] / (double)E;
    kernels->route_scores(probs, lse, index, logits, none, SCORES_SIGMOID, stream);
    kernels->route_stats(chosen, first, sum, probs, index, SCORES_SIGMOID, stream);
    kernels->route_weights(weight, probs, index, none, true, stream);
    kernels->route_backward(dlogits, dweight, weight, probs, lse, index, none, balance, true, SCORES_SIGMOID,
                            0, stream);
    double share = logit < -100 ? 0 : 1 / (double)E;
    for (int64_t e = 0; e < E; e++) {
        close_to(tensor_f32(sum)[e], share, 1e-6);
        close_to(tensor_f32(dlogits)[e], share * ((double)tensor_f32(balance)[e] - mean), 1e-6);
    }
    harness_end();
}

static void sigmoid_scores_may_be_tiny(void) {
    check_tiny_scores(1, -80);
    check_tiny_scores(20, -80);
    check_tiny_scores(20, -200);
}

static void sigmoid_refuses_a_z_loss(void) {
    Tensor x = input(2, 3, 1), dweight = input(2, 1, 1), lse = input(2, 0, 1), index = input_ints(2, 1, 3);
    Tensor dlogits = output(2, 3);
    pid_t child = fork();
    if (child == 0) {
        if (!freopen("/dev/null", "w", stderr)) _exit(0);
        kernels->route_backward(dlogits, dweight, dweight, x, lse, index, none, none, false, SCORES_SIGMOID,
                                0.1f, stream);
        _exit(0);
    }
    int status = 0;
    waitpid(child, &status, 0);
    assert_false(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

EVERY_ISA(chooses_the_best)
EVERY_ISA(ties_go_to_the_lower_expert)
EVERY_ISA(not_a_number_keeps_indices_valid)
EVERY_ISA(capacity_keeps_the_first)
EVERY_ISA(sorts_by_expert)
EVERY_ISA(rows_combine_in_order)
EVERY_ISA(counts_by_group)
EVERY_ISA(router_gradient)
EVERY_ISA(sigmoid_router_gradient)
EVERY_ISA(sigmoid_scores_may_be_tiny)
EVERY_ISA(sigmoid_refuses_a_z_loss)

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(chooses_the_best_everywhere),
        cmocka_unit_test(ties_go_to_the_lower_expert_everywhere),
        cmocka_unit_test(not_a_number_keeps_indices_valid_everywhere),
        cmocka_unit_test(capacity_keeps_the_first_everywhere),
        cmocka_unit_test(sorts_by_expert_everywhere),
        cmocka_unit_test(rows_combine_in_order_everywhere),
        cmocka_unit_test(counts_by_group_everywhere),
        cmocka_unit_test(router_gradient_everywhere),
        cmocka_unit_test(sigmoid_router_gradient_everywhere),
        cmocka_unit_test(sigmoid_scores_may_be_tiny_everywhere),
        cmocka_unit_test(sigmoid_refuses_a_z_loss_everywhere),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
