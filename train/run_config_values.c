// SPDX-License-Identifier: Apache-2.0
#include "train/run_config_internal.h"
#include <ctype.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { DIGITS_MOST = 18, EXPONENT_MOST = 30 };

// Reads a decimal number without rounding it; returns what follows it, or NULL where there is none or it is
// too long.
static const char *decimal_parse(const char *text, Decimal *out) {
    const char *c = text;
    bool negative = *c == '-';
    if (*c == '-' || *c == '+') c++;
    int64_t digits = 0;
    int count = 0, exponent = 0, seen = 0, after_point = 0;
    for (; isdigit((unsigned char)*c) || (*c == '.' && !after_point); c++) {
        if (*c == '.') {
            after_point = 1;
            continue;
        }
        seen = 1;
        if (count || *c != '0') count++;
        if (count > DIGITS_MOST) return NULL;
        digits = digits * 10 + (*c - '0');
        exponent -= after_point;
    }
    if (!seen) return NULL;
    if ((*c == 'e' || *c == 'E') && (isdigit((unsigned char)c[1]) || c[1] == '-' || c[1] == '+')) {
        char *end;
        long power = strtol(c + 1, &end, 10);
        if (end == c + 1 || labs(power) > EXPONENT_MOST) return NULL;
        exponent += (int)power;
        c = end;
    }
    *out = (Decimal){negative ? -digits : digits, exponent};
    return c;
}

// floor(decimal · factor) for decimal ≥ 0. false: beyond int64.
static bool decimal_times(Decimal decimal, int64_t factor, int64_t *out, bool *whole) {
    __int128 value = (__int128)decimal.digits * factor;
    *whole = true;
    for (int e = decimal.exponent; e > 0; e--) {
        value *= 10;
        if (value > INT64_MAX) return false;
    }
    for (int e = decimal.exponent; e < 0; e++) {
        if (value % 10) *whole = false;
        value /= 10;
    }
    *out = (int64_t)value;
    return value <= INT64_MAX;
}

bool length_parse(const char *text, int bare, Length *out) {
    static const struct {
        const char *name;
        int unit;
    } units[] = {{"step", LENGTH_STEPS},   {"steps", LENGTH_STEPS},   {"tok", LENGTH_TOKENS},
                 {"token", LENGTH_TOKENS}, {"tokens", LENGTH_TOKENS}, {"%", LENGTH_PERCENT}};
    Length length = {.unit = bare};
    const char *rest = decimal_parse(text, &length.value);
    if (!rest || length.value.digits < 0) return false;
    while (*rest == ' ') rest++;
    bool known = !*rest;
    for (size_t i = 0; i < sizeof units / sizeof *units; i++) {
        if (strcmp(rest, units[i].name)) continue;
        length.unit = units[i].unit;
        known = true;
    }
    *out = length;
    return known;
}

bool length_amount(const Length *length, int64_t whole, int64_t *out) {
    bool exact;
    Decimal value = length->value;
    if (length->unit != LENGTH_PERCENT) return decimal_times(value, 1, out, &exact) && exact;
    value.exponent -= 2;
    return decimal_times(value, whole, out, &exact) && *out <= whole;
}

static bool integer_parse(const char *text, int64_t *out) {
    Decimal decimal;
    bool whole;
    const char *rest = decimal_parse(text, &decimal);
    bool negative = rest && decimal.digits < 0;
    if (negative) decimal.digits = -decimal.digits;
    if (!rest || *rest || !decimal_times(decimal, 1, out, &whole) || !whole) return false;
    if (negative) *out = -*out;
    return true;
}

static bool number_parse(const char *text, double *out) {
    char *end;
    *out = strtod(text, &end);
    return end != text && !*end && isfinite(*out) && !strpbrk(text, "xXnN");
}

static bool share_parse(const char *text, double *out) {
    Length length;
    if (!length_parse(text, LENGTH_STEPS, &length)) return false;
    char *end;
    *out = strtod(text, &end);
    if (length.unit == LENGTH_PERCENT)
        *out /= 100;
    else if (*end)
        return false;
    return *out >= 0 && *out < 1;
}

static int choice_index(const char *choices, const char *text) {
    size_t length = strlen(text);
    int index = 0;
    for (const char *c = choices; c; c = strchr(c, '|') ? strchr(c, '|') + 1 : NULL, index++)
        if (strcspn(c, "|") == length && strncmp(c, text, length) == 0) return index;
    return -1;
}

