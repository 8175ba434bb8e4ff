// SPDX-License-Identifier: Apache-2.0
// The CPU, and the choice between it and a GPU.
#include "core/device.h"
#include "core/device_backend.h"
#include "core/status.h"
#include <stdlib.h>
#include <string.h>

static void *cpu_alloc(int index, size_t bytes) {
    (void)index;
    size_t rounded = (bytes + DEVICE_ALIGNMENT - 1) / DEVICE_ALIGNMENT * DEVICE_ALIGNMENT;
    void *memory = aligned_alloc(DEVICE_ALIGNMENT, rounded ? rounded : DEVICE_ALIGNMENT);
    REQUIRE(memory, "out of memory: asked for %zu bytes; use more ranks, a smaller batch.micro or recompute",
            bytes);
    memset(memory, 0, rounded);
    return memory;
}

static void cpu_free(int index, void *memory) {
    (void)index;
    free(memory);
}

static void cpu_copy(int index, void *dst, const void *src, size_t bytes, Stream stream) {
    (void)index, (void)stream;
    memcpy(dst, src, bytes);
}

static void cpu_zero(int index, void *memory, size_t bytes, Stream stream) {
    (void)index, (void)stream;
    memset(memory, 0, bytes);
}

static void cpu_stream_create(Stream stream, bool urgent) {
    (void)urgent;
    stream->scratch = aligned_alloc(DEVICE_ALIGNMENT, STREAM_SCRATCH_BYTES);
    REQUIRE(stream->scratch, "out of memory: %d bytes of kernel scratch", STREAM_SCRATCH_BYTES);
}

static void cpu_stream_destroy(Stream stream) {
    free(stream->scratch);
}

static void cpu_stream_wait(Stream stream) {
    (void)stream;
}

static const DeviceBackend cpu_backend = {
    .alloc = cpu_alloc,
    .free = cpu_free,
    .alloc_host = cpu_alloc,
    .free_host = cpu_free,
    .copy = cpu_copy,
    .zero = cpu_zero,
    .stream_create = cpu_stream_create,
    .stream_destroy = cpu_stream_destroy,
    .stream_wait = cpu_stream_wait,
};

static const DeviceBackend *backend_of(Device device) {
    if (device.kind == DEVICE_CPU) return &cpu_backend;
#ifdef FLOE_CUDA
    if (device.kind == DEVICE_CUDA) return &cuda_backend;
#endif
    DIE("device kind %d: this floe was built without GPU support", device.kind);
}

void *device_alloc(Device device, size_t bytes) {
    return backend_of(device)->alloc(device.index, bytes);
}

void device_free(Device device, void *memory) {
    backend_of(device)->free(device.index, memory);
}

void *device_alloc_host(Device device, size_t bytes) {
    return backend_of(device)->alloc_host(device.index, bytes);
}

void device_free_host(Device device, void *memory) {
    backend_of(device)->free_host(device.index, memory);
}

void device_copy(Device to, void *dst, Device from, const void *src, size_t bytes, Stream stream) {
    Device with = to.kind == DEVICE_CPU ? from : to;
    REQUIRE(to.kind == DEVICE_CPU || from.kind == DEVICE_CPU || to.index == from.index,
            "a copy from GPU %d to GPU %d", from.index, to.index);
    if (bytes) backend_of(with)->copy(with.index, dst, src, bytes, stream);
}

void device_zero(Device device, void *memory, size_t bytes, Stream stream) {
    if (bytes) backend_of(device)->zero(device.index, memory, bytes, stream);
}

static Stream create(Device device, bool urgent) {
    Stream stream = calloc(1, sizeof *stream);
    REQUIRE(stream, "out of memory: a stream");
    stream->device = device;
    backend_of(device)->stream_create(stream, urgent);
    return stream;
}

Stream stream_create(Device device) {
    return create(device, false);
}

Stream stream_create_urgent(Device device) {
    return create(device, true);
}

void stream_destroy(Stream stream) {
    if (!stream) return;
    backend_of(stream->device)->stream_destroy(stream);
    free(stream);
}

void stream_wait_host(Stream stream) {
    backend_of(stream->device)->stream_wait(stream);
}

void *stream_scratch(Stream stream, size_t bytes) {
    REQUIRE(bytes <= STREAM_SCRATCH_BYTES, "kernel scratch: asked for %zu bytes of %d", bytes,
            STREAM_SCRATCH_BYTES);
    return stream->scratch;
}

#ifndef FLOE_CUDA
GpuReport device_gpus(void) {
    return (GpuReport){.problem = "this floe was built without CUDA"};
}
#endif
