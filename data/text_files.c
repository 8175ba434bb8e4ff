// SPDX-License-Identifier: Apache-2.0
#include "data/text_files.h"
#include "core/log.h"
#include <dirent.h>
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <zlib.h>

enum {
    JSONL_CHUNK_BYTES = 1 << 20,
    READ_BYTES = 1 << 20,
    SNIFFED_BYTES = 1 << 16,
    SKIPS_NAMED = 10,
};

typedef struct {
    char *path;
    bool named; // as an input, not found in a folder
    int64_t bytes;
} TextFile;

struct TextReader {
    TextFile *file;
    int files, capacity, next, skipped;
    int64_t bytes, bytes_done; // bytes_done: of finished files
    gzFile open;               // the file before `next`, while it has more
    char *rest;                // of a JSONL file: read, but not yet handed out
    int64_t rest_bytes, line;
};

static bool ends_with(const char *name, const char *ending) {
    size_t n = strlen(name), e = strlen(ending);
    return n >= e && strcmp(name + n - e, ending) == 0;
}

static void skip(TextReader *reader, const char *path, const char *why) {
    reader->skipped++;
    if (reader->skipped <= SKIPS_NAMED) log_rank0(LOG_WARN, "%s: passed over: %s", path, why);
    if (reader->skipped == SKIPS_NAMED + 1)
        log_rank0(LOG_WARN, "more files are passed over; their number comes last");
}

static void add_file(TextReader *reader, const char *path, bool named, int64_t bytes) {
    if (reader->files == reader->capacity) {
        reader->capacity = reader->capacity ? 2 * reader->capacity : 64;
        reader->file = realloc(reader->file, (size_t)reader->capacity * sizeof *reader->file);
        REQUIRE(reader->file, "out of memory for %d file names", reader->capacity);
    }
    char *copy = strdup(path);
    REQUIRE(copy, "out of memory");
    reader->file[reader->files++] = (TextFile){copy, named, bytes};
    reader->bytes += bytes;
}

static int not_hidden(const struct dirent *entry) {
    return entry->d_name[0] != '.';
}

static int by_bytes(const struct dirent **a, const struct dirent **b) {
    return strcmp((*a)->d_name, (*b)->d_name);
}

static Status add_folder(TextReader *reader, const char *folder);

static Status add_entry(TextReader *reader, const char *path) {
    struct stat info, link;
    if (stat(path, &info) != 0 || lstat(path, &link) != 0) {
        skip(reader, path, strerror(errno));
    } else if (S_ISDIR(info.st_mode) && S_ISLNK(link.st_mode)) {
        skip(reader, path, "a link to a folder");
    } else if (S_ISDIR(info.st_mode)) {
        TRY(add_folder(reader, path));
    } else if (!S_ISREG(info.st_mode)) {
        skip(reader, path, "not a regular file");
    } else {
        add_file(reader, path, false, (int64_t)info.st_size);
    }
    return OK;
}

static Status add_folder(TextReader *reader, const char *folder) {
    struct dirent **entry;
    int entries = scandir(folder, &entry, not_hidden, by_bytes);
    if (entries < 0) FAIL(ERR_DATA, "%s: the folder cannot be read: %s", folder, strerror(errno));
    Status status = OK;
    for (int i = 0; i < entries; i++) {
        char path[PATH_MAX];
        int length = snprintf(path, sizeof path, "%s%s%s", folder, ends_with(folder, "/") ? "" : "/",
                              entry[i]->d_name);
        if (status == OK && length >= (int)sizeof path)
            status = status_fail(ERR_DATA, __FILE__, __LINE__, "%s/%s: the path is too long", folder,
                                 entry[i]->d_name);
        if (status == OK) status = add_entry(reader, path);
        free(entry[i]);
    }
    free(entry);
    return status;
}

static Status add_input(TextReader *reader, const char *path) {
    struct stat info;
    if (stat(path, &info) != 0) FAIL(ERR_CONFIG, "%s: %s", path, strerror(errno));
    if (S_ISDIR(info.st_mode)) return add_folder(reader, path);
    if (!S_ISREG(info.st_mode)) FAIL(ERR_CONFIG, "%s is neither a regular file nor a folder", path);
    add_file(reader, path, true, (int64_t)info.st_size);
    return OK;
}

