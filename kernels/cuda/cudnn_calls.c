// SPDX-License-Identifier: Apache-2.0
// The functions of cuDNN that attention_cudnn*.c call (core/cuda_library.h).
#ifdef FLOE_CUDNN
#include "core/cuda_library.h"
#include <cudnn.h>

#define CALL(result, name, parameters, arguments)                                                            \
    CUDA_LIBRARY_CALL("libcudnn.so.9", result, name, parameters, arguments)
#define STATUS_CALL(name, parameters, arguments) CALL(cudnnStatus_t, name, parameters, arguments)

CALL(size_t, cudnnGetVersion, (void), ())
CALL(const char *, cudnnGetErrorString, (cudnnStatus_t status), (status))
STATUS_CALL(cudnnCreate, (cudnnHandle_t * handle), (handle))
STATUS_CALL(cudnnSetStream, (cudnnHandle_t handle, cudaStream_t stream), (handle, stream))
STATUS_CALL(cudnnBackendCreateDescriptor,
            (cudnnBackendDescriptorType_t type, cudnnBackendDescriptor_t *descriptor), (type, descriptor))
STATUS_CALL(cudnnBackendDestroyDescriptor, (cudnnBackendDescriptor_t descriptor), (descriptor))
STATUS_CALL(cudnnBackendFinalize, (cudnnBackendDescriptor_t descriptor), (descriptor))
STATUS_CALL(cudnnBackendSetAttribute,
            (cudnnBackendDescriptor_t descriptor, cudnnBackendAttributeName_t name,
             cudnnBackendAttributeType_t type, int64_t count, const void *elements),
            (descriptor, name, type, count, elements))
STATUS_CALL(cudnnBackendGetAttribute,
            (cudnnBackendDescriptor_t const descriptor, cudnnBackendAttributeName_t name,
             cudnnBackendAttributeType_t type, int64_t asked, int64_t *count, void *elements),
            (descriptor, name, type, asked, count, elements))
STATUS_CALL(cudnnBackendExecute,
            (cudnnHandle_t handle, cudnnBackendDescriptor_t plan, cudnnBackendDescriptor_t pack),
            (handle, plan, pack))

// Has no result to return.
void cudnnGetLastErrorString(char *text, size_t size) {
    static void *found;
    if (!found) found = cuda_library_symbol("libcudnn.so.9", "cudnnGetLastErrorString");
    ((void (*)(char *, size_t))found)(text, size);
}
#endif
