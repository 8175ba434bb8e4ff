// SPDX-License-Identifier: Apache-2.0
#include "data/data_config.h"
#include <stdbool.h>

// A run of steps of one size, from the step and sample numbers (from 0) at which it begins.
typedef struct {
    int64_t step, sample, sequences;
} Phase;

static int64_t ceiling_divide(int64_t a, int64_t b) {
    return a / b + (a % b != 0);
}

static bool ramps_on(const BatchPlan *plan, const Phase *phase, int ramp) {
    return phase->sample < ceiling_divide(plan->ramp[ramp].until, plan->seq_len);
}

// The phase whose steps include step number `step`, or, if step < 0, the first sample at or after `samples`.
static Phase phase_of(const BatchPlan *plan, int64_t step, int64_t samples) {
    Phase phase = {0};
    for (int i = 0; i < plan->ramps; i++) {
        if (!ramps_on(plan, &phase, i)) continue;
        phase.sequences = plan->ramp[i].sequences;
        int64_t left = ceiling_divide(plan->ramp[i].until, plan->seq_len) - phase.sample;
        int64_t steps = ceiling_divide(left, phase.sequences);
        bool inside =
            step >= 0 ? step < phase.step + steps : samples <= phase.sample + steps * phase.sequences;
        if (inside) return phase;
        phase.step += steps;
        phase.sample += steps * phase.sequences;
    }
    phase.sequences = plan->sequences;
    return phase;
}

int64_t batch_first_sample(const BatchPlan *plan, int64_t step) {
    REQUIRE(step >= 1, "step %lld; steps count from 1", (long long)step);
    Phase phase = phase_of(plan, step - 1, 0);
    return phase.sample + (step - 1 - phase.step) * phase.sequences;
}

int64_t batch_sequences(const BatchPlan *plan, int64_t step) {
    REQUIRE(step >= 1, "step %lld; steps count from 1", (long long)step);
    return phase_of(plan, step - 1, 0).sequences;
}

int64_t batch_steps_for(const BatchPlan *plan, int64_t tokens) {
    int64_t samples = ceiling_divide(tokens, plan->seq_len);
    if (samples <= 0) return 0;
    Phase phase = phase_of(plan, -1, samples);
    return phase.step + ceiling_divide(samples - phase.sample, phase.sequences);
}
