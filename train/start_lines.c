// SPDX-License-Identifier: Apache-2.0
#include "train/start_lines.h"
#include "core/log.h"
#include "core/rng.h"
#include "train/format.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

static Group *world(const TrainState *state) {
    return mesh_group(state->mesh, AXIS_WORLD);
}

// ---- the lines

// The value after "KEY…:" in a file of /proc; "" where there is none.
static void proc_value(const char *path, const char *key, char *out, size_t size) {
    out[0] = 0;
    FILE *file = fopen(path, "r");
    char line[512];
    while (file && fgets(line, sizeof line, file)) {
        char *colon = strchr(line, ':');
        if (strncmp(line, key, strlen(key)) != 0 || !colon) continue;
        colon += 1 + strspn(colon + 1, " \t");
        colon[strcspn(colon, "\n")] = 0;
        snprintf(out, size, "%s", colon);
        break;
    }
    if (file) fclose(file);
}

static int count_hosts(const TrainState *state) {
    int ranks = group_size(world(state)), hosts = 0;
    char name[256] = "";
    gethostname(name, sizeof name - 1);
    uint64_t own = hash_text(name), *all = calloc((size_t)ranks, sizeof *all);
    REQUIRE(all, "no memory for %d ranks", ranks);
    group_all_gather(world(state), all, &own, sizeof own);
    for (int r = 0; r < ranks; r++) {
        int first = 0;
        while (all[first] != all[r]) first++;
        hosts += first == r;
    }
    free(all);
    return hosts;
}

static void print_machine(int hosts) {
    char model[256], memory[64];
    proc_value("/proc/cpuinfo", "model name", model, sizeof model);
    proc_value("/proc/meminfo", "MemTotal", memory, sizeof memory);
    log_rank0(LOG_INFO, "machine   %d node%s, %ld cores %s, %s; %s", hosts, hosts == 1 ? "" : "s",
              sysconf(_SC_NPROCESSORS_ONLN), model[0] ? model : "of unknown kind",
              short_bytes(1024.0 * (double)strtoll(memory, NULL, 10)).text, kernels_isa());
}

static void print_layout(const TrainState *state, int hosts) {
    static const char *const recompute[] = {"", ", recompute moe", ", recompute layer"};
    const RunConfig *c = state->config;
    int ranks = group_size(world(state)), ep = c->parallel.ep;
    long cores = sysconf(_SC_NPROCESSORS_ONLN);
    log_rank0(LOG_INFO, "mpi       %d rank%s on %d node%s%s; dp %d x ep %d (%d replica%s), zero %d%s%s",
              ranks, ranks == 1 ? "" : "s", hosts, hosts == 1 ? "" : "s",
              ranks > cores * hosts ? " (more than cores)" : "", ranks, ep, ranks / ep,
              ranks / ep == 1 ? "" : "s", c->parallel.zero,
              ep == 1               ? ""
              : c->parallel.overlap ? ", overlap on"
                                    : ", overlap off",
              recompute[c->parallel.recompute]);
}

static void print_model(const RunConfig *c) {
    ModelSize size = model_size(&c->model, c->batch.seq_len);
    char experts[64] = "no experts";
    if (c->model.experts > 0)
        snprintf(experts, sizeof experts, "%d experts top-%d", c->model.experts, c->model.top_k);
    log_rank0(LOG_INFO, "model     %s params (%s active), %d layers, hidden %d, %s, vocab %d",
              short_count((double)size.total).text, short_count((double)size.active).text, c->model.layers,
              c->model.hidden, experts, c->model.vocab);
}

// "0-1.23 M prose 0.8 code 0.2"; weights as shares.
static size_t stage_text(char *out, size_t size, const DataConfig *data, int stage) {
    const DataStage *s = &data->stage[stage];
    double sum = 0;
    for (int i = 0; i < data->sources; i++) sum += s->weight[i];
    int n = snprintf(out, size, "%s%s-%s", stage ? ", " : " ",
                     short_count(stage ? (double)data->stage[stage - 1].until : 0).text,
                     short_count((double)s->until).text);
    for (int i = 0; i < data->sources && n < (int)size; i++)
        if (s->weight[i] > 0)
            n += snprintf(out + n, size - (size_t)n, " %s %.3g", data->source[i].name, s->weight[i] / sum);
    return (size_t)n < size ? (size_t)n : size - 1;
}

static void print_data(const TrainState *state) {
    const DataConfig *data = &state->config->data;
    double tokens = 0;
    for (int s = 0; s < data->sources; s++)
        tokens += (double)loader_train_samples(state->loader, s) * (double)data->seq_len;
    char stages[2048] = "";
    size_t length = 0;
    for (int i = 0; i < data->stages && length + 64 < sizeof stages; i++)
        length += stage_text(stages + length, sizeof stages - length, data, i);
    log_rank0(LOG_INFO, "data      %d source%s, %s tokens; %d stage%s:%s", data->sources,
              data->sources == 1 ? "" : "s", short_count(tokens).text, data->stages,
              data->stages == 1 ? "" : "s", stages);
    int unchecked = loader_unchecked_shards(state->loader);
    if (unchecked)
        log_rank0(LOG_INFO, "data      %d token shard%s without checksums (PREFIX.crc): damage is not seen",
                  unchecked, unchecked == 1 ? "" : "s");
}

