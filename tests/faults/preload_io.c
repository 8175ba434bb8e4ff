// SPDX-License-Identifier: Apache-2.0
// Lets one call on files below FLOE_IO_ROOT fail:
//   FLOE_IO_CALL    mkdir, open (for writing), size (allocation), write, fsync, rename
//   FLOE_IO_ERROR   EIO, ENOSPC, EDQUOT, EROFS, or short: half of the bytes are written
//   FLOE_IO_RANK    on this rank
//   FLOE_IO_STEP    only during the save of this step (the newest step in a path so far)
//   FLOE_IO_AT      the how-manieth such call
//   FLOE_IO_LASTS   set: all calls from there on, and in later saves
//   FLOE_IO_NOTE    gets the path of what has failed, and O_DIRECT where it was opened so
#include "preload_files.h"

static const char *call_root(void) {
    return getenv("FLOE_IO_ROOT");
}

static int call_lock_fd(void) {
    return -1;
}

static const char *setting(const char *name) {
    const char *value = getenv(name);
    return value ? value : "";
}

static bool is_here(void) {
    return strcmp(setting("OMPI_COMM_WORLD_RANK"), setting("FLOE_IO_RANK")) == 0;
}

static bool is_kind(const Call *call) {
    static const char *const name[] = {[CALL_OPEN] = "open", [CALL_WRITE] = "write", [CALL_SIZE] = "",
                                       [CALL_GROW] = "size", [CALL_MKDIR] = "mkdir", [CALL_RENAME] = "rename",
                                       [CALL_UNLINK] = "",   [CALL_RMDIR] = "",      [CALL_SYNC] = "fsync"};
    if (call->kind == CALL_OPEN && (call->flags & O_ACCMODE) == O_RDONLY) return false;
    if (call->kind == CALL_MKDIR && !strstr(call->path, "step-"))
        return false; // folders that are there already
    return strcmp(name[call->kind], setting("FLOE_IO_CALL")) == 0;
}

static int error_number(void) {
    static const struct {
        const char *name;
        int number;
    } errors[] = {{"EIO", EIO}, {"ENOSPC", ENOSPC}, {"EDQUOT", EDQUOT}, {"EROFS", EROFS}};
    for (size_t i = 0; i < sizeof errors / sizeof *errors; i++)
        if (!strcmp(errors[i].name, setting("FLOE_IO_ERROR"))) return errors[i].number;
    abort();
}

static void leave_note(const Call *call) {
    int fd = REAL(open)(setting("FLOE_IO_NOTE"), O_WRONLY | O_CREAT | O_APPEND, 0666);
    if (fd < 0 || dprintf(fd, "%s%s\n", call->path,
                          call->kind == CALL_OPEN && call->flags & O_DIRECT ? " (O_DIRECT)" : "") < 0)
        abort();
    REAL(close)(fd);
}

static int call_before(Call *call) {
    static long step = -1, calls;
    const char *name = strstr(call->path, "step-");
    if (name) step = strtol(name + 5, NULL, 10);
    long wanted = atol(setting("FLOE_IO_STEP")), at = atol(setting("FLOE_IO_AT"));
    bool lasts = *setting("FLOE_IO_LASTS"), due = step == wanted || (lasts && step > wanted);
    if (!is_here() || !is_kind(call) || !due) return 0;
    calls++;
    if (calls != at && !(lasts && calls > at)) return 0;
    leave_note(call);
    if (strcmp(setting("FLOE_IO_ERROR"), "short")) return error_number();
    call->bytes /= 2;
    return 0;
}

static void call_after(const Call *call, int64_t result) {
    (void)call;
    (void)result;
}
