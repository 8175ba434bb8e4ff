// SPDX-License-Identifier: Apache-2.0
// GPUs through CUDA's runtime, which is part of the program and finds the driver when it runs.
#include "core/device_cuda.h"
#include "core/device_backend.h"
#include <stdio.h>
#include <string.h>

// Every entry chooses its GPU, since each thread of the host has a choice of its own.
static void choose(int index) {
    CUDA_CHECK(cudaSetDevice(index));
}

static void *cuda_alloc(int index, size_t bytes) {
    choose(index);
    void *memory = NULL;
    cudaError_t error = cudaMalloc(&memory, bytes ? bytes : DEVICE_ALIGNMENT);
    if (error == cudaErrorMemoryAllocation) {
        size_t unused = 0, total = 0;
        CUDA_CHECK(cudaMemGetInfo(&unused, &total));
        DIE("out of memory on GPU %d: asked for %zu bytes, %zu of %zu are free; use more ranks, a smaller "
            "batch.micro or recompute, or end what else runs on this GPU (nvidia-smi)",
            index, bytes, unused, total);
    }
    CUDA_CHECK(error);
    CUDA_CHECK(cudaMemset(memory, 0, bytes ? bytes : DEVICE_ALIGNMENT));
    CUDA_CHECK(cudaDeviceSynchronize()); // streams here do not wait for the default stream
    return memory;
}

static void cuda_free(int index, void *memory) {
    choose(index);
    CUDA_CHECK(cudaFree(memory));
}

static void *cuda_alloc_host(int index, size_t bytes) {
    choose(index);
    void *memory = NULL;
    cudaError_t error = cudaMallocHost(&memory, bytes ? bytes : DEVICE_ALIGNMENT);
    REQUIRE(error != cudaErrorMemoryAllocation,
            "out of memory: asked for %zu bytes of pinned host memory; look at ulimit -l and at the memory "
            "limit of this container",
            bytes);
    CUDA_CHECK(error);
    memset(memory, 0, bytes);
    return memory;
}

static void cuda_free_host(int index, void *memory) {
    choose(index);
    CUDA_CHECK(cudaFreeHost(memory));
}

static void cuda_copy(int index, void *dst, const void *src, size_t bytes, Stream stream) {
    choose(index);
    if (stream && stream->device.kind == DEVICE_CUDA)
        CUDA_CHECK(cudaMemcpyAsync(dst, src, bytes, cudaMemcpyDefault, stream->native));
    else
        CUDA_CHECK(cudaMemcpy(dst, src, bytes, cudaMemcpyDefault));
}

static void cuda_zero(int index, void *memory, size_t bytes, Stream stream) {
    choose(index);
    REQUIRE(stream && stream->device.kind == DEVICE_CUDA, "zeroing GPU memory needs a stream of the GPU");
    CUDA_CHECK(cudaMemsetAsync(memory, 0, bytes, stream->native));
}

static void cuda_stream_create(Stream stream, bool urgent) {
    int lowest = 0, highest = 0, index = stream->device.index;
    cudaStream_t native;
    choose(index);
    CUDA_CHECK(cudaDeviceGetStreamPriorityRange(&lowest, &highest));
    CUDA_CHECK(cudaStreamCreateWithPriority(&native, cudaStreamNonBlocking, urgent ? highest : lowest));
    stream->native = native;
    stream->scratch = cuda_alloc(index, STREAM_SCRATCH_BYTES);
    stream->host_result = cuda_alloc_host(index, STREAM_RESULT_BYTES);
}

static void cuda_stream_wait(Stream stream) {
    choose(stream->device.index);
    CUDA_CHECK(cudaStreamSynchronize(stream->native));
}

static void cuda_stream_destroy(Stream stream) {
    cuda_stream_wait(stream);
    cuda_free(stream->device.index, stream->scratch);
    cuda_free_host(stream->device.index, stream->host_result);
    CUDA_CHECK(cudaStreamDestroy(stream->native));
}

const DeviceBackend cuda_backend = {
    .alloc = cuda_alloc,
    .free = cuda_free,
    .alloc_host = cuda_alloc_host,
    .free_host = cuda_free_host,
    .copy = cuda_copy,
    .zero = cuda_zero,
    .stream_create = cuda_stream_create,
    .stream_destroy = cuda_stream_destroy,
    .stream_wait = cuda_stream_wait,
};

// ---- report

static void describe_gpu(GpuText *gpu, int index) {
    struct cudaDeviceProp properties;
    if (cudaGetDeviceProperties(&properties, index) != cudaSuccess) return;
    snprintf(gpu->name, sizeof gpu->name, "%.63s", properties.name);
    gpu->major = properties.major;
    gpu->minor = properties.minor;
    gpu->processors = properties.multiProcessorCount;
    gpu->memory = properties.totalGlobalMem;
}

GpuReport device_gpus(void) {
    GpuReport report = {.built = FLOE_CUDA_BUILT};
    int driver = 0, count = 0;
    if (cudaDriverGetVersion(&driver) == cudaSuccess && driver > 0)
        snprintf(report.driver, sizeof report.driver, "CUDA %d.%d", driver / 1000, driver % 1000 / 10);
    cudaError_t error = cudaGetDeviceCount(&count);
    if (!report.driver[0])
        snprintf(report.problem, sizeof report.problem, "no NVIDIA driver (libcuda.so.1 was not found)");
    else if (error == cudaErrorInsufficientDriver)
        snprintf(report.problem, sizeof report.problem,
                 "the driver knows %s, this floe needs CUDA %d.%d: install a newer driver", report.driver,
                 CUDART_VERSION / 1000, CUDART_VERSION % 1000 / 10);
    else if (error != cudaSuccess)
        snprintf(report.problem, sizeof report.problem, "%s (%s)", cudaGetErrorString(error),
                 cudaGetErrorName(error));
    else if (count == 0)
        snprintf(report.problem, sizeof report.problem, "the driver shows no GPU");
    else if (count > 0)
        report.count = count;
    for (int i = 0; i < report.count && i < GPU_TEXTS; i++) describe_gpu(&report.gpu[i], i);
    return report;
}
