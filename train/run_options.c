// SPDX-License-Identifier: Apache-2.0
#include "train/run_options.h"
#include <float.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define FILLS(member)        (long)offsetof(RunConfig, member), (long)sizeof(((RunConfig *)0)->member)
#define INTEGER(least, most) OPTION_INTEGER, least, most, NULL
#define NUMBER(least, most)  OPTION_NUMBER, least, most, NULL
#define CHOICE(choices)      OPTION_CHOICE, 0, 0, choices
#define PLAIN(type)          type, 0, 0, NULL
#define BY_ITSELF            0, 0

enum { INT_MOST = 2147483647 };
static const double LONG_MOST = 9007199254740992.0; // whole numbers that a double holds

// clang-format off
const Option run_option[] = {
    {"preset", PLAIN(OPTION_TEXT), "null", "a named configuration to start from (configs/presets)", BY_ITSELF},

    {"model.arch", CHOICE("arctic|mixtral|dbrx|grok|llama"), "arctic", "a published model's block: the choices below that are left out are its own", FILLS(model.arch)},
    {"model.layers", INTEGER(1, 4096), "6", "transformer blocks", FILLS(model.layers)},
    {"model.hidden", INTEGER(1, 1 << 20), "256", "width of the residual stream", FILLS(model.hidden)},
    {"model.heads", INTEGER(1, 4096), "8", "query heads", FILLS(model.heads)},
    {"model.kv_heads", INTEGER(1, 4096), "4", "key/value heads; divides heads", FILLS(model.kv_heads)},
    {"model.head_dim", INTEGER(2, 4096), "32", "width of a head; even", FILLS(model.head_dim)},
    {"model.vocab", INTEGER(1, INT_MOST), "4096", "token ids", FILLS(model.vocab)},
    {"model.dense_ffn", INTEGER(0, 1 << 20), OPTION_BY_ARCH, "inner width of the dense FFN beside the experts (0: none), or of the FFN in a model without experts", FILLS(model.dense_ffn)},
    {"model.experts", INTEGER(0, 4096), OPTION_BY_ARCH, "experts of a layer; 0: none", FILLS(model.experts)},
    {"model.top_k", INTEGER(1, 4096), OPTION_BY_ARCH, "experts that a token goes to", FILLS(model.top_k)},
    {"model.expert_ffn", INTEGER(1, 1 << 20), "176", "inner width of an expert, and of the FFN of layers without experts between those that have them", FILLS(model.expert_ffn)},
    {"model.shared_experts", INTEGER(0, 4096), OPTION_BY_ARCH, "experts that every token goes to, with weight 1, beside the routed ones", FILLS(model.shared_experts)},
    {"model.moe_every", INTEGER(1, 4096), "1", "every n-th layer has experts (moe_layer_frequency)", FILLS(model.moe_every)},
    {"model.rope_theta", NUMBER(DBL_MIN, DBL_MAX), "1.0e4", "base of the rotary position angles", FILLS(model.rope_theta)},
    {"model.norm_eps", NUMBER(0, 1), "1.0e-5", "added to the mean square or variance in a norm", FILLS(model.norm_eps)},
    {"model.tie_embeddings", PLAIN(OPTION_BOOL), OPTION_BY_ARCH, "one matrix for token embedding and output", FILLS(model.tie_embeddings)},
    {"model.init_std", NUMBER(0, DBL_MAX), "0.02", "deviation of fresh weights", FILLS(model.init_std)},
    {"model.norm", CHOICE("rms|layer"), OPTION_BY_ARCH, "norms: RMSNorm, or LayerNorm without bias", FILLS(model.norm)},
    {"model.sandwich_norms", PLAIN(OPTION_BOOL), OPTION_BY_ARCH, "norms behind attention and the sum of the FFN branches too", FILLS(model.sandwich_norms)},
    {"model.moe_input", CHOICE("layer|attention"), OPTION_BY_ARCH, "what router and experts read: the layer's input (its exchange hides under attention), or attention's output", FILLS(model.moe_input)},
    {"model.activation", CHOICE("silu|gelu_tanh"), OPTION_BY_ARCH, "of the gate in dense FFN and experts", FILLS(model.activation)},
    {"model.clip_qkv", NUMBER(0, DBL_MAX), OPTION_BY_ARCH, "bound of queries, keys and values before RoPE; 0: none", FILLS(model.clip_qkv)},
    {"model.attn_softcap", NUMBER(0, DBL_MAX), OPTION_BY_ARCH, "scores s become c·tanh(s/c) with this c; 0: none", FILLS(model.attn_softcap)},
    {"model.attn_scale", NUMBER(0, DBL_MAX), OPTION_BY_ARCH, "factor of attention scores; 0: 1/√head_dim", FILLS(model.attn_scale)},
    {"model.embed_scale", NUMBER(DBL_MIN, DBL_MAX), OPTION_BY_ARCH, "factor of the token embedding", FILLS(model.embed_scale)},
    {"model.output_scale", NUMBER(DBL_MIN, DBL_MAX), OPTION_BY_ARCH, "factor of the logits", FILLS(model.output_scale)},
    {"model.router.scores", CHOICE("softmax|sigmoid"), OPTION_BY_ARCH, "how router logits become scores; sigmoid needs z_coef 0", FILLS(model.router.scores)},
    {"model.router.normalize", CHOICE("never|several|always"), OPTION_BY_ARCH, "divide the weights of a token's experts by their sum; several: where top_k is above 1", FILLS(model.router.normalize)},
    {"model.router.capacity_factor", NUMBER(0, DBL_MAX), "0", "room of an expert, times the balanced share; 0: no token is dropped", FILLS(model.router.capacity_factor)},
    {"model.router.min_capacity", INTEGER(0, INT_MOST), "0", "least room of an expert, in tokens", FILLS(model.router.min_capacity)},
    {"model.router.drop_policy", CHOICE("position|probs"), "position", "who stays in a full expert: first choices in token order, or the most probable", FILLS(model.router.drop_policy)},
    {"model.router.aux_kind", CHOICE("switch|megablocks|hf|arctic|deepspeed"), "switch", "formula of the balance loss", FILLS(model.router.aux_kind)},
    {"model.router.aux_scope", CHOICE("sequence|micro_batch|global_batch"), "sequence", "tokens that a balance loss is taken over; sequence does not depend on the layout", FILLS(model.router.aux_scope)},
    {"model.router.aux_coef", NUMBER(0, DBL_MAX), "1.0e-2", "weight of the balance loss", FILLS(model.router.aux_coef)},
    {"model.router.z_coef", NUMBER(0, DBL_MAX), "1.0e-3", "weight of the router's z-loss", FILLS(model.router.z_coef)},
    {"model.router.bias_rate", NUMBER(0, DBL_MAX), "0", "step of the selection bias that balances without a loss; 0: off", FILLS(model.router.bias_rate)},
    {"model.router.force", CHOICE("none|balanced|one"), "none", "routing for benchmarks and tests: even over all experts, or all tokens to the same ones", FILLS(model.router.force)},

    {"parallel.ep", INTEGER(1, 65536), "1", "ranks that share out one set of experts; divides experts and ranks", FILLS(parallel.ep)},
    {"parallel.zero", INTEGER(0, 2), "2", "sharded over ranks: 1 optimizer states, 2 gradients too", FILLS(parallel.zero)},
    {"parallel.overlap", PLAIN(OPTION_BOOL), "true", "exchange tokens while attention, dense FFN and experts compute", FILLS(parallel.overlap)},
    {"parallel.chunks", INTEGER(1, TIMELINE_CHUNKS), "2", "pieces of a layer's experts, each exchanged by itself", FILLS(parallel.chunks)},
    {"parallel.recompute", CHOICE("none|moe|layer"), "none", "computed again in backward instead of kept: nothing, the experts' inner values, or the layer", FILLS(parallel.recompute)},
    {"parallel.expert_rows", NUMBER(0.001, DBL_MAX), "2.0", "room for received rows, times the balanced share; what is beyond travels in further waves", FILLS(parallel.expert_rows)},

    {"batch.sequences", INTEGER(1, LONG_MOST), "16", "sequences of a step over all ranks", FILLS(batch.sequences)},
    {"batch.seq_len", INTEGER(1, 1 << 24), "256", "tokens of a sequence", FILLS(batch.seq_len)},
    {"batch.micro", INTEGER(1, INT_MOST), "4", "sequences that a rank computes at once", FILLS(batch.micro)},
    {"batch.ramp.#.until", PLAIN(OPTION_TOKENS), NULL, "batch-size ramp: in force while fewer tokens have been seen", BY_ITSELF},
    {"batch.ramp.#.sequences", INTEGER(1, LONG_MOST), NULL, "… with so many sequences a step", BY_ITSELF},

    {"optim.lr", NUMBER(0, DBL_MAX), "1.0e-3", "highest learning rate", FILLS(schedule.peak)},
    {"optim.final", NUMBER(0, 1), "0.1", "learning rate at the end, as a share of the highest", FILLS(schedule.final_fraction)},
    {"optim.schedule", CHOICE("constant|cosine|wsd"), "cosine", "course of the learning rate after warm-up", FILLS(schedule.kind)},
    {"optim.warmup", PLAIN(OPTION_STEPS), "2%", "length of the linear rise at the start", BY_ITSELF},
    {"optim.decay", PLAIN(OPTION_STEPS), "20%", "length of the linear fall at the end (wsd)", BY_ITSELF},
    {"optim.betas", PLAIN(OPTION_PAIR), "[0.9, 0.95]", "AdamW's averaging of gradients and of their squares", BY_ITSELF},
    {"optim.eps", NUMBER(0, 1), "1.0e-8", "AdamW's epsilon", FILLS(adamw.eps)},
    {"optim.weight_decay", NUMBER(0, DBL_MAX), "0.1", "AdamW's decoupled weight decay; norms have none", FILLS(adamw.weight_decay)},
    {"optim.decay_embeddings", PLAIN(OPTION_BOOL), "false", "weight decay for the token embedding too", FILLS(adamw.decay_embeddings)},
    {"optim.clip", NUMBER(0, DBL_MAX), "1.0", "highest gradient norm; 0: no clipping", FILLS(clip)},

    {"train.steps", INTEGER(1, LONG_MOST), "500", "length of the run in steps", FILLS(train.steps)},
    {"train.tokens", PLAIN(OPTION_COUNT), "null", "length of the run in tokens, instead of steps", BY_ITSELF},
    {"train.seed", INTEGER(0, LONG_MOST), "1", "seed of fresh weights and of the order of samples", FILLS(train.seed)},
    {"train.precision", CHOICE("auto|fp32"), "auto", "number format of the computation; auto: fp32 on CPU", BY_ITSELF},
    {"train.init_from", PLAIN(OPTION_TEXT), "null", "checkpoint whose weights to start from with a fresh optimizer; model keys left out are taken from it", FILLS(train.init_from)},
    {"train.canary", PLAIN(OPTION_BOOL), "true", "before step 1, compare rows that come back from the experts with the plain computation", FILLS(train.canary)},

    {"data.tokenizer", PLAIN(OPTION_TEXT), "bytes", "bytes, sentencepiece:FILE.model or hf:FILE.json", FILLS(tokenizer)},
    {"data.holdout", OPTION_SHARE, 0, 1, NULL, "0.5%", "share of each source, its tail, that is never trained on and that evaluation uses", FILLS(data.holdout)},
    {"data.sources.*.path", PLAIN(OPTION_PATHS), NULL, "token shards without .bin/.idx: a prefix, a list of them, or a glob", BY_ITSELF},
    {"data.sources.*.valid", PLAIN(OPTION_TEXT), "null", "a shard of its own for evaluation; then nothing of the source is held out", BY_ITSELF},

    {"curriculum.#.until", PLAIN(OPTION_TOKENS), NULL, "tokens seen when the stage ends", BY_ITSELF},
    {"curriculum.#.mix.*", NUMBER(0, DBL_MAX), NULL, "weight of a source in the stage", BY_ITSELF},
    {"curriculum.#.ramp", PLAIN(OPTION_TOKENS), "null", "length over which the weights move from the stage before's", BY_ITSELF},

    {"checkpoint.every", PLAIN(OPTION_STEPS), "100", "distance of checkpoints; 0: one at the end only", BY_ITSELF},
    {"checkpoint.keep", INTEGER(0, LONG_MOST), "3", "newest verified checkpoints that stay; 0: all", FILLS(checkpoint.keep)},
    {"checkpoint.keep_every", PLAIN(OPTION_STEPS), "0", "checkpoints at multiples of this distance stay for ever; 0: none", BY_ITSELF},
    {"checkpoint.required_every", PLAIN(OPTION_STEPS), "0", "where saves fail until the newest checkpoint is this old, the run stops with exit code 75; 0: it goes on", BY_ITSELF},
    {"checkpoint.background", PLAIN(OPTION_BOOL), "true", "write checkpoints beside the training, from a copy of the state", FILLS(checkpoint.background)},
    {"checkpoint.host_bytes", INTEGER(1 << 20, LONG_MOST), "4294967296", "most bytes of memory that a rank's save takes; a larger state is written in pieces while training waits", FILLS(checkpoint.host_bytes)},
    {"checkpoint.compress", CHOICE("none|zlib"), "none", "compression of checkpoints", FILLS(checkpoint.compress)},

    {"eval.every", PLAIN(OPTION_STEPS), "50", "distance of evaluations; 0: one at the end only", BY_ITSELF},
    {"eval.sequences", INTEGER(0, LONG_MOST), "64", "most held-out sequences of a source in an evaluation", FILLS(eval.sequences)},

    {"guard.nonfinite", CHOICE("stop|skip|rollback"), "stop", "at a loss or gradient that is not finite: stop with exit code 5, drop the step's update, or go back to the newest checkpoint's weights and on behind the bad step's data", FILLS(guard.nonfinite)},
    {"guard.spike", CHOICE("stop|skip|rollback|off"), "off", "the same at a loss or gradient norm far above those before; off: they are not looked for", FILLS(guard.spike)},
    {"guard.window", INTEGER(2, 10000), "100", "newest good steps of a stage that spikes are measured against, once there are so many", FILLS(guard.window)},
    {"guard.z", NUMBER(DBL_MIN, DBL_MAX), "6.0", "a spike is this many standard deviations above the mean of guard.window", FILLS(guard.z)},
    {"guard.max_bad", INTEGER(1, INT_MOST), "10", "bad steps in a row that end the run with exit code 5", FILLS(guard.max_bad)},
    {"guard.replica_check", INTEGER(0, INT_MOST), "100", "steps from one comparison of all ranks' copies of the weights to the next, which ends the run with exit code 4 where one differs; bad steps compare too; 0: never", FILLS(guard.replica_check)},
    {"guard.watchdog", NUMBER(0, 1e9), "600.0", "seconds without progress, more than the longest save takes, after which a rank that hangs is named and the job ends with exit code 75; 0: never", FILLS(watchdog)},
};
// clang-format on
const int run_options = sizeof run_option / sizeof *run_option;

