// SPDX-License-Identifier: Apache-2.0
// Hugging Face's config.json of an Arctic model, and its tensors' names.
#pragma once
#include "model/model_config.h"
#include <jansson.h>

// Shape and mathematics; what else the model needs keeps its zero. Every problem is printed on stderr;
// ERR_CONFIG then. ignored: the keys that were not used, with their values; owned by the caller.
Status hf_config_read(ModelConfig *out, json_t **ignored, const char *path);
// The `model:` part of floe's configuration. Owned by the caller.
char *hf_config_yaml(const ModelConfig *config);
// The file's name for one of model_describe's weights.
void hf_tensor_name(const ModelConfig *config, const char *name, char *out, size_t size);