static bool text_list_fits(const YamlNode *value) {
    for (int i = 0; i < value->count; i++)
        if (value->child[i]->kind != YAML_SCALAR || !*value->child[i]->text) return false;
    return value->count > 0;
}

static bool betas_fit(const YamlNode *value) {
    double beta;
    if (value->kind != YAML_LIST || value->count != 2) return false;
    for (int i = 0; i < 2; i++)
        if (value->child[i]->kind != YAML_SCALAR || !number_parse(value->child[i]->text, &beta) || beta < 0 ||
            beta >= 1)
            return false;
    return true;
}

static bool length_fits(const char *text, OptionType type) {
    Length length;
    int64_t amount;
    if (!length_parse(text, type == OPTION_STEPS ? LENGTH_STEPS : LENGTH_TOKENS, &length)) return false;
    if (type == OPTION_COUNT && length.unit != LENGTH_TOKENS) return false;
    if (type == OPTION_TOKENS && length.unit == LENGTH_STEPS) return false;
    return length_amount(&length, 100, &amount) && (amount > 0 || type != OPTION_COUNT);
}

bool value_fits(const Option *option, const YamlNode *value) {
    if (option->type == OPTION_PAIR) return betas_fit(value);
    if (option->type == OPTION_PATHS && value->kind == YAML_LIST) return text_list_fits(value);
    if (value->kind != YAML_SCALAR) return false;
    const char *text = value->text;
    int64_t whole;
    double number;
    switch (option->type) {
    case OPTION_INTEGER:
        return integer_parse(text, &whole) && (double)whole >= option->least && (double)whole <= option->most;
    case OPTION_NUMBER:
        return number_parse(text, &number) && number >= option->least && number <= option->most;
    case OPTION_BOOL:
        return strcmp(text, "true") == 0 || strcmp(text, "false") == 0;
    case OPTION_CHOICE:
        return choice_index(option->choices, text) >= 0;
    case OPTION_SHARE:
        return share_parse(text, &number);
    case OPTION_STEPS:
    case OPTION_TOKENS:
    case OPTION_COUNT:
        return length_fits(text, option->type);
    default:
        return *text != 0;
    }
}

double value_number(const YamlNode *value) {
    double number = 0;
    if (!share_parse(value->text, &number)) number_parse(value->text, &number);
    return number;
}

int64_t value_integer(const YamlNode *value) {
    int64_t whole = 0;
    integer_parse(value->text, &whole);
    return whole;
}

static void store_number(char *member, long size, double number) {
    if (size == sizeof(float))
        *(float *)member = (float)number;
    else
        *(double *)member = number;
}

static void store_choice(char *member, const Option *option, const char *text) {
    if (option->size == sizeof(int))
        *(int *)member = choice_index(option->choices, text);
    else
        *(const char **)member = text;
}

void value_store(const Option *option, const YamlNode *value, RunConfig *config) {
    if (!option->size) return;
    const char *text = value ? value->text : option->fallback;
    char *member = (char *)config + option->offset;
    if (!value && option_by_arch(option)) {
        memcpy(member, option_model_member(option, model_family(config->model.arch)), (size_t)option->size);
        return;
    }
    int64_t whole = 0;
    double number = 0;
    switch (option->type) {
    case OPTION_INTEGER:
        integer_parse(text, &whole);
        if (option->size == sizeof(int))
            *(int *)member = (int)whole;
        else
            *(int64_t *)member = whole;
        break;
    case OPTION_NUMBER:
        number_parse(text, &number);
        store_number(member, option->size, number);
        break;
    case OPTION_SHARE:
        share_parse(text, &number);
        store_number(member, option->size, number);
        break;
    case OPTION_BOOL:
        *(bool *)member = strcmp(text, "true") == 0;
        break;
    case OPTION_CHOICE:
        store_choice(member, option, text);
        break;
    case OPTION_TEXT:
        *(const char **)member = !value && strcmp(text, "null") == 0 ? NULL : text;
        break;
    default:
        REQUIRE(0, "%s is resolved by itself", option->key);
    }
}

void value_store_betas(const YamlNode *value, RunConfig *config) {
    config->adamw.beta1 = value ? (float)value_number(value->child[0]) : 0.9f;
    config->adamw.beta2 = value ? (float)value_number(value->child[1]) : 0.95f;
}
