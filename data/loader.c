// SPDX-License-Identifier: Apache-2.0
#include "core/log.h"
#include "core/rng.h"
#include "data/loader_internal.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { REPEATS_WORTH_A_WARNING = 4 };

// Samples of seq_len + 1 tokens; neighbours share one.
static int64_t samples_in(const Loader *loader, const Corpus *corpus) {
    return (corpus_tokens(corpus) - 1) / loader->seq_len;
}

static Status check_size(const Loader *loader, const char *name, const Corpus *corpus) {
    if (samples_in(loader, corpus) > 0) return OK;
    FAIL(ERR_DATA,
         "source %s (%s) has %lld tokens; one sample takes batch.seq_len + 1 = %lld; add text to the source "
         "or make "
         "batch.seq_len smaller",
         name, corpus_name(corpus), (long long)corpus_tokens(corpus), (long long)loader->seq_len + 1);
}

static Status hold_out(LoaderSource *source, double holdout) {
    // ceil(holdout · samples) without the binary fraction's noise: the share counts in billionths.
    __int128 billionths = llround(holdout * 1e9);
    int64_t held = (int64_t)((billionths * source->samples + 999999999) / 1000000000);
    source->trained = source->samples - held;
    if (source->trained > 0) return OK;
    FAIL(ERR_DATA,
         "source %s has %lld samples, all of which data.holdout = %g keeps for evaluation; add text, set "
         "data.holdout: 0 "
         "or give the source a valid: shard of its own",
         source->name, (long long)source->samples, holdout);
}

static Status open_source(Loader *loader, LoaderSource *source, const DataSource *config, double holdout) {
    source->name = strdup(config->name);
    source->uid = hash_text(config->name);
    if (config->paths < 1)
        FAIL(ERR_CONFIG, "source %s names no token shard; set data.sources.%s.path", config->name,
             config->name);
    TRY(corpus_open(&source->corpus, config->path, config->paths));
    TRY(check_size(loader, source->name, source->corpus));
    source->samples = source->trained = samples_in(loader, source->corpus);
    if (!config->valid) return hold_out(source, holdout);
    TRY(corpus_open(&source->valid, &config->valid, 1));
    return check_size(loader, source->name, source->valid);
}

static Status check_config(const DataConfig *config) {
    if (config->seq_len < 1)
        FAIL(ERR_CONFIG, "batch.seq_len is %lld; it must be above 0", (long long)config->seq_len);
    if (config->vocab < 1) FAIL(ERR_CONFIG, "model.vocab is %d; it must be above 0", config->vocab);
    if (config->sources < 1) FAIL(ERR_CONFIG, "data.sources is empty; name at least one source");
    if (!(config->holdout >= 0 && config->holdout < 1))
        FAIL(ERR_CONFIG, "data.holdout is %g; it must be in [0, 1)", config->holdout);
    for (int i = 0; i < config->sources; i++)
        for (int j = 0; j < i; j++)
            if (strcmp(config->source[i].name, config->source[j].name) == 0)
                FAIL(ERR_CONFIG, "data.sources names %s twice", config->source[i].name);
    return OK;
}

static void warn_of_repeats(const Loader *loader) {
    int sources = loader->sources, stages = loader->curriculum.stages;
    int64_t *count = calloc((size_t)sources * (size_t)stages, sizeof *count);
    REQUIRE(count, "out of memory");
    loader_count(loader, loader_stage_first_sample(loader, stages), count);
    for (int i = 0; i < sources; i++) {
        double samples = 0;
        for (int s = 0; s < stages; s++) samples += (double)count[s * sources + i];
        double epochs = samples / (double)loader->source[i].trained;
        if (epochs > REPEATS_WORTH_A_WARNING)
            log_rank0(LOG_WARN,
                      "source %s: the plan reads its %lld training samples %.1f times; give it more text or "
                      "less weight",
                      loader->source[i].name, (long long)loader->source[i].trained, epochs);
    }
    free(count);
}

static Status fill(Loader *loader, const DataConfig *config) {
    TRY(check_config(config));
    loader->seq_len = config->seq_len;
    loader->vocab = config->vocab;
    loader->seed = config->seed;
    loader->source = calloc((size_t)config->sources, sizeof *loader->source);
    REQUIRE(loader->source, "out of memory");
    loader->sources = config->sources;
    TRY(curriculum_create(&loader->curriculum, config));
    loader->until = calloc((size_t)config->stages, sizeof *loader->until);
    loader->ramp = calloc((size_t)config->stages, sizeof *loader->ramp);
    REQUIRE(loader->until && loader->ramp, "out of memory");
    for (int s = 0; s < config->stages; s++) {
        loader->until[s] = config->stage[s].until;
        loader->ramp[s] = config->stage[s].ramp;
    }
    for (int i = 0; i < config->sources; i++)
        TRY(open_source(loader, &loader->source[i], &config->source[i], config->holdout));
    warn_of_repeats(loader);
    return OK;
}

