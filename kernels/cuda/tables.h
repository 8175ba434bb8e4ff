// SPDX-License-Identifier: Apache-2.0
// The CUDA kernels' table. The same sources are compiled a second time as C++ for the CPU, where tests look
// at their logic (tests/cuda_emulation.h, FLOE_CUDA_EMULATION); every external name says which of the two it
// is.
#pragma once
#include "kernels/kernels.h"

#ifdef FLOE_CUDA_EMULATION
#define KERNEL(name) name##_emulated
#else
#define KERNEL(name) name##_cuda
#endif

#ifdef __cplusplus
extern "C" {
#endif
extern const Kernels KERNEL(kernels);

#define KERNEL_DECLARE(name, type) extern type KERNEL(name);
KERNEL_LIST(KERNEL_DECLARE)
#undef KERNEL_DECLARE
#ifdef __cplusplus
}
#endif
