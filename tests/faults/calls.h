// SPDX-License-Identifier: Apache-2.0
// Calls that change files: their kinds, and the log that preload_power.c writes and tool_power.c reads:
// records in the order in which the calls returned, each followed by its path, the second path of a rename,
// and the data of a write.
#pragma once
#include <stdint.h>

typedef enum {
    CALL_OPEN,
    CALL_WRITE,
    CALL_SIZE, // offset is the new size
    CALL_GROW, // posix_fallocate: the size becomes offset + bytes at least
    CALL_MKDIR,
    CALL_RENAME,
    CALL_UNLINK,
    CALL_RMDIR,
    CALL_SYNC
} CallKind;

typedef struct {
    uint32_t magic, kind;
    uint64_t inode;
    int64_t offset, bytes;
    uint32_t path_bytes, to_bytes, data_bytes, flags;
} PowerRecord;

enum { POWER_MAGIC = 0x70776c67, POWER_FOLDER = 1, POWER_EXCHANGE = 2, POWER_EMPTIED = 4 };
