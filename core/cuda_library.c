// SPDX-License-Identifier: Apache-2.0
#include "core/cuda_library.h"
#include <dlfcn.h>

void *cuda_library_symbol(const char *library, const char *name) {
    void *handle = dlopen(library, RTLD_NOW | RTLD_LOCAL); // loaded once, however often asked for
    REQUIRE(handle, "%s; this floe was built with it: install it, or set LD_LIBRARY_PATH to where it is",
            dlerror());
    void *symbol = dlsym(handle, name);
    REQUIRE(symbol, "%s; install the version of %s that this floe was built with", dlerror(), library);
    return symbol;
}