Status loader_create(Loader **out, const DataConfig *config) {
    *out = NULL;
    Loader *loader = calloc(1, sizeof *loader);
    REQUIRE(loader, "out of memory");
    Status status = fill(loader, config);
    if (status != OK) {
        loader_destroy(loader);
        return status;
    }
    *out = loader;
    return OK;
}

void loader_destroy(Loader *loader) {
    if (!loader) return;
    for (int i = 0; i < loader->sources; i++) {
        corpus_close(loader->source[i].corpus);
        corpus_close(loader->source[i].valid);
        free(loader->source[i].name);
    }
    free(loader->source);
    free(loader->until);
    free(loader->ramp);
    curriculum_free(&loader->curriculum);
    free(loader);
}

SampleOrigin loader_origin(const Loader *loader, int64_t sample) {
    SampleOrigin origin;
    origin.stage = curriculum_segment(&loader->curriculum, sample)->stage;
    origin.source = curriculum_source(&loader->curriculum, sample, &origin.ordinal);
    const LoaderSource *source = &loader->source[origin.source];
    origin.epoch = origin.ordinal / source->trained;
    uint64_t key = hash_mix(hash_mix(loader->seed, source->uid), (uint64_t)origin.epoch);
    origin.index = feistel_permute(origin.ordinal % source->trained, source->trained, key);
    return origin;
}

Status loader_read(const Loader *loader, int64_t first, int64_t count, int32_t *tokens,
                   SampleOrigin *origin) {
    int64_t L = loader->seq_len;
    for (int64_t i = 0; i < count; i++) {
        SampleOrigin from = loader_origin(loader, first + i);
        TRY(corpus_read(loader->source[from.source].corpus, from.index * L, L + 1, loader->vocab,
                        tokens + i * (L + 1)));
        if (origin) origin[i] = from;
    }
    return OK;
}

uint64_t loader_stream_hash(const Loader *loader, int64_t first, int64_t count, const int32_t *tokens) {
    int64_t row = loader->seq_len + 1;
    uint64_t all = 0;
    for (int64_t i = 0; i < count; i++) {
        SampleOrigin origin = loader_origin(loader, first + i);
        uint64_t hash = hash_mix(hash_mix((uint64_t)(first + i), loader->source[origin.source].uid),
                                 (uint64_t)origin.index);
        for (int64_t j = 0; j < row; j++) hash = (hash ^ (uint32_t)tokens[i * row + j]) * 0x9e3779b97f4a7c15u;
        all ^= hash_mix(hash, (uint64_t)row);
    }
    return all;
}

int64_t loader_stage_first_sample(const Loader *loader, int stage) {
    REQUIRE(stage >= 0 && stage <= loader->curriculum.stages, "stage %d of %d", stage,
            loader->curriculum.stages);
    return loader->curriculum.stage_first[stage];
}

int64_t loader_train_samples(const Loader *loader, int source) {
    return loader->source[source].trained;
}

int64_t loader_eval_samples(const Loader *loader, int source) {
    const LoaderSource *from = &loader->source[source];
    return from->valid ? samples_in(loader, from->valid) : from->samples - from->trained;
}

Status loader_eval_read(const Loader *loader, int source, int64_t i, int32_t *tokens) {
    const LoaderSource *from = &loader->source[source];
    REQUIRE(i >= 0 && i < loader_eval_samples(loader, source), "evaluation sample %lld of %lld of %s",
            (long long)i, (long long)loader_eval_samples(loader, source), from->name);
    int64_t L = loader->seq_len, index = from->valid ? i : from->trained + i;
    return corpus_read(from->valid ? from->valid : from->corpus, index * L, L + 1, loader->vocab, tokens);
}

int loader_stages(const Loader *loader) {
    return loader->curriculum.stages;
}
int loader_sources(const Loader *loader) {
    return loader->sources;
}
int loader_unchecked_shards(const Loader *loader) {
    int count = 0;
    for (int s = 0; s < loader->sources; s++) {
        count += corpus_unchecked_shards(loader->source[s].corpus);
        if (loader->source[s].valid) count += corpus_unchecked_shards(loader->source[s].valid);
    }
    return count;
}
int64_t loader_seq_len(const Loader *loader) {
    return loader->seq_len;
}
const char *loader_source_name(const Loader *loader, int source) {
    return loader->source[source].name;
}
void loader_count(const Loader *loader, int64_t samples, int64_t *count) {
    curriculum_count(&loader->curriculum, samples, count);
}
