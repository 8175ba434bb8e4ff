// SPDX-License-Identifier: Apache-2.0
// Thousands of damaged files, the same in every run: each is refused with a message that names it, or has
// only tensors that lie within it and can be read to the last value. Worth most with the sanitizers on.
#include "core/rng.h"
#include "core/safetensors.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

enum { MOST = 8192, MUTANTS = 6000 };
static const char *const path = "test_safetensors_fuzz.tmp.safetensors";

typedef struct {
    char bytes[MOST];
    size_t size, header; // header: where the data begins
} File;

#define TENSOR(name, dtype, shape, begin, end)                                                               \
    "\"" name "\":{\"dtype\":\"" dtype "\",\"shape\":" shape ",\"data_offsets\":[" #begin "," #end "]}"

static const struct {
    const char *header;
    size_t data;
} seeds[] = {
    {"{}", 0},
    {"{\"__metadata__\":{\"format\":\"pt\"}," TENSOR("model.norm.weight", "F32", "[2,1]", 0, 8) "," TENSOR(
         "b", "F16", "[5]", 8, 18) "," TENSOR("c", "BF16", "[1,3]", 18, 24) "}  ",
     24},
    {"{" TENSOR("scalar", "F32", "[]", 0, 4) "," TENSOR("none", "F32", "[0]", 4, 4) "," TENSOR(
         "empty", "BF16", "[3,0,7]", 4, 4) "," TENSOR("i", "I64", "[2]", 4, 20) "," TENSOR("u", "U8", "[4,3]",
                                                                                           20, 32) "}",
     32},
    {"{" TENSOR("z", "F32", "[16,4]", 256, 512) "," TENSOR("a", "F32", "[64]", 0, 256) "," TENSOR(
         "m", "BF16", "[8,8]", 512, 640) "," TENSOR("t\\u00e9", "F16", "[1,1,1,1,1,1,1,4]", 640, 648) "}",
     648},
    {"{" TENSOR("p", "F32", "[2]", 0, 8) "," TENSOR("q", "F32", "[2]", 8, 16) "," TENSOR("r", "F16", "[4]",
                                                                                         16, 24) "}",
     24},
};

static File make_file(size_t seed) {
    File f = {.header = 8 + strlen(seeds[seed].header)};
    f.size = f.header + seeds[seed].data;
    for (int i = 0; i < 8; i++) f.bytes[i] = (char)((f.header - 8) >> 8 * i);
    memcpy(f.bytes + 8, seeds[seed].header, f.header - 8);
    for (size_t i = f.header; i < f.size; i++) f.bytes[i] = (char)(i * 37);
    return f;
}

static void set_length(File *f, uint64_t length) {
    for (int i = 0; i < 8; i++) f->bytes[i] = (char)(length >> 8 * i);
}

// Puts text where `old` bytes stood, and keeps the length of the header true.
static void replace(File *f, size_t at, size_t old, const char *text) {
    size_t length = strlen(text);
    if (at + old > f->header || f->size + length > MOST) return;
    memmove(f->bytes + at + length, f->bytes + at + old, f->size - at - old);
    memcpy(f->bytes + at, text, length);
    f->size = f->size - old + length;
    f->header = f->header - old + length;
    set_length(f, f->header - 8);
}

// The number at or behind a random place of the header becomes another.
static void change_number(File *f, uint64_t random) {
    static const char *const numbers[] = {"0",
                                          "1",
                                          "2",
                                          "3",
                                          "7",
                                          "8",
                                          "-1",
                                          "16",
                                          "24",
                                          "255",
                                          "2147483648",
                                          "4294967296",
                                          "1152921504606846976",
                                          "9223372036854775807",
                                          "-9223372036854775808",
                                          "18446744073709551616",
                                          "1e400",
                                          "2.0",
                                          "null",
                                          "[]",
                                          "{}",
                                          "\"4\"",
                                          "true"};
    size_t at = 8 + random % (f->header - 7);
    while (at < f->header && (f->bytes[at] < '0' || f->bytes[at] > '9')) at++;
    size_t old = 0;
    while (at + old < f->header && f->bytes[at + old] >= '0' && f->bytes[at + old] <= '9') old++;
    if (old) replace(f, at, old, numbers[(random >> 32) % (sizeof numbers / sizeof *numbers)]);
}

// A piece of the header is put in, or over another piece.
static void splice(File *f, uint64_t random) {
    char piece[64];
    size_t from = 8 + random % (f->header - 7), length = (random >> 16) % sizeof piece,
           to = 8 + (random >> 24) % (f->header - 7);
    if (from + length > f->header) length = f->header - from;
    memcpy(piece, f->bytes + from, length);
    for (size_t i = 0; i < length; i++)
        if (!piece[i]) piece[i] = ' ';
    if (length == sizeof piece) length--;
    piece[length] = 0;
    replace(f, to, random >> 60 & 1 ? length : 0, piece);
}

