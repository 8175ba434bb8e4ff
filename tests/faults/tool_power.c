// SPDX-License-Identifier: Apache-2.0
// tool_power LOG ROOT OUT SEED [WITHOUT]: makes in OUT what a power cut at a random place of a log of
// preload_power.c could have left of ROOT; prints "cut 512 of 2034: step 20 was acknowledged". Durable is
// what POSIX promises:
//   - a file's bytes and size as they were at its last fsync,
//   - names as they were at their folder's last fsync; a rename between folders with either one's.
// Of what came later none, all, or a random part is there as well: writes whole or in pieces of 512 bytes,
// each change of a name by itself. WITHOUT counts some fsyncs as not done: of data files, manifest, tmp (the
// folder of a save), ckpt, run (its folder), or parents (ROOT and ROOT/new, where the run is ROOT/new/run);
// or rename: files lie from the first where the rename would bring them.
#include "calls.h"
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

#define CHECK(what)                                                                                          \
    do {                                                                                                     \
        if (!(what)) {                                                                                       \
            fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #what);                                       \
            exit(2);                                                                                         \
        }                                                                                                    \
    } while (0)
// One more element at the end of a list.
#define PUSH(list, count)                                                                                    \
    do {                                                                                                     \
        if (((count) & ((count)-1)) == 0)                                                                    \
            (list) = realloc((list), (size_t)((count) ? 2 * (count) : 1) * sizeof *(list));                  \
        CHECK(list);                                                                                         \
        (count)++;                                                                                           \
    } while (0)

enum { NAME_BYTES = 256, PATH_BYTES = 4096, PIECE = 512 };

typedef struct Node Node;
typedef struct {
    const char *data;      // NULL: a change of size alone
    int64_t offset, bytes; // data goes there; the size becomes offset + bytes
    bool exact, durable;   // exact: no matter how large it was
} Change;
typedef struct {
    char name[NAME_BYTES];
    Node *node;
} Entry;
struct Node {
    bool folder;
    Change *change;
    int changes;
    Entry *entry; // as programs see them; in the end as the power cut leaves them
    int entries;
    uint64_t inode;
};
typedef struct { // up to two names at once; node NULL: the name goes
    Node *folder[2], *node[2];
    char name[2][NAME_BYTES];
    bool durable;
} Naming;

static Node *root, **node;
static int nodes, namings;
static Naming *naming;
static const char *root_path, *without = "";
static uint64_t random_state;

static uint64_t draw(uint64_t below) { // splitmix64
    uint64_t z = random_state += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return (z ^ (z >> 31)) % below;
}

// ---- the tree as programs see it

static Node *node_create(bool folder, uint64_t inode) {
    PUSH(node, nodes);
    Node *n = node[nodes - 1] = calloc(1, sizeof *n);
    CHECK(n);
    n->folder = folder;
    n->inode = inode;
    return n;
}

// The newest: numbers are used again.
static Node *node_of_inode(uint64_t inode) {
    for (int i = nodes - 1; i >= 0; i--)
        if (node[i]->inode == inode) return node[i];
    return NULL;
}

static Node **find(Node *folder, const char *name) {
    for (int i = 0; i < folder->entries; i++)
        if (!strcmp(folder->entry[i].name, name)) return &folder->entry[i].node;
    return NULL;
}

static void set(Node *folder, const char *name, Node *to) {
    Node **at = find(folder, name);
    if (!at) {
        PUSH(folder->entry, folder->entries);
        snprintf(folder->entry[folder->entries - 1].name, NAME_BYTES, "%s", name);
        at = &folder->entry[folder->entries - 1].node;
    }
    *at = to;
}

// The folder that a path's last name lies in; NULL outside the root.
static Node *walk(const char *path, const char **name) {
    size_t length = strlen(root_path);
    if (strncmp(path, root_path, length) != 0 || path[length] != '/') return NULL;
    Node *at = root;
    for (path += length + 1;; path += strcspn(path, "/") + 1) {
        const char *slash = strchr(path, '/');
        *name = path;
        if (!slash) return at;
        char part[NAME_BYTES];
        snprintf(part, sizeof part, "%.*s", (int)(slash - path), path);
        Node **next = find(at, part);
        CHECK(next && *next);
        at = *next;
    }
}

static void name_now(const Naming *change) {
    PUSH(naming, namings);
    naming[namings - 1] = *change;
    for (int i = 0; i < 2; i++)
        if (change->folder[i]) set(change->folder[i], change->name[i], change->node[i]);
}

// ---- the log

typedef struct {
    PowerRecord head;
    char path[PATH_BYTES], to[PATH_BYTES];
    const char *data, *end;
} Record;

