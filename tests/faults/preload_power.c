// SPDX-License-Identifier: Apache-2.0
// Logs every change of files below FLOE_POWER_ROOT, and every fsync, to FLOE_POWER_LOG, in the order in which
// they were done by all processes: tool_power.c tells from it what a power cut could leave.

#include "preload_files.h"

static const char *call_root(void) {
    return getenv("FLOE_POWER_ROOT");
}

// Locks belong to an open file: after a fork each process opens its own.
static int call_lock_fd(void) {
    static int fd = -1;
    static pid_t owner;
    if (owner == getpid()) return fd;
    fd = REAL(open)(getenv("FLOE_POWER_LOG"), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
    owner = getpid();
    if (fd < 0) abort();
    return fd;
}

static int call_before(Call *call) {
    (void)call;
    return 0;
}

static uint64_t inode_of(const Call *call, int64_t result, uint32_t *flags) {
    struct stat info;
    int failed = call->kind == CALL_OPEN ? fstat((int)result, &info)
                 : call->fd >= 0         ? fstat(call->fd, &info)
                                         : stat(call->kind == CALL_RENAME ? call->to : call->path, &info);
    if (failed) return 0;
    if (S_ISDIR(info.st_mode)) *flags |= POWER_FOLDER;
    return info.st_ino;
}

static void append(const void *data, size_t bytes) {
    for (size_t done = 0; done < bytes;) {
        ssize_t n = REAL(write)(call_lock_fd(), (const char *)data + done, bytes - done);
        if (n < 0 && errno != EINTR) abort();
        if (n > 0) done += (size_t)n;
    }
}

static void call_after(const Call *call, int64_t result) {
    if (result < 0) return;
    int failed = errno;
    PowerRecord record = {
        .magic = POWER_MAGIC, .kind = call->kind, .offset = call->offset, .bytes = call->bytes};
    record.inode = inode_of(call, result, &record.flags);
    record.path_bytes = (uint32_t)strlen(call->path);
    record.to_bytes = (uint32_t)strlen(call->to);
    if (call->kind == CALL_RENAME && call->flags & (int)RENAME_EXCHANGE) record.flags |= POWER_EXCHANGE;
    if (call->kind == CALL_OPEN && call->flags & O_TRUNC) record.flags |= POWER_EMPTIED;
    if (call->kind == CALL_WRITE) {
        record.bytes = result;
        record.data_bytes = (uint32_t)result;
        if (call->offset < 0) record.offset = lseek(call->fd, 0, SEEK_CUR) - result;
    }
    append(&record, sizeof record);
    append(call->path, record.path_bytes);
    append(call->to, record.to_bytes);
    append(call->data, record.data_bytes);
    errno = failed;
}
