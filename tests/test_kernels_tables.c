// SPDX-License-Identifier: Apache-2.0
// The tables of kernels: no holes, and which device gets which.
#include "tests/kernels_harness.h"
#ifdef FLOE_CUDA
#include "kernels/cuda/tables.h"
#endif
#include <stdio.h>
#include <sys/wait.h>
#include <unistd.h>

typedef void any_fn(void);

// The first empty entry, or −1; no two are the same.
static int hole_of(const Kernels *table) {
    assert_int_equal(sizeof(Kernels), KERNEL_COUNT * sizeof(any_fn *));
    any_fn *const *entry = (any_fn *const *)table;
    for (int i = 0; i < KERNEL_COUNT; i++) {
        if (!entry[i]) return i;
        for (int j = 0; j < i; j++) assert_true(entry[i] != entry[j]);
    }
    return -1;
}

static void tables_have_no_holes(void) {
    assert_int_equal(hole_of(kernels), -1);
    assert_string_equal(kernel_name[0], "matmul");
    assert_string_equal(kernel_name[KERNEL_COUNT - 1], "adamw");
}

// What a process says on stderr that asks for a GPU's kernels, "" where it gets `want`.
static void ask_for_gpu(const Kernels *want, char *said, size_t size) {
    int ends[2];
    assert_int_equal(pipe(ends), 0);
    pid_t child = fork();
    if (child == 0) {
        dup2(ends[1], 2);
        _exit(kernels_for((Device){DEVICE_CUDA, 0}) != want);
    }
    close(ends[1]);
    FILE *file = fdopen(ends[0], "r");
    said[fread(said, 1, size - 1, file)] = 0;
    fclose(file);
    int status = -1;
    waitpid(child, &status, 0);
    assert_int_equal(status == 0, said[0] == 0);
}

// Never the CPU's table instead: where there is none, asking for it ends the program.
static void a_gpu_gets_its_own_table(void **state) {
    (void)state;
    char said[2048];
#ifdef FLOE_CUDA
    ask_for_gpu(&kernels_cuda, said, sizeof said);
    assert_string_equal(said, "");
    assert_int_equal(hole_of(&kernels_cuda), -1);
#else
    ask_for_gpu(NULL, said, sizeof said);
    assert_non_null(strstr(said, "built without CUDA"));
#endif
}

// 0 where a process with FLOE_ISA set so gets the table `want`; else how it ended.
static int exit_with_isa(const char *isa, const Kernels *want) {
    pid_t child = fork();
    if (child == 0) {
        setenv("FLOE_ISA", isa, 1);
        if (!freopen("/dev/null", "w", stderr)) _exit(99);
        _exit(kernels_for((Device){DEVICE_CPU, 0}) == want ? 0 : 98);
    }
    int status = -1;
    waitpid(child, &status, 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

static void isa_is_chosen_at_run_time(void **state) {
    (void)state;
    unsetenv("FLOE_ISA");
    const Kernels *best = kernels_for((Device){DEVICE_CPU, 0});
    assert_non_null(strstr(kernels_isa(), "x86-64-v"));
    assert_int_equal(exit_with_isa("", best), 0);
    assert_int_equal(exit_with_isa("v2", &cpu_kernels_v2), 0);
    assert_int_equal(exit_with_isa("v3", &cpu_kernels_v3) == 0, best != &cpu_kernels_v2);
    assert_int_equal(exit_with_isa("v4", &cpu_kernels_v4) == 0, best == &cpu_kernels_v4);
    assert_int_not_equal(exit_with_isa("avx2", NULL), 0);
}

EVERY_ISA(tables_have_no_holes)

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(tables_have_no_holes_everywhere),
        cmocka_unit_test(isa_is_chosen_at_run_time),
        cmocka_unit_test(a_gpu_gets_its_own_table),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
