// SPDX-License-Identifier: Apache-2.0
#include "train/signals.h"
#include "core/clock.h"
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

// The only state of the process here: handlers can reach nothing else.
static volatile sig_atomic_t stop_signal, save_signal;
static volatile sig_atomic_t asked; // TERM, INT or HUP has come

static void on_stop(int number) {
    if (asked && number != SIGUSR2) {
        signal(number, SIG_DFL);
        raise(number);
        return;
    }
    asked |=
        number != SIGUSR2; // a launcher's USR2 may be followed by a TERM to all, while the save is written
    stop_signal = number;
}

static void on_save(int number) {
    save_signal = number;
}

static void handle(int number, void (*handler)(int)) {
    struct sigaction action = {.sa_handler = handler, .sa_flags = SA_RESTART | SA_NODEFER};
    sigemptyset(&action.sa_mask);
    sigaction(number, &action, NULL);
}

void signals_catch(void) {
    handle(SIGTERM, on_stop);
    handle(SIGINT, on_stop);
    handle(SIGUSR2, on_stop);
    struct sigaction hangup;
    sigaction(SIGHUP, NULL, &hangup);
    if (hangup.sa_handler != SIG_IGN) handle(SIGHUP, on_stop); // nohup keeps its meaning
    handle(SIGUSR1, on_save);
    signal(SIGXFSZ, SIG_IGN); // a write beyond the limit of a file's size fails like one on a full disk
}

int signals_noted(void) {
    int number = stop_signal ? stop_signal : save_signal;
    save_signal = 0;
    return number;
}

// Removes RUN/ctl/NAME; whether it was there.
static bool take_file(const char *run_dir, const char *name) {
    char path[4096];
    snprintf(path, sizeof path, "%s/ctl/%s", run_dir, name);
    return unlink(path) == 0;
}

void signals_start(Signals *signals, Group *world, const char *run_dir, double max_seconds) {
    *signals = (Signals){.world = world, .run_dir = run_dir, .reason = ""};
    if (max_seconds > 0) signals->deadline = clock_seconds() + max_seconds;
    if (!run_dir || group_rank(world) != 0) return;
    take_file(run_dir, "stop");
    take_file(run_dir, "save");
}

// Reasons, most urgent last: ranks agree on the largest.
enum { NO_REASON, SAVE_FILE, SAVE_SIGNAL, TIME_UP, STOP_FILE, STOP_USR2, STOP_HUP, STOP_INT, STOP_TERM };
static const char *const reason_text[] = {"",        "ctl/save", "SIGUSR1", "--max-time", "ctl/stop",
                                          "SIGUSR2", "SIGHUP",   "SIGINT",  "SIGTERM"};

static int64_t own_reason(Signals *signals) {
    if (stop_signal == SIGTERM) return STOP_TERM;
    if (stop_signal == SIGINT) return STOP_INT;
    if (stop_signal == SIGHUP) return STOP_HUP;
    if (stop_signal) return STOP_USR2;
    if (group_rank(signals->world) == 0) { // files and clocks may differ between hosts: one rank decides
        double now = clock_seconds();
        if (signals->deadline > 0 && now >= signals->deadline) return TIME_UP;
        if (signals->run_dir && now >= signals->next_look) {
            signals->next_look = now + 0.25;
            if (take_file(signals->run_dir, "stop")) return STOP_FILE;
            if (take_file(signals->run_dir, "save")) return SAVE_FILE;
        }
    }
    if (save_signal) {
        save_signal = 0;
        return SAVE_SIGNAL;
    }
    return NO_REASON;
}

Status signals_poll(Signals *signals, Status own) {
    int64_t news[] = {signals->stop ? NO_REASON : own_reason(signals), own, signals->carried[0],
                      signals->carried[1]};
    group_max_i64(signals->world, news, 4);
    memcpy(signals->carried, news + 2, sizeof signals->carried);
    if (news[1] != OK) return group_agree(signals->world, own);
    if (news[0] == NO_REASON) return OK;
    signals->reason = reason_text[news[0]];
    if (news[0] >= TIME_UP)
        signals->stop = true;
    else
        signals->save = true;
    return OK;
}
