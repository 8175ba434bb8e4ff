// SPDX-License-Identifier: Apache-2.0
// floe ckpt diff
#include "core/file.h"
#include "tools/cmd_ckpt.h"
#include "train/checkpoint.h"
#include "train/resume.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { PIECE = 1 << 18 }; // elements compared at a time

typedef struct {
    char dir[FILE_PATH_BYTES];
    CheckpointReader *reader;
    float *piece;
} Side;

typedef struct {
    Side side[2];
    json_t *list; // of differences; NULL: they are printed
    int64_t tensors, different;
    double largest;
    char largest_name[128];
} Diff;

typedef struct {
    int64_t count; // values whose bits differ
    double largest;
    int64_t at;
    float a, b; // there
} Difference;

static void compare_values(const float *a, const float *b, int64_t count, int64_t first, Difference *out) {
    for (int64_t i = 0; i < count; i++) {
        if (!memcmp(&a[i], &b[i], sizeof a[i])) continue;
        double distance = fabs((double)a[i] - (double)b[i]);
        if (isnan(distance)) distance = INFINITY;
        if (out->count++ && distance <= out->largest) continue;
        out->largest = distance;
        out->at = first + i;
        out->a = a[i];
        out->b = b[i];
    }
}

static void report(Diff *diff, const char *name, const char *state, int64_t size, const Difference *d) {
    diff->different++;
    if (d->largest >= diff->largest) {
        diff->largest = d->largest;
        snprintf(diff->largest_name, sizeof diff->largest_name, "%s", name);
    }
    if (diff->list)
        json_array_append_new(diff->list,
                              json_pack("{s:s, s:s, s:I, s:I, s:o, s:I}", "tensor", name, "state", state,
                                        "different", (json_int_t)d->count, "size", (json_int_t)size,
                                        "largest", isinf(d->largest) ? json_null() : json_real(d->largest),
                                        "at", (json_int_t)d->at));
    else
        printf("%-40s %-7s %lld of %lld values differ, by up to %.3g at %lld: %.9g, %.9g\n", name, state,
               (long long)d->count, (long long)size, d->largest, (long long)d->at, (double)d->a,
               (double)d->b);
}

static void report_text(Diff *diff, const char *name, const char *what) {
    diff->different++;
    if (diff->list)
        json_array_append_new(diff->list, json_pack("{s:s, s:s}", "tensor", name, "what", what));
    else
        printf("%-40s %s\n", name, what);
}

static int64_t size_of(const CheckpointTensor *t) {
    return t->dims == 2 ? t->dim[0] * t->dim[1] : t->dim[0];
}

static bool same_shape(Diff *diff, const CheckpointTensor *a, const CheckpointTensor *b) {
    char what[128];
    if (a->dims == b->dims && a->dim[0] == b->dim[0] && (a->dims < 2 || a->dim[1] == b->dim[1])) return true;
    snprintf(what, sizeof what, "has another shape: %lld x %lld, %lld x %lld", (long long)a->dim[0],
             (long long)(a->dims == 2 ? a->dim[1] : 1), (long long)b->dim[0],
             (long long)(b->dims == 2 ? b->dim[1] : 1));
    report_text(diff, a->name, what);
    return false;
}

static Status compare_tensor(Diff *diff, int a, int b) {
    static const char *const states[] = {"master", "m", "v"};
    CheckpointTensor x = checkpoint_reader_tensor(diff->side[0].reader, a);
    CheckpointTensor y = checkpoint_reader_tensor(diff->side[1].reader, b);
    int64_t size = size_of(&x);
    diff->tensors++;
    if (!same_shape(diff, &x, &y)) return OK;
    for (int k = 0; k < (x.moments && y.moments ? 3 : 1); k++) {
        Difference d = {0};
        for (int64_t first = 0; first < size; first += PIECE) {
            int64_t n = size - first < PIECE ? size - first : PIECE;
            TRY(checkpoint_reader_read(diff->side[0].reader, a, (StateKind)k, first, n, diff->side[0].piece));
            TRY(checkpoint_reader_read(diff->side[1].reader, b, (StateKind)k, first, n, diff->side[1].piece));
            compare_values(diff->side[0].piece, diff->side[1].piece, n, first, &d);
        }
        if (d.count) report(diff, x.name, states[k], size, &d);
    }
    return OK;
}

static int find_tensor(const CheckpointReader *reader, const char *name, int hint) {
    int count = checkpoint_reader_tensors(reader);
    for (int i = 0; i < count; i++) { // both are in the same order, mostly
        int at = (hint + i) % count;
        if (!strcmp(checkpoint_reader_tensor(reader, at).name, name)) return at;
    }
    return -1;
}

