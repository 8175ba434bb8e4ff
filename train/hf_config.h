// SPDX-License-Identifier: Apache-2.0
// Hugging Face's config.json, of every family in hf_names.h.
#pragma once
#include "model/model_config.h"
#include <jansson.h>

// Shape and mathematics, starting from the family's choices; what else the model needs keeps its zero. Every
// problem is printed on stderr; ERR_CONFIG then. ignored: the keys that were not used, with their values;
// those of the objects that floe looks into as "attn_config.KEY"; owned by the caller.
Status hf_config_read(ModelConfig *out, json_t **ignored, const char *path);
