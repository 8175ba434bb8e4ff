// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <time.h>

// Seconds of a clock that never goes back; the zero point is arbitrary.
static inline double clock_seconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}
