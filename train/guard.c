// SPDX-License-Identifier: Apache-2.0
#include "train/guard.h"
#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

const char *const guard_action_name[] = {"stop", "skip", "rollback", "off"};

Guard guard_create(const GuardConfig *config) {
    Guard guard = {.config = config};
    if (config->spike == GUARD_OFF || config->window == 0) return guard;
    guard.good = calloc((size_t)config->window, sizeof *guard.good);
    REQUIRE(guard.good, "out of memory: guard.window of %ld steps", (long)config->window);
    return guard;
}

void guard_free(Guard *guard) {
    free(guard->good);
    free(guard->passed);
    *guard = (Guard){0};
}

// ---- judgement

static double figure(const GuardStep *step, bool gnorm) {
    return gnorm ? step->gnorm : step->loss;
}

// Summed from the oldest on, so that a resumed run gets the same bits.
static bool is_spike(const Guard *guard, bool gnorm, double value, Verdict *out) {
    double sum = 0, squares = 0;
    for (int64_t i = 0; i < guard->count; i++) sum += figure(&guard->good[i], gnorm);
    double mean = sum / (double)guard->count;
    for (int64_t i = 0; i < guard->count; i++) {
        double apart = figure(&guard->good[i], gnorm) - mean;
        squares += apart * apart;
    }
    double deviation = fmax(sqrt(squares / (double)guard->count), 1e-3 * fabs(mean));
    double z = (value - mean) / deviation;
    if (!(z > guard->config->z)) return false;
    out->cause = gnorm ? CAUSE_GNORM : CAUSE_LOSS;
    out->value = value;
    out->mean = mean;
    out->z = z;
    return true;
}

static void keep_good(Guard *guard, GuardStep step) {
    if (guard->count == guard->config->window)
        memmove(guard->good, guard->good + 1, (size_t)--guard->count * sizeof step);
    guard->good[guard->count++] = step;
}

Verdict guard_judge(Guard *guard, int stage, double loss, double aux, double gnorm) {
    const GuardConfig *c = guard->config;
    Verdict verdict = {.action = c->nonfinite, .cause = CAUSE_NONFINITE};
    // A finite gradient whose square is none in AdamW's v would stop its weight for ever.
    verdict.bad = !isfinite(loss) || !isfinite(aux) || !(gnorm * gnorm <= FLT_MAX);
    if (!verdict.bad && guard->good) {
        if (stage != guard->stage) guard->count = 0;
        guard->stage = stage;
        verdict.action = c->spike;
        verdict.bad = guard->count == c->window &&
                      (is_spike(guard, false, loss, &verdict) || is_spike(guard, true, gnorm, &verdict));
        if (!verdict.bad) keep_good(guard, (GuardStep){loss, gnorm});
    }
    guard->in_row = verdict.bad ? guard->in_row + 1 : 0;
    verdict.in_row = guard->in_row;
    if (guard->in_row >= c->max_bad) verdict.action = GUARD_STOP;
    return verdict;
}

// ---- passed steps

void guard_pass(Guard *guard, int64_t first, int64_t last) {
    StepRange *newest = guard->ranges ? &guard->passed[guard->ranges - 1] : NULL;
    guard->passed_steps += last - first + 1;
    if (newest && newest->last + 1 == first) {
        newest->last = last;
        return;
    }
    if (guard->ranges == guard->capacity) {
        guard->capacity = 2 * guard->capacity + 8;
        guard->passed = realloc(guard->passed, (size_t)guard->capacity * sizeof *guard->passed);
        REQUIRE(guard->passed, "out of memory: %d ranges of passed steps", guard->capacity);
    }
    guard->passed[guard->ranges++] = (StepRange){first, last};
}

int64_t guard_updates(const Guard *guard, int64_t step) {
    return step - guard->passed_steps;
}

// ---- a checkpoint's record

json_t *guard_json(const Guard *guard, const BatchPlan *plan) {
    json_t *good = json_array(), *passed = json_array();
    for (int64_t i = 0; i < guard->count; i++)
        json_array_append_new(good, json_pack("[f, f]", guard->good[i].loss, guard->good[i].gnorm));
    for (int i = 0; i < guard->ranges; i++) {
        StepRange r = guard->passed[i];
        int64_t first = batch_first_sample(plan, r.first), end = batch_first_sample(plan, r.last + 1);
        json_array_append_new(passed, json_pack("{s:I, s:I, s:I, s:I}", "first_step", (json_int_t)r.first,
                                                "last_step", (json_int_t)r.last, "first_sample",
                                                (json_int_t)first, "samples", (json_int_t)(end - first)));
    }
    return json_pack("{s:i, s:o, s:I, s:o}", "stage", guard->stage, "good", good, "in_row",
                     (json_int_t)guard->in_row, "passed", passed);
}

static bool read_integer(const json_t *object, const char *key, int64_t *out) {
    const json_t *value = json_object_get(object, key);
    *out = json_integer_value(value);
    return json_is_integer(value) && *out >= 0;
}

static Status parse_passed(Guard *guard, const json_t *item, const BatchPlan *plan, int64_t step) {
    int64_t first, last, sample, samples;
    if (!read_integer(item, "first_step", &first) || !read_integer(item, "last_step", &last) ||
        !read_integer(item, "first_sample", &sample) || !read_integer(item, "samples", &samples) ||
        first < 1 || last < first || last > step ||
        (guard->ranges && first <= guard->passed[guard->ranges - 1].last))
        FAIL(ERR_DATA, "the stored range %d of passed steps is not one; verify the checkpoint",
             guard->ranges + 1);
    int64_t planned = batch_first_sample(plan, first), end = batch_first_sample(plan, last + 1);
    if (sample != planned || samples != end - planned)
        FAIL(
            ERR_CONFIG,
            "steps %lld to %lld passed over %lld samples from %lld on, with these batch settings it would be "
            "%lld from %lld on; restore batch.sequences and batch.ramp",
            (long long)first, (long long)last, (long long)samples, (long long)sample,
            (long long)(end - planned), (long long)planned);
    guard_pass(guard, first, last);
    return OK;
}

static Status parse_good(Guard *guard, const json_t *good) {
    size_t i;
    json_t *pair;
    json_array_foreach(good, i, pair) {
        json_t *loss = json_array_get(pair, 0), *gnorm = json_array_get(pair, 1);
        if (!json_is_real(loss) || !json_is_real(gnorm))
            FAIL(ERR_DATA, "the stored good step %zu has no loss and norm; verify the checkpoint", i + 1);
        if (guard->good) keep_good(guard, (GuardStep){json_real_value(loss), json_real_value(gnorm)});
    }
    return OK;
}

Status guard_parse(Guard *guard, const json_t *record, const BatchPlan *plan, int64_t step) {
    int64_t stage;
    json_t *item, *passed = json_object_get(record, "passed"), *good = json_object_get(record, "good");
    size_t i;
    guard->count = guard->in_row = guard->passed_steps = 0;
    guard->stage = guard->ranges = 0;
    if (!record) return OK;
    if (!read_integer(record, "stage", &stage) || !read_integer(record, "in_row", &guard->in_row) ||
        !json_is_array(good) || !json_is_array(passed))
        FAIL(ERR_DATA, "the stored record of bad steps lacks a key; verify the checkpoint");
    guard->stage = (int)stage;
    TRY(parse_good(guard, good));
    json_array_foreach(passed, i, item) TRY(parse_passed(guard, item, plan, step));
    return OK;
}
