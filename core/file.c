// SPDX-License-Identifier: Apache-2.0
#ifndef _GNU_SOURCE
#define _GNU_SOURCE // renameat2
#endif
#include "core/file.h"
#include "core/crc32c.h"
#include "core/log.h"
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { IO_PIECE = 1 << 20, READ_PIECE = 1 << 26 };

Status file_sync_folder(const char *path) {
    int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0) FAIL(ERR_RUNTIME, "%s: cannot open folder: %s", path, strerror(errno));
    // Some network file systems cannot flush a folder and say EINVAL; they order names themselves.
    int failed = fsync(fd) && errno != EINVAL ? errno : 0;
    close(fd);
    if (failed) FAIL(ERR_RUNTIME, "%s: cannot flush folder: %s", path, strerror(failed));
    return OK;
}

Status file_sync_parent(const char *path) {
    char parent[FILE_PATH_BYTES];
    const char *slash = strrchr(path, '/');
    int length = slash ? (int)(slash - path) : 0;
    if (!slash)
        snprintf(parent, sizeof parent, ".");
    else
        snprintf(parent, sizeof parent, "%.*s", length ? length : 1, path);
    return file_sync_folder(parent);
}

Status file_rename_durable(const char *from, const char *to) {
    int failed = renameat2(AT_FDCWD, from, AT_FDCWD, to, RENAME_NOREPLACE) ? errno : 0;
    if (failed == EINVAL || failed == ENOSYS) { // not on this file system
        struct stat info;
        if (lstat(to, &info) == 0) FAIL(ERR_RUNTIME, "%s: is there already", to);
        failed = rename(from, to) ? errno : 0;
    }
    if (failed) FAIL(ERR_RUNTIME, "%s: cannot rename to %s: %s", from, to, strerror(failed));
    Status status = file_sync_parent(to);
    if (status != OK && rename(to, from)) log_rank(LOG_WARN, "%s: stays: %s", to, strerror(errno));
    return status;
}

Status file_exchange_durable(const char *a, const char *b) {
    if (renameat2(AT_FDCWD, a, AT_FDCWD, b, RENAME_EXCHANGE))
        FAIL(ERR_RUNTIME, "%s: cannot change places with %s: %s", a, b, strerror(errno));
    Status status = file_sync_parent(b);
    if (status != OK && renameat2(AT_FDCWD, a, AT_FDCWD, b, RENAME_EXCHANGE))
        log_rank(LOG_WARN, "%s: stays: %s", b, strerror(errno));
    return status;
}

static Status remove_entries(const char *path) {
    DIR *folder = opendir(path);
    if (!folder) FAIL(ERR_RUNTIME, "%s: cannot open folder: %s", path, strerror(errno));
    Status status = OK;
    for (struct dirent *entry; status == OK && (entry = readdir(folder));) {
        if (!strcmp(entry->d_name, ".") || !strcmp(entry->d_name, "..")) continue;
        char child[FILE_PATH_BYTES + 256];
        snprintf(child, sizeof child, "%s/%s", path, entry->d_name);
        status = file_remove_tree(child);
    }
    closedir(folder);
    return status;
}

Status file_remove_tree(const char *path) {
    struct stat info;
    if (lstat(path, &info)) {
        if (errno == ENOENT) return OK;
        FAIL(ERR_RUNTIME, "%s: %s", path, strerror(errno));
    }
    if (S_ISDIR(info.st_mode)) TRY(remove_entries(path));
    int failed = S_ISDIR(info.st_mode) ? rmdir(path) : unlink(path);
    if (failed && errno != ENOENT) FAIL(ERR_RUNTIME, "%s: cannot remove: %s", path, strerror(errno));
    return OK;
}

Status file_make_folders(const char *path) {
    char part[FILE_PATH_BYTES];
    int length = snprintf(part, sizeof part, "%s", path);
    if (length < 0 || length >= (int)sizeof part) FAIL(ERR_CONFIG, "%.80s…: the path is too long", path);
    for (char *at = part + 1;; at++) {
        if (*at && *at != '/') continue;
        char end = *at;
        *at = 0;
        if (mkdir(part, 0777) && errno != EEXIST)
            FAIL(ERR_RUNTIME, "%s: cannot create folder: %s", part, strerror(errno));
        if (!end) break;
        *at = end;
    }
    struct stat info;
    if (stat(path, &info) || !S_ISDIR(info.st_mode)) FAIL(ERR_RUNTIME, "%s: is not a folder", path);
    return OK;
}

Status file_exists(const char *path, int *exists) {
    struct stat info;
    *exists = lstat(path, &info) == 0;
    if (!*exists && errno != ENOENT && errno != ENOTDIR) FAIL(ERR_RUNTIME, "%s: %s", path, strerror(errno));
    return OK;
}

Status file_read_at(int fd, const char *path, int64_t offset, void *out, size_t bytes) {
    for (size_t done = 0; done < bytes;) {
        size_t piece = bytes - done < READ_PIECE ? bytes - done : READ_PIECE;
        ssize_t n = pread(fd, (char *)out + done, piece, (off_t)(offset + (int64_t)done));
        if (n < 0 && errno == EINTR) continue;
        if (n < 0)
            FAIL(ERR_DATA, "%s: cannot read at byte %ld: %s", path, (long)(offset + (int64_t)done),
                 strerror(errno));
        if (n == 0) FAIL(ERR_DATA, "%s: ends at byte %ld", path, (long)(offset + (int64_t)done));
        done += (size_t)n;
    }
    return OK;
}

Status file_read_all(const char *path, char **text, size_t *bytes) {
    *text = NULL;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    struct stat info;
    if (fd < 0 || fstat(fd, &info)) {
        int failed = errno;
        if (fd >= 0) close(fd);
        FAIL(ERR_DATA, "%s: %s", path, strerror(failed));
    }
    *bytes = (size_t)info.st_size;
    *text = S_ISREG(info.st_mode) ? malloc(*bytes + 1) : NULL;
    Status status = *text ? file_read_at(fd, path, 0, *text, *bytes)
                          : status_fail(ERR_DATA, __FILE__, __LINE__, "%s: cannot be read whole", path);
    close(fd);
    if (status == OK)
        (*text)[*bytes] = 0;
    else {
        free(*text);
        *text = NULL;
    }
    return status;
}

Status file_checksum(int fd, const char *path, int64_t *bytes, uint32_t *crc) {
    char *piece = malloc(IO_PIECE);
    REQUIRE(piece, "out of memory: %d bytes", IO_PIECE);
    *bytes = 0;
    *crc = 0;
    ssize_t n;
    while ((n = pread(fd, piece, IO_PIECE, (off_t)*bytes)) != 0) {
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) break;
        *crc = crc32c(*crc, piece, (size_t)n);
        *bytes += n;
    }
    int failed = errno;
    free(piece);
    if (n < 0) FAIL(ERR_DATA, "%s: cannot read at byte %ld: %s", path, (long)*bytes, strerror(failed));
    return OK;
}