bool option_by_arch(const Option *option) {
    return option->fallback && strcmp(option->fallback, OPTION_BY_ARCH) == 0;
}

const void *option_model_member(const Option *option, const ModelConfig *model) {
    return (const char *)model + (option->offset - (long)offsetof(RunConfig, model));
}

// The shortest digits that read back as the same number, with a point: YAML takes 1e-05 for a text.
static void number_text(double value, char *text, size_t size) {
    int digits = 6;
    do snprintf(text, size, "%.*g", digits, value);
    while (strtod(text, NULL) != value && ++digits < 17);
    if (strchr(text, '.')) return;
    char *exponent = strchr(text, 'e'), power[16] = "";
    if (exponent) snprintf(power, sizeof power, "%s", exponent);
    size_t length = exponent ? (size_t)(exponent - text) : strlen(text);
    snprintf(text + length, size - length, ".0%s", power);
}

void option_member_text(const Option *option, const void *member, char *text, size_t size) {
    switch (option->type) {
    case OPTION_INTEGER:
        snprintf(text, size, "%lld",
                 option->size == sizeof(int) ? (long long)*(const int *)member
                                             : (long long)*(const int64_t *)member);
        break;
    case OPTION_NUMBER:
        number_text(*(const double *)member, text, size);
        break;
    case OPTION_BOOL:
        snprintf(text, size, "%s", *(const bool *)member ? "true" : "false");
        break;
    case OPTION_CHOICE: {
        const char *word = option->choices;
        for (int i = *(const int *)member; i > 0; i--) word = strchr(word, '|') + 1;
        snprintf(text, size, "%.*s", (int)strcspn(word, "|"), word);
        break;
    }
    default:
        REQUIRE(0, "%s has no member of its own", option->key);
    }
}

