// SPDX-License-Identifier: Apache-2.0
// Saving and loading by one rank, and what damage does. Other layouts: mpi_checkpoint.c, cli_ckpt_worlds.sh.
#ifndef _GNU_SOURCE
#define _GNU_SOURCE // memmem
#endif
#include "checkpoint_harness.h"
#include "core/crc32c.h"
#include "core/file.h"
#include "core/hdf5_file.h"
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#define RUN    "test_checkpoint.tmp"
#define STEP_5 RUN "/ckpt/step-000000005"
#define SHARD  "/shard_00000_of_00001_part000.h5"

static const Layout alone = {.world = 1, .ep = 1, .rank = 0, .stage = 1};
static Mesh *mesh;
static json_t *record;

static Status save_as(Shards *shards, int64_t step, CheckpointOptions options) {
    CheckpointReport report;
    CheckpointState state = harness_state(shards, alone, mesh);
    return checkpoint_save(&state, record, RUN, step, &options, &report);
}

static Status save(int64_t step, CheckpointOptions options) {
    ModelConfig config = harness_config();
    Shards *shards = harness_create(&config, alone);
    harness_fill(shards, step);
    Status status = save_as(shards, step, options);
    harness_free(shards);
    return status;
}

// Loads into a fresh state; *wrong counts the values that differ from the step's.
static Status load(const char *dir, int64_t step, bool weights_only, int64_t *wrong) {
    ModelConfig config = harness_config();
    Shards *shards = harness_create(&config, alone);
    CheckpointState state = harness_state(shards, alone, mesh);
    json_t *found = NULL;
    Status status = checkpoint_load(&state, dir, weights_only, &found, NULL);
    if (wrong) *wrong = harness_wrong(shards, step, !weights_only);
    if (status == OK)
        assert_true(json_equal(found, record));
    else
        assert_null(found);
    json_decref(found);
    harness_free(shards);
    return status;
}

static int start(void **state) {
    (void)state;
    return file_remove_tree(RUN) != OK || file_make_folders(RUN) != OK;
}

static int end(void **state) {
    (void)state;
    return file_remove_tree(RUN);
}

static void assert_round_trip(CheckpointOptions options) {
    int64_t wrong;
    assert_int_equal(save(5, options), OK);
    assert_int_equal(checkpoint_verify(STEP_5, false), OK);
    assert_int_equal(load(STEP_5, 5, false, &wrong), OK);
    assert_int_equal(wrong, 0);
    assert_int_equal(load(STEP_5, 5, true, &wrong), OK);
    assert_int_equal(wrong, 0);
}

static void round_trip(void **state) {
    (void)state;
    assert_round_trip((CheckpointOptions){.zlib = false});
}

static void round_trip_zlib(void **state) {
    (void)state;
    assert_round_trip((CheckpointOptions){.zlib = true});
}

static int64_t size_of(const char *path) {
    struct stat info;
    return stat(path, &info) ? -1 : (int64_t)info.st_size;
}

static void parts_are_bounded(void **state) {
    (void)state;
    enum { BYTES = 50000 };
    assert_round_trip((CheckpointOptions){.part_bytes = BYTES});
    int parts = 0;
    for (int64_t size;; parts++) {
        char path[256];
        snprintf(path, sizeof path, STEP_5 "/shard_00000_of_00001_part%03d.h5", parts);
        if ((size = size_of(path)) < 0) break;
        assert_true(size < BYTES + 40000); // the tables of segments and HDF5's own
    }
    assert_true(parts > 5);
}

// Another program finds the values by the file's own tables.
static void file_describes_itself(void **state) {
    (void)state;
    Hdf5File *file;
    float *values;
    int64_t count;
    assert_int_equal(save(5, (CheckpointOptions){.zlib = true}), OK);
    assert_int_equal(hdf5_file_open(&file, STEP_5 SHARD), OK);
    assert_int_equal(hdf5_file_count(file, "/state/v", &count), OK);
    values = malloc((size_t)count * sizeof *values);
    assert_int_equal(hdf5_file_read_f32(file, "/state/v", 0, count, values), OK);
    for (int64_t i = 0; i < 61 * 24; i++) assert_true(values[i] == harness_value("embed", 2, i, 5));
    free(values);
    hdf5_file_close(file);
}

