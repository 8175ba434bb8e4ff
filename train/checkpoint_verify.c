// SPDX-License-Identifier: Apache-2.0
// Re-reads every byte of a checkpoint.
#include "core/log.h"
#include "train/checkpoint_internal.h"
#include <dirent.h>
#include <errno.h>
#include <string.h>

// Segments against the manifest, through the file's own structure; what a wrong writer, not a wrong disk,
// would damage.
static Status verify_segments(const Manifest *m, DataFile *file) {
    for (int i = 0; i < m->segments; i++) {
        if (m->segment[i].file != file->file) continue;
        for (int k = 0; k < m->states; k++)
            TRY(data_file_segment(file, &m->segment[i], (StateKind)k, 0, 0, NULL));
    }
    return OK;
}

static Status verify_file(const Manifest *m, int number) {
    DataFile file;
    TRY(data_file_open(&file, m, number));
    Status status = data_file_check(&file);
    if (status == OK) status = verify_segments(m, &file);
    data_file_close(&file);
    return status;
}

static bool listed(const Manifest *m, const char *name) {
    if (!strcmp(name, ".") || !strcmp(name, "..") || !strcmp(name, CHECKPOINT_MANIFEST)) return true;
    for (int i = 0; i < m->files; i++)
        if (!strcmp(m->file[i].name, name)) return true;
    return false;
}

// Nothing else may lie in the folder: no checksum would cover it.
static Status verify_names(const Manifest *m) {
    DIR *folder = opendir(m->dir);
    if (!folder) FAIL(ERR_DATA, "%s: %s", m->dir, strerror(errno));
    Status status = OK;
    for (struct dirent *entry; status == OK && (entry = readdir(folder));)
        if (!listed(m, entry->d_name))
            status = status_fail(ERR_DATA, __FILE__, __LINE__, "%s/%s: is not in the manifest", m->dir,
                                 entry->d_name);
    closedir(folder);
    return status;
}

Status checkpoint_verify(const char *dir, bool print) {
    Manifest m;
    TRY(manifest_read(&m, dir));
    Status first = verify_names(&m);
    char reason[1024];
    snprintf(reason, sizeof reason, "%s", first == OK ? "" : status_text());
    for (int i = 0; i < m.files; i++) { // all damaged files are named
        Status status = verify_file(&m, i);
        if (print && status == OK)
            log_rank0(LOG_INFO, "%s/%s: %ld bytes, %08x: whole", dir, m.file[i].name, (long)m.file[i].bytes,
                      m.file[i].crc);
        if (print && status != OK) log_rank0(LOG_ERROR, "%s", status_text());
        if (status != OK && first == OK) {
            first = status;
            snprintf(reason, sizeof reason, "%s", status_text());
        }
    }
    manifest_free(&m);
    if (first != OK) FAIL(first, "%s", reason);
    return OK;
}
