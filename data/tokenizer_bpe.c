// SPDX-License-Identifier: Apache-2.0
#include "data/tokenizer_bpe.h"
#include "core/status.h"
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
    int64_t start; // in Bpe.pool
    int32_t bytes; // -1: the id has no text
} TokenText;

typedef struct {
    uint32_t hash;
    int32_t id; // -1: empty
} TextSlot;

typedef struct {
    int32_t left, right; // left -1: empty
    int32_t rank, merged;
} MergeSlot;

enum { UNKNOWN, WHOLE, PARTED }; // what becomes of a piece that is a token's text
enum { NO_RANK = INT32_MAX };    // a pair without a merge
enum { SHORT = 32 };             // bytes; longer pieces are merged through a heap
enum { LEAST_SLOTS = 1 << 10 };  // a power of two
enum { POOL_BYTES = 1 << 16 };

struct Bpe {
    int vocab;
    TokenText *text;
    _Atomic uint8_t *fate; // of each id: found when first met
    char *pool;
    int64_t pool_bytes, pool_capacity;
    TextSlot *text_slot;
    int64_t text_slots, texts; // texts in slots
    MergeSlot *merge_slot;
    int64_t merge_slots, merges;
    int32_t byte_id[256];
};

static void *new_array(int64_t count, size_t size) {
    void *array = malloc((size_t)(count > 0 ? count : 1) * size);
    REQUIRE(array, "out of memory for %lld × %zu bytes of a tokenizer", (long long)count, size);
    return array;
}

static TextSlot *new_text_slots(int64_t count) {
    TextSlot *slot = new_array(count, sizeof *slot);
    for (int64_t i = 0; i < count; i++) slot[i].id = -1;
    return slot;
}

static MergeSlot *new_merge_slots(int64_t count) {
    MergeSlot *slot = new_array(count, sizeof *slot);
    for (int64_t i = 0; i < count; i++) slot[i] = (MergeSlot){.left = -1, .rank = NO_RANK};
    return slot;
}

Bpe *bpe_create(int vocab) {
    Bpe *bpe = calloc(1, sizeof *bpe);
    REQUIRE(bpe, "out of memory");
    bpe->vocab = vocab;
    bpe->text = new_array(vocab, sizeof *bpe->text);
    for (int i = 0; i < vocab; i++) bpe->text[i] = (TokenText){.bytes = -1};
    bpe->fate = new_array(vocab, sizeof *bpe->fate);
    for (int i = 0; i < vocab; i++) atomic_init(&bpe->fate[i], UNKNOWN);
    bpe->text_slots = bpe->merge_slots = LEAST_SLOTS;
    bpe->text_slot = new_text_slots(LEAST_SLOTS);
    bpe->merge_slot = new_merge_slots(LEAST_SLOTS);
    return bpe;
}

void bpe_destroy(Bpe *bpe) {
    if (!bpe) return;
    free(bpe->text);
    free((void *)bpe->fate);
    free(bpe->pool);
    free(bpe->text_slot);
    free(bpe->merge_slot);
    free(bpe);
}

static uint64_t mix(uint64_t x) {
    x *= 0x9e3779b97f4a7c15u;
    return x ^ x >> 29;
}

static uint64_t hash_text(const char *text, int64_t bytes) {
    uint64_t hash = (uint64_t)bytes, word;
    for (; bytes >= 8; text += 8, bytes -= 8) {
        memcpy(&word, text, 8);
        hash = mix(hash ^ word);
    }
    word = 0;
    for (int64_t i = 0; i < bytes; i++) word = word << 8 | (unsigned char)text[i];
    return mix(mix(hash ^ word));
}

static uint64_t hash_pair(int32_t left, int32_t right) {
    return mix(mix((uint64_t)(uint32_t)left << 32 | (uint32_t)right));
}

// The slot that holds the text, or the empty one where it belongs.
static TextSlot *text_slot(const Bpe *bpe, uint64_t hash, const char *text, int64_t bytes) {
    int64_t mask = bpe->text_slots - 1;
    for (int64_t i = (int64_t)hash & mask;; i = (i + 1) & mask) {
        TextSlot *slot = &bpe->text_slot[i];
        if (slot->id < 0) return slot;
        const TokenText *token = &bpe->text[slot->id];
        if (slot->hash == (uint32_t)(hash >> 32) && token->bytes == bytes &&
            memcmp(bpe->pool + token->start, text, (size_t)bytes) == 0)
            return slot;
    }
}

static MergeSlot *merge_slot(const Bpe *bpe, int32_t left, int32_t right) {
    int64_t mask = bpe->merge_slots - 1;
    for (int64_t i = (int64_t)hash_pair(left, right) & mask;; i = (i + 1) & mask) {
        MergeSlot *slot = &bpe->merge_slot[i];
        if (slot->left < 0 || (slot->left == left && slot->right == right)) return slot;
    }
}