static Status compare_tensors(Diff *diff) {
    CheckpointReader *a = diff->side[0].reader, *b = diff->side[1].reader;
    int hint = 0;
    for (int i = 0; i < checkpoint_reader_tensors(a); i++) {
        int other = find_tensor(b, checkpoint_reader_tensor(a, i).name, hint);
        if (other < 0)
            report_text(diff, checkpoint_reader_tensor(a, i).name, "is in the first one only");
        else {
            TRY(compare_tensor(diff, i, other));
            hint = other + 1;
        }
    }
    for (int i = 0; i < checkpoint_reader_tensors(b); i++)
        if (find_tensor(a, checkpoint_reader_tensor(b, i).name, i) < 0)
            report_text(diff, checkpoint_reader_tensor(b, i).name, "is in the second one only");
    return OK;
}

static int find_buffer(const CheckpointReader *reader, const char *name) {
    for (int i = 0; i < checkpoint_reader_buffers(reader); i++)
        if (!strcmp(checkpoint_reader_buffer(reader, i).name, name)) return i;
    return -1;
}

static Status compare_buffer(Diff *diff, int a, int b) {
    CheckpointTensor x = checkpoint_reader_buffer(diff->side[0].reader, a);
    CheckpointTensor y = checkpoint_reader_buffer(diff->side[1].reader, b);
    if (!same_shape(diff, &x, &y)) return OK;
    int64_t size = size_of(&x);
    float *values = malloc(2 * (size_t)size * sizeof *values);
    REQUIRE(values, "out of memory: buffer %s", x.name);
    Difference d = {0};
    Status status = checkpoint_reader_read_buffer(diff->side[0].reader, a, values);
    if (status == OK) status = checkpoint_reader_read_buffer(diff->side[1].reader, b, values + size);
    if (status == OK) compare_values(values, values + size, size, 0, &d);
    if (d.count) report(diff, x.name, "buffer", size, &d);
    free(values);
    return status;
}

// Buffers that only one of them has belong to a training run; weights alone have none.
static Status compare_buffers(Diff *diff) {
    CheckpointReader *a = diff->side[0].reader, *b = diff->side[1].reader;
    for (int i = 0; i < checkpoint_reader_buffers(a); i++) {
        int other = find_buffer(b, checkpoint_reader_buffer(a, i).name);
        if (other >= 0) TRY(compare_buffer(diff, i, other));
    }
    return OK;
}

static Status compare(Diff *diff, const CliArgs *args) {
    for (int i = 0; i < 2; i++) {
        Side *side = &diff->side[i];
        side->piece = malloc(PIECE * sizeof *side->piece);
        REQUIRE(side->piece, "out of memory: %d values", PIECE);
        TRY(checkpoint_path_resolve(args->argument[i], side->dir, sizeof side->dir));
        TRY(checkpoint_reader_open(&side->reader, side->dir));
    }
    TRY(compare_tensors(diff));
    return compare_buffers(diff);
}

static bool has_moments(const Side *side) {
    return checkpoint_reader_tensors(side->reader) && checkpoint_reader_tensor(side->reader, 0).moments;
}

static void conclude(Diff *diff) {
    bool moments[2] = {has_moments(&diff->side[0]), has_moments(&diff->side[1])};
    if (diff->list) {
        json_t *result = json_pack("{s:b, s:b, s:I, s:O}", "equal", diff->different == 0, "moments",
                                   moments[0] && moments[1], "tensors", (json_int_t)diff->tensors,
                                   "differences", diff->list);
        char *text = json_dumps(result, JSON_INDENT(1));
        puts(text);
        free(text);
        json_decref(result);
        return;
    }
    if (moments[0] != moments[1])
        printf("%s holds weights alone: m and v were not compared\n", diff->side[moments[0] ? 1 : 0].dir);
    if (!diff->different)
        printf("bit-equal: %lld tensors\n", (long long)diff->tensors);
    else if (diff->largest_name[0])
        printf("%lld differences; the largest is %.3g in %s\n", (long long)diff->different, diff->largest,
               diff->largest_name);
    else
        printf("%lld differences\n", (long long)diff->different);
}

int ckpt_diff(const CliArgs *args) {
    Diff diff = {.list = cli_flag(args, "json") ? json_array() : NULL};
    Status status = compare(&diff, args);
    if (status == OK) conclude(&diff);
    for (int i = 0; i < 2; i++) {
        checkpoint_reader_close(diff.side[i].reader);
        free(diff.side[i].piece);
    }
    json_decref(diff.list);
    if (status != OK) return cli_failure(status);
    return diff.different ? 1 : 0;
}
