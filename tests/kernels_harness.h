// SPDX-License-Identifier: Apache-2.0
// For the tests of kernels: every table that this machine can run; inputs that end where their memory ends;
// outputs that begin as NaN between guards; gradients by central differences of a reference in double.
#pragma once
#include "core/rng.h"
#include "core/status.h"
#include "kernels/cpu/tables.h"
#ifdef FLOE_CUDA_EMULATION
#include "kernels/cuda/tables.h"
#include "tests/cuda_emulation.h"
#endif
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { HARNESS_BLOCKS = 512, HARNESS_GUARD = 16, HARNESS_ISAS = 3 };
static const uint32_t harness_guard_value = 0x5ca1ab1eu;

typedef struct {
    void *memory;
    int64_t words; // of a guarded block, without its guards; -1: not guarded
} HarnessBlock;

static HarnessBlock harness_block[HARNESS_BLOCKS];
static int harness_blocks;
static uint64_t harness_draws;
static const Kernels *kernels; // the table under test
static Stream stream;

static void *harness_keep(void *memory, int64_t words) {
    assert_non_null(memory);
    assert_true(harness_blocks < HARNESS_BLOCKS);
    harness_block[harness_blocks++] = (HarnessBlock){memory, words};
    return memory;
}

__attribute__((unused)) static double *doubles(int64_t n) {
    return harness_keep(calloc((size_t)n + 1, sizeof(double)), -1);
}

__attribute__((unused)) static double *doubles_of(Tensor t) {
    double *copy = doubles(tensor_size(t));
    for (int64_t i = 0; i < tensor_size(t); i++) copy[i] = (double)tensor_f32(t)[i];
    return copy;
}

static Tensor harness_view(void *data, DType dtype, int64_t rows, int64_t columns) {
    return tensor_view(data, dtype, columns ? 2 : 1, (int64_t[]){rows, columns});
}

// (rows, columns), or (rows) where columns is 0; memory ends with the tensor, so that sanitizers see a read
// beyond it.
__attribute__((unused)) static Tensor input(int64_t rows, int64_t columns, float scale) {
    int64_t n = rows * (columns ? columns : 1);
    float *data = harness_keep(malloc((size_t)n * sizeof(float)), -1);
    for (int64_t i = 0; i < n; i++) data[i] = scale * rng_normal(1, 2, harness_draws++);
    return harness_view(data, DTYPE_F32, rows, columns);
}

__attribute__((unused)) static Tensor input_ints(int64_t rows, int64_t columns, int32_t limit) {
    int64_t n = rows * (columns ? columns : 1);
    int32_t *data = harness_keep(malloc((size_t)n * sizeof(int32_t)), -1);
    for (int64_t i = 0; i < n; i++) data[i] = (int32_t)(rng_u64(1, 3, harness_draws++) % (uint64_t)limit);
    return harness_view(data, DTYPE_I32, rows, columns);
}

static uint32_t *harness_guarded(int64_t n) {
    uint32_t *memory = malloc(((size_t)n + 2 * HARNESS_GUARD) * sizeof *memory);
    harness_keep(memory, n);
    for (int64_t i = 0; i < n + 2 * HARNESS_GUARD; i++) memory[i] = harness_guard_value;
    return memory + HARNESS_GUARD;
}

__attribute__((unused)) static Tensor output(int64_t rows, int64_t columns) {
    int64_t n = rows * (columns ? columns : 1);
    float *data = (float *)harness_guarded(n);
    for (int64_t i = 0; i < n; i++) data[i] = NAN;
    return harness_view(data, DTYPE_F32, rows, columns);
}

__attribute__((unused)) static Tensor output_ints(int64_t rows, int64_t columns) {
    return harness_view(harness_guarded(rows * (columns ? columns : 1)), DTYPE_I32, rows, columns);
}

// Attention of the last q_len of kv_len positions.
__attribute__((unused)) static AttentionShape shape_of(int batch, int q_len, int kv_len, int heads,
                                                       int kv_heads, int head_dim, int stride) {
    return (AttentionShape){.batch = batch,
                            .q_len = q_len,
                            .kv_len = kv_len,
                            .heads = heads,
                            .kv_heads = kv_heads,
                            .head_dim = head_dim,
                            .q_offset = kv_len - q_len,
                            .kv_stride = stride,
                            .scale = 1.0f / sqrtf((float)head_dim)};
}

