// SPDX-License-Identifier: Apache-2.0
// Memory and streams of the device that a rank computes on.
#pragma once
#include <stddef.h>
#include <stdint.h>
#ifdef __cplusplus
extern "C" {
#endif

typedef enum { DEVICE_CPU, DEVICE_CUDA } DeviceKind;
typedef struct {
    DeviceKind kind;
    int index;
} Device;

// Where kernels run. On the CPU work is done when the call returns; while it runs, kernels call stream_poll
// between panels, which lets messages travel, and take their packing buffers from stream_scratch.
typedef struct StreamImpl {
    Device device;
    void (*progress)(void *context); // NULL: nothing to drive
    void *progress_context;
    char *scratch; // STREAM_SCRATCH_BYTES
    void *native;  // a cudaStream_t
} * Stream;

enum { STREAM_SCRATCH_BYTES = 64 << 20, DEVICE_ALIGNMENT = 64 };

void *device_alloc(Device device,
                   size_t bytes); // 64-byte aligned, zeroed; dies, saying how much, when memory is out
void device_free(Device device, void *memory);
void device_copy(Device to, void *dst, Device from, const void *src, size_t bytes, Stream stream);
void device_zero(Device device, void *memory, size_t bytes, Stream stream);

Stream stream_create(Device device);
void stream_destroy(Stream stream);
void stream_wait_host(
    Stream stream); // blocks the host until the stream's work is done; named so that each use shows

// One scratch block at a time, valid until the kernel that asked for it returns. Dies when bytes exceed
// STREAM_SCRATCH_BYTES.
void *stream_scratch(Stream stream, size_t bytes);

// Called by CPU kernels every 10 to 500 µs of work. Cheap when nothing is in flight.
static inline void stream_poll(Stream stream) {
    if (stream->progress) stream->progress(stream->progress_context);
}
#ifdef __cplusplus
}
#endif
