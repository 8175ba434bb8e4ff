// SPDX-License-Identifier: Apache-2.0
#include "core/log.h"
#include "data/tokenizer.h"
#include "tools/cli.h"
#include "tools/commands.h"
#include "tools/launch.h"
#include "tools/restart.h"
#include "train/format.h"
#include "train/loop.h"
#include "train/run.h"
#include "train/signals.h"
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const CliOption train_options[] = {
    {.name = "ranks",
     .letter = 'n',
     .kind = CLI_INTEGER,
     .argument = "N",
     .meaning = "ranks (default: min(4, cores))"},
    {.name = "run-dir",
     .letter = 'o',
     .kind = CLI_TEXT,
     .argument = "RUN",
     .meaning = "run folder (default: runs/CONFIG-TIME-HEX); one that holds a run goes on"},
    {.name = "resume",
     .kind = CLI_TEXT,
     .argument = "auto|never|STEP",
     .meaning = "newest checkpoint (default), none, or the state after STEP"},
    {.name = "fork",
     .kind = CLI_TEXT,
     .argument = "RUN@STEP",
     .meaning = "a new run from the full state of another one, or of a checkpoint's folder, with a future of "
                "its own"},
    {.name = "max-time",
     .kind = CLI_TEXT,
     .argument = "3h50m",
     .meaning = "saves and stops (exit 75) after so long"},
    {.name = "restarts",
     .kind = CLI_INTEGER,
     .argument = "N",
     .meaning = "starts again from the newest checkpoint, up to N times, where a signal has ended a rank or "
                "one hangs"},
    {.name = "dry-run",
     .kind = CLI_FLAG,
     .meaning = "checks all and shows the plan; starts and writes nothing"},
    {.name = "quiet", .letter = 'q', .kind = CLI_FLAG, .meaning = "prints only warnings and errors"},
    {.name = "verbose", .letter = 'v', .kind = CLI_FLAG, .meaning = "prints details, and what mpirun says"},
    {.name = "color", .kind = CLI_CHOICE, .argument = "auto|always|never", .meaning = "colours in messages"},
    {.name = "progress",
     .kind = CLI_CHOICE,
     .argument = "auto|always|never",
     .meaning = "a bar on the terminal"},
    {0}};

const CliCommand cli_train[] = {{.name = "train",
                                 .usage = "CONFIG... [KEY=VALUE...]",
                                 .meaning = "trains a model, or goes on with a run",
                                 .details = "Ctrl-C or SIGTERM saves and stops (exit 75), a second one ends "
                                            "at once; SIGUSR1 saves and goes on.\n"
                                            "So do the files RUN/ctl/stop and RUN/ctl/save.\n"
                                            "Configuration keys: floe config keys",
                                 .option = train_options,
                                 .config = true,
                                 .least = 1,
                                 .most = -1},
                                {0}};

// Set by a front end for its ranks: the folder that it has chosen, made and locked.
static const char *const folder_variable = "FLOE_RUN_FOLDER";

static char *join_command(int argc, char **argv) {
    char *text = NULL;
    size_t size = 0;
    FILE *out = open_memstream(&text, &size);
    REQUIRE(out, "no memory for the command line");
    fputs("floe", out);
    for (int i = 0; i < argc; i++) fprintf(out, strpbrk(argv[i], " \t\"$*") ? " '%s'" : " %s", argv[i]);
    fclose(out);
    return text;
}

static Status read_request(RunRequest *out, const CliArgs *args) {
    *out = (RunRequest){.file = args->argument,
                        .files = args->arguments,
                        .override = args->override,
                        .overrides = args->overrides,
                        .run_dir = cli_text(args, "run-dir"),
                        .version = FLOE_VERSION};
    const char *limit = cli_text(args, "max-time");
    if (limit) TRY(duration_parse(limit, &out->max_seconds));
    return start_request_parse(&out->start, cli_text(args, "resume"), cli_text(args, "fork"));
}

// ---- before any rank starts

// Opens the data for a look at all that may be wrong with it; its warnings are left to the ranks.
static Status check_data(const DataConfig *data, bool with_warnings) {
    Loader *loader;
    if (!with_warnings) log_start(0, LOG_ERROR);
    Status status = loader_create(&loader, data);
    log_start(0, LOG_INFO);
    TRY(status);
    loader_destroy(loader);
    return OK;
}

// Token ids that the model has no embedding for would be met only when they are read. A tokenizer whose file
// is not here says nothing: training reads token shards.
static Status check_vocabulary(const RunConfig *c) {
    const char *file = strchr(c->tokenizer, ':');
    Tokenizer *tokenizer;
    if (file && access(file + 1, R_OK) != 0) return OK;
    TRY(tokenizer_open(&tokenizer, c->tokenizer));
    int vocab = tokenizer_vocab(tokenizer);
    tokenizer_close(tokenizer);
    if (vocab > c->model.vocab)
        FAIL(ERR_CONFIG,
             "data.tokenizer = %s has %d ids, model.vocab = %d has no room for them; set model.vocab to %d "
             "or more "
             "(multiples of 64 are fast)",
             c->tokenizer, vocab, c->model.vocab, vocab);
    return OK;
}