// A guarded copy, for what is added to or changed in place.
__attribute__((unused)) static Tensor output_copy(Tensor from) {
    Tensor t = from;
    t.data = harness_guarded(tensor_size(from));
    if (tensor_size(from)) memcpy(t.data, from.data, tensor_bytes(from));
    return t;
}

// Nothing was written beside any output so far; then frees everything.
static void harness_end(void) {
    for (int b = 0; b < harness_blocks; b++) {
        const uint32_t *memory = harness_block[b].memory;
        int64_t words = harness_block[b].words;
        if (words >= 0)
            for (int64_t i = 0; i < HARNESS_GUARD; i++) {
                assert_int_equal(memory[i], harness_guard_value);
                assert_int_equal(memory[HARNESS_GUARD + words + i], harness_guard_value);
            }
        free(harness_block[b].memory);
    }
    harness_blocks = 0;
}

#ifdef FLOE_CUDA_EMULATION
// Runs a test on the CUDA kernels' table, emulated on the CPU, with the threads in every order.
static void on_every_isa(void (*test)(void)) {
    harness_blocks = 0;
    stream = stream_create((Device){DEVICE_CPU, 0});
    kernels = &kernels_emulated;
    for (int order = 0; order < EMULATION_ORDERS; order++) {
        emulation_set_order((EmulationOrder)order);
        memset(stream->scratch, 0xff, STREAM_SCRATCH_BYTES);
        harness_draws = 0;
        test();
        harness_end();
    }
    stream_destroy(stream);
}
#else
// Runs a test on every table that the machine has.
static void on_every_isa(void (*test)(void)) {
    static const Kernels *const tables[HARNESS_ISAS] = {&cpu_kernels_v2, &cpu_kernels_v3, &cpu_kernels_v4};
    const bool has[HARNESS_ISAS] = {
        true,
        __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2"),
        __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
            __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")};
    harness_blocks = 0; // a test that failed leaves its own behind
    stream = stream_create((Device){DEVICE_CPU, 0});
    for (int i = 0; i < HARNESS_ISAS; i++) {
        if (!has[i]) continue;
        kernels = tables[i];
        harness_draws = 0;
        test();
        harness_end();
    }
    stream_destroy(stream);
}
#endif

// |got − want| ≤ tolerance · (1 + |want|)
#define close_to(got, want, tolerance)                                                                       \
    harness_close((double)(got), (double)(want), (tolerance), __FILE__, __LINE__)
__attribute__((unused)) static void harness_close(double got, double want, double tolerance, const char *file,
                                                  int line) {
    if (!(fabs(got - want) <= tolerance * (1 + fabs(want)))) {
        print_error("%.9g instead of %.9g\n", got, want);
        _fail(file, line);
    }
}

// A function of several arrays in double, for finite differences.
typedef double Reference(const void *context);

// Compares gradient[i] + 0 with the central difference of f over x[i]; tolerance is relative to the largest
// entry.
#define gradient_check(f, context, x, gradient, tolerance)                                                   \
    harness_gradient((f), (context), (x), (gradient), (tolerance), __FILE__, __LINE__)
__attribute__((unused)) static void harness_gradient(Reference *f, const void *context, double *x,
                                                     Tensor gradient, double tolerance, const char *file,
                                                     int line) {
    int64_t n = tensor_size(gradient);
    double *want = doubles(n), largest = 1e-3;
    for (int64_t i = 0; i < n; i++) {
        double at = x[i], step = 1e-5;
        x[i] = at + step;
        double above = f(context);
        x[i] = at - step;
        double below = f(context);
        x[i] = at;
        want[i] = (above - below) / (2 * step);
        largest = fmax(largest, fabs(want[i]));
    }
    for (int64_t i = 0; i < n; i++)
        if (!(fabs((double)tensor_f32(gradient)[i] - want[i]) <= tolerance * largest)) {
            print_error("gradient %ld of %ld: %.9g instead of %.9g\n", (long)i, (long)n,
                        (double)tensor_f32(gradient)[i], want[i]);
            _fail(file, line);
        }
}

// name_everywhere: the cmocka test that runs `name` on every table.
#define EVERY_ISA(name)                                                                                      \
    static void name##_everywhere(void **state) {                                                            \
        (void)state;                                                                                         \
        on_every_isa(name);                                                                                  \
    }
