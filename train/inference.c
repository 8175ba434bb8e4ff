// SPDX-License-Identifier: Apache-2.0
#include "train/inference.h"

static Status parse_record(Inference *out, const json_t *manifest) {
    const char *yaml = json_string_value(json_object_get(json_object_get(manifest, "record"), "config"));
    if (!yaml) FAIL(ERR_DATA, "%s/MANIFEST.json has no configuration", out->dir);
    return config_parse(&out->config, &out->document, yaml, out->dir);
}

Status inference_open(Inference *out, const char *spec) {
    *out = (Inference){.config = NULL};
    json_t *manifest;
    TRY(checkpoint_path_resolve(spec, out->dir, sizeof out->dir));
    TRY(checkpoint_manifest(out->dir, &manifest));
    Status status = parse_record(out, manifest);
    json_decref(manifest);
    return status;
}

Status inference_load(Inference *inference, int sequences, int seq_len, bool with_data) {
    RunConfig *config = inference->config;
    int ranks = comm_world_size();
    if (ranks % config->parallel.ep != 0) config->parallel.ep = 1;
    TRY(mesh_create(&inference->mesh, config->parallel.ep));
    ModelRun run = train_model_run(config);
    run.training = false;
    run.sequences = sequences;
    run.seq_len = seq_len;
    TRY(state_create(&inference->state, config, inference->mesh, &run, with_data));
    CheckpointBuffer bias;
    CheckpointState part = state_checkpoint(&inference->state, &bias);
    json_t *record = NULL;
    Status status = checkpoint_load(&part, inference->dir, true, &record, NULL);
    json_decref(record);
    TRY(group_agree(mesh_group(inference->mesh, AXIS_WORLD), status));
    zero_weights_gather(inference->state.zero);
    return OK;
}

void inference_close(Inference *inference) {
    if (inference->state.config) state_destroy(&inference->state);
    if (inference->mesh) mesh_destroy(inference->mesh);
    if (inference->config) config_free(inference->config, inference->document);
    *inference = (Inference){.config = NULL};
}
