// SPDX-License-Identifier: Apache-2.0
// For the CUDA sources only: core/device_cuda.c and kernels/cuda.
#pragma once
#include "core/status.h"
#include <cuda_runtime_api.h>

// A failed CUDA call ends the job with the call and what CUDA says of it. A fault inside a kernel shows at a
// later call; CUDA_LAUNCH_BLOCKING=1 in the environment makes it show at its own.
#define CUDA_CHECK(call)                                                                                     \
    do {                                                                                                     \
        cudaError_t error_ = (call);                                                                         \
        if (error_ != cudaSuccess)                                                                           \
            DIE("CUDA: %s: %s (%s)", #call, cudaGetErrorString(error_), cudaGetErrorName(error_));           \
    } while (0)
