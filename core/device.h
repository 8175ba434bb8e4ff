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
// between panels, which lets messages travel, and take their packing buffers from stream_scratch. On a GPU
// work is enqueued, and runs in the order in which it was enqueued on this stream.
typedef struct StreamImpl {
    Device device;
    void (*progress)(void *context); // NULL: nothing to drive
    void *progress_context;
    char *scratch;     // STREAM_SCRATCH_BYTES of the device's memory
    char *host_result; // STREAM_RESULT_BYTES that the device reaches and the host reads
    void *native;      // a cudaStream_t
} * Stream;

enum { STREAM_SCRATCH_BYTES = 64 << 20, STREAM_RESULT_BYTES = 256, DEVICE_ALIGNMENT = 64 };

void *device_alloc(Device device,
                   size_t bytes); // 64-byte aligned, zeroed; dies, saying how much, when memory is out
void device_free(Device device, void *memory);
// Host memory that copies to and from the device reach at full speed, beside computation; zeroed.
void *device_alloc_host(Device device, size_t bytes);
void device_free_host(Device device, void *memory);

// Between memories of the same device, or one of them on the CPU. With a stream of a GPU they are enqueued,
// and memory on the CPU must stay as it is until the stream has come to its end; NULL: done on return.
void device_copy(Device to, void *dst, Device from, const void *src, size_t bytes, Stream stream);
void device_zero(Device device, void *memory, size_t bytes, Stream stream);

Stream stream_create(Device device);
Stream stream_create_urgent(Device device); // its work goes before that of other streams
void stream_destroy(Stream stream);
void stream_wait_host(
    Stream stream); // blocks the host until the stream's work is done; named so that each use shows

// One scratch block at a time, valid until the kernel that asked for it returns (on a GPU: for what it has
// enqueued). Dies when bytes exceed STREAM_SCRATCH_BYTES.
void *stream_scratch(Stream stream, size_t bytes);

// Called by CPU kernels every 10 to 500 µs of work. Cheap when nothing is in flight.
static inline void stream_poll(Stream stream) {
    if (stream->progress) stream->progress(stream->progress_context);
}

// What a person may want to know of the GPUs here. Asks the driver, and starts nothing on a GPU.
enum { GPU_TEXTS = 16 };
typedef struct {
    char name[64];
    int major, minor, processors; // compute capability; streaming multiprocessors
    size_t memory;                // bytes in all
} GpuText;
typedef struct {
    char built[128];   // what this program was built with; "" without GPU support
    char driver[64];   // the newest CUDA that the driver knows; "" without a driver
    char problem[256]; // why no GPU can be used; "" where one can
    int count;
    GpuText gpu[GPU_TEXTS]; // the first of them
} GpuReport;
GpuReport device_gpus(void);
#ifdef __cplusplus
}
#endif
