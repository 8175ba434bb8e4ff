// SPDX-License-Identifier: Apache-2.0
#include "data/tokenizer_split.h"
#ifdef FLOE_PCRE2
#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { JIT_STACK_LEAST = 32 << 10, JIT_STACK_MOST = 64 << 20, MESSAGE_BYTES = 256 };

typedef struct {
    pcre2_code *code;
    bool drop;
} Step;

struct Splitter {
    Step *step;
    int steps;
};

struct SplitScratch {
    pcre2_match_data **match; // of each step
    int steps;
    pcre2_match_context *context;
    pcre2_jit_stack *stack;
};

Splitter *splitter_create(void) {
    Splitter *splitter = calloc(1, sizeof *splitter);
    REQUIRE(splitter, "out of memory");
    return splitter;
}

void splitter_destroy(Splitter *splitter) {
    if (!splitter) return;
    for (int i = 0; i < splitter->steps; i++) pcre2_code_free(splitter->step[i].code);
    free(splitter->step);
    free(splitter);
}

// ---- patterns. They are written for Oniguruma. Of its syntax what PCRE2 reads alike is passed on, \s is
// spelled as the property that it is there, everything else is refused.

typedef struct {
    const char *pattern, *at; // at: the next character to read
    char *out;                // at most 16 characters for one
    bool in_class;
} Translation;

static void emit(Translation *translation, const char *text, size_t bytes) {
    memcpy(translation->out, text, bytes);
    translation->out += bytes;
    translation->at += bytes;
}

static bool is_category(const char *name, size_t bytes) {
    static const char *const categories[] = {"C",  "Cc", "Cf", "Cn", "Co", "Cs", "L",  "Ll", "Lm", "Lo",
                                             "Lt", "Lu", "M",  "Mc", "Me", "Mn", "N",  "Nd", "Nl", "No",
                                             "P",  "Pc", "Pd", "Pe", "Pf", "Pi", "Po", "Ps", "S",  "Sc",
                                             "Sk", "Sm", "So", "Z",  "Zl", "Zp", "Zs"};
    for (size_t i = 0; i < sizeof categories / sizeof *categories; i++)
        if (strlen(categories[i]) == bytes && memcmp(categories[i], name, bytes) == 0) return true;
    return false;
}

static bool translate_escape(Translation *translation) {
    const char *at = translation->at;
    char c = at[1];
    if (c == 's' || c == 'S') {
        translation->out += sprintf(translation->out, "\\%c{White_Space}", c == 's' ? 'p' : 'P');
        translation->at += 2;
        return true;
    }
    if (c == 'p' || c == 'P') {
        const char *end = at[2] == '{' ? strchr(at, '}') : NULL;
        if (!end || !is_category(at + 3, (size_t)(end - at - 3))) return false;
        emit(translation, at, (size_t)(end + 1 - at));
        return true;
    }
    if (c == 0 || !strchr("rntfd!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~", c)) return false;
    emit(translation, at, 2);
    return true;
}

// {n}, {n,} or {n,m}; +, which makes it possessive here only, and ?, whose meaning differs, must not follow.
static bool translate_count(Translation *translation) {
    const char *at = translation->at + 1;
    size_t digits = strspn(at, "0123456789");
    if (digits == 0) return false;
    at += digits;
    if (*at == ',') at += 1 + strspn(at + 1, "0123456789");
    if (*at != '}' || at[1] == '+' || at[1] == '?') return false;
    emit(translation, translation->at, (size_t)(at + 1 - translation->at));
    return true;
}

static bool translate_group(Translation *translation) {
    static const char *const kinds[] = {"(?:", "(?i:", "(?=", "(?!", "(?<=", "(?<!", "(?>"};
    if (translation->at[1] == '*') return false;
    if (translation->at[1] != '?') {
        emit(translation, translation->at, 1);
        return true;
    }
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) {
        size_t bytes = strlen(kinds[i]);
        if (strncmp(translation->at, kinds[i], bytes) != 0) continue;
        emit(translation, translation->at, bytes);
        return true;
    }
    return false;
}

static bool translate_next(Translation *translation) {
    const char *at = translation->at;
    if (*at == '\\') return translate_escape(translation);
    if (translation->in_class) {
        if (*at == '[' || (at[0] == '&' && at[1] == '&')) return false;
        translation->in_class = *at != ']';
    } else if (*at == '[') {
        size_t bytes = at[1] == '^' ? 2 : 1;
        if (at[bytes] == ']') return false;
        emit(translation, at, bytes);
        translation->in_class = true;
        return true;
    } else if (*at == '(') {
        return translate_group(translation);
    } else if (*at == '{') {
        return translate_count(translation);
    } else if (strchr(".^$", *at)) {
        return false;
    }
    emit(translation, at, 1);
    return true;
}

