// SPDX-License-Identifier: Apache-2.0
#include "data/curriculum.h"
#include <math.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

enum { TAIL_SAMPLES = 1024 }; // least period of the mixture after the last stage

static void *allocate(int64_t count, size_t size) {
    void *memory = calloc((size_t)(count > 0 ? count : 1), size);
    REQUIRE(memory, "out of memory for %lld numbers", (long long)count);
    return memory;
}

static Status check_stage(const DataConfig *config, int s) {
    const DataStage *stage = &config->stage[s];
    int64_t start = s > 0 ? config->stage[s - 1].until : 0;
    double sum = 0;
    if (stage->until <= start)
        FAIL(ERR_CONFIG,
             "curriculum stage %d ends at token %lld, which is not after its start at %lld; let until grow",
             s + 1, (long long)stage->until, (long long)start);
    if (stage->ramp < 0 || stage->ramp > stage->until - start)
        FAIL(ERR_CONFIG, "curriculum stage %d has %lld tokens, its ramp %lld; make the ramp shorter", s + 1,
             (long long)(stage->until - start), (long long)stage->ramp);
    if (s == 0 && stage->ramp > 0)
        FAIL(ERR_CONFIG, "curriculum stage 1 has a ramp, but no stage before it to start from; remove it");
    for (int i = 0; i < config->sources; i++) {
        double weight = stage->weight[i];
        if (!(weight >= 0) || isinf(weight))
            FAIL(ERR_CONFIG, "curriculum stage %d: source %s has weight %g; it must be 0 or above", s + 1,
                 config->source[i].name, weight);
        sum += weight;
    }
    if (!(sum > 0) || isinf(sum))
        FAIL(ERR_CONFIG, "curriculum stage %d: the weights add up to %g; name a source in its mix", s + 1,
             sum);
    return OK;
}

static void whole_weights(const double *weight, int sources, int64_t *out) {
    double sum = 0;
    for (int i = 0; i < sources; i++) sum += weight[i];
    for (int i = 0; i < sources; i++) {
        out[i] = llround(weight[i] / sum * WEIGHT_SCALE);
        if (out[i] == 0 && weight[i] > 0) out[i] = 1;
    }
}

// The segment [first, end) of a stage; none if it is empty.
static void add_segment(Curriculum *curriculum, int stage, int64_t first, int64_t end,
                        const int64_t *weight) {
    if (end <= first) return;
    int sources = curriculum->sources;
    Segment *segment = &curriculum->segment[curriculum->segments];
    *segment = (Segment){.stage = stage, .first = first};
    segment->mixture = mixture_create(weight, sources, end - first);
    segment->base = allocate(sources, sizeof *segment->base);
    if (curriculum->segments > 0) {
        const Segment *before = segment - 1;
        for (int i = 0; i < sources; i++)
            segment->base[i] = before->base[i] + mixture_quota(&before->mixture, i);
    }
    curriculum->segments++;
}

static void add_stage(Curriculum *curriculum, const DataConfig *config, int s) {
    int sources = config->sources;
    const int64_t *own = curriculum->weight + s * sources, *before = own - sources;
    int64_t first = curriculum->stage_first[s];
    if (config->stage[s].ramp > 0) {
        int64_t *weight = allocate(sources, sizeof *weight);
        for (int64_t j = 0; j < RAMP_STEPS; j++) {
            __int128 tokens = (__int128)config->stage[s].ramp * (j + 1) / RAMP_STEPS;
            int64_t end = (config->stage[s - 1].until + (int64_t)tokens) / config->seq_len;
            for (int i = 0; i < sources; i++)
                weight[i] = (2 * RAMP_STEPS - 2 * j - 1) * before[i] + (2 * j + 1) * own[i];
            add_segment(curriculum, s, first, end, weight);
            first = end;
        }
        free(weight);
    }
    add_segment(curriculum, s, first, curriculum->stage_first[s + 1], own);
}

Status curriculum_create(Curriculum *out, const DataConfig *config) {
    int stages = config->stages, sources = config->sources;
    *out = (Curriculum){0};
    if (stages < 1) FAIL(ERR_CONFIG, "the curriculum has no stage; give it at least one");
    for (int s = 0; s < stages; s++) TRY(check_stage(config, s));
    if (config->stage[stages - 1].until < config->seq_len)
        FAIL(ERR_CONFIG,
             "the curriculum ends at token %lld, before the first sample of %lld tokens does; train for "
             "longer",
             (long long)config->stage[stages - 1].until, (long long)config->seq_len);
    Curriculum curriculum = {.stages = stages, .sources = sources};
    curriculum.weight = allocate((int64_t)stages * sources, sizeof(int64_t));
    curriculum.stage_first = allocate(stages + 1, sizeof(int64_t));
    curriculum.segment = allocate((int64_t)stages * (RAMP_STEPS + 1) + 1, sizeof(Segment));
    for (int s = 0; s < stages; s++) {
        whole_weights(config->stage[s].weight, sources, curriculum.weight + s * sources);
        curriculum.stage_first[s + 1] = config->stage[s].until / config->seq_len;
        add_stage(&curriculum, config, s);
    }
    int64_t end = curriculum.stage_first[stages], period = end - curriculum.stage_first[stages - 1];
    if (period < TAIL_SAMPLES) period = TAIL_SAMPLES;
    add_segment(&curriculum, stages - 1, end, end + period, curriculum.weight + (stages - 1) * sources);
    *out = curriculum;
    return OK;
}

void curriculum_free(Curriculum *curriculum) {
    for (int i = 0; i < curriculum->segments; i++) {
        mixture_free(&curriculum->segment[i].mixture);
        free(curriculum->segment[i].base);
    }
    free(curriculum->segment);
    free(curriculum->stage_first);
    free(curriculum->weight);
    *curriculum = (Curriculum){0};
}

const Segment *curriculum_segment(const Curriculum *curriculum, int64_t sample) {
    REQUIRE(sample >= 0, "sample %lld", (long long)sample);
    int low = 0, high = curriculum->segments - 1;
    while (low < high) { // the last segment that begins at or before the sample
        int middle = (low + high + 1) / 2;
        if (curriculum->segment[middle].first <= sample)
            low = middle;
        else
            high = middle - 1;
    }
    return &curriculum->segment[low];
}

int curriculum_source(const Curriculum *curriculum, int64_t sample, int64_t *ordinal) {
    const Segment *segment = curriculum_segment(curriculum, sample);
    int64_t n = sample - segment->first,
            rounds = n / segment->mixture.samples; // above 0 after the last stage only
    int source = mixture_source(&segment->mixture, n % segment->mixture.samples, ordinal);
    *ordinal += segment->base[source] + rounds * mixture_quota(&segment->mixture, source);
    return source;
}

void curriculum_count(const Curriculum *curriculum, int64_t samples, int64_t *count) {
    memset(count, 0, (size_t)curriculum->stages * (size_t)curriculum->sources * sizeof *count);
    for (int i = 0; i < curriculum->segments && curriculum->segment[i].first < samples; i++) {
        const Segment *segment = &curriculum->segment[i];
        bool last = i == curriculum->segments - 1;
        int64_t n = samples - segment->first, period = segment->mixture.samples;
        if (!last && n > period) n = period;
        int64_t *row = count + segment->stage * curriculum->sources;
        for (int j = 0; j < curriculum->sources; j++)
            row[j] += n / period * mixture_quota(&segment->mixture, j);
        mixture_count(&segment->mixture, n % period, row);
    }
}
