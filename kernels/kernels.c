// SPDX-License-Identifier: Apache-2.0
#include "kernels/kernels.h"
#include "core/status.h"
#include "kernels/cpu/tables.h"
#ifdef FLOE_CUDA
#include "kernels/cuda/tables.h"
#endif
#include <stdlib.h>
#include <string.h>

const char *const kernel_name[KERNEL_COUNT] = {
#define KERNEL_TEXT(name, type) #name,
    KERNEL_LIST(KERNEL_TEXT)
#undef KERNEL_TEXT
};

typedef struct {
    const char *name, *text;
    const Kernels *table;
} Isa;

static const Isa isas[] = {
    {"v2", "x86-64-v2 (SSE 4.2)", &cpu_kernels_v2},
    {"v3", "x86-64-v3 (AVX2)", &cpu_kernels_v3},
    {"v4", "x86-64-v4 (AVX-512)", &cpu_kernels_v4},
};
enum { ISA_COUNT = sizeof isas / sizeof *isas };

// The bases of the psABI levels' feature lists that compilers use and that not every processor has.
static int best_isa(void) {
    __builtin_cpu_init();
    REQUIRE(__builtin_cpu_supports("sse4.2") && __builtin_cpu_supports("popcnt"),
            "this processor lacks SSE 4.2 (x86-64-v2); floe needs one made after 2008");
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma") || !__builtin_cpu_supports("bmi") ||
        !__builtin_cpu_supports("bmi2"))
        return 0;
    if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw") ||
        !__builtin_cpu_supports("avx512cd") || !__builtin_cpu_supports("avx512dq") ||
        !__builtin_cpu_supports("avx512vl"))
        return 1;
    return 2;
}

static const Isa *chosen_isa(void) {
    int best = best_isa();
    const char *asked = getenv("FLOE_ISA");
    if (!asked || !*asked) return &isas[best];
    for (int i = 0; i < ISA_COUNT; i++) {
        if (strcmp(asked, isas[i].name) != 0) continue;
        REQUIRE(i <= best, "FLOE_ISA=%s: this processor has %s; unset FLOE_ISA", asked, isas[best].text);
        return &isas[i];
    }
    DIE("FLOE_ISA=%s: not one of v2, v3, v4", asked);
}

#ifdef FLOE_CUDA
static const Kernels *cuda_table(void) {
    return &kernels_cuda;
}
#else
static const Kernels *cuda_table(void) {
    DIE("a GPU was asked for, but this floe was built without CUDA; build it where CUDA 12.4 or newer is "
        "found");
}
#endif

const Kernels *kernels_for(Device device) {
    return device.kind == DEVICE_CUDA ? cuda_table() : chosen_isa()->table;
}

const char *kernels_isa(void) {
    return chosen_isa()->text;
}
