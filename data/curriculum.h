// SPDX-License-Identifier: Apache-2.0
// The stages as mixtures of exact lengths. A stage is one mixture; a stage with a ramp is RAMP_STEPS mixtures
// of weights between the stage before's and its own, and then one of its own. After the last stage its
// mixture goes on, repeated.
#pragma once
#include "core/status.h"
#include "data/data_config.h"
#include "data/mixture.h"

// Weights become whole numbers: round(weight / sum · WEIGHT_SCALE), at least 1 where the weight is above 0.
// Step j of a ramp has (2·RAMP_STEPS − 2j − 1)·before + (2j + 1)·own, the value at the middle of the step,
// and covers the tokens start + floor(ramp·j / RAMP_STEPS) … of its stage.
enum { RAMP_STEPS = 64, WEIGHT_SCALE = 1000000000 };

typedef struct {
    int stage;
    int64_t first; // sample
    Mixture mixture;
    int64_t *base; // [sources]: samples of the source before
} Segment;

typedef struct {
    int stages, sources, segments; // the last segment stands for all samples after the last stage
    Segment *segment;
    int64_t *stage_first; // [stages + 1]: first sample; floor(until of the stage before / seq_len)
    int64_t *weight;      // [stages][sources]
} Curriculum;

Status curriculum_create(Curriculum *out, const DataConfig *config); // ERR_CONFIG names the stage
void curriculum_free(Curriculum *curriculum);
// The segment that holds a sample.
const Segment *curriculum_segment(const Curriculum *curriculum, int64_t sample);
// Source of a sample; ordinal numbers the source's samples through all stages (mixture_source).
int curriculum_source(const Curriculum *curriculum, int64_t sample, int64_t *ordinal);
// count[stages][sources] of samples 0 … samples − 1; closed form.
void curriculum_count(const Curriculum *curriculum, int64_t samples, int64_t *count);
