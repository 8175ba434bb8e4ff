// SPDX-License-Identifier: Apache-2.0
// A bar on the terminal below the step lines; drawn only where the front end sits on a terminal (it sets
// FLOE_PROGRESS=1).
#pragma once
#include <stdbool.h>
#include <stdint.h>

typedef struct {
    bool on, shown;
    double next_draw; // of clock_seconds(): 5 a second at most
} ProgressBar;

ProgressBar progress_bar_create(bool here); // here: this rank draws
void progress_bar_draw(ProgressBar *bar, int64_t done, int64_t total, double loss, double eta_seconds);
void progress_bar_clear(
    ProgressBar *bar); // before a line is printed, and at the end; nothing where none is shown
