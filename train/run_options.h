// SPDX-License-Identifier: Apache-2.0
// The option table: every configuration key with its type, range, default and meaning. The parser, help,
// completion, docs/configuration.md and the copy in checkpoints come from it.
#pragma once
#include "train/run_config.h"

typedef enum {
    OPTION_INTEGER,
    OPTION_NUMBER,
    OPTION_BOOL,
    OPTION_CHOICE, // one of range, "a|b|c"
    OPTION_TEXT,   // or null
    OPTION_SHARE,  // 0.005 or 0.5%
    OPTION_STEPS,  // a length that becomes steps: 500, "5 steps", 2e6tok, 30%
    OPTION_TOKENS, // a length that becomes tokens: 1.0e12, 1e12tok, 30%
    OPTION_COUNT,  // an amount of tokens: 1.0e12, 1e12tok; or null
    OPTION_PAIR,   // [0.9, 0.95]
    OPTION_PATHS,  // a text or a list of texts
} OptionType;

typedef struct {
    const char *key; // "optim.lr"; "*": a name of the user's, "#": an item of a list
    OptionType type;
    double least, most;   // of OPTION_INTEGER, NUMBER, SHARE
    const char *choices;  // of OPTION_CHOICE, in the order of the enum that it fills
    const char *fallback; // YAML text of the default; NULL: has none
    const char *meaning;
    long offset, size; // of the RunConfig's member that it fills; size 0: resolved by itself
} Option;

#define OPTION_BY_ARCH "by arch" // the default is what the architecture's row of the family has
bool option_by_arch(const Option *option);
// The member of a ModelConfig that a "model." option fills, and a member's value as YAML text.
const void *option_model_member(const Option *option, const ModelConfig *model);
void option_member_text(const Option *option, const void *member, char *text, size_t size);

extern const Option run_option[];
extern const int run_options;

const Option *option_find(const char *pattern); // by key; NULL if there is none
bool option_is_group(const char *pattern);      // "model.router", "curriculum": keys begin with it
// "a number from 0 to 1", "one of a, b, c", …
void option_expectation(const Option *option, char *text, size_t size);
// The word nearest to `word` among names, or NULL where none is near enough to be meant.
const char *word_nearest(const char *word, const char *const names[], int count);
// What to type instead of the unknown key `name` below `group` ("" = top): a key's last part or a whole key.
// false: nothing is near.
bool option_suggestion(const char *group, const char *name, char *text, size_t size);