static void reads_offline(void **state) {
    (void)state;
    for (int zlib = 0; zlib < 2; zlib++) {
        CheckpointReader *reader;
        assert_int_equal(save(5, (CheckpointOptions){.part_bytes = 50000, .zlib = zlib}), OK);
        assert_int_equal(checkpoint_reader_open(&reader, STEP_5), OK);
        assert_int_equal(checkpoint_reader_tensors(reader), 3 + HARNESS_LAYERS * (11 + 3 * HARNESS_EXPERTS));
        for (int t = 0; t < checkpoint_reader_tensors(reader); t++) {
            CheckpointTensor tensor = checkpoint_reader_tensor(reader, t);
            int64_t size = tensor.dim[0] * (tensor.dims == 2 ? tensor.dim[1] : 1), first = size / 3;
            float *values = malloc((size_t)size * sizeof *values);
            assert_int_equal(checkpoint_reader_read(reader, t, STATE_M, first, size - first, values), OK);
            for (int64_t i = first; i < size; i++)
                assert_true(values[i - first] == harness_value(tensor.name, 1, i, 5));
            free(values);
        }
        checkpoint_reader_close(reader);
    }
}

// ---- damage

static const char *const victims[] = {"/MANIFEST.json", SHARD};

static void write_bytes(const char *path, const char *data, size_t bytes) {
    FILE *file = fopen(path, "wb");
    assert_non_null(file);
    assert_int_equal(fwrite(data, 1, bytes, file), bytes);
    fclose(file);
}

// Every flipped bit, in whatever file, is seen by verify and by load.
static void flip_bits(CheckpointOptions options, int flips) {
    assert_int_equal(save(5, options), OK);
    for (int v = 0; v < 2; v++) {
        char path[256], *data;
        size_t bytes;
        snprintf(path, sizeof path, STEP_5 "%s", victims[v]);
        assert_int_equal(file_read_all(path, &data, &bytes), OK);
        for (int i = 0; i < flips; i++) {
            // Half of the flips among the file's first and last bytes, where its structure lies.
            uint64_t random = rng_u64(9, (uint64_t)v, (uint64_t)i), spread = i % 2 ? 8 * bytes : 8 * 4096;
            uint64_t bit = random % spread % (8 * bytes);
            if (i % 4 == 2) bit = 8 * bytes - 1 - bit;
            data[bit / 8] ^= (char)(1 << bit % 8);
            write_bytes(path, data, bytes);
            data[bit / 8] ^= (char)(1 << bit % 8);
            assert_int_equal(checkpoint_verify(STEP_5, false), ERR_DATA);
            assert_int_equal(load(STEP_5, 5, false, NULL), ERR_DATA);
            assert_non_null(strstr(status_text(), STEP_5));
        }
        write_bytes(path, data, bytes);
        free(data);
    }
    assert_int_equal(checkpoint_verify(STEP_5, false), OK);
}

static void flips_are_seen(void **state) {
    (void)state;
    flip_bits((CheckpointOptions){.zlib = false}, 200);
    flip_bits((CheckpointOptions){.zlib = true}, 100);
}

