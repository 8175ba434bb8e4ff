// SPDX-License-Identifier: Apache-2.0
// Files written from pieces: what lies between them is zero, large aligned pieces (which go past the page
// cache) and odd ones come out alike, and nothing is left of a file that does not fit.
#include "core/crc32c.h"
#include "core/file.h"
#include "core/rng.h"
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

#include <cmocka.h>

static const char *const path = "test_file.tmp";

static unsigned char *aligned_noise(size_t bytes) {
    unsigned char *data = aligned_alloc(FILE_ALIGNMENT, (bytes / FILE_ALIGNMENT + 1) * FILE_ALIGNMENT);
    for (size_t i = 0; i < bytes; i++) data[i] = (unsigned char)rng_u64(3, 4, i);
    return data;
}

static void assert_holds(const FilePiece *piece, int pieces, int64_t bytes) {
    unsigned char *want = calloc(1, (size_t)bytes + 1);
    for (int i = 0; i < pieces; i++) memcpy(want + piece[i].offset, piece[i].data, piece[i].bytes);
    char *text;
    size_t found;
    assert_int_equal(file_read_all(path, &text, &found), OK);
    assert_int_equal(found, bytes);
    assert_int_equal(crc32c(0, text, found), crc32c(0, want, (size_t)bytes));
    free(text);
    free(want);
}

static void pieces_and_gaps(void **state) {
    (void)state;
    const size_t large = (20 << 20) + 123; // more than one write, and no whole blocks
    unsigned char *noise = aligned_noise(large);
    const FilePiece cases[][3] = {
        {{noise, 0, 100}, {noise + 5, 4096, 50}, {noise, 9000, 1}},
        {{noise, 0, large}, {noise, 24 << 20, 2 << 20}, {noise + 1, 40 << 20, 2 << 20}},
        {{noise, 8192, large}, {noise, 32 << 20, 8192}, {noise, (36 << 20) + 1, 4 << 20}},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        for (int64_t tail = 0; tail < 6000; tail += 5000) {
            int64_t bytes = cases[i][2].offset + (int64_t)cases[i][2].bytes + tail;
            assert_int_equal(file_remove_tree(path), OK);
            assert_int_equal(file_write_pieces_durable(path, cases[i], 3, bytes), OK);
            assert_holds(cases[i], 3, bytes);
        }
    assert_int_equal(file_write_durable(path, "x", 1), ERR_RUNTIME);
    assert_non_null(strstr(status_text(), "File exists"));
    assert_int_equal(file_remove_tree(path), OK);
    assert_int_equal(file_write_durable(path, NULL, 0), OK);
    assert_holds(NULL, 0, 0);
    assert_int_equal(file_remove_tree(path), OK);
    free(noise);
}

static void too_large(void **state) {
    (void)state;
    unsigned char *noise = aligned_noise(4 << 20);
    struct rlimit before, small;
    int exists;
    getrlimit(RLIMIT_FSIZE, &before);
    small = before;
    small.rlim_cur = 3 << 20;
    signal(SIGXFSZ, SIG_IGN);
    setrlimit(RLIMIT_FSIZE, &small);
    Status status = file_write_durable(path, noise, 4 << 20);
    setrlimit(RLIMIT_FSIZE, &before);
    assert_int_equal(status, ERR_RUNTIME);
    assert_non_null(strstr(status_text(), "File too large"));
    assert_int_equal(file_exists(path, &exists), OK);
    assert_false(exists);
    free(noise);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(pieces_and_gaps), cmocka_unit_test(too_large)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
