// SPDX-License-Identifier: Apache-2.0
// tool_flips checkpoint RUN STEP PATTERN FLIPS SEED: flips single bits in the files of a checkpoint (one of
// mpi_checkpoint, whose values are known) that match the pattern, one at a time; verifying and loading it
// must both name the file, and where a tensor's value was hit the tensor and its place. tool_flips shard
// PREFIX EXTENSION FLIPS SEED: the same for the files of a token shard, which are opened and read whole.
// tool_flips one FILE SEED: flips one bit and leaves it; prints its byte.
// Prints for each flip that was not seen, or wrongly told, a line, and at last "tried N silent N crashed N
// misnamed N". Flips are tried in a process of their own: where it dies, or takes longer than a minute, that
// is a crash.
#include "checkpoint_harness.h"
#include "core/log.h"
#include "data/shard.h"
#include "train/checkpoint_internal.h"
#include <dirent.h>
#include <fcntl.h>
#include <fnmatch.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

enum { MOST_FILES = 64, MOST_SECONDS = 60 };

typedef struct {
    char path[512];
    char *data;
    size_t bytes;
} Victim;
typedef struct { // shared with the process that tries
    int tried, silent, crashed, misnamed;
} Counts;
typedef struct {
    Victim *victim;
    int64_t byte;
    int bit;
} Flip;

static Victim victims[MOST_FILES];
static int victim_count;
static uint64_t seed;
static Counts *counts;

// ---- the files

static void add_victim(const char *path) {
    Victim *v = &victims[victim_count++];
    REQUIRE(victim_count < MOST_FILES, "too many files");
    snprintf(v->path, sizeof v->path, "%s", path);
    Status status = file_read_all(path, &v->data, &v->bytes);
    REQUIRE(status == OK, "%s", status_text());
}

static void add_matching(const char *folder, const char *pattern) {
    DIR *dir = opendir(folder);
    REQUIRE(dir, "%s is no folder", folder);
    for (struct dirent *entry; (entry = readdir(dir));) {
        char path[512];
        snprintf(path, sizeof path, "%s/%s", folder, entry->d_name);
        if (entry->d_name[0] != '.' && fnmatch(pattern, entry->d_name, 0) == 0) add_victim(path);
    }
    closedir(dir);
    REQUIRE(victim_count > 0, "%s holds no %s", folder, pattern);
}

// Uniform over all bits of all files.
static Flip flip_at(int number) {
    uint64_t bits = 0;
    for (int i = 0; i < victim_count; i++) bits += 8 * victims[i].bytes;
    uint64_t bit = rng_u64(seed, 1, (uint64_t)number) % bits;
    Victim *v = victims;
    while (bit >= 8 * v->bytes) bit -= 8 * v++->bytes;
    return (Flip){v, (int64_t)(bit / 8), (int)(bit % 8)};
}

static void put_byte(const Flip *flip, int value) {
    int fd = open(flip->victim->path, O_WRONLY);
    char byte = (char)value;
    REQUIRE(fd >= 0 && pwrite(fd, &byte, 1, flip->byte) == 1 && close(fd) == 0, "%s", flip->victim->path);
}

static void flip_bit(const Flip *flip) {
    put_byte(flip, flip->victim->data[flip->byte] ^ 1 << flip->bit);
}

static void restore(const Flip *flip) {
    put_byte(flip, flip->victim->data[flip->byte]);
}

static void complain(int *count, const Flip *flip, const char *what, const char *text) {
    ++*count;
    printf("%s: bit %d of byte %ld of %s: %s\n", what, flip->bit, (long)flip->byte, flip->victim->path, text);
    fflush(stdout);
}

// ---- checkpoints

static const Layout alone = {.world = 1, .ep = 1, .rank = 0, .stage = 1};
static char dir[256];
static int64_t step;
static Mesh *mesh;
static Manifest whole;

// What a message must say beside the file's name.
static void expected_place(const Flip *flip, char *text, size_t size) {
    const char *name = strrchr(flip->victim->path, '/') + 1;
    snprintf(text, size, "%s", "");
    for (int i = 0; i < whole.segments && !whole.zlib; i++) {
        const ManifestSegment *s = &whole.segment[i];
        if (strcmp(whole.file[s->file].name, name)) continue;
        for (int k = 0; k < whole.states; k++) {
            int64_t first = whole.file[s->file].offset[k] + 4 * s->pos;
            if (flip->byte >= first && flip->byte < first + 4 * s->count)
                snprintf(text, size, "%s of %s, elements %ld to %ld, at byte %ld",
                         checkpoint_state_name((StateKind)k), whole.tensor[s->tensor].name, (long)s->first,
                         (long)(s->first + s->count), (long)first);
        }
    }
}

static void check_message(const Flip *flip) {
    char place[256];
    expected_place(flip, place, sizeof place);
    if (!strstr(status_text(), strrchr(flip->victim->path, '/') + 1) || !strstr(status_text(), place))
        complain(&counts->misnamed, flip, "misnamed", status_text());
}