static void cut_and_lost_files_are_seen(void **state) {
    (void)state;
    for (int v = 0; v < 2; v++) {
        char path[256];
        snprintf(path, sizeof path, STEP_5 "%s", victims[v]);
        for (int i = 0; i < 20; i++) {
            assert_int_equal(save(5, (CheckpointOptions){.zlib = false}), OK);
            assert_int_equal(
                truncate(path, (off_t)(rng_uniform(3, (uint64_t)v, (uint64_t)i) * (double)size_of(path))), 0);
            assert_int_equal(load(STEP_5, 5, false, NULL), ERR_DATA);
        }
        assert_int_equal(save(5, (CheckpointOptions){.zlib = false}), OK);
        unlink(path);
        assert_int_equal(load(STEP_5, 5, false, NULL), ERR_DATA);
        assert_non_null(strstr(status_text(), path));
        assert_int_equal(save(5, (CheckpointOptions){.zlib = false}), OK);
        write_bytes(STEP_5 "/more", "?", 1);
        assert_int_equal(checkpoint_verify(STEP_5, false), ERR_DATA);
    }
}

// Files of another step or another number have the right size and are whole in themselves.
static void swapped_files_are_seen(void **state) {
    (void)state;
    CheckpointOptions options = {.part_bytes = 50000};
    assert_int_equal(save(5, options), OK);
    assert_int_equal(save(6, options), OK);
    for (int v = 0; v < 2; v++) {
        char a[256], b[256];
        snprintf(a, sizeof a, STEP_5 "%s", victims[v]);
        snprintf(b, sizeof b, RUN "/ckpt/step-000000006%s", victims[v]);
        assert_int_equal(file_exchange_durable(a, b), OK);
        assert_int_equal(load(STEP_5, 5, false, NULL), ERR_DATA);
        assert_int_equal(file_exchange_durable(a, b), OK);
    }
    assert_int_equal(load(STEP_5, 5, false, NULL), OK);
    assert_int_equal(file_exchange_durable(STEP_5 "/shard_00000_of_00001_part001.h5",
                                           STEP_5 "/shard_00000_of_00001_part002.h5"),
                     OK);
    assert_int_equal(load(STEP_5, 5, false, NULL), ERR_DATA);
}

// A load that needs little of a file checks what it reads: damage there is seen, damage elsewhere is not its
// business.
static void little_is_read(void **state) {
    (void)state;
    ModelConfig config = harness_config();
    Shards *shards = harness_create(&config, alone);
    char *data;
    size_t bytes, count = 61 * 24;
    harness_fill(shards, 5);
    assert_int_equal(save_as(shards, 5, (CheckpointOptions){.zlib = false}), OK);
    assert_int_equal(file_read_all(STEP_5 SHARD, &data, &bytes), OK);
    assert_string_equal(shards->params.param[shards->held[0].param].name, "embed");
    char *values = memmem(data, bytes, shards->held[0].m, count * sizeof(float));
    assert_non_null(values);
    CheckpointState one = harness_state(shards, alone, mesh);
    one.held_count = 1;
    one.buffers = 0;
    for (int inside = 0; inside < 2; inside++) {
        char *victim = values + (inside ? 4 * count - 1 : 4 * count + 100000);
        json_t *found;
        *victim ^= 1;
        write_bytes(STEP_5 SHARD, data, bytes);
        *victim ^= 1;
        memset(shards->held[0].m, 0, count * sizeof(float));
        assert_int_equal(checkpoint_load(&one, STEP_5, false, &found, NULL), inside ? ERR_DATA : OK);
        if (inside)
            assert_non_null(strstr(status_text(), "m of embed, elements 0 to 1464"));
        else
            assert_memory_equal(shards->held[0].m, values, count * sizeof(float));
        json_decref(found);
    }
    // Where most of a file is read, all of it is checked: this byte is the library's.
    json_t *found;
    data[9] ^= 1;
    write_bytes(STEP_5 SHARD, data, bytes);
    one.held_count = shards->held_count;
    assert_int_equal(checkpoint_load(&one, STEP_5, false, &found, NULL), ERR_DATA);
    free(data);
    harness_free(shards);
}

// ---- a manifest whose checksum is right and whose content is not

