// SPDX-License-Identifier: Apache-2.0
// Attention through cuDNN: plans by shape, made when a shape is first seen (a second or two each), kept for
// each GPU.
#ifdef FLOE_CUDNN
#include "kernels/cuda/attention_cudnn.h"
#include "core/device_cuda.h"
#include "core/log.h"
#include <math.h>
#include <pthread.h>
#include <string.h>

enum { MOST_GPUS = 64, MOST_PLANS = 64 };
typedef struct {
    cudnnHandle_t handle;
    cudnnBackendDescriptor_t device;
    int plans;
    CudnnShape shape[MOST_PLANS];
    CudnnPlan *plan[MOST_PLANS];
} Library;
static Library libraries[MOST_GPUS];
static pthread_mutex_t library_lock = PTHREAD_MUTEX_INITIALIZER;

static Library *library_of(int gpu) {
    REQUIRE(gpu >= 0 && gpu < MOST_GPUS, "GPU %d: at most %d", gpu, MOST_GPUS);
    Library *library = &libraries[gpu];
    if (library->handle) return library;
    cudaMemPool_t pool;
    uint64_t keep = UINT64_MAX;
    int32_t index = gpu;
    CUDA_CHECK(cudaSetDevice(gpu));
    CUDA_CHECK(cudaDeviceGetDefaultMemPool(&pool, gpu));
    CUDA_CHECK(cudaMemPoolSetAttribute(pool, cudaMemPoolAttrReleaseThreshold, &keep));
    CUDNN_CHECK(cudnnBackendCreateDescriptor(CUDNN_BACKEND_DEVICEPROP_DESCRIPTOR, &library->device));
    CUDNN_CHECK(cudnnBackendSetAttribute(library->device, CUDNN_ATTR_DEVICEPROP_DEVICE_ID, CUDNN_TYPE_INT32,
                                         1, &index));
    CUDNN_CHECK(cudnnBackendFinalize(library->device));
    CUDNN_CHECK(cudnnCreate(&library->handle));
    return library;
}

static CudnnPlan *plan_for(Library *library, const CudnnShape *shape) {
    for (int i = 0; i < library->plans; i++)
        if (memcmp(&library->shape[i], shape, sizeof *shape) == 0) return library->plan[i];
    if (library->plans == MOST_PLANS) { // forgotten plans may still run
        CUDA_CHECK(cudaDeviceSynchronize());
        while (library->plans > 0) cudnn_plan_destroy(library->plan[--library->plans]);
    }
    CudnnPlan *plan = cudnn_plan_create(shape, library->device);
    if (!plan->run)
        log_rank(LOG_WARN,
                 "attention %s of %ld sequences of %ld, %ld heads on %ld of %ld: cuDNN %zu has none on this "
                 "GPU: %s; floe's own runs, which is slower",
                 shape->backward ? "backward" : "forward", (long)shape->sequences, (long)shape->length,
                 (long)shape->heads, (long)shape->kv_heads, (long)shape->head_dim, cudnnGetVersion(),
                 plan->why_not);
    library->shape[library->plans] = *shape;
    library->plan[library->plans++] = plan;
    return plan;
}

static void *take_memory(int64_t bytes, Stream stream) {
    void *memory = NULL;
    cudaError_t error = cudaMallocAsync(&memory, (size_t)bytes, stream->native);
    REQUIRE(
        error != cudaErrorMemoryAllocation,
        "out of memory on GPU %d: %ld bytes for cuDNN's attention; use more ranks or a smaller batch.micro",
        stream->device.index, (long)bytes);
    CUDA_CHECK(error);
    return memory;
}

// Enqueues a plan; pointer[id] of the graph's tensors [CUDNN_Q, end).
static void execute(const Library *library, const CudnnPlan *plan, void *pointer[], CudnnTensor end,
                    void *workspace, Stream stream) {
    cudnnBackendDescriptor_t pack;
    int64_t id[CUDNN_TENSORS_END];
    for (int i = CUDNN_Q; i < (int)end; i++) id[i] = i;
    CUDNN_CHECK(cudnnSetStream(library->handle, stream->native));
    CUDNN_CHECK(cudnnBackendCreateDescriptor(CUDNN_BACKEND_VARIANT_PACK_DESCRIPTOR, &pack));
    CUDNN_CHECK(cudnnBackendSetAttribute(pack, CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS, CUDNN_TYPE_INT64,
                                         end - CUDNN_Q, id + CUDNN_Q));
    CUDNN_CHECK(cudnnBackendSetAttribute(pack, CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS, CUDNN_TYPE_VOID_PTR,
                                         end - CUDNN_Q, pointer + CUDNN_Q));
    CUDNN_CHECK(cudnnBackendSetAttribute(pack, CUDNN_ATTR_VARIANT_PACK_WORKSPACE, CUDNN_TYPE_VOID_PTR, 1,
                                         &workspace));
    CUDNN_CHECK(cudnnBackendFinalize(pack));
    CUDNN_CHECK(cudnnBackendExecute(library->handle, plan->run, pack));
    CUDNN_CHECK(cudnnBackendDestroyDescriptor(pack));
}