typedef struct {
    ZeroBytes state;
    ModelBytes model;
    double evaluation, checkpoints, total;
} Plan; // bytes of a rank

static double model_total(const ModelBytes *bytes) {
    return (double)bytes->saved + (double)bytes->working + (double)bytes->tables;
}

static bool has_held_out(const DataConfig *data) {
    bool any = data->sources > 0 && data->holdout > 0;
    for (int i = 0; i < data->sources; i++) any |= data->source[i].valid != NULL;
    return any;
}

static Plan plan_of(const RunConfig *c, int ranks) {
    ParamTable params = {0};
    ModelRun run = train_model_run(c), forward = run;
    forward.training = false;
    model_describe(&c->model, 0, c->model.experts / c->parallel.ep, &params);
    Plan plan = {.state = zero_plan_bytes(&params, c->parallel.zero, ranks, c->parallel.ep),
                 .model = model_plan_bytes(&c->model, &run, c->parallel.ep)};
    if (c->checkpoint.background && c->checkpoint.every > 0) {
        // From stage 1 on a rank has two moments, 8 bytes, of each element that it owns.
        ZeroBytes sharded = zero_plan_bytes(&params, 1, ranks, c->parallel.ep);
        CheckpointOptions options = loop_checkpoint_options(c);
        plan.checkpoints = (double)checkpoint_plan_bytes((int64_t)sharded.optimizer / 8, &options);
    }
    params_free(&params);
    if (c->eval.sequences > 0 && has_held_out(&c->data)) {
        ModelBytes evaluation = model_plan_bytes(&c->model, &forward, c->parallel.ep);
        plan.evaluation = model_total(&evaluation);
    }
    plan.total = (double)plan.state.weights + (double)plan.state.grads + (double)plan.state.optimizer +
                 (double)plan.state.staging + model_total(&plan.model) + plan.evaluation + plan.checkpoints +
                 STREAM_SCRATCH_BYTES;
    return plan;
}

// As the run will print it.
static void print_memory(const Plan *p) {
    const struct {
        const char *purpose;
        double bytes;
    } parts[] = {{"weights", (double)p->state.weights},
                 {"grads", (double)p->state.grads},
                 {"optimizer", (double)p->state.optimizer},
                 {"reduce_staging", (double)p->state.staging},
                 {"activations", (double)p->model.saved},
                 {"working", (double)p->model.working},
                 {"tables", (double)p->model.tables},
                 {"kernel_scratch", STREAM_SCRATCH_BYTES},
                 {"evaluation", p->evaluation},
                 {"checkpoints", p->checkpoints}};
    printf("memory    plan %s/rank:", short_bytes(p->total).text);
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++)
        if (parts[i].bytes > 0)
            printf("%s %s %s", i ? "," : "", parts[i].purpose, short_bytes(parts[i].bytes).text);
    putchar('\n');
}

static void print_plan(const RunConfig *c, int ranks) {
    ModelSize size = model_size(&c->model, c->batch.seq_len);
    Plan plan = plan_of(c, ranks);
    printf("model     %s params (%s active)\n", short_count((double)size.total).text,
           short_count((double)size.active).text);
    printf("batch     %lld seqs x %lld tok on %d ranks, %lld steps = %s tokens\n",
           (long long)c->batch.sequences, (long long)c->batch.seq_len, ranks, (long long)c->train.steps,
           short_count((double)c->train.tokens).text);
    print_memory(&plan);
    printf("dry run   nothing was started or written\n");
    fflush(stdout);
}

// Whether all that the ranks hold fits into this machine; ranks on other hosts cannot be judged from here.
static Status check_fit(const RunConfig *c, int ranks) {
    if (getenv("FLOE_MPIRUN_ARGS")) return OK;
    Plan plan = plan_of(c, ranks);
    double need = (double)ranks * plan.total, kept = model_total(&plan.model);
    double have = (double)sysconf(_SC_PHYS_PAGES) * (double)sysconf(_SC_PAGESIZE);
    if (need > have)
        FAIL(ERR_FIT,
             "%d ranks take %s, %s of it activations, this machine has %s; choose a smaller model or "
             "batch.micro, "
             "parallel.recompute=layer, more parallel.ep, parallel.zero=2, checkpoint.background=false, or "
             "more machines",
             ranks, short_bytes(need).text, short_bytes(ranks * kept).text, short_bytes(have).text);
    return OK;
}

