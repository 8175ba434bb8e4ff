// SPDX-License-Identifier: Apache-2.0
#include "train/run_dir.h"
#include "core/clock.h"
#include "core/file.h"
#include "core/log.h"
#include "core/rng.h"
#include "train/format.h"
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

// ---- the folder

static Status join(char *out, size_t size, const char *dir, const char *name) {
    int n = snprintf(out, size, "%s/%s", dir, name);
    if (n < 0 || (size_t)n >= size) FAIL(ERR_CONFIG, "%s/%s: the path is too long", dir, name);
    return OK;
}

static const char *runs_folder(void) {
    const char *runs = getenv("FLOE_RUNS");
    return runs && runs[0] ? runs : "runs";
}

Status run_dir_choose(char *out, size_t size, const char *given, const char *config_file) {
    if (given) {
        if (!given[0]) FAIL(ERR_CONFIG, "-o needs the name of a folder");
        int n = snprintf(out, size, "%s", given);
        if ((size_t)n >= size) FAIL(ERR_CONFIG, "%.80s…: the path is too long", given);
        while (n > 1 && out[n - 1] == '/') out[--n] = 0;
        return OK;
    }
    const char *base = strrchr(config_file, '/');
    base = base ? base + 1 : config_file;
    const char *dot = strrchr(base, '.');
    int stem = dot && dot > base ? (int)(dot - base) : (int)strlen(base);
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    unsigned tail = (unsigned)(hash_mix((uint64_t)now.tv_nsec, (uint64_t)getpid()) & 0xffff);
    char name[512];
    snprintf(name, sizeof name, "%.*s-%s-%04x", stem, base, utc_now("%Y%m%d-%H%M%S").text, tail);
    return join(out, size, runs_folder(), name);
}

// mkdir -p; durable, as what is saved in it is to be.
static Status make_folder(const char *path) {
    char part[RUN_PATH_BYTES];
    snprintf(part, sizeof part, "%s", path);
    for (char *at = part + 1;; at++) {
        if (*at && *at != '/') continue;
        char was = *at;
        *at = 0;
        struct stat info;
        bool made = mkdir(part, 0777) == 0;
        if (!made && (errno != EEXIST || stat(part, &info) != 0 || !S_ISDIR(info.st_mode)))
            FAIL(ERR_RUNTIME, "%s: cannot make this folder: %s", part, strerror(errno));
        if (made) TRY(file_sync_parent(part));
        if (!was) return OK;
        *at = was;
    }
}

Status run_dir_create(const char *run_dir) {
    static const char *const inner[] = {"ckpt", "ctl"};
    TRY(make_folder(run_dir));
    for (int i = 0; i < 2; i++) {
        char path[RUN_PATH_BYTES];
        TRY(join(path, sizeof path, run_dir, inner[i]));
        TRY(make_folder(path));
    }
    return OK;
}

bool run_dir_is_used(const char *run_dir) {
    char path[RUN_PATH_BYTES];
    struct stat info;
    if (join(path, sizeof path, run_dir, "metrics.jsonl") == OK && stat(path, &info) == 0 && info.st_size > 0)
        return true;
    if (join(path, sizeof path, run_dir, "ckpt") != OK) return false;
    DIR *folder = opendir(path);
    if (!folder) return false;
    bool found = false;
    for (struct dirent *entry; !found && (entry = readdir(folder));)
        found = strncmp(entry->d_name, "step-", 5) == 0 || strncmp(entry->d_name, "damaged-step-", 13) == 0;
    closedir(folder);
    return found;
}

void run_dir_remove_unused(const char *run_dir) {
    static const char *const inner[] = {"ckpt", "ctl", "lock", "log.txt", "metrics.jsonl"};
    if (run_dir_is_used(run_dir)) return;
    for (int i = 0; i < 5; i++) {
        char path[RUN_PATH_BYTES];
        if (join(path, sizeof path, run_dir, inner[i]) == OK) remove(path);
    }
    rmdir(run_dir);
}

void run_dir_mark_latest(const char *run_dir) {
    char link[RUN_PATH_BYTES], fresh[RUN_PATH_BYTES + 32];
    const char *runs = runs_folder(), *slash = strrchr(run_dir, '/');
    if (!slash || strlen(runs) != (size_t)(slash - run_dir) || strncmp(runs, run_dir, strlen(runs)) != 0)
        return;
    snprintf(link, sizeof link, "%s/latest", runs);
    struct stat info;
    if (lstat(link, &info) == 0 && !S_ISLNK(info.st_mode)) return; // somebody's own file or folder
    snprintf(fresh, sizeof fresh, "%s.%ld", link, (long)getpid());
    if (symlink(slash + 1, fresh) == 0 && rename(fresh, link) == 0) return;
    log_rank0(LOG_WARN, "%s: cannot set this link: %s", link, strerror(errno));
    unlink(fresh);
}

static Status write_all(int fd, const char *path, const char *text) {
    size_t left = strlen(text);
    while (left > 0) {
        ssize_t n = write(fd, text, left);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) FAIL(ERR_RUNTIME, "%s: cannot write: %s", path, strerror(errno));
        text += n;
        left -= (size_t)n;
    }
    if (fsync(fd) != 0) FAIL(ERR_RUNTIME, "%s: cannot write: %s", path, strerror(errno));
    return OK;
}

