// SPDX-License-Identifier: Apache-2.0
// From a dense model's checkpoint to one with experts that computes the same and can learn to differ.
#pragma once
#include "train/new_folder.h"
#include <stdbool.h>

typedef struct {
    int experts, top_k;
    double noise; // deviation of what is added to each expert's weights, in deviations of the dense tensor
    bool dense_residual; // the dense FFN stays, beside experts whose down matrix is 0
    Watch watch;
} UpcycleOptions;

typedef struct {
    int64_t tensors, parameters, bytes;
} UpcycleReport;

// spec: a checkpoint, a run's newest one or RUN@STEP. Writes a checkpoint of weights to dir, whole or not at
// all; all randomness comes from the record's train.seed. ERR_CONFIG where the model is not dense or the new
// one impossible.
Status upcycle(const char *spec, const char *dir, const UpcycleOptions *options, UpcycleReport *report);
