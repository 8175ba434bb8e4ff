// SPDX-License-Identifier: Apache-2.0
#include "data/shard.h"
#include "core/rng.h"
#include "data/shard_sums.h"
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zlib.h>

// .idx: magic 9, u64 version 1, u8 type, u64 sequences, u64 documents + 1, then at byte 34 (unaligned) i32
// length[sequences], i64 byte offset in .bin[sequences], i64 first sequence[documents + 1], and perhaps i8
// mode[sequences].
static const char magic[9] = "MMIDIDX";
enum { HEADER_BYTES = 34, IDENTITY_BLOCKS = 16, IDENTITY_BLOCK_BYTES = 4096 };

typedef struct {
    char *path;
    const char *data; // NULL if the file is empty
    int64_t bytes;
} Map;

struct Shard {
    char *prefix;
    Map bin, idx, crc; // crc: no data where there is none
    TokenType type;
    int64_t tokens, sequences, documents;
    const char *length, *offset, *first; // unaligned arrays in idx
    uint64_t identity;
};

static const struct {
    TokenType type;
    int bytes;
    const char *name;
} types[] = {{TOKEN_U8, 1, "u8"},   {TOKEN_I8, 1, "i8"},   {TOKEN_I16, 2, "i16"},
             {TOKEN_I32, 4, "i32"}, {TOKEN_I64, 8, "i64"}, {TOKEN_U16, 2, "u16"}};

static int type_row(TokenType type) {
    for (int i = 0; i < (int)(sizeof types / sizeof types[0]); i++)
        if (types[i].type == type) return i;
    return -1;
}

const char *token_type_name(TokenType type) {
    int row = type_row(type);
    return row < 0 ? "unknown" : types[row].name;
}

int token_type_bytes(TokenType type) {
    int row = type_row(type);
    REQUIRE(row >= 0, "token type %d", (int)type);
    return types[row].bytes;
}

static int64_t load_i64(const char *at) {
    int64_t value;
    memcpy(&value, at, sizeof value);
    return value;
}

static int32_t load_i32(const char *at) {
    int32_t value;
    memcpy(&value, at, sizeof value);
    return value;
}

static Status map_file(Map *map, int fd) {
    struct stat info;
    if (fstat(fd, &info) != 0) FAIL(ERR_DATA, "%s: %s", map->path, strerror(errno));
    if (!S_ISREG(info.st_mode)) FAIL(ERR_DATA, "%s is not a regular file", map->path);
    map->bytes = (int64_t)info.st_size;
    if (map->bytes == 0) return OK;
    void *data = mmap(NULL, (size_t)map->bytes, PROT_READ, MAP_SHARED, fd, 0);
    if (data == MAP_FAILED) FAIL(ERR_DATA, "%s: cannot be mapped: %s", map->path, strerror(errno));
    map->data = data;
    return OK;
}