Status run_dir_write(const char *run_dir, const char *name, const char *text) {
    char path[RUN_PATH_BYTES], fresh[RUN_PATH_BYTES + 8];
    TRY(join(path, sizeof path, run_dir, name));
    snprintf(fresh, sizeof fresh, "%s.tmp", path);
    int fd = open(fresh, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    if (fd < 0) FAIL(ERR_RUNTIME, "%s: cannot write: %s", fresh, strerror(errno));
    Status status = write_all(fd, fresh, text);
    close(fd);
    if (status == OK && rename(fresh, path) != 0)
        status = status_fail(ERR_RUNTIME, __FILE__, __LINE__, "%s: cannot write: %s", path, strerror(errno));
    if (status != OK) unlink(fresh);
    return status;
}

Status run_dir_write_input(const char *run_dir, const char *const files[], int count,
                           const char *const overrides[], int override_count) {
    char *text = NULL;
    size_t size = 0;
    FILE *out = open_memstream(&text, &size);
    REQUIRE(out, "open_memstream: %s", strerror(errno));
    for (int i = 0; i < count; i++) {
        FILE *in = fopen(files[i], "r");
        fprintf(out, "# %s\n", files[i]);
        for (int c; in && (c = getc(in)) != EOF;) putc(c, out);
        if (in) fclose(in);
    }
    for (int i = 0; i < override_count; i++) fprintf(out, "# override: %s\n", overrides[i]);
    fclose(out);
    Status status = run_dir_write(run_dir, "config.input.yaml", text);
    free(text);
    return status;
}

int run_dir_open_log(const char *run_dir) {
    char path[RUN_PATH_BYTES];
    if (join(path, sizeof path, run_dir, "log.txt") != OK) return -1;
    int fd = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
    if (fd < 0) log_rank0(LOG_WARN, "%s: cannot write: %s; this run keeps no log", path, strerror(errno));
    return fd;
}

int run_dir_open_rank_log(const char *run_dir, int rank) {
    char folder[RUN_PATH_BYTES], path[RUN_PATH_BYTES + 32];
    if (join(folder, sizeof folder, run_dir, "log") != OK) return -1;
    snprintf(path, sizeof path, "%s/rank-%d.txt", folder, rank);
    int fd = mkdir(folder, 0777) == 0 || errno == EEXIST
                 ? open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666)
                 : -1;
    if (fd < 0) log_rank(LOG_WARN, "%s: cannot write: %s; this rank keeps no log", path, strerror(errno));
    return fd;
}

// ---- the lock
//
// Who starts a run takes the lock alone (exclusive), writes its name into the file and keeps it shared; the
// run's other processes share it. Another start gets it exclusive only when all of them are dead.

static Status open_lock(RunLock *lock, const char *run_dir, char *path, size_t size) {
    TRY(join(path, size, run_dir, "lock"));
    lock->fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0666);
    if (lock->fd < 0) FAIL(ERR_RUNTIME, "%s: cannot open the lock: %s", path, strerror(errno));
    return OK;
}

static void read_holder(int fd, char *out, size_t size) {
    ssize_t n = pread(fd, out, size - 1, 0);
    out[n > 0 ? n : 0] = 0;
    out[strcspn(out, "\n")] = 0;
    if (!out[0]) snprintf(out, size, "an unknown process");
}

static void write_holder(int fd) {
    char host[256] = "?", text[512];
    gethostname(host, sizeof host - 1);
    int n = snprintf(text, sizeof text, "process %ld on %s, since %s\n", (long)getpid(), host,
                     utc_now("%Y-%m-%dT%H:%M:%SZ").text);
    if (ftruncate(fd, 0) != 0 || pwrite(fd, text, (size_t)n, 0) != n)
        log_rank0(LOG_WARN, "lock: %s", strerror(errno));
}

Status run_lock_take(RunLock *lock, const char *run_dir, double wait_seconds) {
    char path[RUN_PATH_BYTES], holder[512];
    TRY(open_lock(lock, run_dir, path, sizeof path));
    double begun = clock_seconds();
    for (bool said = false;;) {
        if (flock(lock->fd, LOCK_EX | LOCK_NB) == 0) {
            write_holder(lock->fd);
            // Turning it into a shared lock gives it up for a moment: another start may be quicker.
            if (flock(lock->fd, LOCK_SH | LOCK_NB) == 0) return OK;
        }
        if (errno != EWOULDBLOCK && errno != EINTR) {
            status_fail(ERR_RUNTIME, __FILE__, __LINE__, "%s: cannot lock: %s", path, strerror(errno));
            run_lock_release(lock);
            return ERR_RUNTIME;
        }
        read_holder(lock->fd, holder, sizeof holder);
        if (clock_seconds() - begun >= wait_seconds) break;
        if (!said)
            log_rank0(LOG_WARN, "%s is in use by %s; waiting up to %.0f s for it to end", run_dir, holder,
                      wait_seconds);
        said = true;
        usleep(100000);
    }
    run_lock_release(lock);
    FAIL(ERR_RUNTIME,
         "%s is in use by %s; stop that run first (touch %s/ctl/stop) or choose another folder with -o",
         run_dir, holder, run_dir);
}

Status run_lock_join(RunLock *lock, const char *run_dir) {
    char path[RUN_PATH_BYTES], holder[512];
    TRY(open_lock(lock, run_dir, path, sizeof path));
    if (flock(lock->fd, LOCK_SH | LOCK_NB) == 0) return OK;
    read_holder(lock->fd, holder, sizeof holder);
    run_lock_release(lock);
    FAIL(ERR_RUNTIME, "%s is in use by %s", run_dir, holder);
}

void run_lock_release(RunLock *lock) {
    if (lock->fd >= 0) close(lock->fd);
    lock->fd = -1;
}