static void grow_texts(Bpe *bpe) {
    TextSlot *old = bpe->text_slot;
    int64_t slots = bpe->text_slots;
    bpe->text_slots *= 2;
    bpe->text_slot = new_text_slots(bpe->text_slots);
    for (int64_t i = 0; i < slots; i++) {
        if (old[i].id < 0) continue;
        const TokenText *token = &bpe->text[old[i].id];
        const char *text = bpe->pool + token->start;
        *text_slot(bpe, hash_text(text, token->bytes), text, token->bytes) = old[i];
    }
    free(old);
}

static void grow_merges(Bpe *bpe) {
    MergeSlot *old = bpe->merge_slot;
    int64_t slots = bpe->merge_slots;
    bpe->merge_slots *= 2;
    bpe->merge_slot = new_merge_slots(bpe->merge_slots);
    for (int64_t i = 0; i < slots; i++)
        if (old[i].left >= 0) *merge_slot(bpe, old[i].left, old[i].right) = old[i];
    free(old);
}

static void keep_text(Bpe *bpe, int32_t id, const char *text, int64_t bytes) {
    if (bpe->pool_bytes + bytes > bpe->pool_capacity) {
        bpe->pool_capacity = 2 * (bpe->pool_bytes + bytes) + POOL_BYTES;
        bpe->pool = realloc(bpe->pool, (size_t)bpe->pool_capacity);
        REQUIRE(bpe->pool, "out of memory for %lld bytes of a vocabulary", (long long)bpe->pool_capacity);
    }
    memcpy(bpe->pool + bpe->pool_bytes, text, (size_t)bytes);
    bpe->text[id] = (TokenText){bpe->pool_bytes, (int32_t)bytes};
    bpe->pool_bytes += bytes;
}

bool bpe_add_token(Bpe *bpe, int32_t id, const char *text, int64_t bytes, bool made) {
    REQUIRE(id >= 0 && id < bpe->vocab && bytes < INT32_MAX, "token %d of %d", id, bpe->vocab);
    if (bpe->text[id].bytes >= 0) return false;
    if (!made) {
        keep_text(bpe, id, text, bytes);
        return true;
    }
    if (2 * bpe->texts >= bpe->text_slots) grow_texts(bpe);
    uint64_t hash = hash_text(text, bytes);
    TextSlot *slot = text_slot(bpe, hash, text, bytes);
    if (slot->id >= 0) return false;
    keep_text(bpe, id, text, bytes);
    *slot = (TextSlot){(uint32_t)(hash >> 32), id};
    bpe->texts++;
    return true;
}

int32_t bpe_find(const Bpe *bpe, const char *text, int64_t bytes) {
    return text_slot(bpe, hash_text(text, bytes), text, bytes)->id;
}

void bpe_add_merge(Bpe *bpe, int32_t left, int32_t right, int32_t merged, int32_t rank) {
    if (2 * bpe->merges >= bpe->merge_slots) grow_merges(bpe);
    MergeSlot *slot = merge_slot(bpe, left, right);
    if (slot->left < 0) bpe->merges++;
    *slot = (MergeSlot){left, right, rank, merged};
}

int bpe_finish(Bpe *bpe, bool whole) {
    for (int byte = 0; byte < 256; byte++) {
        bpe->byte_id[byte] = bpe_find(bpe, &(char){(char)byte}, 1);
        if (bpe->byte_id[byte] < 0) return byte;
    }
    if (whole)
        for (int i = 0; i < bpe->vocab; i++) atomic_init(&bpe->fate[i], WHOLE);
    return -1;
}

const char *bpe_text(const Bpe *bpe, int32_t id, int64_t *bytes) {
    const TokenText *token = &bpe->text[id];
    *bytes = token->bytes;
    return token->bytes < 0 ? NULL : bpe->pool + token->start;
}

void token_list_add(TokenList *list, int32_t token) {
    if (list->count == list->capacity) {
        list->capacity = 2 * list->capacity + 256;
        list->token = realloc(list->token, (size_t)list->capacity * sizeof *list->token);
        REQUIRE(list->token, "out of memory for %lld tokens", (long long)list->capacity);
    }
    list->token[list->count++] = token;
}

// At most SHORT bytes: the best pair is looked for anew after each merge.
static void merge_short(const Bpe *bpe, const unsigned char *piece, int count, TokenList *out) {
    int32_t id[SHORT];
    MergeSlot pair[SHORT]; // pair[i]: id[i] and id[i + 1]
    for (int i = 0; i < count; i++) id[i] = bpe->byte_id[piece[i]];
    for (int i = 0; i + 1 < count; i++) pair[i] = *merge_slot(bpe, id[i], id[i + 1]);
    while (count > 1) {
        int best = 0;
        for (int i = 1; i + 1 < count; i++)
            if (pair[i].rank < pair[best].rank) best = i;
        if (pair[best].rank == NO_RANK) break;
        id[best] = pair[best].merged;
        size_t after = (size_t)(count - best - 2);
        memmove(&id[best + 1], &id[best + 2], after * sizeof *id);
        memmove(&pair[best], &pair[best + 1], after * sizeof *pair);
        count--;
        if (best + 1 < count) pair[best] = *merge_slot(bpe, id[best], id[best + 1]);
        if (best > 0) pair[best - 1] = *merge_slot(bpe, id[best - 1], id[best]);
    }
    for (int i = 0; i < count; i++) token_list_add(out, id[i]);
}

