// SPDX-License-Identifier: Apache-2.0
#include "core/heartbeat.h"
#include "model/internal.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

double phase_end(Model *m, int layer, Phase phase, double begun) {
    double now = clock_seconds();
    m->timeline.layer[layer].phase[m->pass][phase] += now - begun;
    heartbeat_at_layer(phase_name(phase), layer, pass_name(m->pass));
    return now;
}

Tensor layer_output(const Model *m, int layer) {
    Tensor out = layer + 1 < m->config.layers ? m->layer[layer + 1].x : m->out;
    return rows_of(out, m->tokens);
}

// ---- set-up

static Param *find(const Model *m, const char *format, int layer, int expert, const char *leaf) {
    char name[PARAM_NAME_BYTES];
    snprintf(name, sizeof name, format, layer, expert, leaf);
    int index = params_find(m->params, name);
    REQUIRE(index >= 0, "the weight table has no %s", name);
    return &m->params->param[index];
}

static Param *layer_param(const Model *m, int layer, const char *leaf) {
    return find(m, "layers.%1$d.%3$s", layer, 0, leaf);
}

static Param *expert_param(const Model *m, int layer, int expert, const char *leaf) {
    return find(m, "layers.%1$d.experts.%2$d.%3$s", layer, expert, leaf);
}

static void bind_experts(Model *m, int layer, LayerWeights *w) {
    w->moe_norm = layer_param(m, layer, "moe_norm");
    w->router = layer_param(m, layer, "router");
    if (model_shared_width(&m->config, layer)) {
        w->dense_norm = w->moe_norm;
        w->dense = (FfnWeights){layer_param(m, layer, "shared.gate"), layer_param(m, layer, "shared.up"),
                                layer_param(m, layer, "shared.down")};
    }
    w->expert = calloc((size_t)m->local_experts, sizeof *w->expert);
    REQUIRE(w->expert, "out of memory: %d experts", m->local_experts);
    for (int e = 0; e < m->local_experts; e++) {
        int number = m->first_expert + e;
        w->expert[e] =
            (FfnWeights){expert_param(m, layer, number, "gate"), expert_param(m, layer, number, "up"),
                         expert_param(m, layer, number, "down")};
    }
    w->expert_group = w->expert[0].gate->group;
}

static void bind_layer(Model *m, int layer) {
    LayerWeights *w = &m->weights[layer];
    w->attn_norm = layer_param(m, layer, "attn_norm");
    w->q = layer_param(m, layer, "attn.q");
    w->k = layer_param(m, layer, "attn.k");
    w->v = layer_param(m, layer, "attn.v");
    w->o = layer_param(m, layer, "attn.o");
    if (m->config.sandwich_norms) {
        w->attn_out_norm = layer_param(m, layer, "attn_out_norm");
        w->ffn_out_norm = layer_param(m, layer, "ffn_out_norm");
    }
    if (model_dense_width(&m->config, layer)) {
        w->dense_norm = layer_param(m, layer, "dense_norm");
        w->dense = (FfnWeights){layer_param(m, layer, "dense.gate"), layer_param(m, layer, "dense.up"),
                                layer_param(m, layer, "dense.down")};
    }
    w->dense_group = w->attn_norm->group;
    w->expert_group = -1;
    if (model_layer_has_experts(&m->config, layer)) bind_experts(m, layer, w);
}

static void bind_weights(Model *m) {
    m->embed = find(m, "embed", 0, 0, "");
    m->final_norm = find(m, "final_norm", 0, 0, "");
    m->head = m->config.tie_embeddings ? m->embed : find(m, "head", 0, 0, "");
    m->embed_group = m->embed->group;
    m->head_group = m->final_norm->group;
    for (int i = 0; i < m->config.layers; i++) bind_layer(m, i);
}

// cos and sin of position·θ^(−2j/d).
static void fill_rope_tables(Model *m) {
    int half = m->config.head_dim / 2;
    for (int p = 0; p < m->run.seq_len; p++)
        for (int j = 0; j < half; j++) {
            double angle = p * pow(m->config.rope_theta, -2.0 * j / m->config.head_dim);
            tensor_f32(m->cosine)[p * half + j] = (float)cos(angle);
            tensor_f32(m->sine)[p * half + j] = (float)sin(angle);
        }
}

// By position in the sequence, so that a token's experts do not depend on the layout of the run.
static void fill_forced_index(Model *m) {
    if (!tensor_exists(m->forced_index)) return;
    int64_t k = m->config.top_k, pairs = m->run.seq_len * k;
    bool balanced = m->config.router.force == FORCE_BALANCED;
    for (int64_t pair = 0; pair < m->tokens * k; pair++)
        tensor_i32(m->forced_index)[pair] = (int32_t)(pair % pairs % (balanced ? m->config.experts : k));
}

// Received rows at a time: expert_rows times the balanced share, but never more than there can be.
static int64_t rows_at_most(const Model *m) {
    int64_t share = m->tokens * m->config.top_k, rows = (int64_t)ceil(m->run.expert_rows * (double)share);
    return rows < share * m->ep_ranks ? rows : share * m->ep_ranks;
}

