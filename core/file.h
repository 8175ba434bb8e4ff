// SPDX-License-Identifier: Apache-2.0
// Files that are there after a power cut once the call has returned, and whole-file helpers. Failures are
// ERR_RUNTIME with path and reason unless said otherwise.
#pragma once
#include "core/status.h"
#include <stddef.h>
#include <stdint.h>
#ifdef __cplusplus
extern "C" {
#endif

enum { FILE_PATH_BYTES = 4096 };

// Writes a new file whole and flushes it to the device; nothing of it is left on failure. ERR_RUNTIME where
// the file exists.
Status file_write_durable(const char *path, const void *data, size_t bytes);
// The same of a file of `bytes` bytes that is zero outside the pieces. Large pieces at multiples of
// FILE_ALIGNMENT, in memory and in the file, go to the device without a copy in the page cache where the file
// system allows.
typedef struct {
    const void *data;
    int64_t offset;
    size_t bytes;
} FilePiece;
enum { FILE_ALIGNMENT = 4096 };
Status file_write_pieces_durable(const char *path, const FilePiece *piece, int pieces, int64_t bytes);
Status file_sync_folder(const char *path); // makes the names in a folder durable
Status file_sync_parent(const char *path); // the same for the folder that holds path
// Renames within a folder and makes that durable. An existing `to` is an error. On failure the names are as
// before.
Status file_rename_durable(const char *from, const char *to);
// Two names of one folder change places at once; durable. On failure they are as before.
Status file_exchange_durable(const char *a, const char *b);
Status file_remove_tree(const char *path);  // a file, or a folder with all that it holds; absent: OK
Status file_make_folders(const char *path); // with its parents
Status file_exists(const char *path, int *exists);

// ---- reading: failures are ERR_DATA
// Bytes [offset, offset + bytes).
Status file_read_at(int fd, const char *path, int64_t offset, void *out, size_t bytes);
Status file_read_all(const char *path, char **text,
                     size_t *bytes); // owned by the caller; a 0 follows the bytes
// Size and CRC-32C of the file behind fd.
Status file_checksum(int fd, const char *path, int64_t *bytes, uint32_t *crc);
#ifdef __cplusplus
}
#endif
