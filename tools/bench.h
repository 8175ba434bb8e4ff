// SPDX-License-Identifier: Apache-2.0
// The measurements of `floe bench`, each a program part that all ranks run.
#pragma once
#include "train/run_config.h"

typedef struct {
    int repeats; // timed ones
    bool json;
    bool progress;      // false: messages move only where they are waited for
    const char *folder; // to save to
} BenchOptions;

// Each prints its result on rank 0. Collective over all ranks.
Status bench_step(const RunConfig *config, const BenchOptions *options);
Status bench_overlap(const RunConfig *config, const BenchOptions *options);
Status bench_save(const RunConfig *config, const BenchOptions *options);
Status bench_gemm(const RunConfig *config, const BenchOptions *options);

double bench_median(double *values, int count); // sorts them