// The configuration's own problems are printed by config_load: *printed.
static Status check(const RunRequest *request, int ranks, bool dry, bool *printed) {
    RunConfig *config = NULL;
    ConfigDocument *document = NULL;
    char path[RUN_PATH_BYTES];
    Status status = config_load(&config, &document, request->file, request->files, request->override,
                                request->overrides, ranks);
    if (status == OK) status = config_need_data(config, document);
    *printed = status != OK;
    if (status == OK)
        status = run_dir_choose(path, sizeof path, request->run_dir, request->file[request->files - 1]);
    if (status == OK) status = start_request_check(&request->start, path);
    if (status == OK) status = check_vocabulary(config);
    if (status == OK) status = check_data(&config->data, dry);
    if (status == OK && dry) print_plan(config, ranks);
    if (status == OK) status = check_fit(config, ranks);
    if (config) config_free(config, document);
    return status;
}

// argv with "-o RUN" behind the command's name. The array is the caller's.
static char **with_folder(int argc, char **argv, char *run_dir) {
    char **out = calloc((size_t)argc + 3, sizeof *out);
    REQUIRE(out, "no memory for the command line");
    out[0] = argv[0];
    out[1] = "-o";
    out[2] = run_dir;
    memcpy(out + 3, argv + 1, (size_t)(argc - 1) * sizeof *out);
    return out;
}

// ---- in the ranks

static int train_in_ranks(RunRequest *request, const CliArgs *args, int argc, char **argv) {
    LogLevel level = cli_flag(args, "quiet") ? LOG_WARN : cli_flag(args, "verbose") ? LOG_DEBUG : LOG_INFO;
    signals_catch();
    comm_start(&argc, &argv);
    log_start(comm_world_rank(), level);
    const char *folder = getenv(folder_variable);
    if (folder) {
        request->run_dir = folder;
        request->folder_open = true;
        restart_read(request);
    } else if (cli_integer(args, "restarts", 0) > 0)
        log_rank0(LOG_WARN, "--restarts is for a front end that starts the ranks itself; who started these "
                            "must start them again");
    bool printed;
    Status status = run_train(request, &printed);
    if (status != OK && status != ERR_TEMPORARY && !printed) log_rank0(LOG_ERROR, "%s", status_text());
    comm_finish();
    return status;
}

// Asked to stop while there was nothing to stop yet.
static bool is_stopped(void) {
    int number = signals_noted();
    if (number == SIGUSR1) raise(number); // for the job to come
    if (number == 0 || number == SIGUSR1) return false;
    log_rank0(LOG_WARN, "signal %d (%s) before the ranks were started: start the same line again", number,
              strsignal(number));
    return true;
}

static int train_from_front(RunRequest *request, const CliArgs *args, int argc, char **argv) {
    int ranks = launch_rank_count((int)cli_integer(args, "ranks", 0)), exit_code;
    RunFolder folder = {.lock = {-1}};
    bool dry = cli_flag(args, "dry-run"), printed;
    if (!dry) signals_catch();
    Status status = check(request, ranks, dry, &printed);
    if (printed) return status;
    if (status == OK && !dry) status = run_folder_open(&folder, request);
    if (status != OK) return cli_failure(status);
    if (dry) return OK;
    if (is_stopped()) {
        run_folder_close(&folder);
        return ERR_TEMPORARY;
    }
    setenv(folder_variable, folder.path, 1);
    LaunchEnd end = {0};
    int most = (int)cli_integer(args, "restarts", 0);
    Restarts restarts = restarts_create(most, folder.path);
    LaunchOptions launch = {.ranks = ranks,
                            .always = most > 0,
                            .noted = signals_noted,
                            .end = &end,
                            .color = cli_text(args, "color"),
                            .progress = cli_text(args, "progress"),
                            .verbose = cli_flag(args, "verbose")};
    char **rank_argv = with_folder(argc, argv, folder.path);
    do {
        if (!launch_ranks(&launch, argc + 2, rank_argv, &exit_code))
            exit_code = train_in_ranks(request, args, argc, argv);
    } while (restart_due(&restarts, &end, request->max_seconds, &exit_code));
    free(rank_argv);
    run_folder_close(&folder);
    return exit_code;
}

int command_train(int argc, char **argv) {
    CliArgs args;
    RunRequest request;
    int exit_code;
    if (!cli_parse(&args, argc, argv, cli_train, &exit_code)) return exit_code;
    Status status = read_request(&request, &args);
    char *command = join_command(argc, argv);
    request.command = command;
    if (status != OK)
        exit_code = cli_failure(status);
    else if (launch_is_rank()) {
        launch_ranks(&(LaunchOptions){0}, argc, argv, &exit_code); // watches over the front end
        exit_code = train_in_ranks(&request, &args, argc, argv);
    } else
        exit_code = train_from_front(&request, &args, argc, argv);
    free(command);
    cli_free(&args);
    return exit_code;
}
