// SPDX-License-Identifier: Apache-2.0
#include "core/crc32c.h"
#include <pthread.h>
#include <string.h>
#if defined(__x86_64__)
#include <nmmintrin.h>
#endif

enum { POLYNOMIAL_BITS = 32 };
static const uint32_t polynomial = 0x82f63b78u; // bit-reversed 0x1edc6f41

static uint32_t table[8][256]; // table[k][b]: what byte b does to the checksum of k zero bytes after it
static pthread_once_t table_once = PTHREAD_ONCE_INIT;

static void table_fill(void) {
    for (uint32_t b = 0; b < 256; b++) {
        uint32_t crc = b;
        for (int bit = 0; bit < 8; bit++) crc = crc & 1 ? crc >> 1 ^ polynomial : crc >> 1;
        table[0][b] = crc;
    }
    for (int k = 1; k < 8; k++)
        for (int b = 0; b < 256; b++) table[k][b] = table[k - 1][b] >> 8 ^ table[0][table[k - 1][b] & 255];
}

uint32_t crc32c_by_table(uint32_t crc, const void *data, size_t bytes) {
    pthread_once(&table_once, table_fill);
    const unsigned char *p = data;
    crc = ~crc;
    for (; bytes >= 8; bytes -= 8, p += 8) {
        uint64_t word;
        memcpy(&word, p, 8);
        word ^= crc;
        crc = 0;
        for (int k = 0; k < 8; k++) crc ^= table[7 - k][word >> 8 * k & 255];
    }
    for (; bytes; bytes--, p++) crc = crc >> 8 ^ table[0][(crc ^ *p) & 255];
    return ~crc;
}

#if defined(__x86_64__)
__attribute__((target("sse4.2"))) static uint32_t by_instruction(uint32_t crc, const void *data,
                                                                 size_t bytes) {
    const unsigned char *p = data;
    uint64_t state = ~crc;
    for (; bytes >= 8; bytes -= 8, p += 8) {
        uint64_t word;
        memcpy(&word, p, 8);
        state = _mm_crc32_u64(state, word);
    }
    for (; bytes; bytes--, p++) state = _mm_crc32_u8((uint32_t)state, *p);
    return ~(uint32_t)state;
}
#endif

uint32_t crc32c(uint32_t crc, const void *data, size_t bytes) {
#if defined(__x86_64__)
    if (__builtin_cpu_supports("sse4.2")) return by_instruction(crc, data, bytes);
#endif
    return crc32c_by_table(crc, data, bytes);
}

// Checksums are polynomials over GF(2), lowest power in the highest bit; the product modulo the CRC
// polynomial.
static uint32_t multiply(uint32_t a, uint32_t b) {
    uint32_t product = 0;
    for (int bit = 0; bit < POLYNOMIAL_BITS; bit++) {
        if (a >> (POLYNOMIAL_BITS - 1 - bit) & 1) product ^= b;
        b = b & 1 ? b >> 1 ^ polynomial : b >> 1;
    }
    return product;
}

uint32_t crc32c_join(uint32_t first, uint32_t second, int64_t second_bytes) {
    uint32_t shift = 1u << 31, square = 1u << 23; // x^0, and x^8: one byte
    for (uint64_t n = (uint64_t)second_bytes; n; n >>= 1) {
        if (n & 1) shift = multiply(shift, square);
        square = multiply(square, square);
    }
    return multiply(shift, first) ^ second;
}
