// SPDX-License-Identifier: Apache-2.0
// Threads beside the main one, which alone talks to other ranks.
#pragma once
#include <pthread.h>
#ifdef __cplusplus
extern "C" {
#endif

// Starts work(context) with the signals blocked that end or steer a run: they are the main thread's. 0 or an
// errno.
int background_start(pthread_t *thread, void *(*work)(void *), void *context);
#ifdef __cplusplus
}
#endif
