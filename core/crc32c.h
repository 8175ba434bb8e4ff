// SPDX-License-Identifier: Apache-2.0
// CRC-32C (Castagnoli), the checksum of iSCSI and ext4: crc32c(0, "123456789", 9) = 0xe3069283.
#pragma once
#include <stddef.h>
#include <stdint.h>
#ifdef __cplusplus
extern "C" {
#endif

// The checksum of what crc stands for followed by data; 0 stands for nothing. Uses the processor's
// instruction where it has one.
uint32_t crc32c(uint32_t crc, const void *data, size_t bytes);
uint32_t crc32c_by_table(uint32_t crc, const void *data, size_t bytes); // the same, without that instruction
// The checksum of two pieces of data one after the other, from their checksums and the second one's length.
uint32_t crc32c_join(uint32_t first, uint32_t second, int64_t second_bytes);
#ifdef __cplusplus
}
#endif
