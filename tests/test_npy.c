// SPDX-License-Identifier: Apache-2.0
#include "core/npy.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

static const char *const path = "test_npy.tmp.npy";

static void round_trip(void **state) {
    (void)state;
    float values[6] = {0, 1.5f, -2, 3, 4e30f, 5};
    NpyWriter *writer;
    assert_int_equal(npy_create(&writer, path, "<f4", 2, (int64_t[]){2, 3}), OK);
    assert_int_equal(npy_write(writer, values, 12), OK);
    assert_int_equal(npy_write(writer, values + 3, 12), OK);
    assert_int_equal(npy_close(writer), OK);
    NpyArray array;
    assert_int_equal(npy_read(&array, path), OK);
    assert_int_equal(array.dims, 2);
    assert_int_equal(array.dim[0], 2);
    assert_int_equal(array.dim[1], 3);
    assert_string_equal(array.descr, "<f4");
    assert_memory_equal(array.data, values, sizeof values);
    npy_free(&array);
    unlink(path);
}

// The bytes that numpy.save writes for int32 [7, 8, 9], but for the spelling of the shape.
static void layout(void **state) {
    (void)state;
    NpyWriter *writer;
    assert_int_equal(npy_create(&writer, path, "<i4", 1, (int64_t[]){3}), OK);
    assert_int_equal(npy_write(writer, (int32_t[]){7, 8, 9}, 12), OK);
    assert_int_equal(npy_close(writer), OK);
    unsigned char bytes[256];
    FILE *file = fopen(path, "rb");
    size_t size = fread(bytes, 1, sizeof bytes, file);
    fclose(file);
    assert_memory_equal(bytes, "\x93NUMPY\x01\x00", 8);
    size_t header = bytes[8] | (size_t)bytes[9] << 8;
    assert_int_equal((header + 10) % 64, 0);
    assert_int_equal(size, header + 10 + 12);
    assert_int_equal(bytes[header + 9], '\n');
    assert_memory_equal(bytes + 10, "{'descr': '<i4', 'fortran_order': False, 'shape': (3,), }", 55);
    assert_int_equal(bytes[header + 10], 7);
    unlink(path);
}

static void short_files_are_named(void **state) {
    (void)state;
    NpyWriter *writer;
    assert_int_equal(npy_create(&writer, path, "<i4", 1, (int64_t[]){3}), OK);
    assert_int_equal(npy_write(writer, (int32_t[]){7, 8}, 8), OK);
    assert_int_equal(npy_close(writer), ERR_RUNTIME);
    NpyArray array;
    assert_int_equal(npy_read(&array, path), ERR_DATA);
    assert_non_null(strstr(status_text(), path));
    unlink(path);
    assert_int_equal(npy_read(&array, path), ERR_DATA);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(round_trip),
        cmocka_unit_test(layout),
        cmocka_unit_test(short_files_are_named),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
