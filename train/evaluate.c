// SPDX-License-Identifier: Apache-2.0
#include "train/evaluate.h"
#include "core/clock.h"
#include <stdlib.h>
#include <string.h>

struct Evaluator {
    TrainState *state;
    Model *model;
    Group *world;
    int sequences, seq_len;
    int32_t *tokens;  // (sequences, seq_len + 1)
    float *logprobs;  // (sequences, seq_len)
    double *sum;      // [sequences of the task] Σ −log p
    int64_t capacity; // of sum
    double *loss;     // [sources of the task]
};

Status evaluator_create(Evaluator **out, TrainState *state, int sequences, int seq_len) {
    Evaluator *e = calloc(1, sizeof *e);
    REQUIRE(e, "no memory for an evaluator");
    *e = (Evaluator){.state = state,
                     .world = mesh_group(state->mesh, AXIS_WORLD),
                     .sequences = sequences,
                     .seq_len = seq_len};
    *out = e;
    ModelRun run = train_model_run(state->config);
    run.training = false;
    run.sequences = sequences;
    run.seq_len = seq_len;
    TRY(model_create(&e->model, &state->config->model, &run, &state->params, zero_access(state->zero),
                     state->mesh, state->kernels, state->stream));
    size_t targets = (size_t)sequences * (size_t)seq_len;
    e->tokens = calloc(targets + (size_t)sequences, sizeof *e->tokens);
    e->logprobs = calloc(targets, sizeof *e->logprobs);
    REQUIRE(e->tokens && e->logprobs, "no memory for %zu tokens to evaluate", targets);
    return OK;
}

void evaluator_destroy(Evaluator *e) {
    if (!e) return;
    if (e->model) model_destroy(e->model);
    free(e->tokens);
    free(e->logprobs);
    free(e->sum);
    free(e->loss);
    free(e);
}

int64_t evaluator_bytes(const Evaluator *e) {
    ModelBytes bytes = model_bytes(e->model);
    return (int64_t)(bytes.saved + bytes.working + bytes.tables);
}

// Sequence number n of the task, counted through its sources; false beyond the last.
static bool locate(const EvalTask *task, int64_t n, int *source, int64_t *i) {
    for (*source = 0; *source < task->sources; ++*source) {
        if (n < task->sequences[*source]) {
            *i = n;
            return true;
        }
        n -= task->sequences[*source];
    }
    return false;
}

// The block of sequences that starts at number first. Its places beyond the task's end stay empty: all ranks
// of an expert group run equally often.
static Status read_block(Evaluator *e, const EvalTask *task, int64_t first) {
    int64_t width = e->seq_len + 1;
    memset(e->tokens, 0, (size_t)(e->sequences * width) * sizeof *e->tokens);
    for (int j = 0; j < e->sequences; j++) {
        int source;
        int64_t i;
        if (locate(task, first + j, &source, &i))
            TRY(task->read(task->context, source, i, e->tokens + j * width));
    }
    return OK;
}

static void run_block(Evaluator *e, int64_t first, int64_t total) {
    int64_t width = e->seq_len + 1, together = (int64_t)e->sequences * group_size(e->world);
    Tensor tokens = tensor_view(e->tokens, DTYPE_I32, 2, (int64_t[]){e->sequences, width});
    Tensor logprobs = tensor_view(e->logprobs, DTYPE_F32, 2, (int64_t[]){e->sequences, e->seq_len});
    model_forward(e->model, tokens, logprobs, together * e->seq_len,
                  model_balance_groups(e->model, together));
    for (int j = 0; j < e->sequences && first + j < total; j++) {
        double sum = 0;
        for (int64_t t = 0; t < e->seq_len; t++) sum -= e->logprobs[j * (int64_t)e->seq_len + t];
        e->sum[first + j] = sum;
    }
}

typedef struct {
    const EvalTask *task;
    int64_t left, seq_len;
    Status status;
} Taking;

static void take_block(void *context, int rank, const void *data, size_t bytes) {
    (void)rank;
    Taking *taking = context;
    int64_t sequences = (int64_t)(bytes / sizeof(float)) / taking->seq_len;
    if (sequences > taking->left) sequences = taking->left;
    if (taking->status == OK)
        taking->status = taking->task->take(taking->task->take_context, data, sequences);
    taking->left -= sequences;
}

