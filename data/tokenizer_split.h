// SPDX-License-Identifier: Apache-2.0
// Cuts text into the pieces that merges do not cross, by regular expressions one after another: each cuts
// the pieces of the one before. Only in builds that found PCRE2.
#pragma once
#include "core/status.h"
#include <stdbool.h>
#include <stdint.h>

typedef struct Splitter Splitter;
Splitter *splitter_create(void); // one piece: the whole text
void splitter_destroy(Splitter *splitter);
// Matches are pieces; so is the text between them, or with drop it vanishes. ERR_CONFIG: what is wrong with
// the pattern, without its place.
Status splitter_add(Splitter *splitter, const char *pattern, bool drop);

typedef struct SplitScratch SplitScratch; // one thread's
SplitScratch *split_scratch_create(const Splitter *splitter);
void split_scratch_free(SplitScratch *scratch);

typedef void piece_fn(void *context, const char *piece, int64_t bytes);
// The text must be valid UTF-8. Any number of threads at once, each with its own scratch.
Status splitter_run(const Splitter *splitter, SplitScratch *scratch, const char *text, int64_t bytes,
                    piece_fn *piece, void *context);
