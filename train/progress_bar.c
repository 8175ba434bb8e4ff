// SPDX-License-Identifier: Apache-2.0
#include "train/progress_bar.h"
#include "core/clock.h"
#include "train/format.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { CELLS = 24 };

ProgressBar progress_bar_create(bool here) {
    const char *wish = getenv("FLOE_PROGRESS");
    return (ProgressBar){.on = here && wish && strcmp(wish, "1") == 0};
}

void progress_bar_draw(ProgressBar *bar, int64_t done, int64_t total, double loss, double eta_seconds) {
    double now = clock_seconds();
    if (!bar->on || now < bar->next_draw || total <= 0) return;
    bar->next_draw = now + 0.2;
    bar->shown = true;
    char cells[CELLS + 1];
    int full = (int)(done * CELLS / total);
    for (int i = 0; i < CELLS; i++) cells[i] = i < full ? '#' : '-';
    cells[CELLS] = 0;
    fprintf(stderr, "\r[%s] %lld/%lld %d%%  loss %.3f  eta %s   Ctrl-C: save and stop\033[K", cells,
            (long long)done, (long long)total, (int)(done * 100 / total), loss,
            short_duration(eta_seconds).text);
    fflush(stderr);
}

void progress_bar_clear(ProgressBar *bar) {
    if (!bar->shown) return;
    bar->shown = false;
    fputs("\r\033[K", stderr);
    fflush(stderr);
}
