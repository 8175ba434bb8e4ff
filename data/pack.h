// SPDX-License-Identifier: Apache-2.0
// Text to a token shard. Each document is followed by eos; the shard has a document bound there.
#pragma once
#include "core/status.h"
#include <signal.h>
#include <stdint.h>

typedef struct {
    int64_t files, skipped, documents, tokens;
    int64_t bytes, bytes_done; // of input on disk
} PackReport;

typedef struct {
    const char *const *input; // files and folders
    int inputs;
    const char *prefix, *tokenizer;
    int threads;                       // ≥ 1; the result does not depend on it
    const volatile sig_atomic_t *stop; // NULL, or ends the work once it is set: nothing is written then
    void (*progress)(void *context, const PackReport *report); // NULL, or called once a chunk
    void *context;
} PackOptions;

Status pack_run(const PackOptions *options, PackReport *report);