// Without the rename: a save's files lie where they are to stay, ckpt/.tmp-step-N.X/ is ckpt/step-N/.
static void place_at_once(char *path) {
    char *tmp = strstr(path, "/.tmp-step-");
    if (!tmp || strcmp(without, "rename")) return;
    char *dot = tmp + 1 + strcspn(tmp + 2, "."), *rest = dot + 1 + strcspn(dot + 1, "/");
    memmove(dot + 1, rest, strlen(rest) + 1);
    memmove(tmp + 1, tmp + 6, strlen(tmp + 6) + 1);
}

static bool record_read(Record *out, const char *at, const char *end) {
    if (end - at < (long)sizeof out->head) return false;
    memcpy(&out->head, at, sizeof out->head);
    const PowerRecord *h = &out->head;
    CHECK(h->magic == POWER_MAGIC && h->path_bytes < PATH_BYTES && h->to_bytes < PATH_BYTES);
    at += sizeof *h;
    if (end - at < (long)h->path_bytes + h->to_bytes + h->data_bytes) return false;
    snprintf(out->path, sizeof out->path, "%.*s", (int)h->path_bytes, at);
    snprintf(out->to, sizeof out->to, "%.*s", (int)h->to_bytes, at + h->path_bytes);
    out->data = at + h->path_bytes + h->to_bytes;
    out->end = out->data + h->data_bytes;
    place_at_once(out->path);
    place_at_once(out->to);
    return true;
}

static bool is_ignored(const char *path) {
    const char *name = strrchr(path, '/') + 1, *dot = strrchr(name, '.');
    const char *kind = !strcmp(path, root_path) || !strcmp(name, "new") ? "parents"
                       : dot && !strcmp(dot, ".h5")                     ? "data"
                       : !strcmp(name, "MANIFEST.json")                 ? "manifest"
                       : !strncmp(name, ".tmp-", 5)                     ? "tmp"
                       : !strcmp(name, "ckpt")                          ? "ckpt"
                       : !strcmp(name, "run")                           ? "run"
                                                                        : "";
    return *kind && !strcmp(kind, without);
}

static void add_change(Node *n, Change change) {
    PUSH(n->change, n->changes);
    n->change[n->changes - 1] = change;
}

static void sync_node(Node *n) {
    for (int i = 0; i < n->changes; i++) n->change[i].durable = true;
    for (int i = 0; n->folder && i < namings; i++)
        if (naming[i].folder[0] == n || naming[i].folder[1] == n) naming[i].durable = true;
}

static Naming one_name(Node *folder, const char *name, Node *to) {
    Naming change = {.folder = {folder}, .node = {to}};
    snprintf(change.name[0], NAME_BYTES, "%s", name);
    return change;
}

static void replay_rename(const Record *r) {
    const char *from_name, *to_name;
    Node *from = walk(r->path, &from_name), *to = walk(r->to, &to_name);
    CHECK(from && to);
    if (!strcmp(r->path, r->to)) return;
    Node **source = find(from, from_name), **target = find(to, to_name);
    CHECK(source && *source);
    Naming change = {.folder = {from, to}, .node = {NULL, *source}};
    if (r->head.flags & POWER_EXCHANGE) change.node[0] = *target;
    snprintf(change.name[0], NAME_BYTES, "%s", from_name);
    snprintf(change.name[1], NAME_BYTES, "%s", to_name);
    name_now(&change);
}

static void replay_open(const Record *r) {
    const char *name;
    Node *folder = walk(r->path, &name);
    if (!folder) { // the root itself
        root->inode = r->head.inode;
        return;
    }
    Node **at = find(folder, name);
    if (!at || !*at) {
        Naming change = one_name(folder, name, node_create(r->head.flags & POWER_FOLDER, r->head.inode));
        name_now(&change);
        return;
    }
    CHECK((*at)->inode == r->head.inode); // else something happened that the log does not tell
    if (r->head.flags & POWER_EMPTIED) add_change(*at, (Change){.exact = true});
}

static void replay(const Record *r) {
    const PowerRecord *h = &r->head;
    const char *name;
    Node *folder, *n = node_of_inode(h->inode);
    switch (h->kind) {
    case CALL_OPEN:
    case CALL_MKDIR:
        replay_open(r);
        return;
    case CALL_WRITE:
        CHECK(n);
        add_change(n, (Change){.data = r->data, .offset = h->offset, .bytes = h->bytes});
        return;
    case CALL_SIZE:
    case CALL_GROW:
        CHECK(n);
        add_change(n, (Change){.offset = h->offset, .bytes = h->bytes, .exact = h->kind == CALL_SIZE});
        return;
    case CALL_RENAME:
        replay_rename(r);
        return;
    case CALL_UNLINK:
    case CALL_RMDIR:
        folder = walk(r->path, &name);
        CHECK(folder);
        Naming change = one_name(folder, name, NULL);
        name_now(&change);
        return;
    case CALL_SYNC:
        CHECK(n);
        if (!is_ignored(r->path)) sync_node(n);
        return;
    default:
        CHECK(!"a known kind");
    }
}

