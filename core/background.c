// SPDX-License-Identifier: Apache-2.0
#include "core/background.h"
#include <signal.h>

int background_start(pthread_t *thread, void *(*work)(void *), void *context) {
    sigset_t blocked, before;
    sigfillset(&blocked);
    for (int i = 0; i < 5; i++) sigdelset(&blocked, (int[]){SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT}[i]);
    pthread_sigmask(SIG_SETMASK, &blocked, &before);
    int failed = pthread_create(thread, NULL, work, context);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return failed;
}
