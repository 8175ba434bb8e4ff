// SPDX-License-Identifier: Apache-2.0
// floe ckpt ls, floe ckpt inspect, floe ckpt verify
#include "core/file.h"
#include "tools/cmd_ckpt.h"
#include "train/checkpoint.h"
#include "train/format.h"
#include "train/resume.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void print_json(json_t *json) {
    char *text = json ? json_dumps(json, JSON_INDENT(1)) : NULL;
    REQUIRE(text, "out of memory");
    puts(text);
    free(text);
    json_decref(json);
}

static int64_t integer(const json_t *object, const char *key) {
    return json_integer_value(json_object_get(object, key));
}

static const char *text_of(const json_t *object, const char *key) {
    const char *text = json_string_value(json_object_get(object, key));
    return text ? text : "";
}

static int64_t total_bytes(const json_t *manifest) {
    int64_t bytes = 0;
    size_t i;
    json_t *file;
    json_array_foreach(json_object_get(manifest, "files"), i, file) bytes += integer(file, "bytes");
    return bytes;
}

// What ls and inspect say of a checkpoint.
static json_t *facts(const char *dir, const json_t *manifest) {
    const json_t *record = json_object_get(manifest, "record");
    json_t *object = json_pack(
        "{s:s, s:I, s:I, s:I, s:I, s:s, s:s, s:b, s:b, s:b, s:b, s:O, s:O}", "dir", dir, "step",
        (json_int_t)integer(manifest, "step"), "tokens", (json_int_t)integer(record, "tokens"), "bytes",
        (json_int_t)total_bytes(manifest), "files",
        (json_int_t)json_array_size(json_object_get(manifest, "files")), "compress",
        text_of(manifest, "compress"), "created", text_of(manifest, "created"), "permanent",
        json_is_true(json_object_get(manifest, "permanent")), "pinned", checkpoint_has_mark(dir, MARK_PINNED),
        "verified", checkpoint_has_mark(dir, MARK_VERIFIED), "quarantined", ckpt_is_quarantined(dir),
        "states", json_object_get(manifest, "states"), "digest", json_object_get(manifest, "digest"));
    REQUIRE(object, "%s: its facts cannot be written as JSON", dir);
    return object;
}

static void print_line(const char *dir, const json_t *manifest) {
    const json_t *record = json_object_get(manifest, "record");
    printf("%9lld  %10s  %10s  %s%s%s%s%s%s%s  %s\n", (long long)integer(manifest, "step"),
           short_count((double)integer(record, "tokens")).text,
           short_bytes((double)total_bytes(manifest)).text, text_of(manifest, "created"),
           strcmp(text_of(manifest, "compress"), "none") ? " zlib" : "",
           json_array_size(json_object_get(manifest, "states")) == 1 ? " weights" : "",
           json_is_true(json_object_get(manifest, "permanent")) ? " permanent" : "",
           checkpoint_has_mark(dir, MARK_PINNED) ? " pinned" : "",
           checkpoint_has_mark(dir, MARK_VERIFIED) ? " verified" : "",
           ckpt_is_quarantined(dir) ? " damaged" : "", dir);
}

static Status list_path(const char *path, json_t *list) {
    CkptList found;
    TRY(ckpt_collect(path, true, &found));
    for (int i = 0; i < found.count; i++) {
        json_t *manifest = NULL;
        Status status = checkpoint_manifest(found.dir[i], &manifest);
        if (list)
            json_array_append_new(
                list, status == OK ? facts(found.dir[i], manifest)
                                   : json_pack("{s:s, s:s}", "dir", found.dir[i], "damaged", status_text()));
        else if (status == OK)
            print_line(found.dir[i], manifest);
        else
            printf("  damaged  %s: %s\n", found.dir[i], status_text());
        json_decref(manifest);
    }
    ckpt_list_free(&found);
    return OK;
}

int ckpt_list(const CliArgs *args) {
    json_t *list = cli_flag(args, "json") ? json_array() : NULL;
    int exit_code = OK;
    if (!list) printf("%9s  %10s  %10s  %s\n", "step", "tokens", "size", "created");
    for (int i = 0; i < args->arguments; i++) {
        Status status = list_path(args->argument[i], list);
        if (status != OK) exit_code = cli_failure(status);
    }
    if (list) print_json(list);
    return exit_code;
}

// ---- inspect

