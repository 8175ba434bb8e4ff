// SPDX-License-Identifier: Apache-2.0
#include "core/rng.h"
#include "core/safetensors.h"
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
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
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        if (open_with(bad[i].header, bad[i].data) != ERR_DATA) fail_msg("accepted: %s", bad[i].header);
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
    }
    unlink(path);
    assert_int_equal(safetensors_open(&file, path), ERR_DATA);
}

// Whatever bytes change, the file is read within its bounds or refused.
static void mutations(void **state) {
    (void)state;
    const char *count = getenv("SAFETENSORS_MUTATIONS");
    char bytes[4096], data[24] = {0}, mutant[4096];
    size_t size = file_bytes(bytes, GOOD, data, 24);
    int64_t refused = 0, n = count ? atoll(count) : 1000;
    for (int64_t i = 0; i < n; i++) {
        memcpy(mutant, bytes, size);
        size_t length = size;
        for (uint64_t k = 0; k <= rng_u64(1, (uint64_t)i, 0) % 4; k++) {
            uint64_t random = rng_u64(2, (uint64_t)i, k);
            size_t at = random % length;
            if (random >> 32 & 1)
                mutant[at] = (char)(random >> 40);
            else
                mutant[at] = "0123456789{}[]\",:-e."[random >> 40 & 15];
            if ((random >> 33 & 15) == 0) length = at + 1;
        }
        write_bytes(mutant, length);
        Safetensors *file;
        if (safetensors_open(&file, path) != OK) {
            refused++;
            continue;
        }
        for (int t = 0; t < safetensors_count(file); t++) {
            const SafeTensor *tensor = safetensors_tensor(file, t);
            float out[64];
            assert_true(tensor->elements <= 24);
            if (safetensors_converts(tensor))
                assert_int_equal(safetensors_read_f32(file, t, 0, tensor->elements, out), OK);
        }
        safetensors_close(file);
    }
    assert_true(refused > n / 4);
    unlink(path);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(reads_all_types),
        cmocka_unit_test(malformed_headers),
        cmocka_unit_test(impossible_lengths),
        cmocka_unit_test(mutations),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
