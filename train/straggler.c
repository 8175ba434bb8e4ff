// SPDX-License-Identifier: Apache-2.0
#include "train/straggler.h"
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { WINDOW = 50, SLOW_STEPS = 20 };
static const double SLOW = 1.3, WORTH_A_WORD = 0.002; // seconds of a step: less is the noise of short steps

Stragglers stragglers_create(Group *world) {
    size_t ranks = (size_t)group_size(world);
    Stragglers s = {
        .world = world, .slow = calloc(ranks, sizeof *s.slow), .ratio = calloc(ranks, sizeof *s.ratio)};
    REQUIRE(s.slow && s.ratio, "out of memory: step times of %zu ranks", ranks);
    return s;
}

void stragglers_free(Stragglers *s) {
    free(s->slow);
    free(s->ratio);
    *s = (Stragglers){0};
}

static int by_value(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

// Orders the values.
static double lower_median(double *values, int count) {
    qsort(values, (size_t)count, sizeof *values, by_value);
    return values[(count - 1) / 2];
}

static void add_own_phases(Stragglers *s, const StepMetrics *m, double share) {
    double spent[STRAGGLER_PHASES] = {[STRAGGLER_DATA] = m->own_data_s,
                                      [STRAGGLER_OPTIMIZER] = m->own_optim_s,
                                      [STRAGGLER_REST] =
                                          m->own_s[group_rank(s->world)] - m->own_data_s - m->own_optim_s};
    for (int l = 0; l < m->layers; l++)
        for (int pass = 0; pass < PASS_COUNT; pass++)
            for (int phase = 0; phase < PHASE_COUNT; phase++) {
                spent[phase] += m->layer[l].phase[pass][phase];
                spent[STRAGGLER_REST] -= m->layer[l].phase[pass][phase];
            }
    for (int i = 0; i < STRAGGLER_PHASES; i++) s->spent[i] += share * (spent[i] - s->spent[i]);
}

typedef struct {
    char host[64];
    double spent[STRAGGLER_PHASES];
} Told;

static const char *name_of(int phase) {
    if (phase == STRAGGLER_DATA) return "data";
    if (phase == STRAGGLER_OPTIMIZER) return "optimizer";
    return phase == STRAGGLER_REST ? "everything else" : phase_name((Phase)phase);
}

// Where it loses time; all ranks tell how long each phase takes them.
static void look_closer(const Stragglers *s, Straggler *out) {
    int ranks = group_size(s->world);
    Told own = {0}, *all = calloc((size_t)ranks, sizeof *all);
    double *values = calloc((size_t)ranks, sizeof *values);
    REQUIRE(all && values, "out of memory: phases of %d ranks", ranks);
    gethostname(own.host, sizeof own.host - 1);
    memcpy(own.spent, s->spent, sizeof own.spent);
    group_all_gather(s->world, all, &own, sizeof own);
    memcpy(out->host, all[out->rank].host, sizeof out->host);
    out->lost = -1;
    for (int i = 0; i < STRAGGLER_PHASES; i++) {
        for (int rank = 0; rank < ranks; rank++) values[rank] = all[rank].spent[i];
        double lost = all[out->rank].spent[i] - lower_median(values, ranks);
        if (lost <= out->lost) continue;
        out->lost = lost;
        out->phase = name_of(i);
    }
    free(all);
    free(values);
}

bool stragglers_step(Stragglers *s, const StepMetrics *m, Straggler *out) {
    int ranks = group_size(s->world), worst = -1;
    if (ranks == 1) return false;
    double *sorted = malloc((size_t)ranks * sizeof *sorted);
    REQUIRE(sorted, "out of memory: step times of %d ranks", ranks);
    memcpy(sorted, m->own_s, (size_t)ranks * sizeof *sorted);
    double median = lower_median(sorted, ranks);
    free(sorted);
    double share = 1.0 / (double)(++s->steps < WINDOW ? s->steps : WINDOW);
    add_own_phases(s, m, share);
    for (int rank = 0; rank < ranks; rank++) {
        double ratio = median > 0 ? m->own_s[rank] / median : 1;
        s->ratio[rank] += share * (ratio - s->ratio[rank]);
        bool slow = ratio > SLOW && m->own_s[rank] - median > WORTH_A_WORD;
        s->slow[rank] = (s->slow[rank] << 1 | slow) & ((UINT64_C(1) << WINDOW) - 1);
        if (__builtin_popcountll(s->slow[rank]) < SLOW_STEPS) continue;
        if (worst < 0 || s->ratio[rank] > s->ratio[worst]) worst = rank;
    }
    if (s->quiet > 0) s->quiet--;
    if (worst < 0 || s->quiet > 0) return false;
    s->quiet = WINDOW;
    *out = (Straggler){
        .rank = worst, .slow_steps = __builtin_popcountll(s->slow[worst]), .ratio = s->ratio[worst]};
    look_closer(s, out);
    return true;
}
