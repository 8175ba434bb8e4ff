// SPDX-License-Identifier: Apache-2.0
#include "train/metrics.h"
#include "core/log.h"
#include "train/run_dir.h"
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { MOST_HELD = 1 << 26 };

// ---- what a resume finds

// Where the first record of a step later than `step` begins; a line that does not end or does not parse
// counts as one.
static off_t kept_bytes(FILE *file, int64_t step, off_t *end, int64_t *removed) {
    char *line = NULL;
    size_t size = 0;
    off_t at = 0, kept = -1;
    *removed = 0;
    for (ssize_t n; (n = getline(&line, &size, file)) > 0; at += n) {
        json_t *record = line[n - 1] == '\n' ? json_loads(line, 0, NULL) : NULL;
        json_t *number = json_object_get(record, "step");
        if (kept < 0 && (!record || (json_is_integer(number) && json_integer_value(number) > step)))
            kept = at;
        if (kept >= 0 && record) ++*removed;
        json_decref(record);
    }
    free(line);
    *end = at;
    return kept < 0 ? at : kept;
}

static Status copy_range(const char *from, off_t first, off_t end, const char *to) {
    int in = open(from, O_RDONLY | O_CLOEXEC),
        out = open(to, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
    bool fine = in >= 0 && out >= 0;
    char buffer[65536];
    while (fine && first < end) {
        size_t most = end - first < (off_t)sizeof buffer ? (size_t)(end - first) : sizeof buffer;
        ssize_t n = pread(in, buffer, most, first);
        fine = n > 0 && write(out, buffer, (size_t)n) == n;
        first += n;
    }
    int cause = errno;
    if (in >= 0) close(in);
    if (out >= 0) close(out);
    if (!fine) FAIL(ERR_RUNTIME, "%s: cannot copy the records that a resume leaves: %s", to, strerror(cause));
    return OK;
}

static Status cut_back(const char *path, const char *run_dir, int64_t step, int64_t *removed) {
    FILE *file = fopen(path, "r");
    if (!file && errno == ENOENT) return OK;
    if (!file) FAIL(ERR_RUNTIME, "%s: %s", path, strerror(errno));
    off_t end, kept = kept_bytes(file, step, &end, removed);
    fclose(file);
    if (kept == end) return OK;
    char abandoned[RUN_PATH_BYTES];
    snprintf(abandoned, sizeof abandoned, "%s/metrics.abandoned.jsonl", run_dir);
    if (*removed > 0) TRY(copy_range(path, kept, end, abandoned));
    if (truncate(path, kept) != 0) FAIL(ERR_RUNTIME, "%s: cannot shorten: %s", path, strerror(errno));
    return OK;
}

Status metrics_open(Metrics *metrics, const char *run_dir, int64_t step, int64_t *removed) {
    char path[RUN_PATH_BYTES];
    int64_t count = 0;
    snprintf(path, sizeof path, "%s/metrics.jsonl", run_dir);
    *metrics = (Metrics){.fd = -1};
    TRY(cut_back(path, run_dir, step, &count));
    if (removed) *removed = count;
    metrics->fd = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
    if (metrics->fd < 0) FAIL(ERR_RUNTIME, "%s: cannot write: %s", path, strerror(errno));
    metrics->path = strdup(path);
    return OK;
}

// Whether all of it could be; errno says why not.
static bool write_held(Metrics *metrics) {
    ssize_t n = write(metrics->fd, metrics->held, metrics->held_bytes);
    if (n < 0) return false;
    metrics->held_bytes -= (size_t)n;
    memmove(metrics->held, metrics->held + n, metrics->held_bytes);
    errno = ENOSPC; // of a short write
    return metrics->held_bytes == 0;
}

void metrics_close(Metrics *metrics) {
    if (metrics->held_bytes && !write_held(metrics))
        log_rank0(LOG_WARN, "%s: %zu bytes of records are lost: %s", metrics->path, metrics->held_bytes,
                  strerror(errno));
    if (metrics->fd >= 0) close(metrics->fd);
    free(metrics->path);
    free(metrics->held);
    *metrics = (Metrics){.fd = -1};
}

// ---- records

// Behind what is held already.
static Status write_line(Metrics *metrics, char *text, size_t size) {
    bool failing = metrics->held_bytes > 0;
    metrics->held = realloc(metrics->held, metrics->held_bytes + size);
    REQUIRE(metrics->held, "out of memory: %zu bytes of records", metrics->held_bytes);
    memcpy(metrics->held + metrics->held_bytes, text, size);
    metrics->held_bytes += size;
    free(text);
    if (write_held(metrics)) return OK;
    int cause = errno;
    if (!failing)
        log_rank0(LOG_WARN, "%s: cannot write: %s; records are kept in memory until it can", metrics->path,
                  strerror(cause));
    if (metrics->held_bytes > MOST_HELD)
        FAIL(ERR_RUNTIME, "%s: cannot write for too long: %s", metrics->path, strerror(cause));
    return OK;
}

static double unix_time(void) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

// Losses and norms get 17 digits, which tell every double; times and ratios 9.
static void put(FILE *out, const char *key, double value, int digits) {
    if (isfinite(value))
        fprintf(out, ",\"%s\":%.*g", key, digits, value);
    else
        fprintf(out, ",\"%s\":null", key);
}

static void put_name(FILE *out, const char *name) {
    json_t *text = json_string(name);
    json_dumpf(text, out, JSON_ENCODE_ANY);
    json_decref(text);
}

// 1 − exposed/total; 0 where nothing was exchanged.
static double hidden_fraction(double total, double exposed) {
    return total > 0 ? 1 - exposed / total : 0;
}

static void put_layers(FILE *out, const StepMetrics *m) {
    fputs(",\"layers\":[", out);
    for (int l = 0; l < m->layers; l++) {
        const LayerTimeline *t = &m->layer[l];
        fprintf(out, "%s{\"layer\":%d", l ? "," : "", l);
        put(out, "a2a_s", t->exchange, 6);
        put(out, "exposed_s", t->waited, 6);
        put(out, "hidden", hidden_fraction(t->exchange, t->waited), 4);
        put(out, "imb", m->layer_imbalance[l], 6);
        put(out, "lost_s", t->lost, 6);
        fprintf(out, ",\"waves\":%lld}", (long long)t->waves);
    }
    fputc(']', out);
}

Status metrics_step(Metrics *metrics, const StepMetrics *m, const MetricsTokens *tokens) {
    if (metrics->fd < 0) return OK;
    char *text = NULL;
    size_t size = 0;
    FILE *out = open_memstream(&text, &size);
    REQUIRE(out, "open_memstream: %s", strerror(errno));
    fprintf(out, "{\"step\":%lld,\"t\":%.3f,\"tokens\":%lld", (long long)m->step, unix_time(),
            (long long)m->tokens);
    put(out, "loss", m->loss, 17);
    put(out, "aux", m->aux, 17);
    put(out, "z", m->z, 17);
    put(out, "gnorm", m->gnorm, 17);
    put(out, "lr", m->lr, 17);
    fprintf(out, ",\"stream_hash\":\"%016llx\",\"stage\":%d,\"src_tokens\":{",
            (unsigned long long)m->stream_hash, m->stage);
    for (int s = 0; s < tokens->sources; s++) {
        if (s) fputc(',', out);
        put_name(out, tokens->source[s]);
        fprintf(out, ":%lld", (long long)tokens->tokens[s]);
    }
    fputc('}', out);
    put(out, "step_s", m->step_s, 9);
    put(out, "tok_s", m->step_s > 0 ? (double)tokens->step_tokens / m->step_s : 0, 9);
    put(out, "a2a_s", m->a2a_s, 9);
    put(out, "exposed_s", m->exposed_s, 9);
    put(out, "hidden", hidden_fraction(m->a2a_s, m->exposed_s), 9);
    put(out, "imb_max", m->imbalance, 9);
    put(out, "drop", m->drop, 9);
    put(out, "lost_s", m->lost_s, 9);
    fprintf(out, ",\"recompute_bytes\":%lld", (long long)m->recompute_bytes);
    put(out, "sol", m->sol, 6);
    put(out, "data_s", m->data_s, 9);
    put(out, "optim_s", m->optim_s, 9);
    put(out, "reduce_s", m->reduce_s, 9);
    put_layers(out, m);
    if (m->saving) fputs(",\"saving\":true", out);
    if (m->save_failures) fprintf(out, ",\"save_failures\":%lld", (long long)m->save_failures);
    if (!isfinite(m->loss) || !isfinite(m->aux) || !isfinite(m->z) || !isfinite(m->gnorm))
        fputs(",\"nonfinite\":true", out);
    fputs("}\n", out);
    fclose(out);
    return write_line(metrics, text, size);
}

Status metrics_event(Metrics *metrics, const char *event, int64_t step, json_t *more) {
    if (metrics->fd < 0) {
        json_decref(more);
        return OK;
    }
    json_t *record = json_pack("{s:s, s:I, s:f}", "event", event, "step", (json_int_t)step, "t", unix_time());
    if (more) json_object_update(record, more);
    json_decref(more);
    char *text = json_dumps(record, JSON_COMPACT);
    json_decref(record);
    size_t size = strlen(text);
    text = realloc(text, size + 2);
    memcpy(text + size, "\n", 2);
    return write_line(metrics, text, size + 1);
}
