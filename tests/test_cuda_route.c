// SPDX-License-Identifier: Apache-2.0
// The CUDA router, emulated on the CPU, against the CPU's: whole numbers and weights bit for bit, on experts
// in registers and beyond, odd numbers of tokens, equal scores, experts that nobody or everybody chooses.
#include "core/crc32c.h"
#include "tests/bf16_harness.h"

static const Tensor none;

// What comes out has the same bits in every order of threads and blocks.
static uint32_t seen, seen_before;
static int orders;

static void watch(Tensor t) {
    seen = crc32c(seen, t.data, tensor_bytes(t));
}

static void same_in_every_order(void) {
    if (orders++ % EMULATION_ORDERS) assert_int_equal(seen, seen_before);
    seen_before = seen;
    seen = 0;
}

// Numbers so far apart that exponentials differ, or equal.
static Tensor input_steps(int64_t rows, int64_t columns) {
    Tensor t = input(rows, columns, 2);
    for (int64_t i = 0; i < tensor_size(t); i++) tensor_f32(t)[i] = rintf(tensor_f32(t)[i] * 8) / 8;
    return t;
}

// ---- scores and choice

// By rank: how many experts come before the chosen ones.
static void check_ranks(Tensor index, Tensor probs, Tensor bias) {
    int64_t E = probs.dim[1], k = index.dim[1];
    for (int64_t t = 0; t < probs.dim[0]; t++)
        for (int64_t j = 0; j < k; j++) {
            const float *p = tensor_f32(probs) + t * E, *b = tensor_exists(bias) ? tensor_f32(bias) : NULL;
            int64_t before = 0, me = tensor_i32(index)[t * k + j];
            for (int64_t e = 0; e < E; e++) {
                float score = p[e] + (b ? b[e] : 0), mine = p[me] + (b ? b[me] : 0);
                before += score > mine || (score == mine && e < me);
            }
            assert_int_equal(before, j);
        }
}

// The same rows one by one.
static void check_alone(Tensor probs, Tensor index, Tensor logits, Tensor bias, ScoreKind scores) {
    for (int64_t t = 0; t < probs.dim[0] && t < 3; t++) {
        Tensor p = output(1, probs.dim[1]), lse = output(1, 0), choice = output_ints(1, index.dim[1]);
        kernels->route_scores(p, lse, choice, tensor_rows(logits, t, 1), bias, scores, stream);
        same_bits(p, tensor_rows(probs, t, 1));
        same_bits(choice, tensor_rows(index, t, 1));
    }
}

static void check_scores(int64_t T, int64_t E, int64_t k, bool biased, ScoreKind scores) {
    Tensor logits = input_steps(T, E), bias = biased ? input(E, 0, 0.3f) : none, same = output_copy(logits);
    Tensor probs = output(T, E), lse = output(T, 0), index = output_ints(T, k), index2 = output_ints(T, k);
    Tensor want = output(T, E), want_lse = output(T, 0), want_index = output_ints(T, k);
    cpu->route_scores(want, want_lse, want_index, logits, bias, scores, stream);
    kernels->route_scores(probs, lse, index, logits, bias, scores, stream);
    kernels->route_scores(same, lse, index2, same, bias, scores, stream);
    same_bits(probs, same);
    same_bits(index, index2);
    same_numbers(probs, want, 3e-7);
    same_numbers(lse, want_lse, 1e-6);
    check_ranks(index, probs, bias);
    if (!biased) same_bits(index, want_index); // with a bias, probabilities a bit apart may change places
    check_alone(probs, index, logits, bias, scores);
    watch(probs), watch(lse), watch(index);
    harness_end();
}

static void scores(void) {
    static const int64_t shape[][3] = {
        {0, 8, 2},   {1, 1, 1},    {31, 3, 3},   {1000, 8, 2},  {31, 16, 4},   {31, 32, 1},  {9, 33, 8},
        {31, 60, 4}, {31, 128, 2}, {9, 128, 12}, {31, 200, 8},  {31, 256, 8},  {9, 384, 8},  {9, 385, 6},
        {2, 600, 9}, {1, 4096, 3}, {3, 70, 70},  {2, 400, 400}, {1000, 13, 3}, {100, 384, 1}};
    for (int i = 0; i < 20 * 4; i++)
        check_scores(shape[i / 4][0], shape[i / 4][1], shape[i / 4][2], i & 1, i & 2 ? 1 : 0);
    same_in_every_order();
}

