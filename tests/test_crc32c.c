// SPDX-License-Identifier: Apache-2.0
#include "core/crc32c.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

// Vectors of RFC 3720, appendix B.4, and the check value of the CRC catalogues.
static void known_values(void **state) {
    (void)state;
    unsigned char data[32];
    uint32_t (*const variant[])(uint32_t, const void *, size_t) = {crc32c, crc32c_by_table};
    for (int v = 0; v < 2; v++) {
        assert_int_equal(variant[v](0, "123456789", 9), 0xe3069283u);
        memset(data, 0, sizeof data);
        assert_int_equal(variant[v](0, data, 32), 0x8a9136aau);
        memset(data, 0xff, sizeof data);
        assert_int_equal(variant[v](0, data, 32), 0x62a8ab43u);
        for (int i = 0; i < 32; i++) data[i] = (unsigned char)i;
        assert_int_equal(variant[v](0, data, 32), 0x46dd794eu);
        assert_int_equal(variant[v](0, "", 0), 0);
    }
}

static void pieces_join(void **state) {
    (void)state;
    unsigned char data[1000];
    for (int i = 0; i < 1000; i++) data[i] = (unsigned char)(i * 131 + i / 7);
    for (size_t size = 0; size <= 1000; size += 13)
        for (size_t cut = 0; cut <= size; cut += 37) {
            uint32_t whole = crc32c(0, data, size);
            uint32_t first = crc32c(0, data, cut), second = crc32c(0, data + cut, size - cut);
            assert_int_equal(crc32c_by_table(0, data, size), whole);
            assert_int_equal(crc32c(first, data + cut, size - cut), whole);
            assert_int_equal(crc32c_join(first, second, (int64_t)(size - cut)), whole);
        }
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(known_values), cmocka_unit_test(pieces_join)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