static void sign_manifest(const json_t *manifest) {
    char *text = json_dumps(manifest, JSON_COMPACT), line[64];
    FILE *file = fopen(STEP_5 "/MANIFEST.json", "wb");
    snprintf(line, sizeof line, "{\"crc32c\":\"%08x\"}\n", crc32c(0, text, strlen(text)));
    fputs(text, file);
    fputs(line, file);
    fclose(file);
    free(text);
}

// The place "files/0/segments/3/1" gets the value.
static void edit(json_t *at, const char *path, const char *value) {
    char part[64];
    while (true) {
        size_t length = strcspn(path, "/");
        json_t *new_value = path[length] ? NULL : json_loads(value, JSON_DECODE_ANY, NULL);
        snprintf(part, sizeof part, "%.*s", (int)length, path);
        if (json_is_array(at) && new_value)
            assert_int_equal(json_array_set_new(at, (size_t)atoi(part), new_value), 0);
        else if (new_value)
            assert_int_equal(json_object_set_new(at, part, new_value), 0);
        else
            at = json_is_array(at) ? json_array_get(at, (size_t)atoi(part)) : json_object_get(at, part);
        if (new_value) return;
        assert_non_null(at);
        path += length + 1;
    }
}

static void lying_manifests(void **state) {
    (void)state;
    static const char *const lies[][2] = {
        {"files/0/segments/3/0", "100000"},
        {"files/0/segments/3/0", "-1"},
        {"files/0/segments/3/0", "\"embed\""},
        {"files/0/segments/3/0", "2"}, // twice, and another one never
        {"files/0/segments/3/1", "1"},
        {"files/0/segments/3/1", "9223372036854775807"},
        {"files/0/segments/3/2", "9223372036854775807"},
        {"files/0/segments/3/2", "0"},
        {"files/0/segments/3/3", "9223372036854775807"},
        {"files/0/segments/3/3", "1"}, // another tensor's values
        {"files/0/segments/3/4", "\"0000000g\""},
        {"files/0/segments/3/4", "7"},
        {"files/0/segments/3", "{}"},
        {"files/0/offsets/0", "1000000000"},
        {"files/0/offsets/0", "-1"},
        {"files/0/offsets/0", "64"},
        {"files/0/elements", "1152921504606846976"},
        {"files/0/bytes", "4611686018427387904"},
        {"files/0/name", "\"../step-000000005" SHARD "\""},
        {"files/0/name", "null"},
        {"files/0/buffers/0/2", "1000000000"},
        {"files/0/buffers/0/1", "[4294967296,4294967296]"},
        {"files/0/buffers/0/1", "[]"},
        {"files", "[]"},
        {"files", "7"},
        {"tensors/5/0", "\"embed\""},
        {"tensors/5/1", "[0]"},
        {"tensors/5/1", "[1,1,1]"},
        {"tensors/5/1", "[4294967296,4294967296]"},
        {"tensors", "[]"},
        {"states", "[\"master\",\"m\"]"},
        {"states", "[]"},
        {"step", "-5"},
        {"compress", "\"lzma\""},
        {"format", "\"other\""},
    };
    assert_int_equal(save(5, (CheckpointOptions){.zlib = false}), OK);
    for (size_t i = 0; i < sizeof lies / sizeof *lies; i++) {
        json_t *manifest;
        Status status;
        assert_int_equal(checkpoint_manifest(STEP_5, &manifest), OK);
        json_t *changed = json_deep_copy(manifest);
        edit(changed, lies[i][0], lies[i][1]);
        sign_manifest(changed);
        status = load(STEP_5, 5, false, NULL);
        if (status != ERR_DATA) fail_msg("%s = %s: status %d", lies[i][0], lies[i][1], status);
        assert_int_equal(checkpoint_verify(STEP_5, false), ERR_DATA);
        sign_manifest(manifest);
        json_decref(changed);
        json_decref(manifest);
    }
    assert_int_equal(load(STEP_5, 5, false, NULL), OK);
    json_t *manifest;
    assert_int_equal(checkpoint_manifest(STEP_5, &manifest), OK);
    edit(manifest, "version", "2");
    sign_manifest(manifest);
    assert_int_equal(load(STEP_5, 5, false, NULL), ERR_CONFIG); // a newer floe's, not damage
    json_decref(manifest);
}

