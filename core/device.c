// SPDX-License-Identifier: Apache-2.0
#include "core/device.h"
#include "core/status.h"
#include <stdlib.h>
#include <string.h>

void *device_alloc(Device device, size_t bytes) {
    REQUIRE(device.kind == DEVICE_CPU, "no such device kind: %d", device.kind);
    size_t rounded = (bytes + DEVICE_ALIGNMENT - 1) / DEVICE_ALIGNMENT * DEVICE_ALIGNMENT;
    void *memory = aligned_alloc(DEVICE_ALIGNMENT, rounded ? rounded : DEVICE_ALIGNMENT);
    REQUIRE(memory, "out of memory: asked for %zu bytes; use more ranks, a smaller batch.micro or recompute",
            bytes);
    memset(memory, 0, rounded);
    return memory;
}

void device_free(Device device, void *memory) {
    (void)device;
    free(memory);
}

void device_copy(Device to, void *dst, Device from, const void *src, size_t bytes, Stream stream) {
    (void)to, (void)from, (void)stream;
    if (bytes) memcpy(dst, src, bytes);
}

void device_zero(Device device, void *memory, size_t bytes, Stream stream) {
    (void)device, (void)stream;
    if (bytes) memset(memory, 0, bytes);
}

Stream stream_create(Device device) {
    Stream stream = calloc(1, sizeof *stream);
    REQUIRE(stream, "out of memory: a stream");
    stream->device = device;
    stream->scratch = aligned_alloc(DEVICE_ALIGNMENT, STREAM_SCRATCH_BYTES);
    REQUIRE(stream->scratch, "out of memory: %d bytes of kernel scratch", STREAM_SCRATCH_BYTES);
    return stream;
}

void stream_destroy(Stream stream) {
    if (!stream) return;
    free(stream->scratch);
    free(stream);
}

void stream_wait_host(Stream stream) {
    (void)stream;
}

void *stream_scratch(Stream stream, size_t bytes) {
    REQUIRE(bytes <= STREAM_SCRATCH_BYTES, "kernel scratch: asked for %zu bytes of %d", bytes,
            STREAM_SCRATCH_BYTES);
    return stream->scratch;
}
