// SPDX-License-Identifier: Apache-2.0
// For the CUDA sources only: functions of NVIDIA's larger libraries, found when they are first called. Linked
// in the plain way, cuBLASLt alone would make every start of the program 70 ms slower, also where it computes
// on the CPU, and the program would not start where it is missing.
#pragma once
#include "core/status.h"

// The address of a function in a shared library ("libcublasLt.so.13"), which stays loaded. Ends the job,
// saying what the loader says, where it is not there.
void *cuda_library_symbol(const char *library, const char *name);

// Defines the function `name`, as the library's header declares it, which calls the library's own.
#define CUDA_LIBRARY_CALL(library, result, name, parameters, arguments)                                      \
    result name parameters {                                                                                 \
        static void *found;                                                                                  \
        void *function = __atomic_load_n(&found, __ATOMIC_ACQUIRE);                                          \
        if (!function) {                                                                                     \
            function = cuda_library_symbol((library), #name);                                                \
            __atomic_store_n(&found, function, __ATOMIC_RELEASE);                                            \
        }                                                                                                    \
        return ((result(*) parameters)function)arguments;                                                    \
    }
