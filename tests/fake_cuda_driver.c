// SPDX-License-Identifier: Apache-2.0
// A libcuda.so.1 without GPUs: what cuDNN asks of the driver while it makes plans succeeds and does nothing.
// Nothing can run on it.
#define _GNU_SOURCE
#include <dlfcn.h>

enum { SUCCESS = 0, NO_DEVICE = 100, VERSION = 13000 };
typedef int Result;

Result cuInit(unsigned flags) {
    (void)flags;
    return NO_DEVICE;
}
Result cuDriverGetVersion(int *version) {
    *version = VERSION;
    return SUCCESS;
}
Result cuDeviceGetCount(int *count) {
    *count = 0;
    return SUCCESS;
}

// Handles that are not NULL.
#define GIVES_HANDLE(name)                                                                                   \
    Result name(void **handle) {                                                                             \
        *handle = (void *)8;                                                                                 \
        return SUCCESS;                                                                                      \
    }
GIVES_HANDLE(cuLibraryLoadData)
GIVES_HANDLE(cuLibraryGetKernel)
GIVES_HANDLE(cuKernelGetFunction)
GIVES_HANDLE(cuModuleLoadData)
GIVES_HANDLE(cuModuleGetFunction)

#define GIVES_TEXT(name)                                                                                     \
    Result name(int error, const char **text) {                                                              \
        (void)error;                                                                                         \
        *text = "no GPU";                                                                                    \
        return SUCCESS;                                                                                      \
    }
GIVES_TEXT(cuGetErrorString)
GIVES_TEXT(cuGetErrorName)

#define SUCCEEDS(name)                                                                                       \
    Result name(void) {                                                                                      \
        return SUCCESS;                                                                                      \
    }
SUCCEEDS(cuCtxGetCurrent)
SUCCEEDS(cuCtxGetLimit)
SUCCEEDS(cuCtxPopCurrent)
SUCCEEDS(cuCtxPushCurrent)
SUCCEEDS(cuDeviceGet)
SUCCEEDS(cuKernelGetAttribute)
SUCCEEDS(cuKernelSetAttribute)
SUCCEEDS(cuLaunchCooperativeKernel)
SUCCEEDS(cuLaunchKernel)
SUCCEEDS(cuLaunchKernelEx)
SUCCEEDS(cuLibraryLoadFromFile)
SUCCEEDS(cuLibraryUnload)
SUCCEEDS(cuLinkAddData)
SUCCEEDS(cuLinkComplete)
SUCCEEDS(cuLinkCreate)
SUCCEEDS(cuLinkDestroy)
SUCCEEDS(cuOccupancyMaxPotentialClusterSize)
SUCCEEDS(cuStreamGetCtx)

static Result do_nothing(void) {
    return SUCCESS;
}
Result cuGetProcAddress_v2(const char *name, void **function, int version, unsigned long flags, int *found) {
    (void)version, (void)flags;
    *function = dlsym(RTLD_DEFAULT, name);
    if (!*function) *function = (void *)do_nothing;
    if (found) *found = 0;
    return SUCCESS;
}
Result cuGetProcAddress(const char *name, void **function, int version, unsigned long flags) {
    return cuGetProcAddress_v2(name, function, version, flags, 0);
}
