// SPDX-License-Identifier: Apache-2.0
// Rules among keys: of the model's shape, and of what can be split over ranks.
#include "train/run_config_internal.h"
#include <stdio.h>
#include <string.h>

// The keys that a message names: "model.a,model.b".
static void keys_in(const char *message, char *keys, size_t size) {
    size_t length = 0;
    keys[0] = 0;
    for (const char *c = message; (c = strstr(c, "model.")) && length < size;) {
        size_t key = strspn(c, "abcdefghijklmnopqrstuvwxyz_.");
        length += (size_t)snprintf(keys + length, size - length, "%s%.*s", length ? "," : "", (int)key, c);
        c += key;
    }
}

void config_check_model(ConfigDocument *document, const ModelConfig *m) {
    if (m->heads % m->kv_heads)
        problem_between(document, "model.kv_heads,model.heads",
                        "model.kv_heads = %d must divide model.heads = %d", m->kv_heads, m->heads);
    if (m->head_dim % 2)
        problem_between(document, "model.head_dim",
                        "model.head_dim = %d must be even: positions rotate pairs", m->head_dim);
    if (m->experts && m->top_k > m->experts)
        problem_between(document, "model.top_k,model.experts",
                        "model.top_k = %d must not be above model.experts = %d", m->top_k, m->experts);
    if (document->problems || model_config_check(m) == OK) return;
    char keys[256];
    keys_in(status_text(), keys, sizeof keys);
    problem_between(document, keys, "%s", status_text());
}

typedef struct {
    char text[160];
} Values;

// "1, 2 or 4": the divisors of all of a and, where it is above 0, of b; the largest ones where there are
// many.
static Values common_divisors(int64_t a, int64_t b) {
    int64_t found[6];
    int count = 0;
    for (int64_t d = a < 65536 ? a : 65536; d >= 1 && count < 6; d--)
        if (a % d == 0 && b % d == 0) found[count++] = d;
    Values values = {""};
    for (int i = count - 1, length = 0; i >= 0; i--)
        length += snprintf(values.text + length, sizeof values.text - (size_t)length, "%ld%s", (long)found[i],
                           i > 1    ? ", "
                           : i == 1 ? " or "
                                    : "");
    return values;
}

static void check_expert_parallel(ConfigDocument *document, const RunConfig *c, int ranks) {
    int ep = c->parallel.ep, experts = c->model.experts;
    if (!experts && ep > 1)
        problem_between(document, "parallel.ep,model.experts",
                        "parallel.ep = %d, but model.experts = 0: there is nothing to share out", ep);
    if (!experts || (experts % ep == 0 && ranks % ep == 0)) return;
    if (ranks)
        problem_between(
            document, "parallel.ep,model.experts",
            "parallel.ep = %d must divide model.experts = %d and the number of ranks = %d; possible: %s", ep,
            experts, ranks, common_divisors(experts, ranks).text);
    else
        problem_between(document, "parallel.ep,model.experts",
                        "parallel.ep = %d must divide model.experts = %d; possible: %s", ep, experts,
                        common_divisors(experts, 0).text);
}

static void check_share(ConfigDocument *document, const char *key, int64_t sequences, int64_t micro,
                        int ranks) {
    int64_t rows = sequences / ranks, below = sequences - sequences % ranks;
    char keys[128], values[64];
    if (sequences % ranks) {
        int length = below ? snprintf(values, sizeof values, "%ld or ", (long)below) : 0;
        snprintf(values + length, sizeof values - (size_t)length, "%ld", (long)(below + ranks));
        problem_between(document, key,
                        "%s = %ld must be a multiple of the number of ranks = %d; possible: %s", key,
                        (long)sequences, ranks, values);
    } else if (rows % micro) {
        snprintf(keys, sizeof keys, "batch.micro,%s", key);
        problem_between(document, keys,
                        "batch.micro = %ld must divide the %ld sequence%s that each of %d rank%s has of %s = "
                        "%ld; possible: %s",
                        (long)micro, (long)rows, rows == 1 ? "" : "s", ranks, ranks == 1 ? "" : "s", key,
                        (long)sequences, common_divisors(rows, 0).text);
    }
}

// Where saves are further apart than they may be, the first that fails would be one too many.
static void check_saves(ConfigDocument *document, const RunConfig *c) {
    int64_t every = c->checkpoint.every, required = c->checkpoint.required_every;
    if (!required || (every && required > every)) return;
    problem_between(document, "checkpoint.required_every,checkpoint.every",
                    "checkpoint.required_every = %ld steps must be above checkpoint.every = %ld",
                    (long)required, (long)every);
}

void config_check_layout(ConfigDocument *document, const RunConfig *c, int ranks) {
    check_expert_parallel(document, c, ranks);
    check_saves(document, c);
    if (!ranks) return;
    check_share(document, "batch.sequences", c->batch.sequences, c->batch.micro, ranks);
    for (int i = 0; i < c->batch.plan.ramps; i++) {
        char key[64];
        snprintf(key, sizeof key, "batch.ramp.%d.sequences", i);
        check_share(document, key, c->batch.plan.ramp[i].sequences, c->batch.micro, ranks);
    }
}