// A diverged model: indices stay valid and different, NaN loses against numbers.
static void not_a_number(void) {
    Tensor logits = input_steps(3, 40), probs = output(3, 40), lse = output(3, 0), index = output_ints(3, 5);
    for (int e = 0; e < 40; e++) tensor_f32(logits)[e] = NAN;
    for (int e = 0; e < 38; e++) tensor_f32(logits)[40 + e] = e % 3 ? NAN : -NAN;
    kernels->route_scores(probs, lse, index, logits, none, SCORES_SIGMOID, stream);
    static const int32_t all[] = {0, 1, 2, 3, 4}, rest[] = {0, 1, 2};
    assert_memory_equal(index.data, all, sizeof all);
    assert_memory_equal(tensor_i32(index) + 7, rest, sizeof rest);
    assert_int_equal(tensor_i32(index)[5] + tensor_i32(index)[6], 38 + 39);
    assert_true(isnan(tensor_f32(lse)[0]) && isnan(tensor_f32(lse)[1]) && !isnan(tensor_f32(lse)[2]));
}

// ---- order

static void check_sort(Tensor index, Tensor kept, int64_t E) {
    Tensor row = output_ints(index.dim[0], index.dim[1]), counts = output_ints(E, 0);
    Tensor want = output_ints(index.dim[0], index.dim[1]), want_counts = output_ints(E, 0);
    cpu->route_sort(want, want_counts, index, kept, stream);
    kernels->route_sort(row, counts, index, kept, stream);
    same_bits(counts, want_counts);
    same_bits(row, want);
}

// Emulation is slow with a block for each of many experts: fewer capacities there.
static void check_capacity(Tensor index, Tensor probs) {
    int64_t T = index.dim[0], k = index.dim[1], pairs = T * k, E = probs.dim[1];
    const int64_t capacity[] = {pairs / E, pairs / 2 + 1, -1, 0, 1, 2, pairs / E / 2, pairs, pairs + 9};
    for (int i = 0; i < (E < 100 ? 9 : 2) * 2; i++) {
        Tensor kept = output_ints(T, k), want = output_ints(T, k);
        cpu->route_capacity(want, index, probs, capacity[i / 2], (DropPolicy)(i & 1), stream);
        kernels->route_capacity(kept, index, probs, capacity[i / 2], (DropPolicy)(i & 1), stream);
        same_bits(kept, want);
    }
}

// skew: how many of four pairs go to expert 0.
static void check_order(int64_t T, int64_t E, int64_t k, int skew) {
    Tensor index = input_ints(T, k, (int32_t)E), kept = input_ints(T, k, 3), steps = input_steps(T, E);
    Tensor probs = output(T, E), lse = output(T, 0), unused = output_ints(T, k);
    for (int64_t i = 0; i < T * k; i++)
        if (i / 3 % 4 < skew) tensor_i32(index)[i] = 0;
    check_sort(index, none, E);
    check_sort(index, kept, E);
    cpu->route_scores(probs, lse, unused, steps, none, SCORES_SOFTMAX, stream);
    for (int64_t i = 0; i < T * E; i += 7) tensor_f32(probs)[i] = i % 5 ? 0 : i % 3 ? 1 : NAN;
    check_capacity(index, probs);
    harness_end();
}

static void orders_pairs(void) {
    static const int64_t shape[][3] = {{0, 8, 2},     {1, 1, 1},     {31, 3, 2},   {1000, 8, 2}, {31, 16, 4},
                                       {300, 128, 2}, {500, 256, 8}, {90, 384, 8}, {40, 1100, 6}};
    for (int i = 0; i < 9 * 3; i++)
        if (shape[i / 3][1] < 100 || i % 3 == 1)
            check_order(shape[i / 3][0], shape[i / 3][1], shape[i / 3][2], i % 3 * 2);
    check_sort(input_ints(31, 3, 4096), none, 4096);
    // More pairs than 256 blocks take in their least steps.
    check_sort(input_ints(35000, 4, 5), input_ints(35000, 4, 2), 5);
}

// ---- weights, statistics, gradient

static void check_weights(int64_t T, int64_t E, int64_t k) {
    Tensor probs = input(T, E, 1), index = input_ints(T, k, (int32_t)E), kept = input_ints(T, k, 2);
    for (int64_t i = 0; i < T * E; i++) tensor_f32(probs)[i] = fabsf(tensor_f32(probs)[i]);
    for (int64_t i = 0; i < T / 2 * E; i++) tensor_f32(probs)[i] *= 1e-7f; // around the least divisor
    for (int i = 0; i < 4; i++) {
        Tensor weight = output(T, k), want = output(T, k);
        cpu->route_weights(want, probs, index, i & 1 ? kept : none, i & 2, stream);
        kernels->route_weights(weight, probs, index, i & 1 ? kept : none, i & 2, stream);
        same_bits(weight, want);
    }
    harness_end();
}

static void weights(void) {
    check_weights(0, 8, 2);
    check_weights(1, 1, 1);
    check_weights(31, 3, 3);
    check_weights(1000, 128, 8);
    check_weights(5, 50, 40);
}

