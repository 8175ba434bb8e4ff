// SPDX-License-Identifier: Apache-2.0
// A checkpoint's model, only to run it forward: settings come from the checkpoint's own record.
#pragma once
#include "train/resume.h"

typedef struct {
    char dir[RUN_PATH_BYTES]; // the checkpoint
    RunConfig *config;
    ConfigDocument *document;
    Mesh *mesh;
    TrainState state;
} Inference;

// First the record alone: the configuration, of a checkpoint, a run's newest one or RUN@STEP. Not collective.
Status inference_open(Inference *out, const char *spec);
// Then the model with room for micro-batches of so many sequences, and its weights; with_data: the run's
// loader too. Collective over the world.
Status inference_load(Inference *inference, int sequences, int seq_len, bool with_data);
void inference_close(Inference *inference);