static void *host_array(size_t count, size_t item) {
    void *memory = calloc(count ? count : 1, item);
    REQUIRE(memory, "out of memory: %zu × %zu bytes", count, item);
    return memory;
}

// All that the layout depends on.
static void set_sizes(Model *m, const ModelConfig *config, const ModelRun *run, int ep_ranks, int ep_rank) {
    m->config = *config;
    m->run = *run;
    m->ep_ranks = ep_ranks;
    m->local_experts = config->experts / ep_ranks;
    m->first_expert = ep_rank * m->local_experts;
    for (int i = 0; i < config->layers; i++) m->moe_layers += model_layer_has_experts(config, i);
    m->sequences = run->sequences;
    m->seq_len = run->seq_len;
    m->tokens = (int64_t)run->sequences * run->seq_len;
    m->max_rows = rows_at_most(m);
    m->layer = host_array((size_t)config->layers, sizeof *m->layer);
}

static void place(Model *m) {
    for (int round = 0; round < 2; round++) {
        model_layout(m);
        if (round) break;
        arena_commit(&m->saved);
        arena_commit(&m->working);
        arena_commit(&m->tables);
    }
}

Status model_create(Model **out, const ModelConfig *config, const ModelRun *run, ParamTable *params,
                    ParamAccess access, Mesh *mesh, const Kernels *kernels, Stream stream) {
    TRY(model_config_check(config));
    int ep = group_size(mesh_group(mesh, AXIS_EXPERT));
    if (config->experts % ep)
        FAIL(ERR_CONFIG, "parallel.ep = %d must divide model.experts = %d", ep, config->experts);
    if (run->chunks < 1 || run->chunks > TIMELINE_CHUNKS)
        FAIL(ERR_CONFIG, "parallel.chunks = %d must lie in 1 … %d", run->chunks, TIMELINE_CHUNKS);
    if (!(run->expert_rows > 0))
        FAIL(ERR_CONFIG, "parallel.expert_rows = %g must be above 0", run->expert_rows);
    Model *m = host_array(1, sizeof *m);
    set_sizes(m, config, run, ep, group_rank(mesh_group(mesh, AXIS_EXPERT)));
    m->params = params;
    m->access = access;
    m->mesh = mesh;
    m->kernels = kernels;
    bool layer_norm = config->norm == NORM_LAYER;
    m->norm_forward = layer_norm ? kernels->layernorm_forward : kernels->rmsnorm_forward;
    m->norm_backward = layer_norm ? kernels->layernorm_backward : kernels->rmsnorm_backward;
    m->stream = stream;
    m->device = stream->device;
    m->weights = host_array((size_t)config->layers, sizeof *m->weights);
    m->timeline = timeline_create(config->layers);
    size_t cells = (size_t)m->moe_layers * (size_t)config->experts;
    m->bias_counts = host_array(cells, sizeof *m->bias_counts);
    m->metric_counts = host_array(cells, sizeof *m->metric_counts);
    size_t grouped = cells * (size_t)balance_group_count(m);
    m->balance_share = host_array(grouped, sizeof *m->balance_share);
    m->balance_first = host_array(grouped, sizeof *m->balance_first);
    m->balance_prob = host_array(grouped, sizeof *m->balance_prob);
    m->saved = m->working = m->tables = arena_empty(m->device);
    bind_weights(m);
    place(m);
    fill_rope_tables(m);
    fill_forced_index(m);
    *out = m;
    return OK;
}

void model_destroy(Model *m) {
    if (!m) return;
    for (int i = 0; i < m->config.layers; i++) free(m->weights[i].expert);
    free(m->weights);
    free(m->layer);
    free(m->bias_counts);
    free(m->metric_counts);
    free(m->balance_share);
    free(m->balance_first);
    free(m->balance_prob);
    timeline_free(&m->timeline);
    arena_free(&m->saved);
    arena_free(&m->working);
    arena_free(&m->tables);
    free(m);
}

ModelBytes model_plan_bytes(const ModelConfig *config, const ModelRun *run, int ep_ranks) {
    Model m = {0};
    set_sizes(&m, config, run, ep_ranks, 0);
    model_layout(&m);
    free(m.layer);
    return (ModelBytes){m.saved.peak, m.working.peak, m.tables.peak};
}

ModelBytes model_bytes(const Model *m) {
    return (ModelBytes){m->saved.capacity, m->working.capacity, m->tables.capacity};
}

void model_set_overlap(Model *m, bool overlap) {
    m->run.overlap = overlap;
}

void model_replay_exchanges(Model *m) {
    for (int i = 0; i < m->config.layers; i++)
        if (m->weights[i].expert_group >= 0) moe_replay(m, i);
}

Tensor model_bias(Model *m) {
    return m->bias;
}

int model_moe_layers(const Model *m) {
    return m->moe_layers;
}

