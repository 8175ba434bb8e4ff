// SPDX-License-Identifier: Apache-2.0
#include "core/file.h"
#include "core/hdf5_file.h"
#include "core/rng.h"
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

static const char *const path = "test_hdf5_file.tmp.h5";

static float *weights(int64_t count) {
    float *values = malloc((size_t)count * sizeof *values);
    for (int64_t i = 0; i < count; i++) values[i] = 0.02f * rng_normal(1, 2, (uint64_t)i);
    return values;
}

static size_t write_file(const float *values, int64_t count, int zlib) {
    Hdf5Image *image;
    void *data;
    size_t held, bytes;
    unlink(path);
    assert_int_equal(hdf5_image_create(&image, count * 4), OK);
    assert_int_equal(hdf5_image_attribute_text(image, "format", "test"), OK);
    assert_int_equal(hdf5_image_attribute_i64(image, "step", 7), OK);
    assert_int_equal(hdf5_image_group(image, "/state"), OK);
    if (zlib)
        assert_int_equal(hdf5_image_f32_zlib(image, "/state/master", values, count), OK);
    else
        assert_int_equal(hdf5_image_f32(image, "/state/master", values, 1, &count), OK);
    assert_int_equal(hdf5_image_i64(image, "/numbers", (int64_t[]){1, 2, 3, 4}, 2, 2), OK);
    assert_int_equal(hdf5_image_u32(image, "/sums", (uint32_t[]){5, 6}, 2, 0), OK);
    assert_int_equal(hdf5_image_names(image, "/names", "one\0two\0", 2, 4), OK);
    int64_t offset;
    assert_int_equal(hdf5_image_offset(image, "/state/master", &offset), OK);
    assert_int_equal(hdf5_image_finish(image, &data, &held, &bytes), OK);
    assert_int_equal(held, bytes);
    if (!zlib && count) assert_memory_equal((char *)data + offset, values, (size_t)count * 4);
    assert_int_equal(file_write_durable(path, data, bytes), OK);
    free(data);
    return bytes;
}

static void assert_reads(const float *values, int64_t count) {
    Hdf5File *file;
    int64_t found;
    float *read = malloc((size_t)(count + 1) * sizeof *read);
    assert_int_equal(hdf5_file_open(&file, path), OK);
    assert_int_equal(hdf5_file_count(file, "/state/master", &found), OK);
    assert_int_equal(found, count);
    assert_int_equal(hdf5_file_read_f32(file, "/state/master", 0, count, read), OK);
    assert_memory_equal(read, values, (size_t)count * 4);
    int64_t first = count / 3, some = count / 2;
    assert_int_equal(hdf5_file_read_f32(file, "/state/master", first, some, read), OK);
    assert_memory_equal(read, values + first, (size_t)some * 4);
    assert_int_equal(hdf5_file_read_f32(file, "/state/master", count, 1, read), ERR_DATA);
    assert_int_equal(hdf5_file_read_f32(file, "/state/absent", 0, 1, read), ERR_DATA);
    hdf5_file_close(file);
    free(read);
}

// One value, less than a chunk, chunks exactly, and a partly filled last chunk.
static const int64_t counts[] = {1, 1000, 262144, 524288, 600001};

static void contiguous(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof counts / sizeof *counts; i++) {
        float *values = weights(counts[i]);
        size_t bytes = write_file(values, counts[i], 0);
        assert_in_range(bytes, (size_t)counts[i] * 4, (size_t)counts[i] * 4 + 32768);
        assert_reads(values, counts[i]);
        free(values);
    }
    write_file(NULL, 0, 0);
    unlink(path);
}

// The values go from their own place into the file; the image has the rest, and stays small.
static void apart(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof counts / sizeof *counts; i++) {
        float *values = weights(counts[i]);
        Hdf5Image *image;
        void *data;
        size_t held, bytes;
        int64_t offset;
        unlink(path);
        assert_int_equal(hdf5_image_create(&image, 4096), OK);
        assert_int_equal(hdf5_image_group(image, "/state"), OK);
        assert_int_equal(hdf5_image_i64(image, "/numbers", (int64_t[]){1, 2, 3, 4}, 2, 2), OK);
        assert_int_equal(hdf5_image_f32_apart(image, "/state/master", counts[i], &offset), OK);
        assert_int_equal(hdf5_image_finish(image, &data, &held, &bytes), OK);
        assert_in_range(held, 48, 1 << 20);
        FilePiece piece[] = {{data, 0, held < (size_t)offset ? held : (size_t)offset},
                             {values, offset, (size_t)counts[i] * 4}};
        assert_int_equal(file_write_pieces_durable(path, piece, 2, (int64_t)bytes), OK);
        free(data);
        assert_reads(values, counts[i]);
        free(values);
    }
    unlink(path);
}

// The library's own filters undo what we compress by hand.
static void compressed(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof counts / sizeof *counts; i++) {
        float *values = weights(counts[i]);
        for (int64_t k = 0; k < counts[i]; k += 97) values[k] = k % 2 ? 0 : -INFINITY;
        size_t bytes = write_file(values, counts[i], 1);
        // Normal values: the top byte has about 3 bits of entropy, so 28.x of 32 bits stay.
        if (counts[i] >= 262144) assert_in_range(bytes, (size_t)counts[i] * 3, (size_t)counts[i] * 36 / 10);
        assert_reads(values, counts[i]);
        free(values);
    }
    unlink(path);
}

static void not_a_file(void **state) {
    (void)state;
    Hdf5File *file;
    unlink(path);
    assert_int_equal(hdf5_file_open(&file, path), ERR_DATA);
    assert_non_null(strstr(status_text(), path));
    assert_int_equal(file_write_durable(path, "not HDF5", 8), OK);
    assert_int_equal(hdf5_file_open(&file, path), ERR_DATA);
    unlink(path);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(contiguous),
        cmocka_unit_test(apart),
        cmocka_unit_test(compressed),
        cmocka_unit_test(not_a_file),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
