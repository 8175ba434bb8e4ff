// SPDX-License-Identifier: Apache-2.0
// What is known about a checkpoint, beside its folder: CKPT_FOLDER/.verified/NAME and
// CKPT_FOLDER/.pinned/NAME hold the checksum of its manifest, so that a mark never speaks of another
// checkpoint of the same step.
#include "core/log.h"
#include "train/checkpoint_internal.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef struct {
    char folder[FILE_PATH_BYTES], path[FILE_PATH_BYTES + 64];
} MarkPlace;

static const char *const mark_folder[] = {".verified", ".pinned"};

static Status place_of(const char *dir, CheckpointMark mark, MarkPlace *out) {
    size_t length = strlen(dir);
    while (length > 1 && dir[length - 1] == '/') length--;
    size_t name = length;
    while (name > 0 && dir[name - 1] != '/') name--;
    if (length - name >= 40 || name + 16 >= sizeof out->folder)
        FAIL(ERR_CONFIG, "%.80s: is no checkpoint of a run", dir);
    snprintf(out->folder, sizeof out->folder, "%.*s%s", (int)name, dir, mark_folder[mark]);
    snprintf(out->path, sizeof out->path, "%s/%.*s", out->folder, (int)(length - name), dir + name);
    return OK;
}

bool checkpoint_has_mark(const char *dir, CheckpointMark mark) {
    MarkPlace place;
    Manifest m;
    char *text, expected[16];
    size_t bytes;
    if (place_of(dir, mark, &place) != OK || access(place.path, F_OK) != 0) return false;
    if (file_read_all(place.path, &text, &bytes) != OK) {
        log_rank(LOG_WARN, "%s", status_text());
        return false;
    }
    bool has = manifest_read(&m, dir) == OK;
    if (has) {
        snprintf(expected, sizeof expected, "%08x\n", m.crc);
        has = strcmp(text, expected) == 0;
        manifest_free(&m);
    }
    free(text);
    return has;
}

static Status write_mark(const MarkPlace *place, uint32_t crc) {
    char text[16], fresh[FILE_PATH_BYTES + 96];
    snprintf(text, sizeof text, "%08x\n", crc);
    snprintf(fresh, sizeof fresh, "%s.%lx.tmp", place->path, (long)getpid());
    TRY(file_make_folders(place->folder));
    TRY(file_sync_parent(place->folder));
    TRY(file_remove_tree(fresh));
    TRY(file_write_durable(fresh, text, strlen(text)));
    if (rename(fresh, place->path)) {
        int failed = errno;
        unlink(fresh);
        FAIL(ERR_RUNTIME, "%s: cannot write: %s", place->path, strerror(failed));
    }
    return file_sync_folder(place->folder);
}

Status checkpoint_set_mark(const char *dir, CheckpointMark mark) {
    MarkPlace place;
    Manifest m;
    TRY(place_of(dir, mark, &place));
    TRY(manifest_read(&m, dir));
    uint32_t crc = m.crc;
    manifest_free(&m);
    return write_mark(&place, crc);
}

Status checkpoint_remove_mark(const char *dir, CheckpointMark mark) {
    MarkPlace place;
    TRY(place_of(dir, mark, &place));
    return file_remove_tree(place.path);
}
