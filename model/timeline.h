// SPDX-License-Identifier: Apache-2.0
// Where a micro-batch's time goes: seconds by layer and phase, and every exchange's begin, end and wait.
#pragma once
#include "comm/collective.h"

typedef enum {
    PHASE_ROUTE,        // norm, router, top-k, permutation
    PHASE_ATTENTION,    // with its norm, projections and residual
    PHASE_EXPERTS,      // forward, and data gradients in backward
    PHASE_EXPERT_WGRAD, // backward only
    PHASE_DENSE,        // dense FFN with its norm and residual
    PHASE_COMBINE,      // unpermutation and sums
    PHASE_HEAD,         // embedding, final norm, output matrix, loss (layer 0)
    PHASE_COUNT
} Phase;
typedef enum { PASS_FORWARD, PASS_BACKWARD, PASS_COUNT } Pass;
enum { TIMELINE_CHUNKS = 8 };
const char *phase_name(Phase phase); // "attention", …
const char *pass_name(Pass pass);

typedef struct {
    double phase[PASS_COUNT][PHASE_COUNT];
    double chunk[PASS_COUNT][TIMELINE_CHUNKS]; // PHASE_EXPERTS by chunk
    double dispatch[PASS_COUNT][TIMELINE_CHUNKS], combine[PASS_COUNT][TIMELINE_CHUNKS]; // begin to done
    double exchange, waited; // sums over all exchanges: begin to done, and blocked
    double lost;             // expert time of the fullest EP rank beyond the mean one's
    int64_t bytes;           // sent to other ranks
    int64_t recompute_bytes; // of them again, for recompute
    int64_t waves;           // exchanged beyond the first of each forward
} LayerTimeline;

typedef struct {
    int layers;
    LayerTimeline *layer;
} Timeline;

Timeline timeline_create(int layers);
void timeline_free(Timeline *timeline);
void timeline_reset(Timeline *timeline);
LayerTimeline timeline_sum(const Timeline *timeline);
