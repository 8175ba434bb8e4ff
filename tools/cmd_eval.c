// SPDX-License-Identifier: Apache-2.0
#include "core/log.h"
#include "core/npy.h"
#include "data/shard.h"
#include "tools/cli.h"
#include "tools/commands.h"
#include "tools/launch.h"
#include "train/evaluate.h"
#include "train/inference.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const CliOption eval_options[] = {
    {.name = "data",
     .kind = CLI_TEXT,
     .argument = "PREFIX",
     .meaning = "a token shard: sequence i is its tokens iS ... iS + S (default: the run's held-out text)"},
    {.name = "seq-len",
     .kind = CLI_INTEGER,
     .argument = "S",
     .meaning = "targets a sequence (default: as in training)"},
    {.name = "sequences",
     .kind = CLI_INTEGER,
     .argument = "N",
     .meaning = "at most N of each source (default: all of a shard, eval.sequences of held-out text)"},
    {.name = "logprobs",
     .kind = CLI_TEXT,
     .argument = "FILE.npy",
     .meaning = "writes the log-probability of each next token, float32 (sequences, S)"},
    {.name = "ranks", .letter = 'n', .kind = CLI_INTEGER, .argument = "N", .meaning = "ranks (default 1)"},
    {.name = "json", .kind = CLI_FLAG, .meaning = "prints JSON"},
    {0}};

const CliCommand cli_eval[] = {
    {.name = "eval",
     .usage = "RUN|CKPT",
     .meaning = "loss and perplexity on text that training has not seen",
     .details = "RUN@STEP takes the checkpoint of that step instead of the newest one.",
     .option = eval_options,
     .least = 1,
     .most = 1},
    {0}};

typedef struct {
    const CliArgs *args;
    Inference inference;
    Shard *shard; // of --data, or NULL
    HeldOut held_out;
    EvalTask task;
    const char *shard_name;
    int64_t shard_sequences;
    int64_t seq_len;
    NpyWriter *file; // rank 0 with --logprobs
} Evaluation;

// ---- what is evaluated

static Status read_shard(void *context, int source, int64_t i, int32_t *tokens) {
    (void)source;
    Evaluation *e = context;
    return shard_read(e->shard, i * e->seq_len, e->seq_len + 1, e->inference.config->model.vocab, tokens);
}

static Status take_shard(Evaluation *e) {
    int64_t most = cli_integer(e->args, "sequences", INT64_MAX);
    e->shard_sequences = (shard_tokens(e->shard) - 1) / e->seq_len;
    if (e->shard_sequences <= 0)
        FAIL(ERR_CONFIG, "%s has %lld tokens, too few for one sequence of %lld + 1; give a smaller --seq-len",
             e->shard_name, (long long)shard_tokens(e->shard), (long long)e->seq_len);
    if (e->shard_sequences > most) e->shard_sequences = most;
    e->task = (EvalTask){.sources = 1,
                         .name = &e->shard_name,
                         .sequences = &e->shard_sequences,
                         .context = e,
                         .read = read_shard};
    return OK;
}

static Status take_held_out(Evaluation *e) {
    const RunConfig *config = e->inference.config;
    held_out_create(&e->held_out, e->inference.state.loader, &config->data,
                    cli_integer(e->args, "sequences", config->eval.sequences));
    e->task = e->held_out.task;
    if (e->task.sources == 0)
        FAIL(ERR_CONFIG, "this run holds no text out (data.holdout); give a shard with --data PREFIX");
    return OK;
}

static Status open_task(Evaluation *e) {
    const RunConfig *config = e->inference.config;
    e->seq_len = cli_integer(e->args, "seq-len", config->batch.seq_len);
    if (e->shard_name) TRY(shard_open(&e->shard, e->shard_name));
    if (!e->shard && config->data.sources == 0)
        FAIL(ERR_CONFIG, "%s holds weights only and names no data; give a shard with --data PREFIX",
             e->inference.dir);
    TRY(inference_load(&e->inference, 1, 1, !e->shard));
    return e->shard ? take_shard(e) : take_held_out(e);
}

// ---- the log-probabilities' file

static Status take_logprobs(void *context, const float *logprobs, int64_t sequences) {
    Evaluation *e = context;
    return npy_write(e->file, logprobs, (size_t)(sequences * e->seq_len) * sizeof *logprobs);
}

