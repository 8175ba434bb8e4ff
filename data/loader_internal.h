// SPDX-License-Identifier: Apache-2.0
// Shared by loader.c (samples) and loader_plan.c (what the plan is made of).
#pragma once
#include "data/corpus.h"
#include "data/curriculum.h"
#include "data/loader.h"

#define PLAN_ALGORITHM "quota-weyl-feistel/1"

typedef struct {
    char *name;
    uint64_t uid;             // of the name
    Corpus *corpus, *valid;   // valid NULL: evaluation uses the tail of corpus
    int64_t samples, trained; // an epoch's; trained < samples where a tail is held out
} LoaderSource;

struct Loader {
    int64_t seq_len;
    int vocab;
    uint64_t seed;
    int sources;
    LoaderSource *source;
    Curriculum curriculum;
    int64_t *until, *ramp; // [stages], tokens, as configured
};