static Status map_open(Map *map, const char *prefix, const char *extension) {
    size_t size = strlen(prefix) + strlen(extension) + 1;
    map->path = malloc(size);
    REQUIRE(map->path, "out of memory");
    snprintf(map->path, size, "%s%s", prefix, extension);
    int fd = open(map->path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        FAIL(ERR_DATA, "%s: %s; a token shard is a pair PREFIX.bin and PREFIX.idx, made by floe data pack",
             map->path, strerror(errno));
    Status status = map_file(map, fd);
    close(fd);
    return status;
}

static void map_close(Map *map) {
    if (map->data) munmap((void *)(uintptr_t)map->data, (size_t)map->bytes);
    free(map->path);
}

static Status check_magic(const Shard *shard) {
    const Map *idx = &shard->idx, *bin = &shard->bin;
    if (idx->bytes >= HEADER_BYTES && memcmp(idx->data, magic, sizeof magic) == 0) return OK;
    if (bin->bytes >= HEADER_BYTES && memcmp(bin->data, magic, sizeof magic) == 0)
        FAIL(ERR_DATA, "%s holds an index and %s does not: the two are swapped; rename them", bin->path,
             idx->path);
    if (idx->bytes < HEADER_BYTES)
        FAIL(ERR_DATA, "%s has %lld bytes, too few for the header of an index (%d): pack the text again",
             idx->path, (long long)idx->bytes, HEADER_BYTES);
    FAIL(ERR_DATA,
         "%s is not a token index: it begins with %02x %02x %02x %02x, not with MMIDIDX; pack the text again",
         idx->path, (unsigned char)idx->data[0], (unsigned char)idx->data[1], (unsigned char)idx->data[2],
         (unsigned char)idx->data[3]);
}

// Header fields, and that the arrays they count fill the file exactly.
static Status check_header(Shard *shard) {
    const Map *idx = &shard->idx;
    TRY(check_magic(shard));
    int64_t version = load_i64(idx->data + 9), sequences = load_i64(idx->data + 18),
            bounds = load_i64(idx->data + 26);
    int type = (unsigned char)idx->data[17];
    if (version != 1)
        FAIL(ERR_DATA, "%s: version %lld; this program reads version 1", idx->path, (long long)version);
    if (type == 6 || type == 7)
        FAIL(ERR_DATA, "%s: type code %d stands for floating-point numbers, not for token ids", idx->path,
             type);
    if (type_row((TokenType)type) < 0)
        FAIL(ERR_DATA, "%s: token type code %d; known are 1 u8, 2 i8, 3 i16, 4 i32, 5 i64, 8 u16", idx->path,
             type);
    int64_t room = idx->bytes - HEADER_BYTES;
    bool countable = sequences >= 0 && bounds >= 1 && sequences <= room / 12 && bounds <= room / 8;
    int64_t need = countable ? 12 * sequences + 8 * bounds : -1;
    if (!countable || (need != room && need + sequences != room))
        FAIL(ERR_DATA,
             "%s has %lld bytes, which does not fit the %lld sequences and %lld document bounds that its "
             "header counts: "
             "it is truncated or damaged; copy it again or pack the text again",
             idx->path, (long long)idx->bytes, (long long)sequences, (long long)bounds);
    if (sequences == 0) FAIL(ERR_DATA, "%s counts no tokens: the shard is empty; pack some text", idx->path);
    shard->type = (TokenType)type;
    shard->sequences = sequences;
    shard->documents = bounds - 1;
    shard->length = idx->data + HEADER_BYTES;
    shard->offset = shard->length + 4 * sequences;
    shard->first = shard->offset + 8 * sequences;
    return OK;
}

// Sequences lie in .bin one after the other, without gaps, to its last byte. Hashes the lengths on the way.
static Status check_sequences(Shard *shard, uint64_t *hash) {
    const char *path = shard->idx.path;
    int64_t end = 0, width = token_type_bytes(shard->type);
    uint64_t h = 0xcbf29ce484222325u;
    for (int64_t i = 0; i < shard->sequences; i++) {
        int32_t length = load_i32(shard->length + 4 * i);
        int64_t offset = load_i64(shard->offset + 8 * i);
        if (length < 0)
            FAIL(ERR_DATA, "%s: sequence %lld has length %d: the index is damaged; pack the text again", path,
                 (long long)i, length);
        if (offset != end)
            FAIL(ERR_DATA,
                 "%s: sequence %lld begins at byte %lld, but the ones before it end at %lld: the index is "
                 "damaged; "
                 "pack the text again",
                 path, (long long)i, (long long)offset, (long long)end);
        end += length * width;
        if (end > shard->bin.bytes) break;
        h = (h ^ (uint32_t)length) * 0x9e3779b97f4a7c15u;
    }
    if (end != shard->bin.bytes)
        FAIL(ERR_DATA,
             "%s has %lld bytes, but %s counts %s%lld (%s tokens): one of them is truncated or belongs to "
             "another shard; "
             "copy both again or pack the text again",
             shard->bin.path, (long long)shard->bin.bytes, path, end > shard->bin.bytes ? "at least " : "",
             (long long)end, token_type_name(shard->type));
    if (end == 0) FAIL(ERR_DATA, "%s holds no tokens: the shard is empty; pack some text", shard->bin.path);
    shard->tokens = end / width;
    *hash = h;
    return OK;
}

static Status check_documents(const Shard *shard, uint64_t *hash) {
    int64_t before = 0;
    for (int64_t i = 0; i <= shard->documents; i++) {
        int64_t first = load_i64(shard->first + 8 * i);
        bool edge = (i == 0 && first != 0) || (i == shard->documents && first != shard->sequences);
        if (edge || first < before || first > shard->sequences)
            FAIL(ERR_DATA,
                 "%s: document bound %lld is %lld, after %lld and with %lld sequences: the index is damaged; "
                 "pack the text again",
                 shard->idx.path, (long long)i, (long long)first, (long long)before,
                 (long long)shard->sequences);
        before = first;
        *hash = (*hash ^ (uint64_t)first) * 0x9e3779b97f4a7c15u;
    }
    return OK;
}

static uint64_t content_hash(const Shard *shard, uint64_t hash) {
    hash = hash_mix(hash_mix(hash, (uint64_t)shard->type), (uint64_t)shard->bin.bytes);
    int64_t last = shard->bin.bytes - IDENTITY_BLOCK_BYTES;
    uLong crc = crc32(0, NULL, 0);
    if (last <= 0) {
        crc = crc32(crc, (const Bytef *)shard->bin.data, (uInt)shard->bin.bytes);
    } else {
        for (int64_t i = 0; i < IDENTITY_BLOCKS; i++) {
            int64_t at = last / (IDENTITY_BLOCKS - 1) * i;
            if (i == IDENTITY_BLOCKS - 1) at = last;
            crc = crc32(crc, (const Bytef *)shard->bin.data + at, IDENTITY_BLOCK_BYTES);
        }
    }
    return hash_mix(hash, crc);
}

static char *prefix_of(const char *name) {
    size_t length = strlen(name);
    if (length > 4 && (strcmp(name + length - 4, ".bin") == 0 || strcmp(name + length - 4, ".idx") == 0))
        length -= 4;
    char *prefix = strndup(name, length);
    REQUIRE(prefix, "out of memory");
    return prefix;
}

static ShardFiles files_of(const Shard *shard) {
    return (ShardFiles){.crc_path = shard->crc.path,
                        .crc = shard->crc.data,
                        .crc_bytes = shard->crc.bytes,
                        .bin_path = shard->bin.path,
                        .bin = shard->bin.data,
                        .bin_bytes = shard->bin.bytes,
                        .idx_path = shard->idx.path,
                        .idx = shard->idx.data,
                        .idx_bytes = shard->idx.bytes};
}

// Shards of other programs have none.
static Status open_sums(Shard *shard) {
    char path[PATH_MAX];
    snprintf(path, sizeof path, "%s.crc", shard->prefix);
    if (access(path, F_OK) != 0 && errno == ENOENT) return OK;
    TRY(map_open(&shard->crc, shard->prefix, ".crc"));
    ShardFiles files = files_of(shard);
    return shard_sums_check_index(&files);
}

static Status open_checked(Shard *shard) {
    TRY(map_open(&shard->idx, shard->prefix, ".idx"));
    TRY(map_open(&shard->bin, shard->prefix, ".bin"));
    TRY(check_header(shard));
    uint64_t hash = 0;
    TRY(check_sequences(shard, &hash));
    TRY(check_documents(shard, &hash));
    TRY(open_sums(shard));
    shard->identity = content_hash(shard, hash);
    return OK;
}

Status shard_open(Shard **out, const char *prefix) {
    Shard *shard = calloc(1, sizeof *shard);
    REQUIRE(shard, "out of memory");
    shard->prefix = prefix_of(prefix);
    Status status = open_checked(shard);
    if (status != OK) {
        shard_close(shard);
        shard = NULL;
    }
    *out = shard;
    return status;
}

void shard_close(Shard *shard) {
    if (!shard) return;
    map_close(&shard->bin);
    map_close(&shard->idx);
    map_close(&shard->crc);
    free(shard->prefix);
    free(shard);
}

const char *shard_prefix(const Shard *shard) {
    return shard->prefix;
}
int64_t shard_tokens(const Shard *shard) {
    return shard->tokens;
}
int64_t shard_documents(const Shard *shard) {
    return shard->documents;
}
int64_t shard_sequences(const Shard *shard) {
    return shard->sequences;
}
int64_t shard_bytes(const Shard *shard) {
    return shard->bin.bytes + shard->idx.bytes;
}
TokenType shard_type(const Shard *shard) {
    return shard->type;
}
uint64_t shard_identity(const Shard *shard) {
    return shard->identity;
}
bool shard_has_sums(const Shard *shard) {
    return shard->crc.data != NULL;
}

int64_t shard_document_start(const Shard *shard, int64_t document) {
    REQUIRE(document >= 0 && document <= shard->documents, "document %lld of %lld", (long long)document,
            (long long)shard->documents);
    int64_t sequence = load_i64(shard->first + 8 * document);
    if (sequence == shard->sequences) return shard->tokens;
    return load_i64(shard->offset + 8 * sequence) / token_type_bytes(shard->type);
}

// Copies as int32; true if each id is in [0, limit).
#define WIDEN(name, type)                                                                                    \
    static bool name(const type *from, int64_t count, uint64_t limit, int32_t *to) {                         \
        int bad = 0;                                                                                         \
        for (int64_t i = 0; i < count; i++) {                                                                \
            bad |= (uint64_t)(int64_t)from[i] >= limit;                                                      \
            to[i] = (int32_t)from[i];                                                                        \
        }                                                                                                    \
        return !bad;                                                                                         \
    }
WIDEN(widen_u8, uint8_t)
WIDEN(widen_i8, int8_t)
WIDEN(widen_i16, int16_t)
WIDEN(widen_i32, int32_t)
WIDEN(widen_i64, int64_t)
WIDEN(widen_u16, uint16_t)

static int64_t token_at(const Shard *shard, int64_t i) {
    const void *data = shard->bin.data;
    switch (shard->type) {
    case TOKEN_U8:
        return ((const uint8_t *)data)[i];
    case TOKEN_I8:
        return ((const int8_t *)data)[i];
    case TOKEN_I16:
        return ((const int16_t *)data)[i];
    case TOKEN_I32:
        return ((const int32_t *)data)[i];
    case TOKEN_I64:
        return ((const int64_t *)data)[i];
    case TOKEN_U16:
        return ((const uint16_t *)data)[i];
    }
    DIE("token type %d", (int)shard->type);
}

static bool widen(const Shard *shard, int64_t first, int64_t count, uint64_t limit, int32_t *to) {
    const void *data =
        shard->bin.data + first * token_type_bytes(shard->type); // aligned: mappings begin at a page
    switch (shard->type) {
    case TOKEN_U8:
        return widen_u8(data, count, limit, to);
    case TOKEN_I8:
        return widen_i8(data, count, limit, to);
    case TOKEN_I16:
        return widen_i16(data, count, limit, to);
    case TOKEN_I32:
        return widen_i32(data, count, limit, to);
    case TOKEN_I64:
        return widen_i64(data, count, limit, to);
    case TOKEN_U16:
        return widen_u16(data, count, limit, to);
    }
    DIE("token type %d", (int)shard->type);
}

Status shard_read(const Shard *shard, int64_t first, int64_t count, int vocab, int32_t *tokens) {
    REQUIRE(first >= 0 && count >= 0 && first <= shard->tokens - count, "%s: tokens %lld + %lld of %lld",
            shard->bin.path, (long long)first, (long long)count, (long long)shard->tokens);
    if (shard->crc.data) {
        int64_t width = token_type_bytes(shard->type);
        ShardFiles files = files_of(shard);
        TRY(shard_sums_check(&files, width * first, width * count));
    }
    if (widen(shard, first, count, (uint64_t)vocab, tokens)) return OK;
    int64_t at = first;
    while ((uint64_t)token_at(shard, at) < (uint64_t)vocab) at++;
    FAIL(ERR_DATA,
         "%s: token %lld is %lld, outside the vocabulary 0 … %d: the text was packed with another tokenizer, "
         "or the "
         "file is damaged; run floe data verify %s --vocab %d",
         shard->bin.path, (long long)at, (long long)token_at(shard, at), vocab - 1, shard->prefix, vocab);
}
