// SPDX-License-Identifier: Apache-2.0
#include "model/timeline.h"
#include <stdlib.h>
#include <string.h>

const char *phase_name(Phase phase) {
    static const char *const names[PHASE_COUNT] = {
        "router", "attention", "experts", "expert weight gradients", "dense FFN", "combination", "head"};
    return names[phase];
}

const char *pass_name(Pass pass) {
    return pass == PASS_FORWARD ? "forward" : "backward";
}

Timeline timeline_create(int layers) {
    Timeline timeline = {.layers = layers, .layer = calloc((size_t)layers, sizeof(LayerTimeline))};
    REQUIRE(timeline.layer, "out of memory: a timeline of %d layers", layers);
    return timeline;
}

void timeline_free(Timeline *timeline) {
    free(timeline->layer);
    timeline->layer = NULL;
}

void timeline_reset(Timeline *timeline) {
    memset(timeline->layer, 0, (size_t)timeline->layers * sizeof *timeline->layer);
}

LayerTimeline timeline_sum(const Timeline *timeline) {
    LayerTimeline sum = {0};
    for (int i = 0; i < timeline->layers; i++) {
        const LayerTimeline *l = &timeline->layer[i];
        for (int pass = 0; pass < PASS_COUNT; pass++) {
            for (int phase = 0; phase < PHASE_COUNT; phase++) sum.phase[pass][phase] += l->phase[pass][phase];
            for (int c = 0; c < TIMELINE_CHUNKS; c++) {
                sum.chunk[pass][c] += l->chunk[pass][c];
                sum.dispatch[pass][c] += l->dispatch[pass][c];
                sum.combine[pass][c] += l->combine[pass][c];
            }
        }
        sum.exchange += l->exchange;
        sum.waited += l->waited;
        sum.lost += l->lost;
        sum.bytes += l->bytes;
        sum.recompute_bytes += l->recompute_bytes;
        sum.waves += l->waves;
    }
    return sum;
}
