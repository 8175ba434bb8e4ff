// SPDX-License-Identifier: Apache-2.0
// Memory and streams of the CPU; what is said where a GPU is asked for and there is none.
#include "core/device.h"
#include "core/status.h"
#ifdef FLOE_CUDA
#include "core/cuda_library.h"
double cbrt(double x), nowhere(double x);
#endif
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

static const Device cpu = {DEVICE_CPU, 0}, gpu = {DEVICE_CUDA, 0};

static void memory_is_aligned_and_zero(void **state) {
    (void)state;
    for (size_t bytes = 0; bytes < 300; bytes += 37) {
        char *memory = device_alloc(cpu, bytes), *host = device_alloc_host(cpu, bytes);
        assert_int_equal((uintptr_t)memory % DEVICE_ALIGNMENT, 0);
        for (size_t i = 0; i < bytes; i++) assert_true(memory[i] == 0 && host[i] == 0);
        memset(host, 7, bytes);
        device_copy(cpu, memory, cpu, host, bytes, NULL);
        assert_memory_equal(memory, host, bytes);
        device_zero(cpu, memory, bytes / 2, NULL);
        for (size_t i = 0; i < bytes; i++) assert_int_equal(memory[i], i < bytes / 2 ? 0 : 7);
        device_free(cpu, memory);
        device_free_host(cpu, host);
    }
}

static void streams_have_scratch(void **state) {
    (void)state;
    Stream plain = stream_create(cpu), urgent = stream_create_urgent(cpu);
    assert_ptr_not_equal(stream_scratch(plain, STREAM_SCRATCH_BYTES), stream_scratch(urgent, 1));
    memset(stream_scratch(plain, STREAM_SCRATCH_BYTES), 1, STREAM_SCRATCH_BYTES);
    stream_wait_host(plain);
    stream_destroy(plain);
    stream_destroy(urgent);
    stream_destroy(NULL);
}

static bool ends_the_program(void (*what)(void)) {
    pid_t child = fork();
    if (child == 0) {
        if (!freopen("/dev/null", "w", stderr)) _exit(0);
        what();
        _exit(0);
    }
    int status = 0;
    waitpid(child, &status, 0);
    return !WIFEXITED(status) || WEXITSTATUS(status) != 0;
}

static void ask_for_memory(void) {
    device_alloc(gpu, 16);
}

static void a_missing_gpu_is_named(void **state) {
    (void)state;
    GpuReport report = device_gpus();
    assert_int_equal(report.count == 0, report.problem[0] != 0);
#ifdef FLOE_CUDA
    assert_non_null(strstr(report.built, "CUDA "));
    for (int i = 0; i < report.count && i < GPU_TEXTS; i++)
        assert_true(report.gpu[i].name[0] && report.gpu[i].memory);
#else
    assert_string_equal(report.built, "");
    assert_non_null(strstr(report.problem, "built without CUDA"));
#endif
    if (report.count == 0) assert_true(ends_the_program(ask_for_memory)); // never the CPU's memory instead
}

#ifdef FLOE_CUDA
CUDA_LIBRARY_CALL("libm.so.6", double, cbrt, (double x), (x))
CUDA_LIBRARY_CALL("libnowhere.so.7", double, nowhere, (double x), (x))

static void ask_nowhere(void) {
    nowhere(1);
}

// Only when it is called: this program has started without libnowhere.
static void a_library_is_looked_for_when_called(void **state) {
    (void)state;
    for (int i = 0; i < 2; i++) assert_true(cbrt(27.0) == 3.0);
    assert_true(ends_the_program(ask_nowhere));
}
#endif

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(memory_is_aligned_and_zero),
        cmocka_unit_test(streams_have_scratch),
        cmocka_unit_test(a_missing_gpu_is_named),
#ifdef FLOE_CUDA
        cmocka_unit_test(a_library_is_looked_for_when_called),
#endif
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