// ---- another model

static void assert_other_model(const ModelConfig *config, const char *expected) {
    Shards *shards = harness_create(config, alone);
    CheckpointState state = harness_state(shards, alone, mesh);
    json_t *found;
    assert_int_equal(checkpoint_load(&state, STEP_5, false, &found, NULL), ERR_CONFIG);
    if (!strstr(status_text(), expected)) fail_msg("'%s' does not say '%s'", status_text(), expected);
    harness_free(shards);
}

static void another_model_is_refused(void **state) {
    (void)state;
    assert_int_equal(save(5, (CheckpointOptions){.zlib = false}), OK);
    ModelConfig c = harness_config();
    c.vocab = 62;
    assert_other_model(&c, "its tensor embed is [61, 24], in this one [62, 24]");
    c = harness_config();
    c.layers = 4;
    assert_other_model(&c, "it has no tensor layers.3.attn_norm, [24] in this one");
    c.layers = 2;
    assert_other_model(&c, "its tensor layers.2.attn.k, [12, 24], is not in this one");
}

static void weights_alone(void **state) {
    (void)state;
    ModelConfig config = harness_config();
    Shards *shards = harness_create(&config, alone);
    CheckpointState to = harness_state(shards, alone, mesh);
    harness_fill(shards, 5);
    to.buffers = 0;
    CheckpointReport report;
    assert_int_equal(checkpoint_save(&to, record, RUN, 5, &(CheckpointOptions){.zlib = false}, &report), OK);
    assert_int_equal(report.raw_bytes, 12 * model_size(&config, 1).total);
    to.buffers = 1;
    json_t *found = NULL;
    assert_int_equal(checkpoint_load(&to, STEP_5, false, &found, NULL), ERR_CONFIG); // no bias in it
    assert_non_null(strstr(status_text(), "router_bias"));
    assert_int_equal(checkpoint_load(&to, STEP_5, true, &found, NULL), OK);
    assert_int_equal(harness_wrong(shards, 5, false), 0);
    json_decref(found);
    harness_free(shards);
}

// ---- a save that fails leaves nothing behind

static void assert_only_step_5(void) {
    int64_t step, wrong;
    char dir[256];
    assert_int_equal(checkpoint_find(RUN, -1, &step, dir, sizeof dir), OK);
    assert_int_equal(step, 5);
    assert_int_equal(load(STEP_5, 5, false, &wrong), OK);
    assert_int_equal(wrong, 0);
    assert_int_equal(rename(STEP_5, RUN "/kept"), 0);
    assert_int_equal(rmdir(RUN "/ckpt"), 0); // nothing else was there
    assert_int_equal(mkdir(RUN "/ckpt", 0777), 0);
    assert_int_equal(rename(RUN "/kept", STEP_5), 0);
}

static void full_disk(void **state) {
    (void)state;
    assert_int_equal(save(5, (CheckpointOptions){.zlib = false}), OK);
    signal(SIGXFSZ, SIG_IGN);
    struct rlimit before, limit;
    getrlimit(RLIMIT_FSIZE, &before);
    int64_t size = size_of(STEP_5 SHARD);
    for (int i = 0; i < 20; i++) {
        limit = before;
        limit.rlim_cur = (rlim_t)(size * i / 20);
        setrlimit(RLIMIT_FSIZE, &limit);
        Status status = save(6, (CheckpointOptions){.zlib = false});
        setrlimit(RLIMIT_FSIZE, &before);
        assert_int_equal(status, ERR_RUNTIME);
        assert_non_null(strstr(status_text(), "step 6 was not written"));
        assert_only_step_5();
    }
    assert_int_equal(save(6, (CheckpointOptions){.zlib = false}), OK);
}