Status text_reader_create(TextReader **out, const char *const input[], int inputs) {
    TextReader *reader = calloc(1, sizeof *reader);
    REQUIRE(reader, "out of memory");
    *out = NULL;
    for (int i = 0; i < inputs; i++) {
        Status status = add_input(reader, input[i]);
        if (status == OK) continue;
        text_reader_destroy(reader);
        return status;
    }
    *out = reader;
    return OK;
}

static void close_file(TextReader *reader) {
    if (!reader->open) return;
    gzclose(reader->open);
    reader->open = NULL;
    free(reader->rest);
    reader->rest = NULL;
    reader->rest_bytes = 0;
    reader->bytes_done += reader->file[reader->next - 1].bytes;
}

void text_reader_destroy(TextReader *reader) {
    if (!reader) return;
    close_file(reader);
    for (int i = 0; i < reader->files; i++) free(reader->file[i].path);
    free(reader->file);
    free(reader);
}

// Length of the UTF-8 character at s, 0 if it is none or a control character that text does not have.
static int character_bytes(const unsigned char *s, int64_t left) {
    if (s[0] < 0x80)
        return s[0] >= 0x20 ? s[0] != 0x7f : s[0] != 0 && strchr("\b\t\n\v\f\r\x1b", s[0]) != NULL;
    int bytes = s[0] >= 0xc2 && s[0] < 0xe0   ? 2
                : s[0] >= 0xe0 && s[0] < 0xf0 ? 3
                : s[0] >= 0xf0 && s[0] < 0xf5 ? 4
                                              : 0;
    if (bytes > left) return 0;
    for (int i = 1; i < bytes; i++)
        if ((s[i] & 0xc0) != 0x80) return 0;
    return bytes;
}

// Why these bytes are not text, or NULL. One wrong byte in ten is let through: old text has stray Latin-1
// letters.
static const char *text_problem(const char *text, int64_t bytes) {
    if (bytes == 0) return "empty";
    if (memchr(text, 0, (size_t)bytes)) return "not text (it has zero bytes)";
    int64_t sniffed = bytes < SNIFFED_BYTES ? bytes : SNIFFED_BYTES, wrong = 0;
    for (int64_t i = 0; i < sniffed;) {
        int length = character_bytes((const unsigned char *)text + i, bytes - i);
        wrong += length == 0;
        i += length ? length : 1;
    }
    return 10 * wrong > sniffed ? "not text in UTF-8" : NULL;
}

// Appends up to READ_BYTES of the open file to *buffer; *end = true behind its last byte.
static Status read_more(gzFile from, const char *path, char **buffer, int64_t *bytes, bool *end) {
    *buffer = realloc(*buffer, (size_t)*bytes + READ_BYTES);
    REQUIRE(*buffer, "out of memory for %lld bytes of %s", (long long)*bytes + READ_BYTES, path);
    int got = gzread(from, *buffer + *bytes, READ_BYTES), error = Z_OK;
    const char *text = gzerror(from, &error);
    if (got < 0 && error == Z_ERRNO) FAIL(ERR_DATA, "%s: cannot be read: %s", path, strerror(errno));
    if (got < 0 || error == Z_BUF_ERROR)
        FAIL(ERR_DATA, "%s: the gzip data is damaged or truncated (%s); copy the file again", path,
             error == Z_BUF_ERROR ? "it ends early" : text);
    *bytes += got;
    *end = got == 0;
    return OK;
}

static Status open_next(TextReader *reader, bool *opened) {
    const char *path = reader->file[reader->next].path;
    *opened = false;
    gzFile file = gzopen(path, "rbe");
    if (!file) {
        if (reader->file[reader->next].named)
            FAIL(ERR_DATA, "%s: cannot be opened: %s", path, strerror(errno));
        skip(reader, path, strerror(errno));
        reader->next++;
        return OK;
    }
    reader->open = file;
    reader->next++;
    reader->line = 1;
    gzbuffer(file, 1 << 17);
    if (ends_with(path, ".gz") && reader->file[reader->next - 1].bytes > 0 && gzdirect(file))
        FAIL(ERR_DATA, "%s is not gzip data; unpack it or take the ending off its name", path);
    *opened = true;
    return OK;
}

// A whole file as one chunk; *more = false if it is passed over.
static Status read_document(TextReader *reader, const TextFile *file, TextChunk *chunk, bool *more) {
    bool end = false;
    while (!end) TRY(read_more(reader->open, file->path, &chunk->text, &chunk->bytes, &end));
    close_file(reader);
    const char *problem = text_problem(chunk->text, chunk->bytes);
    if (problem && file->named) FAIL(ERR_DATA, "%s: %s; name a text file", file->path, problem);
    if (problem) skip(reader, file->path, problem);
    *more = !problem;
    return OK;
}