static Status compile(pcre2_code **out, const char *pattern) {
    int error;
    PCRE2_SIZE offset;
    uint32_t empty;
    PCRE2_UCHAR message[MESSAGE_BYTES];
    char *translated = malloc(16 * strlen(pattern) + 1);
    REQUIRE(translated, "out of memory");
    Translation translation = {pattern, pattern, translated, false};
    while (*translation.at && translate_next(&translation)) continue;
    *translation.out = 0;
    bool good = *translation.at == 0;
    *out = good ? pcre2_compile((PCRE2_SPTR)translated, PCRE2_ZERO_TERMINATED, PCRE2_UTF | PCRE2_UCP, &error,
                                &offset, NULL)
                : NULL;
    free(translated);
    if (!good)
        FAIL(ERR_CONFIG, "%s is not supported: \"%.12s\" at character %td", pattern, translation.at,
             translation.at - pattern + 1);
    if (!*out) {
        pcre2_get_error_message(error, message, sizeof message);
        FAIL(ERR_CONFIG, "%s is no pattern: %s", pattern, (char *)message);
    }
    pcre2_pattern_info(*out, PCRE2_INFO_MATCHEMPTY, &empty);
    if (empty) {
        pcre2_code_free(*out);
        FAIL(ERR_CONFIG, "%s is not supported: it may match nothing", pattern);
    }
    pcre2_jit_compile(*out, PCRE2_JIT_COMPLETE); // where it cannot, the same matches are found more slowly
    return OK;
}

Status splitter_add(Splitter *splitter, const char *pattern, bool drop) {
    pcre2_code *code;
    TRY(compile(&code, pattern));
    splitter->step = realloc(splitter->step, (size_t)(splitter->steps + 1) * sizeof *splitter->step);
    REQUIRE(splitter->step, "out of memory");
    splitter->step[splitter->steps++] = (Step){code, drop};
    return OK;
}

// ---- matching

SplitScratch *split_scratch_create(const Splitter *splitter) {
    SplitScratch *scratch = calloc(1, sizeof *scratch);
    REQUIRE(scratch, "out of memory");
    scratch->steps = splitter->steps;
    scratch->match = calloc((size_t)splitter->steps + 1, sizeof *scratch->match);
    scratch->context = pcre2_match_context_create(NULL);
    scratch->stack = pcre2_jit_stack_create(JIT_STACK_LEAST, JIT_STACK_MOST, NULL);
    REQUIRE(scratch->match && scratch->context, "out of memory");
    for (int i = 0; i < splitter->steps; i++) {
        scratch->match[i] = pcre2_match_data_create(1, NULL);
        REQUIRE(scratch->match[i], "out of memory");
    }
    pcre2_jit_stack_assign(scratch->context, NULL, scratch->stack);
    return scratch;
}

void split_scratch_free(SplitScratch *scratch) {
    if (!scratch) return;
    for (int i = 0; i < scratch->steps; i++) pcre2_match_data_free(scratch->match[i]);
    free(scratch->match);
    pcre2_match_context_free(scratch->context);
    pcre2_jit_stack_free(scratch->stack);
    free(scratch);
}

typedef struct {
    const Splitter *splitter;
    SplitScratch *scratch;
    piece_fn *piece;
    void *context;
} Run;

static Status split_from(const Run *run, int number, const char *text, size_t bytes) {
    if (bytes == 0) return OK;
    if (number == run->splitter->steps) {
        run->piece(run->context, text, (int64_t)bytes);
        return OK;
    }
    const Step *step = &run->splitter->step[number];
    pcre2_match_data *match = run->scratch->match[number];
    const PCRE2_SIZE *found = pcre2_get_ovector_pointer(match);
    for (size_t at = 0; at < bytes;) {
        int result = pcre2_match(step->code, (PCRE2_SPTR)text, bytes, at, PCRE2_NO_UTF_CHECK, match,
                                 run->scratch->context);
        if (result < 0 && result != PCRE2_ERROR_NOMATCH) {
            PCRE2_UCHAR message[MESSAGE_BYTES];
            pcre2_get_error_message(result, message, sizeof message);
            FAIL(ERR_RUNTIME, "the pre-tokenizer's pattern %d cannot be matched to the text: %s", number + 1,
                 (char *)message);
        }
        size_t start = result < 0 ? bytes : found[0], end = result < 0 ? bytes : found[1];
        if (!step->drop) TRY(split_from(run, number + 1, text + at, start - at));
        TRY(split_from(run, number + 1, text + start, end - start));
        at = end;
    }
    return OK;
}

Status splitter_run(const Splitter *splitter, SplitScratch *scratch, const char *text, int64_t bytes,
                    piece_fn *piece, void *context) {
    const Run run = {splitter, scratch, piece, context};
    return split_from(&run, 0, text, (size_t)bytes);
}
#endif
