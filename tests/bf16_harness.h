// SPDX-License-Identifier: Apache-2.0
// For tests of CUDA kernels in bf16: the same numbers go to the emulated kernel in bf16 and to the CPU's
// kernel in f32, and what comes out is compared.
#pragma once
#include "tests/kernels_harness.h"

static const Kernels *const cpu = &cpu_kernels_v2;

static uint16_t bf16_bits(float x) { // to nearest, ties to even
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

static float bf16_value(uint16_t half) {
    uint32_t bits = (uint32_t)half << 16;
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

// f32 inputs that bf16 holds exactly.
__attribute__((unused)) static Tensor input_exact(int64_t rows, int64_t columns, float scale) {
    Tensor t = input(rows, columns, scale);
    for (int64_t i = 0; i < tensor_size(t); i++) tensor_f32(t)[i] = bf16_value(bf16_bits(tensor_f32(t)[i]));
    return t;
}

// A copy of f32 numbers in the given type, between guards. `apart`: not at a multiple of 16 bytes.
static Tensor in_type(Tensor from, DType dtype, bool apart) {
    int64_t n = tensor_size(from), each = dtype == DTYPE_BF16 ? 2 : 1, words = (n + each - 1) / each + apart;
    Tensor t = from;
    t.dtype = dtype;
    // Ends where the guard begins.
    t.data = (char *)(harness_guarded(words) + words) - (size_t)n * dtype_bytes(dtype);
    for (int64_t i = 0; i < n; i++)
        if (dtype == DTYPE_BF16)
            ((uint16_t *)t.data)[i] = bf16_bits(tensor_f32(from)[i]);
        else
            tensor_f32(t)[i] = tensor_f32(from)[i];
    return t;
}

// NaN everywhere.
__attribute__((unused)) static Tensor output_in_type(int64_t rows, int64_t columns, DType dtype, bool apart) {
    Tensor t = in_type(output(rows, columns), dtype, apart);
    memset(t.data, 0xff, tensor_bytes(t));
    return t;
}

static float element(Tensor t, int64_t i) {
    return t.dtype == DTYPE_BF16 ? bf16_value(((uint16_t *)t.data)[i]) : tensor_f32(t)[i];
}

// |got − want| ≤ tolerance · (1 + |want|), and in bf16 one step of its 8 bits more: the last rounding is 2⁻⁹,
// and goes the other way where f32 sums differ in their last bits.
#define same_numbers(got, want, tolerance)                                                                   \
    harness_same_numbers((got), (want), (tolerance), __FILE__, __LINE__)
__attribute__((unused)) static void harness_same_numbers(Tensor got, Tensor want, double tolerance,
                                                         const char *file, int line) {
    assert_int_equal(tensor_size(got), tensor_size(want));
    for (int64_t i = 0; i < tensor_size(got); i++) {
        double g = (double)element(got, i), w = (double)element(want, i);
        double slack = got.dtype == DTYPE_BF16 ? fabs(w) / 256 : 0;
        if (!(fabs(g - w) <= slack + tolerance * (1 + fabs(w)))) {
            print_error("element %ld of %ld: %.9g instead of %.9g\n", (long)i, (long)tensor_size(got), g, w);
            _fail(file, line);
        }
    }
}

#define same_bits(a, b) assert_memory_equal((a).data, (b).data, tensor_bytes(a))