static void print_tensors(const json_t *tensors) {
    size_t i;
    json_t *tensor;
    int64_t total = 0;
    printf("\n%-40s %-20s %14s  %s\n", "tensor", "shape", "elements", "crc32c");
    json_array_foreach(tensors, i, tensor) {
        const json_t *shape = json_array_get(tensor, 1);
        char dims[48] = "";
        int64_t size = 1;
        for (size_t d = 0, at = 0; d < json_array_size(shape); d++) {
            int64_t n = json_integer_value(json_array_get(shape, d));
            at += (size_t)snprintf(dims + at, sizeof dims - at, "%s%lld", d ? " x " : "", (long long)n);
            size *= n;
        }
        total += size;
        printf("%-40s %-20s %14lld  %s\n", json_string_value(json_array_get(tensor, 0)), dims,
               (long long)size, json_string_value(json_array_get(tensor, 2)));
    }
    printf("%-40s %-20s %14lld\n", "total", "", (long long)total);
}

static void print_inspection(const char *dir, const json_t *manifest) {
    const json_t *record = json_object_get(manifest, "record");
    const char *digest_key;
    json_t *value;
    printf("checkpoint %s\nstep       %lld\ntokens     %lld\n", dir, (long long)integer(manifest, "step"),
           (long long)integer(record, "tokens"));
    size_t files = json_array_size(json_object_get(manifest, "files"));
    printf("size       %s in %zu file%s, compress %s%s\ncreated    %s\n",
           short_bytes((double)total_bytes(manifest)).text, files, files == 1 ? "" : "s",
           text_of(manifest, "compress"),
           json_is_true(json_object_get(manifest, "permanent")) ? ", permanent" : "",
           text_of(manifest, "created"));
    json_object_foreach(json_object_get(manifest, "digest"), digest_key, value)
        printf("digest     %s of %s\n", json_string_value(value), digest_key);
    const char *key;
    json_object_foreach((json_t *)record, key, value) {
        if (!strcmp(key, "config") || !strcmp(key, "step") || !strcmp(key, "tokens")) continue;
        char *text = json_dumps(value, JSON_COMPACT | JSON_ENCODE_ANY);
        printf("%-10s %s\n", key, text ? text : "?");
        free(text);
    }
    printf("\n%s", text_of(record, "config"));
    print_tensors(json_object_get(manifest, "tensors"));
}

int ckpt_inspect(const CliArgs *args) {
    char dir[FILE_PATH_BYTES];
    json_t *manifest;
    Status status = checkpoint_path_resolve(args->argument[0], dir, sizeof dir);
    if (status == OK) status = checkpoint_manifest(dir, &manifest);
    if (status != OK) return cli_failure(status);
    if (cli_flag(args, "json")) {
        json_t *object = facts(dir, manifest);
        json_object_set(object, "record", json_object_get(manifest, "record"));
        json_object_set(object, "tensors", json_object_get(manifest, "tensors"));
        print_json(object);
    } else
        print_inspection(dir, manifest);
    json_decref(manifest);
    return OK;
}

// ---- verify

typedef struct {
    int whole, damaged, quarantined, exit_code;
} Verified;

static void verify_path(const char *path, bool all, Verified *v) {
    CkptList found;
    Status status = ckpt_collect(path, all, &found);
    if (status != OK) v->exit_code = cli_failure(status);
    for (int i = 0; i < found.count; i++) {
        if (all && ckpt_is_quarantined(found.dir[i])) {
            printf("%s: in quarantine\n", found.dir[i]);
            v->quarantined++;
            continue;
        }
        status = checkpoint_verify(found.dir[i], true);
        if (status == OK)
            printf("%s: whole\n", found.dir[i]);
        else
            v->exit_code = cli_failure(status);
        *(status == OK ? &v->whole : &v->damaged) += 1;
    }
    ckpt_list_free(&found);
}

// Worst of what is found; every damaged checkpoint is named.
int ckpt_verify(const CliArgs *args) {
    Verified v = {.exit_code = OK};
    bool all = cli_flag(args, "all");
    for (int i = 0; i < args->arguments; i++) verify_path(args->argument[i], all, &v);
    if (all)
        printf("%d checkpoints: %d whole, %d damaged; %d in quarantine\n", v.whole + v.damaged, v.whole,
               v.damaged, v.quarantined);
    return v.exit_code;
}