// The step that a line of the run's log says is saved, else −1.
static long acknowledged(const Record *r) {
    const char *name = strrchr(r->path, '/');
    char line[256];
    if (r->head.kind != CALL_WRITE || strcmp(name, "/log.txt") || strncmp(r->data, "save ", 5)) return -1;
    snprintf(line, sizeof line, "%.*s", (int)r->head.data_bytes, r->data);
    const char *step = strstr(line, "ckpt/step-");
    return step ? strtol(step + 10, NULL, 10) : -1;
}

// ---- what is left

typedef enum { LATER_NOTHING, LATER_ALL, LATER_SOME, LATER_PIECES, LATER_KINDS } Later;

static void write_file(const Node *n, const char *path, Later later) {
    int64_t size = 0, room = 1;
    for (int i = 0; i < n->changes; i++)
        if (n->change[i].offset + n->change[i].bytes > room) room = n->change[i].offset + n->change[i].bytes;
    char *data = calloc((size_t)room, 1);
    CHECK(data);
    for (int i = 0; i < n->changes; i++) {
        const Change *c = &n->change[i];
        int64_t end = c->offset + c->bytes;
        bool whole = c->durable || later == LATER_ALL || (later == LATER_SOME && draw(2));
        bool pieces = !whole && later == LATER_PIECES;
        if (!whole && !pieces) continue;
        if (c->exact && end < size) memset(data + end, 0, (size_t)(size - end));
        if (c->exact || end > size) size = end;
        for (int64_t done = 0; c->data && done < c->bytes; done += PIECE)
            if (whole || draw(2))
                memcpy(data + c->offset + done, c->data + done,
                       (size_t)(c->bytes - done < PIECE ? c->bytes - done : PIECE));
    }
    FILE *file = fopen(path, "wb");
    CHECK(file && fwrite(data, 1, (size_t)size, file) == (size_t)size && fclose(file) == 0);
    free(data);
}

static void write_tree(const Node *n, const char *path, Later later) {
    CHECK(mkdir(path, 0777) == 0);
    for (int i = 0; i < n->entries; i++) {
        char child[PATH_BYTES + NAME_BYTES + 1];
        if (!n->entry[i].node) continue;
        snprintf(child, sizeof child, "%s/%s", path, n->entry[i].name);
        if (n->entry[i].node->folder)
            write_tree(n->entry[i].node, child, later);
        else
            write_file(n->entry[i].node, child, later);
    }
}

static void cut_names(Later later) {
    for (int i = 0; i < nodes; i++) node[i]->entries = 0;
    for (int i = 0; i < namings; i++) {
        const Naming *c = &naming[i];
        if (!c->durable && (later == LATER_NOTHING || (later != LATER_ALL && draw(2)))) continue;
        for (int k = 0; k < 2; k++)
            if (c->folder[k]) set(c->folder[k], c->name[k], c->node[k]);
    }
}

// Half of the cuts fall among the calls on checkpoints, the others anywhere.
static int choose_cut(const char *log, const char *end, bool last, int *records) {
    Record r;
    int *saving = NULL, savings = 0;
    *records = 0;
    for (const char *at = log; record_read(&r, at, end); at = r.end, ++*records) {
        if (!strstr(r.path, "/ckpt") && acknowledged(&r) < 0) continue;
        PUSH(saving, savings);
        saving[savings - 1] = *records;
    }
    CHECK(*records > 0 && savings > 0);
    int cut = last ? *records - 1 : draw(2) ? (int)draw((uint64_t)*records) : saving[draw((uint64_t)savings)];
    free(saving);
    return cut + 1; // at the earliest behind the first
}

int main(int argc, char **argv) {
    CHECK(argc == 5 || argc == 6);
    FILE *file = fopen(argv[1], "rb");
    struct stat info;
    CHECK(file && fstat(fileno(file), &info) == 0);
    const char *log = mmap(NULL, (size_t)info.st_size, PROT_READ, MAP_PRIVATE, fileno(file), 0);
    CHECK(log != MAP_FAILED);
    root_path = argv[2];
    random_state = strtoull(argv[4], NULL, 10) * 0x9e3779b97f4a7c15u;
    if (argc == 6) without = argv[5];
    bool last = strcmp(argv[4], "last") == 0;
    root = node_create(true, 0);
    int records, cut = choose_cut(log, log + info.st_size, last, &records);
    long step = -1;
    Record r;
    const char *at = log;
    for (int i = 0; i < cut; i++, at = r.end) {
        CHECK(record_read(&r, at, log + info.st_size));
        replay(&r);
        if (acknowledged(&r) > step) step = acknowledged(&r);
    }
    cut_names(last ? LATER_NOTHING : (Later)draw(LATER_PIECES));
    write_tree(root, argv[3], last ? LATER_NOTHING : (Later)draw(LATER_KINDS));
    printf("cut %d of %d: step %ld was acknowledged\n", cut, records, step);
    return 0;
}
