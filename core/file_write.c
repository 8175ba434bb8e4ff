// SPDX-License-Identifier: Apache-2.0
#ifndef _GNU_SOURCE
#define _GNU_SOURCE // O_DIRECT
#endif
#include "core/file.h"
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <string.h>
#include <unistd.h>

enum { WRITE_PIECE = 16 << 20, LEAST_DIRECT = 1 << 20 };

typedef struct {
    const char *path;
    int fd, direct; // direct: past the page cache; −1: not on this file system
    int64_t bytes;  // of the whole file
} Output;

static Status write_error(const Output *out, int64_t offset, const char *what) {
    FAIL(ERR_RUNTIME, "%s: %s after %ld of %ld bytes; free space or check the disk", out->path, what,
         (long)offset, (long)out->bytes);
}

static Status write_at(const Output *out, const char *data, int64_t offset, size_t bytes) {
    for (size_t done = 0; done < bytes;) {
        size_t piece = bytes - done < WRITE_PIECE ? bytes - done : WRITE_PIECE;
        ssize_t n = pwrite(out->fd, data + done, piece, (off_t)(offset + (int64_t)done));
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0)
            return write_error(out, offset + (int64_t)done, n < 0 ? strerror(errno) : "nothing written");
        done += (size_t)n;
    }
    return OK;
}

static bool is_aligned(const FilePiece *p) {
    return (uintptr_t)p->data % FILE_ALIGNMENT == 0 && p->offset % FILE_ALIGNMENT == 0;
}

// As many whole blocks as go past the page cache; the rest is for write_at, which also says what is wrong
// with the file.
static size_t write_direct(const Output *out, const FilePiece *p) {
    if (out->direct < 0 || p->bytes < LEAST_DIRECT || !is_aligned(p)) return 0;
    size_t whole = p->bytes / FILE_ALIGNMENT * FILE_ALIGNMENT, done = 0;
    while (done < whole) {
        size_t piece = whole - done < WRITE_PIECE ? whole - done : WRITE_PIECE;
        ssize_t n =
            pwrite(out->direct, (const char *)p->data + done, piece, (off_t)(p->offset + (int64_t)done));
        if (n < 0 && errno == EINTR) continue;
        if (n < FILE_ALIGNMENT) break;
        done += (size_t)n / FILE_ALIGNMENT * FILE_ALIGNMENT;
    }
    return done;
}

static Status write_pieces(const Output *out, const FilePiece *piece, int pieces) {
    // Asks for the space first, so that a full disk shows before anything is written. File systems that
    // cannot are fine.
    int full = out->bytes ? posix_fallocate(out->fd, 0, (off_t)out->bytes) : 0;
    if (full == ENOSPC || full == EDQUOT || full == EFBIG)
        FAIL(ERR_RUNTIME, "%s: %s: %ld bytes do not fit; free space", out->path, strerror(full),
             (long)out->bytes);
    if (full && ftruncate(out->fd, (off_t)out->bytes))
        FAIL(ERR_RUNTIME, "%s: cannot be %ld bytes long: %s", out->path, (long)out->bytes, strerror(errno));
    for (int i = 0; i < pieces; i++) {
        size_t done = write_direct(out, &piece[i]);
        TRY(write_at(out, (const char *)piece[i].data + done, piece[i].offset + (int64_t)done,
                     piece[i].bytes - done));
    }
    if (fsync(out->fd)) FAIL(ERR_RUNTIME, "%s: cannot flush: %s", out->path, strerror(errno));
    return OK;
}

Status file_write_pieces_durable(const char *path, const FilePiece *piece, int pieces, int64_t bytes) {
    Output out = {.path = path, .direct = -1, .bytes = bytes};
    out.fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (out.fd < 0) FAIL(ERR_RUNTIME, "%s: cannot create: %s", path, strerror(errno));
    out.direct = open(path, O_WRONLY | O_DIRECT | O_CLOEXEC);
    Status status = write_pieces(&out, piece, pieces);
    if (out.direct >= 0) close(out.direct);
    if (close(out.fd) && status == OK)
        status = status_fail(ERR_RUNTIME, __FILE__, __LINE__, "%s: cannot close: %s", path, strerror(errno));
    if (status != OK) unlink(path);
    return status;
}

Status file_write_durable(const char *path, const void *data, size_t bytes) {
    return file_write_pieces_durable(path, &(FilePiece){.data = data, .bytes = bytes}, 1, (int64_t)bytes);
}