static Status open_logprobs(Evaluation *e, const char *path) {
    int64_t sequences = 0;
    for (int s = 0; s < e->task.sources; s++) sequences += e->task.sequences[s];
    e->task.take = take_logprobs;
    e->task.take_context = e;
    if (comm_world_rank() != 0) return OK;
    return npy_create(&e->file, path, "<f4", 2, (int64_t[]){sequences, e->seq_len});
}

static Status run(Evaluation *e, Evaluator *evaluator, Group *world, EvalResult *out) {
    const char *path = cli_text(e->args, "logprobs");
    if (path) TRY(group_agree(world, open_logprobs(e, path)));
    Status status = evaluator_run(evaluator, &e->task, NULL, out);
    if (e->file && status == OK) status = npy_close(e->file);
    if (status != OK && e->file) unlink(path);
    return group_agree(world, status);
}

// ---- the answer

static json_t *finite_or_null(double value) {
    return isfinite(value) ? json_real(value) : json_null();
}

static void print_json(const Evaluation *e, const EvalResult *result) {
    json_t *sources = json_object();
    for (int s = 0; s < result->sources; s++)
        json_object_set_new(sources, e->task.name[s],
                            json_pack("{s:o, s:o, s:I, s:I}", "loss", finite_or_null(result->loss[s]),
                                      "perplexity", finite_or_null(exp(result->loss[s])), "sequences",
                                      (json_int_t)e->task.sequences[s], "tokens",
                                      (json_int_t)(e->task.sequences[s] * e->seq_len)));
    json_t *all =
        json_pack("{s:s, s:I, s:o, s:o, s:f, s:o}", "checkpoint", e->inference.dir, "seq_len",
                  (json_int_t)e->seq_len, "loss", finite_or_null(result->mean), "perplexity",
                  finite_or_null(exp(result->mean)), "seconds", result->seconds, "sources", sources);
    json_dumpf(all, stdout, JSON_INDENT(2));
    putchar('\n');
    json_decref(all);
}

static void print_table(const Evaluation *e, const EvalResult *result) {
    printf("%-20s %10s %12s %10s\n", "source", "loss", "perplexity", "sequences");
    int64_t sequences = 0;
    for (int s = 0; s < result->sources; s++) {
        sequences += e->task.sequences[s];
        printf("%-20s %10.4f %12.2f %10lld\n", e->task.name[s], result->loss[s], exp(result->loss[s]),
               (long long)e->task.sequences[s]);
    }
    printf("%-20s %10.4f %12.2f %10lld\n", "all", result->mean, exp(result->mean), (long long)sequences);
}

static Status evaluate(Evaluation *e) {
    TRY(inference_open(&e->inference, e->args->argument[0]));
    TRY(open_task(e));
    Group *world = mesh_group(e->inference.mesh, AXIS_WORLD);
    Evaluator *evaluator;
    EvalResult result;
    int64_t together = e->inference.config->batch.micro;
    Status status = evaluator_create(&evaluator, &e->inference.state, (int)together, (int)e->seq_len);
    if (status == OK) status = run(e, evaluator, world, &result);
    if (status == OK && comm_world_rank() == 0)
        (cli_flag(e->args, "json") ? print_json : print_table)(e, &result);
    evaluator_destroy(evaluator);
    return status;
}

static int evaluate_in_ranks(const CliArgs *args, int argc, char **argv) {
    Evaluation e = {.args = args, .shard_name = cli_text(args, "data")};
    comm_start(&argc, &argv);
    log_start(comm_world_rank(), LOG_INFO);
    Status status = evaluate(&e);
    if (status != OK) log_rank0(LOG_ERROR, "%s", status_text());
    held_out_free(&e.held_out);
    if (e.shard) shard_close(e.shard);
    inference_close(&e.inference);
    comm_finish();
    return status;
}

int command_eval(int argc, char **argv) {
    CliArgs args;
    int exit_code;
    if (!cli_parse(&args, argc, argv, cli_eval, &exit_code)) return exit_code;
    LaunchOptions launch = {.ranks = (int)cli_integer(&args, "ranks", 1), .nothing_to_save = true};
    if (cli_text(&args, "seq-len") && !cli_text(&args, "data"))
        exit_code =
            cli_misuse(cli_eval, "--seq-len needs --data: held-out sequences are as long as the run's");
    else if (cli_integer(&args, "seq-len", 1) < 1 || cli_integer(&args, "sequences", 1) < 1)
        exit_code = cli_misuse(cli_eval, "--seq-len and --sequences must be above 0");
    else if (!launch_ranks(&launch, argc, argv, &exit_code))
        exit_code = evaluate_in_ranks(&args, argc, argv);
    cli_free(&args);
    return exit_code;
}
