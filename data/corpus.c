// SPDX-License-Identifier: Apache-2.0
#include "data/corpus.h"
#include "core/rng.h"
#include <stdlib.h>

struct Corpus {
    int shards;
    Shard **shard;
    int64_t *first; // [shards + 1]: tokens before the shard
};

static Status open_shards(Corpus *corpus, const char *const prefix[], int prefixes) {
    for (; corpus->shards < prefixes; corpus->shards++) {
        int i = corpus->shards;
        TRY(shard_open(&corpus->shard[i], prefix[i]));
        corpus->first[i + 1] = corpus->first[i] + shard_tokens(corpus->shard[i]);
    }
    return OK;
}

Status corpus_open(Corpus **out, const char *const prefix[], int prefixes) {
    *out = NULL;
    Corpus *corpus = calloc(1, sizeof *corpus);
    REQUIRE(corpus && prefixes > 0, "%d shards", prefixes);
    corpus->shard = calloc((size_t)prefixes, sizeof *corpus->shard);
    corpus->first = calloc((size_t)prefixes + 1, sizeof *corpus->first);
    REQUIRE(corpus->shard && corpus->first, "out of memory");
    Status status = open_shards(corpus, prefix, prefixes);
    if (status != OK) {
        corpus_close(corpus);
        return status;
    }
    *out = corpus;
    return OK;
}

void corpus_close(Corpus *corpus) {
    if (!corpus) return;
    for (int i = 0; i < corpus->shards; i++) shard_close(corpus->shard[i]);
    free(corpus->shard);
    free(corpus->first);
    free(corpus);
}

int64_t corpus_tokens(const Corpus *corpus) {
    return corpus->first[corpus->shards];
}

int corpus_unchecked_shards(const Corpus *corpus) {
    int count = 0;
    for (int i = 0; i < corpus->shards; i++) count += !shard_has_sums(corpus->shard[i]);
    return count;
}

uint64_t corpus_identity(const Corpus *corpus) {
    uint64_t hash = (uint64_t)corpus->shards;
    for (int i = 0; i < corpus->shards; i++) hash = hash_mix(hash, shard_identity(corpus->shard[i]));
    return hash;
}

const char *corpus_name(const Corpus *corpus) {
    return shard_prefix(corpus->shard[0]);
}

// The shard that holds token at.
static int shard_of(const Corpus *corpus, int64_t at) {
    int low = 0, high = corpus->shards - 1;
    while (low < high) {
        int middle = (low + high) / 2;
        if (at < corpus->first[middle + 1])
            high = middle;
        else
            low = middle + 1;
    }
    return low;
}

Status corpus_read(const Corpus *corpus, int64_t first, int64_t count, int vocab, int32_t *tokens) {
    REQUIRE(first >= 0 && count >= 0 && first <= corpus_tokens(corpus) - count,
            "%s: tokens %lld + %lld of %lld", corpus_name(corpus), (long long)first, (long long)count,
            (long long)corpus_tokens(corpus));
    for (int s = shard_of(corpus, first); count > 0; s++) {
        int64_t n = corpus->first[s + 1] - first;
        if (n > count) n = count;
        TRY(shard_read(corpus->shard[s], first - corpus->first[s], n, vocab, tokens));
        first += n;
        tokens += n;
        count -= n;
    }
    return OK;
}