static void every_element_once(void **state) {
    (void)state;
    ModelConfig config = harness_config();
    Shards *shards = harness_create(&config, alone);
    assert_int_equal(save(5, (CheckpointOptions){.zlib = false}), OK);
    shards->owned[7].count--;
    assert_int_equal(save_as(shards, 6, (CheckpointOptions){.zlib = false}), ERR_RUNTIME);
    assert_only_step_5();
    shards->owned[7].count++;
    shards->owned[7] = shards->owned[8];
    assert_int_equal(save_as(shards, 6, (CheckpointOptions){.zlib = false}), ERR_RUNTIME);
    assert_non_null(strstr(status_text(), "owned by no rank or by two"));
    assert_only_step_5();
    harness_free(shards);
}

// The same step again takes the other's place.
static void saved_again(void **state) {
    (void)state;
    ModelConfig config = harness_config();
    Shards *shards = harness_create(&config, alone);
    harness_fill(shards, 1);
    assert_int_equal(save_as(shards, 5, (CheckpointOptions){.zlib = false}), OK);
    harness_free(shards);
    assert_int_equal(save(5, (CheckpointOptions){.zlib = false}), OK);
    assert_only_step_5();
}

// How a state is cut does not show in its digest; another state does.
static void digests(void **state) {
    (void)state;
    json_t *manifest[3];
    assert_int_equal(save(5, (CheckpointOptions){.zlib = false}), OK);
    assert_int_equal(checkpoint_manifest(STEP_5, &manifest[0]), OK);
    assert_int_equal(save(5, (CheckpointOptions){.part_bytes = 10000, .zlib = true}), OK);
    assert_int_equal(checkpoint_manifest(STEP_5, &manifest[1]), OK);
    assert_int_equal(save(6, (CheckpointOptions){.zlib = false}), OK);
    assert_int_equal(checkpoint_manifest(RUN "/ckpt/step-000000006", &manifest[2]), OK);
    assert_true(json_equal(json_object_get(manifest[0], "digest"), json_object_get(manifest[1], "digest")));
    assert_true(json_equal(json_object_get(manifest[0], "tensors"), json_object_get(manifest[1], "tensors")));
    assert_false(json_equal(json_object_get(manifest[0], "digest"), json_object_get(manifest[2], "digest")));
    for (int i = 0; i < 3; i++) json_decref(manifest[i]);
}

int main(int argc, char **argv) {
    comm_start(&argc, &argv);
    if (mesh_create_self(&mesh) != OK) return 1;
    record = json_pack("{s:i, s:f, s:s}", "step", 5, "loss", 0.1, "config", "model:\n  \"odd\": \t\n");
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(round_trip, start, end),
        cmocka_unit_test_setup_teardown(round_trip_zlib, start, end),
        cmocka_unit_test_setup_teardown(parts_are_bounded, start, end),
        cmocka_unit_test_setup_teardown(file_describes_itself, start, end),
        cmocka_unit_test_setup_teardown(reads_offline, start, end),
        cmocka_unit_test_setup_teardown(flips_are_seen, start, end),
        cmocka_unit_test_setup_teardown(cut_and_lost_files_are_seen, start, end),
        cmocka_unit_test_setup_teardown(swapped_files_are_seen, start, end),
        cmocka_unit_test_setup_teardown(little_is_read, start, end),
        cmocka_unit_test_setup_teardown(lying_manifests, start, end),
        cmocka_unit_test_setup_teardown(another_model_is_refused, start, end),
        cmocka_unit_test_setup_teardown(weights_alone, start, end),
        cmocka_unit_test_setup_teardown(full_disk, start, end),
        cmocka_unit_test_setup_teardown(every_element_once, start, end),
        cmocka_unit_test_setup_teardown(saved_again, start, end),
        cmocka_unit_test_setup_teardown(digests, start, end),
    };
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    json_decref(record);
    mesh_destroy(mesh);
    comm_finish();
    return failed;
}
