// SPDX-License-Identifier: Apache-2.0
// Where each of floe's weights stands in a Hugging Face file of its model: the names map of import and
// export.
#pragma once
#include "model/model_config.h"

// A weight is a range of rows of one tensor of the file. Several weights may share a tensor (DBRX: q, k and v
// are Wqkv's rows, the experts of a layer are stacked).
typedef struct {
    char tensor[128]; // name in the file
    int dims;         // of the whole tensor
    int64_t dim[2];
    int64_t first_row; // of the tensor: where the weight begins
    bool transposed;   // the file's rows are the weight's columns (DBRX: the experts' w2)
} HfPlace;

const char *hf_architecture(Arch arch); // what config.json's architectures say: "ArcticForCausalLM"
const char *hf_model_type(Arch arch);   // and its model_type: "arctic"

// param: one of model_describe's weights. Ends the program for a weight that the files cannot hold;
// hf_expressible says so before.
void hf_place(const ModelConfig *config, const Param *param, HfPlace *out);
// ERR_CONFIG where the model has choices that its family's files cannot express (shared experts, sandwich
// norms in Mixtral, …).
Status hf_expressible(const ModelConfig *config);
