// SPDX-License-Identifier: Apache-2.0
// Numbers as people read them: SI for tokens and parameters, IEC for memory, 1m20s for time.
#pragma once
#include "core/status.h"
#include <stddef.h>
#include <stdint.h>

typedef struct {
    char text[24];
} Short;

Short short_count(double value);      // "3.48 M"
Short short_rate(double value);       // "9.75k": without the space, for columns
Short short_bytes(double bytes);      // "46 MiB"
Short short_duration(double seconds); // "0.21 s", "1m20s", "3h50m", "2d4h"
// "90", "90s", "50m", "3h50m", "1d": seconds. ERR_CONFIG says what is wrong.
Status duration_parse(const char *text, double *seconds);
Short utc_now(const char *format); // strftime