static CudnnShape shape_of(const AttentionShape *s, AttentionPart part, bool backward) {
    return (CudnnShape){.sequences = part.sequences,
                        .length = s->q_len,
                        .heads = (int64_t)part.kv_heads * (s->heads / s->kv_heads),
                        .kv_heads = part.kv_heads,
                        .all_heads = s->heads,
                        .all_kv_heads = s->kv_heads,
                        .head_dim = s->head_dim,
                        .backward = backward};
}

bool library_attention_forward(Tensor out, Tensor lse, Tensor q, Tensor k, Tensor v,
                               const AttentionShape *shape, Stream stream) {
    CudnnShape whole = shape_of(shape, (AttentionPart){shape->batch, shape->kv_heads}, false);
    float scale = shape->scale, minus_infinity = -INFINITY;
    pthread_mutex_lock(&library_lock);
    Library *library = library_of(stream->device.index);
    CudnnPlan *plan = plan_for(library, &whole);
    if (plan->run) {
        void *pointer[CUDNN_TENSORS_END] = {[CUDNN_Q] = q.data,
                                            [CUDNN_K] = k.data,
                                            [CUDNN_V] = v.data,
                                            [CUDNN_OUT] = out.data,
                                            [CUDNN_LSE] = lse.data,
                                            [CUDNN_SCALE] = &scale,
                                            [CUDNN_MINUS_INFINITY] = &minus_infinity};
        void *workspace = take_memory(plan->workspace + 1, stream);
        execute(library, plan, pointer, CUDNN_FORWARD_END, workspace, stream);
        CUDA_CHECK(cudaFreeAsync(workspace, stream->native));
    }
    bool ran = plan->run;
    pthread_mutex_unlock(&library_lock);
    return ran;
}

// First element of a part's first head, in rows of `heads` heads.
static void *head_at(Tensor t, const CudnnShape *s, int64_t sequence, int64_t heads, int64_t head) {
    return (char *)t.data +
           (sequence * s->length * heads + head) * s->head_dim * (int64_t)dtype_bytes(DTYPE_BF16);
}

bool library_attention_backward(Tensor dq, Tensor dk, Tensor dv, Tensor dout, Tensor out, Tensor lse,
                                Tensor q, Tensor k, Tensor v, const AttentionShape *shape, Stream stream) {
    AttentionPart part = attention_library_part(shape);
    CudnnShape s = shape_of(shape, part, true);
    float scale = shape->scale, minus_infinity = -INFINITY, one = 1;
    pthread_mutex_lock(&library_lock);
    Library *library = library_of(stream->device.index);
    CudnnPlan *plan = plan_for(library, &s);
    if (plan->run) {
        int64_t dots = s.sequences * s.heads * s.length * (int64_t)sizeof(float); // a multiple of 16
        char *memory = take_memory(dots + plan->workspace + 1, stream);
        for (int64_t b = 0; b < shape->batch; b += s.sequences)
            for (int64_t g = 0; g < shape->kv_heads; g += s.kv_heads) {
                int64_t h = g * (shape->heads / shape->kv_heads);
                void *pointer[CUDNN_TENSORS_END] = {[CUDNN_Q] = head_at(q, &s, b, s.all_heads, h),
                                                    [CUDNN_K] = head_at(k, &s, b, s.all_kv_heads, g),
                                                    [CUDNN_V] = head_at(v, &s, b, s.all_kv_heads, g),
                                                    [CUDNN_OUT] = head_at(out, &s, b, s.all_heads, h),
                                                    [CUDNN_LSE] =
                                                        tensor_f32(lse) + (b * s.all_heads + h) * s.length,
                                                    [CUDNN_SCALE] = &scale,
                                                    [CUDNN_MINUS_INFINITY] = &minus_infinity,
                                                    [CUDNN_DOUT] = head_at(dout, &s, b, s.all_heads, h),
                                                    [CUDNN_ONE] = &one,
                                                    [CUDNN_DOT] = memory,
                                                    [CUDNN_DQ] = head_at(dq, &s, b, s.all_heads, h),
                                                    [CUDNN_DK] = head_at(dk, &s, b, s.all_kv_heads, g),
                                                    [CUDNN_DV] = head_at(dv, &s, b, s.all_kv_heads, g)};
                execute(library, plan, pointer, CUDNN_TENSORS_END, memory + dots, stream);
            }
        CUDA_CHECK(cudaFreeAsync(memory, stream->native));
    }
    bool ran = plan->run;
    pthread_mutex_unlock(&library_lock);
    return ran;
}
#endif
