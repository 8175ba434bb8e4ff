// SPDX-License-Identifier: Apache-2.0
// Attention as graphs of operations that cuDNN compiles into one kernel, and the plans to run them.
#pragma once
#include "kernels/cuda/attention.h"
#include <cudnn.h>

#define CUDNN_CHECK(call) cudnn_check((call), #call, __FILE__, __LINE__)
void cudnn_check(cudnnStatus_t status, const char *call, const char *file, int line);

// What a plan is made for: sequences of `length` with `heads` query heads on `kv_heads`, out of rows that
// hold all_heads and all_kv_heads.
typedef struct {
    int64_t sequences, length, heads, kv_heads, all_heads, all_kv_heads, head_dim, backward;
} CudnnShape;

// The tensors of a graph, by which the plan's pointers are named; SCALE, MINUS_INFINITY and ONE are numbers
// on the host. DOT (sequences, heads, length) f32 is scratch.
typedef enum {
    CUDNN_Q = 1,
    CUDNN_K,
    CUDNN_V,
    CUDNN_OUT,
    CUDNN_LSE,
    CUDNN_SCALE,
    CUDNN_MINUS_INFINITY,
    CUDNN_FORWARD_END,
    CUDNN_DOUT = CUDNN_FORWARD_END,
    CUDNN_ONE,
    CUDNN_DOT,
    CUDNN_DQ,
    CUDNN_DK,
    CUDNN_DV,
    CUDNN_TENSORS_END,
} CudnnTensor;

// Owns its descriptors.
enum { CUDNN_MOST_DESCRIPTORS = 256 };
typedef struct {
    cudnnBackendDescriptor_t made[CUDNN_MOST_DESCRIPTORS];
    int count, engines;           // engines that the heuristics named
    cudnnBackendDescriptor_t run; // NULL: cuDNN has none that takes this shape on this device
    int64_t workspace;            // bytes
    char why_not[256];
} CudnnPlan;

// device: a CUDNN_BACKEND_DEVICEPROP_DESCRIPTOR.
CudnnPlan *cudnn_plan_create(const CudnnShape *shape, cudnnBackendDescriptor_t device);
void cudnn_plan_destroy(CudnnPlan *plan);
