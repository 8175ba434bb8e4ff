// SPDX-License-Identifier: Apache-2.0
// Hugging Face's config.json of a model, for the class that its family has.
#pragma once
#include "model/model_config.h"

typedef struct {
    const char *dtype; // "bfloat16"
    int64_t positions; // longest sequence that it has been trained on; 0: unknown, the class's default then
} HfConfigFacts;

// config: one that hf_expressible allows. States what the mathematics needs, also where the class's default
// would do. The file's text, owned by the caller.
char *hf_config_text(const ModelConfig *config, const HfConfigFacts *facts);
