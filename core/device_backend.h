// SPDX-License-Identifier: Apache-2.0
// For core/device*.c: what one kind of device does behind core/device.h.
#pragma once
#include "core/device.h"
#include <stdbool.h>

typedef struct {
    void *(*alloc)(int index, size_t bytes);
    void (*free)(int index, void *memory);
    void *(*alloc_host)(int index, size_t bytes);
    void (*free_host)(int index, void *memory);
    void (*copy)(int index, void *dst, const void *src, size_t bytes, Stream stream);
    void (*zero)(int index, void *memory, size_t bytes, Stream stream);
    void (*stream_create)(Stream stream, bool urgent); // fills in all but the device
    void (*stream_destroy)(Stream stream);
    void (*stream_wait)(Stream stream);
} DeviceBackend;

extern const DeviceBackend cuda_backend; // core/device_cuda.c, where FLOE_CUDA is defined
