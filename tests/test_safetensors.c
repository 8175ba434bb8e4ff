// SPDX-License-Identifier: Apache-2.0
#include "core/safetensors.h"
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

static const char *const path = "test_safetensors.tmp.safetensors";

static void write_bytes(const void *bytes, size_t count) {
    FILE *file = fopen(path, "wb");
    assert_non_null(file);
    assert_int_equal(fwrite(bytes, 1, count, file), count);
    fclose(file);
}

static size_t file_bytes(char *out, const char *header, const void *data, size_t bytes) {
    size_t length = strlen(header);
    for (int i = 0; i < 8; i++) out[i] = (char)(length >> 8 * i);
    memcpy(out + 8, header, length);
    memcpy(out + 8 + length, data, bytes);
    return 8 + length + bytes;
}

static Status open_with(const char *header, size_t data_bytes) {
    char bytes[4096];
    static const char zeros[256];
    Safetensors *file;
    write_bytes(bytes, file_bytes(bytes, header, zeros, data_bytes));
    Status status = safetensors_open(&file, path);
    if (status != OK) assert_non_null(strstr(status_text(), path));
    safetensors_close(file);
    return status;
}

#define TENSOR(name, dtype, shape, begin, end)                                                               \
    "\"" name "\":{\"dtype\":\"" dtype "\",\"shape\":" shape ",\"data_offsets\":[" #begin "," #end "]}"
#define GOOD                                                                                                 \
    "{\"__metadata__\":{\"format\":\"pt\"}," TENSOR("a", "F32", "[2,1]", 0, 8) "," TENSOR(                   \
        "b", "F16", "[5]", 8, 18) "," TENSOR("c", "BF16", "[1,3]", 18, 24) "}  "

static void reads_all_types(void **state) {
    (void)state;
    char bytes[4096], data[24];
    const float a[2] = {1.5f, -3e30f};
    // 1, -2, 65504 (the largest), 2^-24 (the least), -infinity; and 1, -2, 3.140625
    const uint16_t b[5] = {0x3c00, 0xc000, 0x7bff, 0x0001, 0xfc00}, c[3] = {0x3f80, 0xc000, 0x4049};
    memcpy(data, a, 8);
    memcpy(data + 8, b, 10);
    memcpy(data + 18, c, 6);
    write_bytes(bytes, file_bytes(bytes, GOOD, data, 24));
    Safetensors *file;
    float out[5];
    assert_int_equal(safetensors_open(&file, path), OK);
    assert_int_equal(safetensors_count(file), 3);
    assert_string_equal(safetensors_tensor(file, 1)->name, "b");
    assert_int_equal(safetensors_tensor(file, 2)->dims, 2);
    assert_int_equal(safetensors_tensor(file, 2)->dim[1], 3);
    assert_int_equal(safetensors_read_f32(file, 0, 0, 2, out), OK);
    assert_memory_equal(out, a, 8);
    assert_int_equal(safetensors_read_f32(file, 1, 0, 5, out), OK);
    const float halves[5] = {1, -2, 65504, 0x1p-24f, -INFINITY};
    assert_memory_equal(out, halves, sizeof halves);
    assert_int_equal(safetensors_read_f32(file, 2, 1, 2, out), OK);
    assert_true(out[0] == -2 && out[1] == 3.140625f);
    safetensors_close(file);
    unlink(path);
}

