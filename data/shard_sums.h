// SPDX-License-Identifier: Apache-2.0
// PREFIX.crc: CRC-32Cs of a token shard's .idx and of every 16 KiB of its .bin. Layout: docs/formats.md.
#pragma once
#include "core/status.h"
#include "data/output_file.h"
#include <stdint.h>

enum { SHARD_SUMS_BLOCK = 16384 };

typedef struct {     // being made
    uint32_t *block; // of the whole blocks so far, then of the begun one
    int64_t bytes;   // of .bin
} ShardSums;
void shard_sums_add(ShardSums *sums, const void *data, int64_t bytes); // of .bin, in order
void shard_sums_free(ShardSums *sums);
Status shard_sums_write(const ShardSums *sums, OutputFile *out, int64_t idx_bytes, uint32_t idx_crc);

typedef struct { // of an existing shard; all borrowed, as mapped
    const char *crc_path, *crc;
    int64_t crc_bytes;
    const char *bin_path, *bin;
    int64_t bin_bytes;
    const char *idx_path, *idx;
    int64_t idx_bytes;
} ShardFiles;
// ERR_DATA names the file: what .crc says of itself and of .idx.
Status shard_sums_check_index(const ShardFiles *files);
// The same for all blocks that hold bytes [first, first + bytes) of .bin.
Status shard_sums_check(const ShardFiles *files, int64_t first, int64_t bytes);