static void try_checkpoint(const Flip *flip) {
    Status status = checkpoint_verify(dir, false);
    if (status == ERR_DATA)
        check_message(flip);
    else
        complain(&counts->silent, flip, "not seen by verify", status == OK ? "" : status_text());
    ModelConfig config = harness_config();
    Shards *shards = harness_create(&config, alone);
    CheckpointState state = harness_state(shards, alone, mesh);
    json_t *record = NULL;
    status = checkpoint_load(&state, dir, false, &record, NULL);
    if (status == ERR_DATA)
        check_message(flip);
    else if (status != OK || harness_wrong(shards, step, true))
        complain(&counts->silent, flip, "loaded", status == OK ? "with wrong values" : status_text());
    json_decref(record);
    harness_free(shards);
}

static void begin_checkpoint(void) {
    comm_start(NULL, NULL);
    Status status = mesh_create_self(&mesh);
    if (status == OK) status = manifest_read(&whole, dir);
    REQUIRE(status == OK, "%s", status_text());
}

// ---- token shards

static const char *prefix;
static int32_t *tokens;
static int64_t token_count, document_count, *document_start;

enum { VOCAB = 259 }; // of the tokenizer "bytes"

static void begin_shard(void) {
    Shard *shard;
    Status status = shard_open(&shard, prefix);
    REQUIRE(status == OK, "%s", status_text());
    token_count = shard_tokens(shard);
    document_count = shard_documents(shard);
    tokens = malloc((size_t)token_count * sizeof *tokens);
    document_start = malloc((size_t)(document_count + 1) * sizeof *document_start);
    REQUIRE(tokens && document_start, "out of memory");
    status = shard_read(shard, 0, token_count, VOCAB, tokens);
    REQUIRE(status == OK, "%s", status_text());
    for (int64_t d = 0; d <= document_count; d++) document_start[d] = shard_document_start(shard, d);
    shard_close(shard);
}

// Reads all of it and compares.
static Status read_shard(Shard *shard, bool *same) {
    int32_t *read = malloc((size_t)shard_tokens(shard) * sizeof *read);
    REQUIRE(read, "out of memory");
    Status status = shard_read(shard, 0, shard_tokens(shard), VOCAB, read);
    *same = shard_tokens(shard) == token_count && shard_documents(shard) == document_count &&
            !memcmp(read, tokens, (size_t)token_count * sizeof *tokens);
    for (int64_t d = 0; *same && d <= document_count; d++)
        *same = document_start[d] == shard_document_start(shard, d);
    free(read);
    return status;
}

static void try_shard(const Flip *flip) {
    Shard *shard;
    bool same = false;
    Status status = shard_open(&shard, prefix);
    if (status == OK) {
        status = read_shard(shard, &same);
        shard_close(shard);
    }
    if (status == OK && !same)
        complain(&counts->silent, flip, "silent", "other tokens or documents are read");
    if (status != OK && !strstr(status_text(), prefix))
        complain(&counts->misnamed, flip, "misnamed", status_text());
}

// ---- all of them

static void try_from(int first, int flips, void (*begin)(void), void (*attempt)(const Flip *)) {
    begin();
    for (int i = first; i < flips; i++) {
        Flip flip = flip_at(i);
        alarm(MOST_SECONDS);
        flip_bit(&flip);
        attempt(&flip);
        restore(&flip);
        counts->tried++;
    }
}

static int try_all(int flips, void (*begin)(void), void (*attempt)(const Flip *)) {
    counts = mmap(NULL, sizeof *counts, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    REQUIRE(counts != MAP_FAILED, "no shared memory");
    while (counts->tried < flips) {
        pid_t child = fork();
        REQUIRE(child >= 0, "cannot fork");
        if (child == 0) {
            try_from(counts->tried, flips, begin, attempt);
            _exit(0);
        }
        int ended;
        waitpid(child, &ended, 0);
        if (ended == 0) break;
        Flip flip = flip_at(counts->tried++);
        char text[64];
        snprintf(text, sizeof text, "ended with %s %d", WIFSIGNALED(ended) ? "signal" : "exit code",
                 WIFSIGNALED(ended) ? WTERMSIG(ended) : WEXITSTATUS(ended));
        complain(&counts->crashed, &flip, "crashed", text);
        restore(&flip);
    }
    printf("tried %d silent %d crashed %d misnamed %d\n", counts->tried, counts->silent, counts->crashed,
           counts->misnamed);
    return counts->silent + counts->crashed + counts->misnamed != 0;
}

int main(int argc, char **argv) {
    REQUIRE(argc >= 4, "usage: see the head of tool_flips.c");
    seed = strtoull(argv[argc - 1], NULL, 10);
    if (!strcmp(argv[1], "one")) {
        add_victim(argv[2]);
        Flip flip = flip_at(0);
        flip_bit(&flip);
        printf("%ld\n", (long)flip.byte);
        return 0;
    }
    int flips = atoi(argv[argc - 2]);
    if (!strcmp(argv[1], "shard")) {
        char path[512];
        prefix = argv[2];
        snprintf(path, sizeof path, "%s.%s", prefix, argv[3]);
        add_victim(path);
        return try_all(flips, begin_shard, try_shard);
    }
    step = atoll(argv[3]);
    snprintf(dir, sizeof dir, "%s/ckpt/step-%09lld", argv[2], (long long)step);
    add_matching(dir, argv[4]);
    return try_all(flips, begin_checkpoint, try_checkpoint);
}