// first: of this round, over all ranks.
static Status hand_over(Evaluator *e, const EvalTask *task, int64_t first, int64_t total) {
    if (!task->take) return OK;
    Taking taking = {task, total - first, e->seq_len, OK};
    size_t bytes = (size_t)e->sequences * (size_t)e->seq_len * sizeof(float);
    group_gather_each(e->world, 0, e->logprobs, bytes, take_block, &taking);
    return group_agree(e->world, taking.status);
}

static int64_t prepare(Evaluator *e, const EvalTask *task) {
    int64_t total = 0;
    for (int s = 0; s < task->sources; s++) total += task->sequences[s];
    if (total > e->capacity) {
        free(e->sum);
        e->sum = malloc((size_t)total * sizeof *e->sum);
        REQUIRE(e->sum, "no memory for the losses of %lld sequences", (long long)total);
        e->capacity = total;
    }
    memset(e->sum, 0, (size_t)total * sizeof *e->sum);
    e->loss = realloc(e->loss, (size_t)(task->sources + 1) * sizeof *e->loss);
    REQUIRE(e->loss, "no memory for the losses of %d sources", task->sources);
    Tensor from = model_bias(e->state->model), to = model_bias(e->model);
    if (tensor_exists(to)) memcpy(to.data, from.data, tensor_bytes(to));
    return total;
}

// Each sequence's sum is there on one rank and 0 elsewhere.
static void add_up(Evaluator *e, const EvalTask *task, int64_t total, EvalResult *out) {
    for (int64_t at = 0; at < total; at += 4096)
        group_sum_f64(e->world, e->sum + at, (int)(total - at < 4096 ? total - at : 4096));
    double all = 0;
    for (int64_t s = 0, at = 0; s < task->sources; s++) {
        double sum = 0;
        for (int64_t i = 0; i < task->sequences[s]; i++) sum += e->sum[at++];
        e->loss[s] = sum / ((double)task->sequences[s] * e->seq_len);
        all += sum;
    }
    out->loss = e->loss;
    out->mean = all / ((double)total * e->seq_len);
}

Status evaluator_run(Evaluator *e, const EvalTask *task, Signals *signals, EvalResult *out) {
    double begun = clock_seconds();
    int64_t total = prepare(e, task), round = (int64_t)e->sequences * group_size(e->world);
    *out = (EvalResult){.sources = task->sources};
    for (int64_t at = 0; at < total; at += round) {
        if (signals) TRY(signals_poll(signals, OK));
        out->stopped = signals && signals->stop;
        if (out->stopped) return OK;
        int64_t first = at + (int64_t)e->sequences * group_rank(e->world);
        TRY(group_agree(e->world, read_block(e, task, first)));
        run_block(e, first, total);
        TRY(hand_over(e, task, at, total));
    }
    add_up(e, task, total, out);
    out->seconds = clock_seconds() - begun;
    return OK;
}

// ---- held-out sequences of a run

static Status read_held_out(void *context, int source, int64_t i, int32_t *tokens) {
    HeldOut *held_out = context;
    return loader_eval_read(held_out->loader, held_out->source[source], i, tokens);
}

void held_out_create(HeldOut *out, const Loader *loader, const DataConfig *data, int64_t most) {
    *out = (HeldOut){.loader = loader};
    size_t room = (size_t)data->sources + 1;
    out->source = calloc(room, sizeof *out->source);
    out->names = calloc(room, sizeof *out->names);
    out->counts = calloc(room, sizeof *out->counts);
    REQUIRE(out->source && out->names && out->counts, "no memory for %d sources", data->sources);
    for (int s = 0; s < data->sources; s++) {
        int64_t count = loader_eval_samples(loader, s);
        if (count > most) count = most;
        if (count <= 0) continue;
        out->source[out->task.sources] = s;
        out->names[out->task.sources] = data->source[s].name;
        out->counts[out->task.sources++] = count;
    }
    out->task.name = out->names;
    out->task.sequences = out->counts;
    out->task.read = read_held_out;
    out->task.context = out;
}

void held_out_free(HeldOut *held_out) {
    free(held_out->source);
    free(held_out->names);
    free(held_out->counts);
    *held_out = (HeldOut){0};
}
