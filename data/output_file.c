// SPDX-License-Identifier: Apache-2.0
#include "data/output_file.h"
#include "core/file.h"
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

// The folder part of a path, "." where it has none; the caller's to free.
static char *folder_of(const char *path) {
    char *folder = strdup(path);
    REQUIRE(folder, "out of memory");
    char *slash = strrchr(folder, '/');
    if (!slash)
        strcpy(folder, "."); // paths are not empty
    else
        slash[slash == folder] = 0;
    return folder;
}

static Status in_folder(const char *path, Status (*act)(const char *folder)) {
    char *folder = folder_of(path);
    Status status = act(folder);
    free(folder);
    return status;
}

// Locked, so that a second process that writes the same file does not mix its bytes in.
static Status open_locked(OutputFile *out) {
    int fd = open(out->tmp, O_WRONLY | O_CREAT | O_CLOEXEC, 0666);
    if (fd < 0) FAIL(ERR_RUNTIME, "%s: cannot be written: %s", out->path, strerror(errno));
    int busy = flock(fd, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK;
    if (!busy && ftruncate(fd, 0) == 0) out->file = fdopen(fd, "wb");
    if (out->file) return OK;
    int error = errno;
    close(fd);
    if (busy) FAIL(ERR_RUNTIME, "%s: another process is writing it", out->tmp);
    FAIL(ERR_RUNTIME, "%s: cannot be written: %s", out->tmp, strerror(error));
}

Status output_open(OutputFile *out, const char *path) {
    *out = (OutputFile){0};
    if (!path[0]) FAIL(ERR_CONFIG, "an output file needs a name");
    TRY(in_folder(path, file_make_folders));
    size_t size = strlen(path) + 5;
    out->path = strdup(path);
    out->tmp = malloc(size);
    REQUIRE(out->path && out->tmp, "out of memory");
    snprintf(out->tmp, size, "%s.tmp", path);
    Status status = open_locked(out);
    if (status != OK) {
        free(out->tmp); // it may be another process's
        out->tmp = NULL;
        output_cancel(out);
    }
    return status;
}

Status output_write(OutputFile *out, const void *data, int64_t bytes) {
    if (fwrite(data, 1, (size_t)bytes, out->file) == (size_t)bytes) return OK;
    FAIL(ERR_RUNTIME, "%s: write failed: %s; free some space and run the command again", out->tmp,
         strerror(errno));
}

Status output_sync(OutputFile *out) {
    if (fflush(out->file) == 0 && fsync(fileno(out->file)) == 0) return OK;
    FAIL(ERR_RUNTIME, "%s: write failed: %s; free some space and run the command again", out->tmp,
         strerror(errno));
}

Status output_commit(OutputFile *out) {
    TRY(output_sync(out));
    int closed = fclose(out->file);
    out->file = NULL;
    if (closed != 0) FAIL(ERR_RUNTIME, "%s: write failed: %s", out->tmp, strerror(errno));
    if (rename(out->tmp, out->path) != 0)
        FAIL(ERR_RUNTIME, "%s: cannot be renamed to %s: %s", out->tmp, out->path, strerror(errno));
    free(out->tmp);
    out->tmp = NULL;
    return in_folder(out->path, file_sync_folder);
}

void output_cancel(OutputFile *out) {
    if (out->file) fclose(out->file);
    if (out->tmp) unlink(out->tmp);
    free(out->tmp);
    free(out->path);
    *out = (OutputFile){0};
}