Timeline *model_timeline(Model *m) {
    return &m->timeline;
}

// ---- one micro-batch

static void split_tokens(Model *m, Tensor tokens) {
    REQUIRE(tokens.rank == 2 && tokens.dim[0] == m->sequences && tokens.dim[1] == m->seq_len + 1,
            "tokens (%ld, %ld) for a model of (%d, %d + 1)", (long)tokens.dim[0], (long)tokens.dim[1],
            m->sequences, m->seq_len);
    size_t row = (size_t)m->seq_len * sizeof(int32_t);
    for (int i = 0; i < m->sequences; i++) {
        const int32_t *from = tensor_i32(tokens) + (int64_t)i * (m->seq_len + 1);
        int64_t to = (int64_t)i * m->seq_len;
        device_copy(m->device, tensor_i32(m->scratch.inputs) + to, m->device, from, row, m->stream);
        device_copy(m->device, tensor_i32(m->scratch.targets) + to, m->device, from + 1, row, m->stream);
    }
}

static int64_t dropped_pairs(const Model *m) {
    int64_t dropped = 0;
    for (int i = 0; i < m->config.layers; i++) {
        const LayerState *l = &m->layer[i];
        if (!model_layer_has_experts(&m->config, i) || !tensor_exists(l->kept)) continue;
        for (int64_t j = 0; j < m->tokens * m->config.top_k; j++) dropped += !tensor_i32(l->kept)[j];
    }
    return dropped;
}

// The embedding's weights stay until the output matrix has been used where they are one.
static void forward_layers(Model *m, Tensor inputs) {
    m->access.weights_begin(m->access.context, m->embed_group);
    embed_forward(m, inputs);
    if (!m->config.tie_embeddings) m->access.weights_end(m->access.context, m->embed_group);
    for (int i = 0; i < m->config.layers; i++) block_forward(m, i);
    m->access.weights_begin(m->access.context, m->head_group);
}

static void forward_end(Model *m) {
    m->access.weights_end(m->access.context, m->head_group);
    if (m->config.tie_embeddings) m->access.weights_end(m->access.context, m->embed_group);
}

ModelLoss model_forward(Model *m, Tensor tokens, Tensor logprobs, int64_t targets_per_step,
                        int64_t balance_groups) {
    m->pass = PASS_FORWARD;
    m->position = 0;
    m->tokens = (int64_t)m->sequences * m->seq_len;
    m->loss_scale = 1.0f / (float)targets_per_step;
    m->z_scale = (float)(m->config.router.z_coef / (double)targets_per_step);
    split_tokens(m, tokens);
    forward_layers(m, m->scratch.inputs);
    ModelLoss loss = {.targets = m->tokens, .pairs = m->tokens * m->config.top_k * m->moe_layers};
    if (m->run.training) {
        if (m->config.tie_embeddings) m->access.grads_begin(m->access.context, m->embed_group);
        m->access.grads_begin(m->access.context, m->head_group);
    }
    loss.ce_sum = head_forward(m);
    if (m->run.training) {
        m->access.grads_end(m->access.context, m->head_group);
        RouterLosses router = balance_finish(m, balance_groups);
        loss.aux = router.aux;
        loss.z = router.z;
        loss.dropped = dropped_pairs(m);
    }
    forward_end(m);
    if (tensor_exists(logprobs))
        device_copy(m->device, logprobs.data, m->device, m->scratch.logprob.data, tensor_bytes(logprobs),
                    m->stream);
    return loss;
}

Canary model_canary(Model *m, Tensor tokens) {
    Canary canary = {0};
    m->pass = PASS_FORWARD;
    m->canary = &canary;
    split_tokens(m, tokens);
    forward_layers(m, m->scratch.inputs);
    forward_end(m);
    m->canary = NULL;
    return canary;
}

void model_backward(Model *m) {
    REQUIRE(m->run.training, "model_backward of a model made for forward only");
    m->pass = PASS_BACKWARD;
    for (int i = m->config.layers - 1; i >= 0; i--) block_backward(m, i);
    if (!m->config.tie_embeddings) m->access.grads_begin(m->access.context, m->embed_group);
    embed_backward(m);
    m->access.grads_end(m->access.context, m->embed_group);
}

void model_extend(Model *m, Tensor tokens, int position, Tensor logits) {
    REQUIRE(!m->run.training && m->run.sequences == 1,
            "model_extend needs a forward-only model of one sequence");
    int count = (int)tensor_size(tokens);
    REQUIRE(count > 0 && position >= 0 && position + count <= m->run.seq_len,
            "%d tokens from position %d in a model of %d positions", count, position, m->run.seq_len);
    m->pass = PASS_FORWARD;
    m->position = position;
    m->seq_len = count;
    m->tokens = count;
    forward_layers(m, tensor_reshape(tokens, 1, (int64_t[]){count}));
    head_logits(m, logits);
    forward_end(m);
    m->seq_len = m->run.seq_len;
    m->tokens = m->run.seq_len;
    m->position = 0;
}
