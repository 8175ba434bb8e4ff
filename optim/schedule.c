// SPDX-License-Identifier: Apache-2.0
#include "optim/schedule.h"
#include <math.h>

static double at_least_one(int64_t n) {
    return n > 1 ? (double)n : 1;
}

double schedule_lr(const ScheduleConfig *c, int64_t step) {
    if (step <= c->warmup_steps) return c->peak * (double)step / (double)c->warmup_steps;
    double low = c->final_fraction, done;
    switch (c->kind) {
    case SCHEDULE_COSINE:
        done = fmin(1, (double)(step - c->warmup_steps) / at_least_one(c->total_steps - c->warmup_steps));
        return c->peak * (low + (1 - low) * 0.5 * (1 + cos(3.14159265358979323846 * done)));
    case SCHEDULE_WSD:
        done = fmin(1, fmax(0, (double)(step - (c->total_steps - c->decay_steps))) /
                           at_least_one(c->decay_steps));
        return c->peak * (1 - (1 - low) * done);
    default:
        return c->peak;
    }
}