const Option *option_find(const char *pattern) {
    for (int i = 0; i < run_options; i++)
        if (strcmp(run_option[i].key, pattern) == 0) return &run_option[i];
    return NULL;
}

bool option_is_group(const char *pattern) {
    size_t length = strlen(pattern);
    for (int i = 0; i < run_options; i++)
        if (strncmp(run_option[i].key, pattern, length) == 0 && run_option[i].key[length] == '.') return true;
    return false;
}

static void range_text(const Option *option, const char *what, char *text, size_t size) {
    double most = option->type == OPTION_INTEGER ? INT_MOST : 1e300;
    bool open = option->least == DBL_MIN || option->least == 0.001; // above 0, however little
    if (option->most >= most)
        snprintf(text, size, open ? "%s above 0" : "%s, at least %.0f", what, option->least);
    else
        snprintf(text, size, "%s from %.0f to %.0f", what, option->least, option->most);
}

void option_expectation(const Option *option, char *text, size_t size) {
    switch (option->type) {
    case OPTION_INTEGER:
        range_text(option, "a whole number", text, size);
        break;
    case OPTION_NUMBER:
        range_text(option, "a number", text, size);
        break;
    case OPTION_BOOL:
        snprintf(text, size, "true or false");
        break;
    case OPTION_TEXT:
        snprintf(text, size, "a text or null");
        break;
    case OPTION_SHARE:
        snprintf(text, size, "a share from 0 to below 1, like 0.005 or 0.5%%");
        break;
    case OPTION_STEPS:
        snprintf(text, size, "a length: steps (500), tokens (2e6tok) or a percent of the run (2%%)");
        break;
    case OPTION_TOKENS:
        snprintf(text, size, "tokens (1.0e12) or a percent of the run (30%%)");
        break;
    case OPTION_COUNT:
        snprintf(text, size, "tokens (1.0e12) or null");
        break;
    case OPTION_PAIR:
        snprintf(text, size, "two numbers from 0 to below 1, like [0.9, 0.95]");
        break;
    case OPTION_PATHS:
        snprintf(text, size, "a text or a list of texts");
        break;
    case OPTION_CHOICE: {
        int length = snprintf(text, size, strchr(option->choices, '|') ? "one of " : "");
        for (const char *c = option->choices; *c && (size_t)length + 3 < size; c++) {
            if (*c == '|') text[length++] = ',';
            text[length++] = *c == '|' ? ' ' : *c;
        }
        text[length] = 0;
    }
    }
}

