// SPDX-License-Identifier: Apache-2.0
#include "data/shard_sums.h"
#include "core/crc32c.h"
#include <stdbool.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
    char magic[8];
    int64_t block_bytes, bin_bytes, idx_bytes;
    uint32_t idx_crc, own_crc; // own: of the header before it
} Header;
_Static_assert(sizeof(Header) == 40, "as in docs/formats.md");
static const char magic[8] = "FLOECRC";

static int64_t blocks_of(int64_t bytes) {
    return (bytes + SHARD_SUMS_BLOCK - 1) / SHARD_SUMS_BLOCK;
}

static uint32_t header_crc(const Header *header) {
    return crc32c(0, header, offsetof(Header, own_crc));
}

// ---- writing

void shard_sums_add(ShardSums *sums, const void *data, int64_t bytes) {
    for (int64_t done = 0; done < bytes;) {
        int64_t block = sums->bytes / SHARD_SUMS_BLOCK,
                room = SHARD_SUMS_BLOCK - sums->bytes % SHARD_SUMS_BLOCK;
        int64_t n = bytes - done < room ? bytes - done : room;
        if (room == SHARD_SUMS_BLOCK) {
            if ((block & (block - 1)) == 0) {
                sums->block = realloc(sums->block, (size_t)(block ? 2 * block : 1) * sizeof *sums->block);
                REQUIRE(sums->block, "out of memory: checksums of %lld bytes", (long long)sums->bytes);
            }
            sums->block[block] = 0;
        }
        sums->block[block] = crc32c(sums->block[block], (const char *)data + done, (size_t)n);
        sums->bytes += n;
        done += n;
    }
}

void shard_sums_free(ShardSums *sums) {
    free(sums->block);
    *sums = (ShardSums){0};
}

Status shard_sums_write(const ShardSums *sums, OutputFile *out, int64_t idx_bytes, uint32_t idx_crc) {
    Header header = {.block_bytes = SHARD_SUMS_BLOCK,
                     .bin_bytes = sums->bytes,
                     .idx_bytes = idx_bytes,
                     .idx_crc = idx_crc};
    memcpy(header.magic, magic, sizeof magic);
    header.own_crc = header_crc(&header);
    TRY(output_write(out, &header, sizeof header));
    return output_write(out, sums->block, blocks_of(sums->bytes) * (int64_t)sizeof *sums->block);
}

// ---- reading

Status shard_sums_check_index(const ShardFiles *f) {
    Header header;
    bool whole = f->crc_bytes >= (int64_t)sizeof header;
    if (whole) memcpy(&header, f->crc, sizeof header);
    whole = whole && memcmp(header.magic, magic, sizeof magic) == 0 && header.own_crc == header_crc(&header);
    if (!whole || header.block_bytes != SHARD_SUMS_BLOCK ||
        f->crc_bytes != (int64_t)sizeof header + 4 * blocks_of(header.bin_bytes))
        FAIL(ERR_DATA, "%s is damaged: pack the text again, or copy the shard again", f->crc_path);
    if (header.bin_bytes != f->bin_bytes || header.idx_bytes != f->idx_bytes)
        FAIL(ERR_DATA, "%s belongs to a shard of other sizes; if another program wrote %s, remove it",
             f->crc_path, f->bin_path);
    if (crc32c(0, f->idx, (size_t)f->idx_bytes) == header.idx_crc) return OK;
    FAIL(ERR_DATA,
         "%s is damaged: its checksum is not that in %s; pack the text again, or copy the shard again",
         f->idx_path, f->crc_path);
}

Status shard_sums_check(const ShardFiles *f, int64_t first, int64_t bytes) {
    for (int64_t at = first - first % SHARD_SUMS_BLOCK; at < first + bytes; at += SHARD_SUMS_BLOCK) {
        int64_t n = f->bin_bytes - at < SHARD_SUMS_BLOCK ? f->bin_bytes - at : SHARD_SUMS_BLOCK;
        uint32_t expected;
        memcpy(&expected, f->crc + sizeof(Header) + 4 * (at / SHARD_SUMS_BLOCK), sizeof expected);
        if (crc32c(0, f->bin + at, (size_t)n) != expected)
            FAIL(ERR_DATA,
                 "%s is damaged: bytes %lld to %lld do not have the checksum in %s; pack the text again, or "
                 "copy the "
                 "shard again",
                 f->bin_path, (long long)at, (long long)(at + n), f->crc_path);
    }
    return OK;
}