static void print_batch(const TrainState *state) {
    const RunConfig *c = state->config;
    int ranks = group_size(world(state));
    int64_t sequences = c->batch.sequences;
    log_rank0(LOG_INFO,
              "batch     %lld seqs x %lld tok = %lld tok/step (%d ranks x micro %lld x %lld)%s, %lld steps = "
              "%s tokens",
              (long long)sequences, (long long)c->batch.seq_len, (long long)(sequences * c->batch.seq_len),
              ranks, (long long)c->batch.micro, (long long)(sequences / ranks / c->batch.micro),
              c->batch.plan.ramps ? ", reached by a ramp" : "", (long long)c->train.steps,
              short_count((double)c->train.tokens).text);
}

void start_lines_print(const TrainState *state, const RunNames *names) {
    int hosts = count_hosts(state);
    log_rank0(LOG_INFO, "floe %s  config %s  run %s", names->version, names->config_name, names->run_dir);
    print_machine(hosts);
    print_layout(state, hosts);
    print_model(state->config);
    print_data(state);
    print_batch(state);
}

// "; read 12 MiB of 12 MiB in 0.02 s"; of several ranks also the most that one of them read.
static void read_text(const TrainState *state, const CheckpointRead *read, char *out, size_t size) {
    char most[64] = "";
    if (group_size(world(state)) > 1)
        snprintf(most, sizeof most, " (one rank %s at most)", short_bytes((double)read->most).text);
    snprintf(out, size, "; read %s of %s%s in %.2f s", short_bytes((double)read->read).text,
             short_bytes((double)read->held).text, most, read->seconds);
}

void start_lines_resume(const TrainState *state, const Start *start) {
    int64_t tokens =
        batch_first_sample(&state->config->batch.plan, state->step + 1) * state->config->batch.seq_len;
    char read[256];
    read_text(state, &start->read, read, sizeof read);
    if (start->kind == START_FRESH)
        log_rank0(LOG_INFO, "resume    none (fresh run)");
    else if (start->kind == START_WEIGHTS)
        log_rank0(LOG_INFO, "resume    weights of %s, fresh optimizer, step 0%s", start->from, read);
    else
        log_rank0(LOG_INFO, "resume    %s: step %lld, token %lld; saved by %d rank%s (ep %d, zero %d)%s%s",
                  start->from, (long long)state->step, (long long)tokens, start->saved_world,
                  start->saved_world == 1 ? "" : "s", start->saved_ep, start->saved_zero,
                  start->kind == START_FORKED ? "; forked" : "", read);
}

// ---- memory

// The figures of an object, summed up under "total", each the most of any rank.
static json_t *most_of_ranks(const TrainState *state, json_t *object, bool with_total) {
    const char *key;
    json_t *value;
    int64_t figure[32], total = 0;
    int count = 0;
    json_object_foreach(object, key, value) {
        figure[count++] = json_integer_value(value);
        total += json_integer_value(value);
    }
    if (with_total) {
        json_object_set_new(object, "total", json_integer((json_int_t)total));
        figure[count++] = total;
    }
    REQUIRE(count <= 32, "%d purposes of memory", count);
    group_max_i64(world(state), figure, count);
    count = 0;
    json_object_foreach(object, key, value) json_integer_set(value, figure[count++]);
    return object;
}

json_t *memory_plan(const TrainState *state, int64_t evaluation, int64_t checkpoints) {
    json_t *plan = state_bytes(state);
    json_object_set_new(plan, "evaluation", json_integer((json_int_t)evaluation));
    json_object_set_new(plan, "checkpoints", json_integer((json_int_t)checkpoints));
    return most_of_ranks(state, plan, true);
}

void memory_plan_print(const json_t *plan) {
    char text[1024];
    const char *key;
    json_t *value;
    int n = 0;
    json_object_foreach((json_t *)plan, key, value) if (strcmp(key, "total") != 0 &&
                                                        json_integer_value(value) > 0 && n < (int)sizeof text)
        n += snprintf(text + n, sizeof text - (size_t)n, "%s %s %s", n ? "," : "", key,
                      short_bytes((double)json_integer_value(value)).text);
    log_rank0(LOG_INFO, "memory    plan %s/rank:%s",
              short_bytes((double)json_integer_value(json_object_get(plan, "total"))).text, text);
}

int64_t memory_held(void) {
    char text[64];
    proc_value("/proc/self/status", "RssAnon", text, sizeof text);
    return 1024 * strtoll(text, NULL, 10);
}

json_t *memory_measured(const TrainState *state, int64_t before) {
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    json_t *measured = json_pack("{s:I, s:I}", "held", (json_int_t)(memory_held() - before), "peak_resident",
                                 (json_int_t)usage.ru_maxrss * 1024);
    return most_of_ranks(state, measured, false);
}