// ---- suggestions

static int distance(const char *a, const char *b) { // Levenshtein
    int row[64], n = (int)strlen(b);
    if (n > 62) return 64;
    for (int j = 0; j <= n; j++) row[j] = j;
    for (int i = 1; a[i - 1]; i++) {
        int diagonal = row[0];
        row[0] = i;
        for (int j = 1; j <= n; j++) {
            int change = diagonal + (a[i - 1] != b[j - 1]),
                least = row[j] < row[j - 1] ? row[j] + 1 : row[j - 1] + 1;
            diagonal = row[j];
            row[j] = change < least ? change : least;
        }
    }
    return row[n];
}

const char *word_nearest(const char *word, const char *const names[], int count) {
    const char *nearest = NULL;
    int length = (int)strlen(word), least = length < 3 ? 2 : 2 + length / 4; // distances below this count
    for (int i = 0; i < count; i++) {
        int d = distance(word, names[i]);
        if (d >= least || d >= length || length < 2) continue;
        least = d;
        nearest = names[i];
    }
    return nearest;
}

bool option_suggestion(const char *group, const char *name, char *text, size_t size) {
    enum { MOST = 128, PART = 32 };
    const char *own[MOST], *last[MOST];
    char parts[MOST][PART];
    int owns = 0;
    size_t length = strlen(group);
    REQUIRE(run_options <= MOST, "%d options; raise MOST", run_options);
    for (int i = 0; i < run_options; i++) {
        const char *key = run_option[i].key, *dot = strrchr(key, '.');
        last[i] = dot ? dot + 1 : key;
        if (strncmp(key, group, length) || (length && key[length] != '.')) continue;
        const char *rest = key + length + (length > 0);
        snprintf(parts[owns], PART, "%.*s", (int)strcspn(rest, "."), rest);
        own[owns] = parts[owns];
        owns++;
    }
    const char *nearest = word_nearest(name, own, owns);
    if (nearest) {
        snprintf(text, size, "%s", nearest);
        return true;
    }
    nearest = word_nearest(name, last, run_options);
    for (int i = 0; nearest && i < run_options; i++) {
        if (last[i] != nearest) continue;
        snprintf(text, size, "%s", run_option[i].key);
        return true;
    }
    return false;
}
