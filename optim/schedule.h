// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <stdint.h>

typedef enum { SCHEDULE_CONSTANT, SCHEDULE_COSINE, SCHEDULE_WSD } ScheduleKind;
typedef struct {
    ScheduleKind kind;
    double peak, final_fraction;
    int64_t warmup_steps, decay_steps, total_steps;
} ScheduleConfig;

// Learning rate of step t = 1, 2, …: peak·t/W up to W = warmup_steps; then with Z = total_steps, φ =
// final_fraction, cosine: peak·(φ + (1−φ)(1 + cos(π·min(1, (t−W)/max(1, Z−W))))/2); wsd: peak until Z−D, then
// peak·(1 − (1−φ)·min(1, (t−Z+D)/max(1, D))); constant: peak.
double schedule_lr(const ScheduleConfig *config, int64_t step);