static void check_stats(int64_t T, int64_t E, int64_t k, int64_t G, ScoreKind scores) {
    Tensor probs = input(T, E, 1), index = input_ints(T, k, (int32_t)E);
    Tensor sum = output(G, E), chosen = output_ints(G, E), first = output_ints(G, E);
    Tensor want = output(G, E), want_chosen = output_ints(G, E), want_first = output_ints(G, E);
    for (int64_t i = 0; i < T * E; i++) tensor_f32(probs)[i] = fabsf(tensor_f32(probs)[i]);
    if (T > 2) memset(tensor_f32(probs) + E, 0, (size_t)E * sizeof(float)); // a token of no scores at all
    cpu->route_stats(want_chosen, want_first, want, probs, index, scores, stream);
    kernels->route_stats(chosen, first, sum, probs, index, scores, stream);
    same_bits(chosen, want_chosen);
    same_bits(first, want_first);
    same_numbers(sum, want, 3e-6); // up to 17000 terms, on the CPU one after the other
    watch(sum);
    harness_end();
}

static void statistics(void) {
    static const int64_t shape[][4] = {{0, 4, 1, 1},     {1, 1, 1, 1},    {31, 3, 2, 1},   {31, 3, 2, 31},
                                       {1000, 8, 2, 1},  {1000, 8, 2, 4}, {120, 16, 4, 3}, {300, 128, 2, 2},
                                       {100, 256, 8, 1}, {70, 384, 8, 2}, {40, 900, 3, 1}, {40, 4096, 3, 1},
                                       {17000, 3, 1, 1}};
    for (int i = 0; i < 13 * 2; i++)
        check_stats(shape[i / 2][0], shape[i / 2][1], shape[i / 2][2], shape[i / 2][3], i & 1);
    same_in_every_order();
}

typedef struct {
    int64_t T, E, k, G;
    bool dropped, balanced, renormalize;
    ScoreKind scores;
} GradientCase;

static void check_gradient(GradientCase c) {
    int64_t T = c.T, E = c.E, k = c.k;
    float z = c.scores == SCORES_SOFTMAX ? 0.01f : 0;
    Tensor logits = input(T, E, 2), probs = output(T, E), lse = output(T, 0), index = output_ints(T, k);
    Tensor kept = c.dropped ? input_ints(T, k, 2) : none, balance = c.balanced ? input(c.G, E, 1) : none;
    Tensor weight = output(T, k), dweight = input(T, k, 1), want = output(T, E), got = output(T, E);
    for (int64_t i = T / 2 * E; i < T * E; i += 2) tensor_f32(logits)[i] -= 30; // some hardly to be chosen
    cpu->route_scores(probs, lse, index, logits, none, c.scores, stream);
    for (int64_t j = 0; j < k && T; j++) tensor_i32(index)[(T - 1) * k + j] = (int32_t)(E - 1 - j);
    cpu->route_weights(weight, probs, index, kept, c.renormalize, stream);
    cpu->route_backward(want, dweight, weight, probs, lse, index, kept, balance, c.renormalize, c.scores, z,
                        stream);
    kernels->route_backward(got, dweight, weight, probs, lse, index, kept, balance, c.renormalize, c.scores,
                            z, stream);
    same_numbers(got, want, 2e-6); // sums over all experts, in another order
    watch(got);
    for (int64_t t = 0; t < T && t < 2 && !c.balanced; t++) { // alone
        Tensor one = output(1, E);
        kernels->route_backward(one, tensor_rows(dweight, t, 1), tensor_rows(weight, t, 1),
                                tensor_rows(probs, t, 1), tensor_rows(lse, t, 1), tensor_rows(index, t, 1),
                                c.dropped ? tensor_rows(kept, t, 1) : none, none, c.renormalize, c.scores, z,
                                stream);
        same_bits(one, tensor_rows(got, t, 1));
    }
    harness_end();
}

static void gradient(void) {
    static const int64_t shape[][4] = {{0, 4, 1, 1},   {1, 1, 1, 1},    {31, 3, 2, 1},  {30, 8, 2, 3},
                                       {31, 16, 4, 1}, {12, 128, 2, 4}, {9, 256, 8, 1}, {10, 384, 8, 2},
                                       {4, 385, 5, 1}, {4, 1000, 40, 2}};
    for (int i = 0; i < 10 * 16; i++) {
        const int64_t *s = shape[i / 16];
        check_gradient((GradientCase){s[0], s[1], s[2], s[3], i & 1, i & 2, i & 4, i & 8 ? 1 : 0});
    }
    same_in_every_order();
}

EVERY_ISA(scores)
EVERY_ISA(not_a_number)
EVERY_ISA(orders_pairs)
EVERY_ISA(weights)
EVERY_ISA(statistics)
EVERY_ISA(gradient)

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(scores_everywhere),       cmocka_unit_test(not_a_number_everywhere),
        cmocka_unit_test(orders_pairs_everywhere), cmocka_unit_test(weights_everywhere),
        cmocka_unit_test(statistics_everywhere),   cmocka_unit_test(gradient_everywhere),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
