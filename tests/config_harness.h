// SPDX-License-Identifier: Apache-2.0
// What the tests of configurations share: files and words to a loaded configuration, and what was printed.
#pragma once
#include "core/file.h"
#include "train/checkpoint_internal.h"
#include "train/run_config.h"
#include "train/run_options.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
// after the others
#include <cmocka.h>

#define PRESETS TESTS_DIR "/../configs/presets"

static char errors[16384]; // what the newest load printed

static inline void write_file(const char *name, const char *text) {
    FILE *file = fopen(name, "w");
    assert_non_null(file);
    fputs(text, file);
    fclose(file);
}

static inline int catch_errors(void) {
    fflush(stderr);
    int before = dup(2);
    assert_non_null(freopen("errors", "w+", stderr));
    return before;
}

static inline void release_errors(int before) {
    fflush(stderr);
    dup2(before, 2);
    close(before);
    FILE *file = fopen("errors", "r");
    errors[fread(errors, 1, sizeof errors - 1, file)] = 0;
    fclose(file);
}

typedef struct {
    RunConfig *config;
    ConfigDocument *document;
} Loaded;

// words: files and KEY=VALUE, ended by NULL.
static inline Status load_words(Loaded *out, int ranks, const char *const words[]) {
    const char *files[8], *overrides[16];
    int file_count = 0, override_count = 0;
    for (int i = 0; words[i]; i++) {
        if (strchr(words[i], '='))
            overrides[override_count++] = words[i];
        else
            files[file_count++] = words[i];
    }
    int before = catch_errors();
    Status status =
        config_load(&out->config, &out->document, files, file_count, overrides, override_count, ranks);
    release_errors(before);
    return status;
}

#define WORDS(...)                                                                                           \
    (const char *const[]) {                                                                                  \
        __VA_ARGS__, NULL                                                                                    \
    }

static inline Loaded load(int ranks, const char *const words[]) {
    Loaded loaded;
    Status status = load_words(&loaded, ranks, words);
    if (status != OK) print_error("%s", errors);
    assert_int_equal(status, OK);
    assert_string_equal(errors, "");
    return loaded;
}

static inline void drop(Loaded loaded) {
    config_free(loaded.config, loaded.document);
}

static inline void expect_problems(int ranks, const char *const words[], const char *text) {
    Loaded loaded;
    assert_int_equal(load_words(&loaded, ranks, words), ERR_CONFIG);
    assert_null(loaded.config);
    assert_string_equal(errors, text);
}

// One problem of the command line.
static inline void expect_problem(int ranks, const char *const words[], const char *problem) {
    Loaded loaded;
    assert_int_equal(load_words(&loaded, ranks, words), ERR_CONFIG);
    char expected[1024];
    snprintf(expected, sizeof expected, "command line: error: %s\n1 error. ", problem);
    if (strncmp(errors, expected, strlen(expected))) print_error("expected: %s\ngot: %s", expected, errors);
    assert_memory_equal(errors, expected, strlen(expected));
}

// A folder of its own, gone after the tests, and the presets.
static char test_folder[] = "/tmp/floe-config-XXXXXX";
static inline int enter(void **state) {
    (void)state;
    setenv("FLOE_PRESETS", PRESETS, 1);
    return !mkdtemp(test_folder) || chdir(test_folder);
}
static inline int leave(void **state) {
    (void)state;
    return chdir("/") || file_remove_tree(test_folder) != OK;
}