static void malformed_headers(void **state) {
    (void)state;
    assert_int_equal(open_with(GOOD, 24), OK);
    assert_int_equal(open_with("{}", 0), OK);
    static const struct {
        const char *header;
        size_t data;
    } bad[] = {
        {GOOD, 23},
        {GOOD, 25},
        {" " GOOD, 24},
        {"[1]", 0},
        {"{", 0},
        {"", 0},
        {"{" TENSOR("a", "F32", "[2]", 0, 8) "," TENSOR("a", "F32", "[2]", 0, 8) "}", 8},
        {"{" TENSOR("a", "F32", "[2]", 0, 8) "," TENSOR("b", "F32", "[2]", 4, 12) "}", 12},
        {"{" TENSOR("a", "F32", "[2]", 0, 8) "," TENSOR("b", "F32", "[2]", 12, 20) "}", 20},
        {"{" TENSOR("a", "F32", "[2]", 0, 8) "," TENSOR("b", "F32", "[2]", 4,
                                                        12) "," TENSOR("c", "F32", "[1]", 16, 20) "}",
         20},
        {"{" TENSOR("a", "F32", "[2]", 0, 4) "," TENSOR("b", "F32", "[2]", 8, 16) "}", 16}, // a's end lies
        {"{" TENSOR("a", "F31", "[2]", 0, 8) "}", 8},
        {"{" TENSOR("a", "F32", "[3]", 0, 8) "}", 8},
        {"{" TENSOR("a", "F32", "[-2]", 0, 8) "}", 8},
        {"{" TENSOR("a", "F32", "[4294967296,4294967296,4294967296,2]", 0, 8) "}", 8},
        {"{" TENSOR("a", "F32", "[2.0]", 0, 8) "}", 8},
        {"{" TENSOR("a", "F32", "{}", 0, 8) "}", 8},
        {"{" TENSOR("a", "F32", "[2]", 8, 0) "}", 8},
        {"{" TENSOR("a", "F32", "[2]", -8, 0) "}", 8},
        {"{" TENSOR("a", "F32", "[2]", 0, 1152921504606846976) "}", 8},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2]}}", 8},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8,8]}}", 8},
        {"{\"a\":7}", 0},
        {"{\"__metadata__\":7}", 0},
        {"{" TENSOR("", "F32", "[2]", 0, 8) "}", 8},
        {"{" TENSOR("a\\u001b[2J", "F32", "[2]", 0, 8) "}", 8},
        {"{" TENSOR("a\\u0000b", "F32", "[2]", 0, 8) "}", 8},
        {"{" TENSOR("a", "F32", "[1,1,1,1,1,1,1,1,2]", 0, 8) "}", 8},
        {"{" TENSOR("a", "F32", "[99999999999999999999]", 0, 8) "}", 8},
        {"{" TENSOR("a", "F32", "[2]", 0, 8) "}}", 8},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        if (open_with(bad[i].header, bad[i].data) != ERR_DATA) fail_msg("accepted: %s", bad[i].header);
    assert_int_equal(open_with(GOOD, 23), ERR_DATA);
    assert_non_null(strstr(status_text(), "bytes 18 to 24 do not lie in the file's 23 bytes of data"));
    unlink(path);
}

static void impossible_lengths(void **state) {
    (void)state;
    Safetensors *file;
    char bytes[16] = {0};
    for (size_t size = 0; size < 8; size++) {
        write_bytes(bytes, size);
        assert_int_equal(safetensors_open(&file, path), ERR_DATA);
    }
    for (int byte = 0; byte < 8; byte++) {
        memset(bytes, 0, sizeof bytes);
        bytes[byte] = 0x10; // 2^60 for the last
        write_bytes(bytes, sizeof bytes);
        assert_int_equal(safetensors_open(&file, path), ERR_DATA);
        assert_non_null(strstr(status_text(), "not a safetensors file, or cut off"));
    }
    unlink(path);
    assert_int_equal(safetensors_open(&file, path), ERR_DATA);
    assert_int_equal(safetensors_open(&file, "."), ERR_DATA);
    assert_int_equal(mkfifo(path, 0666), 0);
    assert_int_equal(safetensors_open(&file, path), ERR_DATA); // and does not wait for somebody to write
    unlink(path);
}

// The file ends after it was opened.
static void shrinking_file(void **state) {
    (void)state;
    char bytes[4096];
    static const char zeros[24];
    Safetensors *file;
    float out[2];
    size_t size = file_bytes(bytes, GOOD, zeros, 24);
    write_bytes(bytes, size);
    assert_int_equal(safetensors_open(&file, path), OK);
    assert_int_equal(truncate(path, (off_t)size - 3), 0);
    assert_int_equal(safetensors_read_f32(file, 0, 0, 2, out), OK);
    assert_int_equal(safetensors_read_f32(file, 2, 1, 2, out), ERR_DATA);
    assert_non_null(strstr(status_text(), path));
    safetensors_close(file);
    unlink(path);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(reads_all_types),
        cmocka_unit_test(malformed_headers),
        cmocka_unit_test(impossible_lengths),
        cmocka_unit_test(shrinking_file),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