static char *last_newline(char *text, int64_t bytes) {
    while (bytes > 0 && text[bytes - 1] != '\n') bytes--;
    return bytes > 0 ? text + bytes - 1 : NULL;
}

// The next whole lines of a JSONL file; *more = false at its end.
static Status read_lines(TextReader *reader, const TextFile *file, TextChunk *chunk, bool *more) {
    chunk->text = reader->rest;
    chunk->bytes = reader->rest_bytes;
    chunk->first_line = reader->line;
    reader->rest = NULL;
    reader->rest_bytes = 0;
    bool end = false;
    char *cut = NULL;
    while (!end && (!cut || chunk->bytes < JSONL_CHUNK_BYTES)) {
        TRY(read_more(reader->open, file->path, &chunk->text, &chunk->bytes, &end));
        cut = last_newline(chunk->text, chunk->bytes);
    }
    if (end) {
        close_file(reader);
        *more = chunk->bytes > 0;
        return OK;
    }
    int64_t kept = cut + 1 - chunk->text;
    reader->rest_bytes = chunk->bytes - kept;
    reader->rest = malloc((size_t)reader->rest_bytes + 1);
    REQUIRE(reader->rest, "out of memory");
    memcpy(reader->rest, cut + 1, (size_t)reader->rest_bytes);
    chunk->bytes = kept;
    for (const char *at = chunk->text; at <= cut; at++) reader->line += *at == '\n';
    *more = true;
    return OK;
}

Status text_reader_next(TextReader *reader, TextChunk *chunk, bool *more) {
    *more = false;
    while (!*more && (reader->open || reader->next < reader->files)) {
        *chunk = (TextChunk){0};
        bool opened = reader->open != NULL;
        if (!opened) TRY(open_next(reader, &opened));
        if (!opened) continue;
        const TextFile *file = &reader->file[reader->next - 1];
        chunk->path = file->path;
        chunk->first_line = 1;
        chunk->jsonl = ends_with(file->path, ".jsonl") || ends_with(file->path, ".jsonl.gz");
        Status status =
            chunk->jsonl ? read_lines(reader, file, chunk, more) : read_document(reader, file, chunk, more);
        if (status == OK && *more) return OK;
        free(chunk->text);
        *chunk = (TextChunk){0};
        TRY(status);
    }
    return OK;
}

int text_reader_files(const TextReader *reader) {
    return reader->files;
}
int text_reader_skipped(const TextReader *reader) {
    return reader->skipped;
}
int64_t text_reader_bytes(const TextReader *reader) {
    return reader->bytes;
}
int64_t text_reader_bytes_done(const TextReader *reader) {
    int64_t inside = reader->open ? (int64_t)gzoffset(reader->open) : 0;
    return reader->bytes_done + (inside > 0 ? inside : 0);
}

bool text_next_line(const TextChunk *chunk, int64_t *at, const char **line, int64_t *bytes) {
    if (*at >= chunk->bytes) return false;
    *line = chunk->text + *at;
    const char *end = memchr(*line, '\n', (size_t)(chunk->bytes - *at));
    *bytes = end ? end - *line : chunk->bytes - *at;
    *at += *bytes + (end != NULL);
    return true;
}

static bool is_blank(const char *line, int64_t bytes) {
    for (int64_t i = 0; i < bytes; i++)
        if (!strchr(" \t\r", line[i]) || line[i] == 0) return false;
    return true;
}

Status text_of_json(const char *line, int64_t bytes, const char *path, int64_t number, json_t **document,
                    const char **text, int64_t *text_bytes) {
    *document = NULL;
    if (is_blank(line, bytes)) return OK;
    json_error_t error;
    json_t *record = json_loadb(line, (size_t)bytes, JSON_ALLOW_NUL, &error);
    if (!record)
        FAIL(ERR_DATA, "%s:%lld: not JSON: %s (column %d); each line is one object with a text field", path,
             (long long)number, error.text, error.column);
    const json_t *field = json_object_get(record, "text");
    if (!json_is_string(field)) {
        json_decref(record);
        FAIL(ERR_DATA, "%s:%lld: no string field \"text\"; each line is one object with a text field", path,
             (long long)number);
    }
    *document = record;
    *text = json_string_value(field);
    *text_bytes = (int64_t)json_string_length(field);
    return OK;
}