typedef struct {
    int64_t before, after; // neighbours; -1: none
    int32_t id;            // -1: merged into the one before
} Symbol;

typedef struct {
    MergeSlot merge;
    int64_t at; // the left symbol
} Candidate;

typedef struct {
    const Bpe *bpe;
    Symbol *symbol;
    Candidate *heap; // the best is first
    int64_t candidates;
} Merging;

static bool is_better(const Candidate *a, const Candidate *b) {
    return a->merge.rank != b->merge.rank ? a->merge.rank < b->merge.rank : a->at < b->at;
}

static void push_pair(Merging *merging, int64_t at) {
    const Symbol *left = &merging->symbol[at];
    if (left->after < 0) return;
    Candidate new = {*merge_slot(merging->bpe, left->id, merging->symbol[left->after].id), at};
    if (new.merge.rank == NO_RANK) return;
    Candidate *heap = merging->heap;
    int64_t i = merging->candidates++;
    for (; i > 0 && is_better(&new, &heap[(i - 1) / 2]); i = (i - 1) / 2) heap[i] = heap[(i - 1) / 2];
    heap[i] = new;
}

static Candidate pop_best(Merging *merging) {
    Candidate *heap = merging->heap, best = heap[0], last = heap[--merging->candidates];
    int64_t i = 0;
    for (int64_t child; (child = 2 * i + 1) < merging->candidates; i = child) {
        if (child + 1 < merging->candidates && is_better(&heap[child + 1], &heap[child])) child++;
        if (!is_better(&heap[child], &last)) break;
        heap[i] = heap[child];
    }
    heap[i] = last;
    return best;
}

static void reserve(BpeScratch *scratch, int64_t symbols) {
    if (symbols <= scratch->capacity) return;
    bpe_scratch_free(scratch);
    scratch->capacity = 2 * symbols;
    scratch->symbol = new_array(scratch->capacity, sizeof(Symbol));
    scratch->heap = new_array(3 * scratch->capacity, sizeof(Candidate)); // a merge removes 1 and adds 2
}

void bpe_scratch_free(BpeScratch *scratch) {
    free(scratch->symbol);
    free(scratch->heap);
    *scratch = (BpeScratch){0};
}

static void merge_long(const Bpe *bpe, BpeScratch *scratch, const unsigned char *piece, int64_t count,
                       TokenList *out) {
    reserve(scratch, count);
    Symbol *symbol = scratch->symbol;
    Merging merging = {bpe, symbol, scratch->heap, 0};
    for (int64_t i = 0; i < count; i++)
        symbol[i] = (Symbol){i - 1, i + 1 < count ? i + 1 : -1, bpe->byte_id[piece[i]]};
    for (int64_t i = 0; i < count; i++) push_pair(&merging, i);
    while (merging.candidates > 0) {
        Candidate best = pop_best(&merging);
        Symbol *left = &symbol[best.at];
        // A symbol of the pair may have been merged since.
        if (left->id != best.merge.left || left->after < 0 || symbol[left->after].id != best.merge.right)
            continue;
        Symbol *right = &symbol[left->after];
        left->id = best.merge.merged;
        left->after = right->after;
        right->id = -1;
        if (left->after >= 0) symbol[left->after].before = best.at;
        push_pair(&merging, best.at);
        if (left->before >= 0) push_pair(&merging, left->before);
    }
    for (int64_t i = 0; i >= 0; i = symbol[i].after) token_list_add(out, symbol[i].id);
}

void bpe_encode(const Bpe *bpe, BpeScratch *scratch, const char *piece, int64_t bytes, TokenList *out) {
    if (bytes == 0) return;
    int32_t id = bpe_find(bpe, piece, bytes);
    int fate = id < 0 ? PARTED : atomic_load_explicit(&bpe->fate[id], memory_order_relaxed);
    if (fate == WHOLE) {
        token_list_add(out, id);
        return;
    }
    int64_t first = out->count;
    const unsigned char *data = (const unsigned char *)piece;
    if (bytes <= SHORT)
        merge_short(bpe, data, (int)bytes, out);
    else
        merge_long(bpe, scratch, data, bytes, out);
    if (fate == UNKNOWN)
        atomic_store_explicit(&bpe->fate[id], out->count == first + 1 ? WHOLE : PARTED, memory_order_relaxed);
}
