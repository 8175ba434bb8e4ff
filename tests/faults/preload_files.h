// SPDX-License-Identifier: Apache-2.0
// For libraries that are preloaded: every call that changes files below one folder goes through call_before
// and call_after, which the including file defines. One call at a time in the process, and with call_lock_fd
// in all processes that share that file. Not seen: what libc itself does (fopen), memory maps, copied
// descriptors.
#pragma once
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "calls.h"
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

// The function that this library hides; found once.
#define REAL(name)                                                                                           \
    ({                                                                                                       \
        static __typeof__(&name) found;                                                                      \
        if (!found) found = (__typeof__(&name))dlsym(RTLD_NEXT, #name);                                      \
        found;                                                                                               \
    })

enum { CALL_PATH_BYTES = 4096, CALL_FDS = 65536 };

typedef struct {
    CallKind kind;
    char path[CALL_PATH_BYTES], to[CALL_PATH_BYTES]; // absolute; to: of a rename
    int fd;                                          // −1 where the call takes a path
    int flags;                                       // of open and renameat2
    mode_t mode;
    const void *data;
    int64_t offset, bytes; // offset −1: where the descriptor stands
} Call;

static const char *call_root(void); // absolute; NULL: nothing is watched
static int call_lock_fd(void);      // −1: none
static int call_before(Call *call); // 0, or the errno it fails with; may take bytes off a write
static void call_after(const Call *call, int64_t result);

// ---- which descriptor is which path

static char *call_fd_path[CALL_FDS];

static bool call_watched(const char *path) {
    const char *root = call_root();
    size_t length = root ? strlen(root) : 0;
    return root && strncmp(path, root, length) == 0 && (path[length] == '/' || !path[length]);
}

// Absolute, without "." and doubled slashes; floe has no ".." in its paths.
static void call_absolute(int folder, const char *path, char out[CALL_PATH_BYTES]) {
    char text[2 * CALL_PATH_BYTES] = "", link[64];
    size_t length = 0;
    if (path[0] != '/' && folder == AT_FDCWD) {
        if (!getcwd(text, CALL_PATH_BYTES)) text[0] = 0;
        length = strlen(text);
    } else if (path[0] != '/') {
        snprintf(link, sizeof link, "/proc/self/fd/%d", folder);
        ssize_t n = readlink(link, text, CALL_PATH_BYTES - 1);
        length = n > 0 ? (size_t)n : 0;
    }
    snprintf(text + length, sizeof text - length, "/%.*s", CALL_PATH_BYTES - 2, path);
    size_t n = 0;
    for (const char *at = text; *at && n + 2 < CALL_PATH_BYTES;) {
        size_t part = strcspn(at, "/");
        bool skipped = part == 0 || (part == 1 && at[0] == '.');
        if (!skipped && n + part + 2 < CALL_PATH_BYTES) {
            out[n++] = '/';
            memcpy(out + n, at, part);
            n += part;
        }
        at += part + (at[part] == '/');
    }
    out[n] = 0;
}

static bool call_of_fd(Call *call, int fd) {
    if (fd < 0 || fd >= CALL_FDS || !call_fd_path[fd]) return false;
    snprintf(call->path, sizeof call->path, "%s", call_fd_path[fd]);
    call->fd = fd;
    return true;
}

static void call_forget(int fd) {
    if (fd < 0 || fd >= CALL_FDS) return;
    free(call_fd_path[fd]);
    call_fd_path[fd] = NULL;
}

// ---- doing it

static int64_t call_perform(const Call *c) {
    switch (c->kind) {
    case CALL_OPEN:
        return REAL(open)(c->path, c->flags, c->mode);
    case CALL_WRITE:
        return c->offset < 0 ? REAL(write)(c->fd, c->data, (size_t)c->bytes)
                             : REAL(pwrite)(c->fd, c->data, (size_t)c->bytes, c->offset);
    case CALL_SIZE:
        return c->fd < 0 ? REAL(truncate)(c->path, c->offset) : REAL(ftruncate)(c->fd, c->offset);
    case CALL_GROW: {
        int failed = REAL(posix_fallocate)(c->fd, c->offset, c->bytes);
        if (failed) errno = failed;
        return failed ? -1 : 0;
    }
    case CALL_MKDIR:
        return REAL(mkdir)(c->path, c->mode);
    case CALL_RENAME:
        return REAL(renameat2)(AT_FDCWD, c->path, AT_FDCWD, c->to, (unsigned)c->flags);
    case CALL_UNLINK:
        return REAL(unlink)(c->path);
    case CALL_RMDIR:
        return REAL(rmdir)(c->path);
    case CALL_SYNC:
        return REAL(fsync)(c->fd);
    }
    return -1;
}

static pthread_mutex_t call_mutex = PTHREAD_MUTEX_INITIALIZER;

static int64_t call_run(Call *c) {
    pthread_mutex_lock(&call_mutex);
    int lock = call_lock_fd();
    while (lock >= 0 && flock(lock, LOCK_EX) != 0 && errno == EINTR) {
    }
    int failed = call_before(c);
    int64_t result = failed ? -1 : call_perform(c);
    if (!failed) failed = errno;
    if (c->kind == CALL_OPEN && result >= 0 && result < CALL_FDS) {
        call_forget((int)result);
        call_fd_path[result] = strdup(c->path);
    }
    call_after(c, result);
    if (lock >= 0) flock(lock, LOCK_UN);
    pthread_mutex_unlock(&call_mutex);
    errno = failed;
    return result;
}

// ---- the functions that floe calls

static int call_open(int folder, const char *path, int flags, mode_t mode) {
    Call c = {.kind = CALL_OPEN, .fd = -1, .flags = flags, .mode = mode};
    call_absolute(folder, path, c.path);
    if (call_watched(c.path)) return (int)call_run(&c);
    return REAL(openat)(folder, path, flags, mode);
}

#define OPEN_MODE(flags, mode)                                                                               \
    mode_t mode = 0;                                                                                         \
    if ((flags) & (O_CREAT | O_TMPFILE)) {                                                                   \
        va_list args;                                                                                        \
        va_start(args, flags);                                                                               \
        mode = va_arg(args, mode_t);                                                                         \
        va_end(args);                                                                                        \
    }

int open(const char *path, int flags, ...) {
    OPEN_MODE(flags, mode)
    return call_open(AT_FDCWD, path, flags, mode);
}
int open64(const char *path, int flags, ...) {
    OPEN_MODE(flags, mode)
    return call_open(AT_FDCWD, path, flags, mode);
}
int openat(int folder, const char *path, int flags, ...) {
    OPEN_MODE(flags, mode)
    return call_open(folder, path, flags, mode);
}
int openat64(int folder, const char *path, int flags, ...) {
    OPEN_MODE(flags, mode)
    return call_open(folder, path, flags, mode);
}
int creat(const char *path, mode_t mode) {
    return call_open(AT_FDCWD, path, O_WRONLY | O_CREAT | O_TRUNC, mode);
}
// What open becomes with fortified headers.
int __open_2(const char *path, int flags);
int __open64_2(const char *path, int flags);
int __openat_2(int folder, const char *path, int flags);
int __open_2(const char *path, int flags) {
    return call_open(AT_FDCWD, path, flags, 0);
}
int __open64_2(const char *path, int flags) {
    return call_open(AT_FDCWD, path, flags, 0);
}
int __openat_2(int folder, const char *path, int flags) {
    return call_open(folder, path, flags, 0);
}

int close(int fd) {
    call_forget(fd);
    return REAL(close)(fd);
}

static bool call_write(int fd, const void *data, size_t bytes, int64_t offset, ssize_t *result) {
    if (fd < 0 || fd >= CALL_FDS || !call_fd_path[fd]) return false;
    Call c = {.kind = CALL_WRITE, .data = data, .bytes = (int64_t)bytes, .offset = offset};
    if (!call_of_fd(&c, fd)) return false;
    *result = call_run(&c);
    return true;
}

ssize_t write(int fd, const void *data, size_t bytes) {
    ssize_t n;
    return call_write(fd, data, bytes, -1, &n) ? n : REAL(write)(fd, data, bytes);
}
ssize_t pwrite(int fd, const void *data, size_t bytes, off_t offset) {
    ssize_t n;
    return call_write(fd, data, bytes, offset, &n) ? n : REAL(pwrite)(fd, data, bytes, offset);
}
ssize_t pwrite64(int fd, const void *data, size_t bytes, off_t offset) {
    return pwrite(fd, data, bytes, offset);
}

// Pieces become one, aligned for O_DIRECT.
static bool call_write_pieces(int fd, const struct iovec *piece, int pieces, int64_t offset,
                              ssize_t *result) {
    if (fd < 0 || fd >= CALL_FDS || !call_fd_path[fd]) return false;
    size_t bytes = 0, done = 0;
    for (int i = 0; i < pieces; i++) bytes += piece[i].iov_len;
    char *all = aligned_alloc(4096, (bytes + 4096) / 4096 * 4096);
    if (!all) abort();
    for (int i = 0; i < pieces; done += piece[i++].iov_len)
        memcpy(all + done, piece[i].iov_base, piece[i].iov_len);
    bool tracked = call_write(fd, all, bytes, offset, result);
    int failed = errno;
    free(all);
    errno = failed;
    return tracked;
}
ssize_t writev(int fd, const struct iovec *piece, int pieces) {
    ssize_t n;
    return call_write_pieces(fd, piece, pieces, -1, &n) ? n : REAL(writev)(fd, piece, pieces);
}
ssize_t pwritev(int fd, const struct iovec *piece, int pieces, off_t offset) {
    ssize_t n;
    return call_write_pieces(fd, piece, pieces, offset, &n) ? n : REAL(pwritev)(fd, piece, pieces, offset);
}
ssize_t pwritev64(int fd, const struct iovec *piece, int pieces, off_t offset) {
    return pwritev(fd, piece, pieces, offset);
}

int ftruncate(int fd, off_t size) {
    Call c = {.kind = CALL_SIZE, .offset = size};
    return call_of_fd(&c, fd) ? (int)call_run(&c) : REAL(ftruncate)(fd, size);
}
int ftruncate64(int fd, off_t size) {
    return ftruncate(fd, size);
}
int truncate(const char *path, off_t size) {
    Call c = {.kind = CALL_SIZE, .fd = -1, .offset = size};
    call_absolute(AT_FDCWD, path, c.path);
    return call_watched(c.path) ? (int)call_run(&c) : REAL(truncate)(path, size);
}
int truncate64(const char *path, off_t size) {
    return truncate(path, size);
}
int posix_fallocate(int fd, off_t offset, off_t bytes) {
    Call c = {.kind = CALL_GROW, .offset = offset, .bytes = bytes};
    int before = errno;
    if (!call_of_fd(&c, fd)) return REAL(posix_fallocate)(fd, offset, bytes);
    int failed = call_run(&c) ? errno : 0;
    errno = before;
    return failed;
}
int posix_fallocate64(int fd, off_t offset, off_t bytes) {
    return posix_fallocate(fd, offset, bytes);
}
int fallocate(int fd, int mode, off_t offset, off_t bytes) {
    Call c = {.kind = CALL_GROW, .offset = offset, .bytes = bytes};
    if (mode || !call_of_fd(&c, fd)) return REAL(fallocate)(fd, mode, offset, bytes);
    return (int)call_run(&c);
}
int fallocate64(int fd, int mode, off_t offset, off_t bytes) {
    return fallocate(fd, mode, offset, bytes);
}

int mkdirat(int folder, const char *path, mode_t mode) {
    Call c = {.kind = CALL_MKDIR, .fd = -1, .mode = mode};
    call_absolute(folder, path, c.path);
    return call_watched(c.path) ? (int)call_run(&c) : REAL(mkdirat)(folder, path, mode);
}
int mkdir(const char *path, mode_t mode) {
    return mkdirat(AT_FDCWD, path, mode);
}

int renameat2(int folder, const char *from, int to_folder, const char *to, unsigned flags) {
    Call c = {.kind = CALL_RENAME, .fd = -1, .flags = (int)flags};
    call_absolute(folder, from, c.path);
    call_absolute(to_folder, to, c.to);
    bool watched = call_watched(c.path) || call_watched(c.to);
    return watched ? (int)call_run(&c) : REAL(renameat2)(folder, from, to_folder, to, flags);
}
int renameat(int folder, const char *from, int to_folder, const char *to) {
    return renameat2(folder, from, to_folder, to, 0);
}
int rename(const char *from, const char *to) {
    return renameat2(AT_FDCWD, from, AT_FDCWD, to, 0);
}

int unlinkat(int folder, const char *path, int flags) {
    Call c = {.kind = flags & AT_REMOVEDIR ? CALL_RMDIR : CALL_UNLINK, .fd = -1};
    call_absolute(folder, path, c.path);
    return call_watched(c.path) ? (int)call_run(&c) : REAL(unlinkat)(folder, path, flags);
}
int unlink(const char *path) {
    return unlinkat(AT_FDCWD, path, 0);
}
int rmdir(const char *path) {
    return unlinkat(AT_FDCWD, path, AT_REMOVEDIR);
}

int fsync(int fd) {
    Call c = {.kind = CALL_SYNC};
    return call_of_fd(&c, fd) ? (int)call_run(&c) : REAL(fsync)(fd);
}
int fdatasync(int fd) {
    Call c = {.kind = CALL_SYNC};
    return call_of_fd(&c, fd) ? (int)call_run(&c) : REAL(fdatasync)(fd);
}
