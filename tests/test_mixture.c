// SPDX-License-Identifier: Apache-2.0
#include "core/rng.h"
#include "data/mixture.h"
#include "test_data_fixture.h"

static void feistel_is_a_bijection(void **state) {
    (void)state;
    for (int64_t n = 1; n < 60000; n = n < 300 ? n + 1 : n * 7 / 5) {
        char *seen = calloc((size_t)n, 1);
        for (int64_t r = 0; r < n; r++) {
            int64_t x = feistel_permute(r, n, 0x1234567 + (uint64_t)n);
            assert_in_range(x, 0, n - 1);
            assert_false(seen[x]);
            seen[x] = 1;
        }
        free(seen);
    }
}

// Large domains work, differ by key, and look like random orders: of 4096 neighbours about half ascend (σ =
// 18).
static void feistel_scatters(void **state) {
    (void)state;
    const int64_t n = 244140625;
    int ascents = 0, same = 0;
    int64_t before = 0;
    for (int64_t r = 0; r < 4096; r++) {
        int64_t x = feistel_permute(r, n, 1);
        assert_in_range(x, 0, n - 1);
        same += x == feistel_permute(r, n, 2);
        ascents += x > before;
        before = x;
    }
    assert_in_range(ascents, 2048 - 400, 2048 + 400);
    assert_in_range(same, 0, 2);
    const int64_t huge = ((int64_t)1 << 62) - 57;
    assert_in_range(feistel_permute(huge - 1, huge, 9), 0, huge - 1);
}

static void quotas_are_hamiltons(void **state) {
    (void)state;
    static const struct {
        int64_t weight[4], samples, quota[4];
    } row[] = {
        {{80, 15, 5, 0}, 100, {80, 15, 5, 0}},
        {{80, 15, 5, 0}, 7, {6, 1, 0, 0}}, // 5.6 1.05 0.35
        {{1, 1, 1, 0}, 10, {4, 3, 3, 0}},  // a tie goes to the first
        {{0, 1, 1, 1}, 2, {0, 1, 1, 0}},
        {{1, 1000000000, 1, 1}, 1000000, {0, 1000000, 0, 0}},
        {{3, 7, 0, 0}, INT64_MAX / 4, {691752902764108185, 1614090106449585766, 0, 0}},
    };
    for (size_t t = 0; t < sizeof row / sizeof row[0]; t++) {
        Mixture mixture = mixture_create(row[t].weight, 4, row[t].samples);
        for (int i = 0; i < 4; i++) assert_int_equal(mixture_quota(&mixture, i), row[t].quota[i]);
        mixture_free(&mixture);
    }
}

// Every ordinal of every source exactly once; counts of every prefix equal the closed form, and stay near the
// share.
static void check_mixture(const int64_t *weight, int sources, int64_t samples, double most_off) {
    Mixture mixture = mixture_create(weight, sources, samples);
    char *seen = calloc((size_t)samples, 1);
    int64_t *count = calloc((size_t)sources, sizeof *count),
            *closed = calloc((size_t)sources, sizeof *closed);
    for (int64_t n = 0; n < samples; n++) {
        int64_t ordinal;
        int source = mixture_source(&mixture, n, &ordinal);
        assert_in_range(source, 0, sources - 1);
        assert_in_range(ordinal, 0, mixture_quota(&mixture, source) - 1);
        char *mark = seen + mixture.cumulative[source] + ordinal;
        assert_false(*mark);
        *mark = 1;
        count[source]++;
        bool block_end = (n + 1) % mixture.block == 0 && n + 1 <= mixture.block * (mixture.blocks - 1);
        if (n % 97 != 0 && !block_end && n + 1 != samples) continue;
        memset(closed, 0, (size_t)sources * sizeof *closed);
        mixture_count(&mixture, n + 1, closed);
        assert_memory_equal(closed, count, (size_t)sources * sizeof *count);
        for (int i = 0; i < sources; i++) {
            double off =
                (double)count[i] - (double)mixture_quota(&mixture, i) * (double)(n + 1) / (double)samples;
            assert_true(off < most_off && off > -most_off);
            if (block_end) assert_true(off < 1 && off > -1);
        }
    }
    for (int i = 0; i < sources; i++) assert_int_equal(count[i], mixture_quota(&mixture, i));
    for (int64_t n = 0; n < samples; n++) assert_true(seen[n]); // none missing
    free(closed);
    free(count);
    free(seen);
    mixture_free(&mixture);
}

static void each_ordinal_once(void **state) {
    (void)state;
    // Bounds: the largest deviations met for such mixtures lie below 6, with a source of weight 1e-4 at 10.
    check_mixture((const int64_t[]){80, 15, 5}, 3, 100003, 6);
    check_mixture((const int64_t[]){99, 1}, 2, 65536, 6);
    check_mixture((const int64_t[]){45, 20, 15, 10, 6, 3, 1}, 7, 50021, 6);
    check_mixture((const int64_t[]){5000, 3000, 1999, 1}, 4, 200003, 12);
    check_mixture((const int64_t[]){0, 3, 0, 1, 0}, 5, 4099, 6);
    int64_t many[200];
    for (int i = 0; i < 200; i++) many[i] = 1 + (int64_t)(rng_u64(1, 2, (uint64_t)i) % 1000);
    check_mixture(many, 200, 100003, 6);
    for (int64_t samples = 1; samples < 40; samples++)
        check_mixture((const int64_t[]){7, 2, 1}, 3, samples, 6);
    for (int64_t samples = 1020; samples < 1030; samples++)
        check_mixture((const int64_t[]){7, 2, 1}, 3, samples, 6);
    for (int64_t samples = 2045; samples < 2052; samples++)
        check_mixture((const int64_t[]){7, 2, 1}, 3, samples, 6);
}

// A source of 1 sample in 10^12 makes one block of 10^12: counting stays a closed form, and 128-bit products
// exact.
static void huge_mixtures_are_exact(void **state) {
    (void)state;
    const int64_t samples = 1000000000000;
    Mixture mixture = mixture_create((const int64_t[]){999999999999, 1}, 2, samples);
    assert_int_equal(mixture.block, samples);
    int64_t count[2] = {0}, before[2] = {0}, ordinal;
    mixture_count(&mixture, samples, count);
    assert_int_equal(count[0], samples - 1);
    assert_int_equal(count[1], 1);
    for (int64_t n = 1; n < samples; n = n * 3 + 1) {
        memset(count, 0, sizeof count);
        memset(before, 0, sizeof before);
        mixture_count(&mixture, n, before);
        mixture_count(&mixture, n + 1, count);
        int source = mixture_source(&mixture, n, &ordinal);
        assert_int_equal(count[source], before[source] + 1);
        assert_int_equal(count[1 - source], before[1 - source]);
        assert_int_equal(count[0] + count[1], n + 1);
    }
    mixture_free(&mixture);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(feistel_is_a_bijection),  cmocka_unit_test(feistel_scatters),
        cmocka_unit_test(quotas_are_hamiltons),    cmocka_unit_test(each_ordinal_once),
        cmocka_unit_test(huge_mixtures_are_exact),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