// The number-th "data_offsets" of the header, its list included; 0 bytes: there are fewer.
static size_t find_offsets(const File *f, size_t number, size_t *length) {
    static const char name[] = "data_offsets\":[";
    *length = 0;
    for (size_t at = 8; at + sizeof name < f->header; at++) {
        if (memcmp(f->bytes + at, name, sizeof name - 1) || number-- > 0) continue;
        for (size_t i = at; i < f->header && !*length; i++)
            if (f->bytes[i] == ']') *length = i + 1 - at;
        return at;
    }
    return 0;
}

// One tensor takes the place of another: an overlap and a hole, with all else true.
static void copy_offsets(File *f, uint64_t random) {
    char list[80];
    size_t length, old, from = find_offsets(f, random % 4, &length), to;
    if (!length || length >= sizeof list) return;
    snprintf(list, sizeof list, "%.*s", (int)length, f->bytes + from);
    to = find_offsets(f, (random >> 8) % 4, &old);
    if (old) replace(f, to, old, list);
}

static void mutate(File *f, uint64_t random) {
    static const char bytes[] = "0123456789{}[]\",:-e.\\u \n\x7f\xff";
    size_t at = (random >> 8) % (f->size ? f->size : 1);
    if (!f->size || f->header < 8) return;
    switch (random % 11) {
    case 0:
    case 1:
        f->bytes[at] ^= (char)(1 << (random >> 40 & 7));
        return;
    case 2:
        f->bytes[at] = bytes[(random >> 40) % sizeof bytes];
        return;
    case 3:
        f->bytes[(random >> 40) % 8] ^= (char)(1 << (random >> 48 & 7));
        return; // of the header's length
    case 4:
        f->size = at;
        if (f->header > f->size) f->header = f->size;
        return;
    case 5:
        if (f->size + 16 <= MOST) f->size += random >> 40 & 15;
        return;
    case 6:
        splice(f, random >> 8);
        return;
    case 7:
        copy_offsets(f, random >> 8);
        return;
    default:
        change_number(f, random >> 8);
    }
}

static void write_file(const File *f) {
    FILE *out = fopen(path, "wb");
    assert_non_null(out);
    assert_int_equal(fwrite(f->bytes, 1, f->size, out), f->size);
    fclose(out);
}

static int64_t type_bytes(const char *type) {
    int bits = 8; // BOOL
    sscanf(type + strcspn(type, "0123456789"), "%d", &bits);
    return bits / 8;
}

// Reads all of an accepted file, whose tensors follow each other without hole or overlap up to its end.
static void read_all(const Safetensors *file, const File *f, int64_t mutant) {
    int64_t at = safetensors_count(file) ? safetensors_tensor(file, 0)->offset : (int64_t)f->size;
    for (int i = 0; i < safetensors_count(file); i++) {
        const SafeTensor *t = safetensors_tensor(file, i);
        int64_t elements = 1;
        if (at < 8 || t->offset != at || t->elements < 0 || t->elements > (int64_t)f->size - at ||
            t->dims > SAFETENSORS_MAX_DIMS)
            fail_msg("mutant %ld: tensor %s does not lie where it should", (long)mutant, t->name);
        for (int d = 0; d < t->dims; d++) elements *= t->dim[d];
        assert_int_equal(elements, t->elements);
        at += elements * type_bytes(t->dtype);
        if (!safetensors_converts(t)) continue;
        float *out = malloc((size_t)(elements + 1) * sizeof *out);
        assert_int_equal(safetensors_read_f32(file, i, 0, elements, out), OK);
        if (elements) assert_int_equal(safetensors_read_f32(file, i, elements - 1, 1, out), OK);
        free(out);
    }
    assert_int_equal(at, f->size);
}

static void damaged_files(void **state) {
    (void)state;
    const char *count = getenv("SAFETENSORS_MUTANTS"); // more of them, for a longer search
    int64_t refused = 0, mutants = count ? atoll(count) : MUTANTS;
    for (int64_t i = 0; i < mutants; i++) {
        File f = make_file((size_t)i % (sizeof seeds / sizeof *seeds));
        int changes = 1 + (int)(rng_u64(1, (uint64_t)i, 0) % 4);
        for (int k = 0; k < changes; k++) mutate(&f, rng_u64(2, (uint64_t)i, (uint64_t)k));
        write_file(&f);
        Safetensors *file;
        Status status = safetensors_open(&file, path);
        if (status == OK) {
            read_all(file, &f, i);
        } else {
            refused++;
            assert_int_equal(status, ERR_DATA);
            assert_null(file);
            assert_non_null(strstr(status_text(), path));
        }
        safetensors_close(file);
    }
    // Both kinds must occur, or nothing was tested.
    assert_true(refused > mutants / 2 && refused < mutants);
    print_message("%ld of %ld refused\n", (long)refused, (long)mutants);
    unlink(path);
}

// Every file cut off at every byte.
static void truncated_files(void **state) {
    (void)state;
    for (size_t seed = 0; seed < sizeof seeds / sizeof *seeds; seed++)
        for (File f = make_file(seed); f.size > 0;) {
            Safetensors *file;
            f.size--;
            write_file(&f);
            assert_int_equal(safetensors_open(&file, path), ERR_DATA);
        }
    unlink(path);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(damaged_files),
        cmocka_unit_test(truncated_files),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
