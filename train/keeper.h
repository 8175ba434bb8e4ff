// SPDX-License-Identifier: Apache-2.0
// What a run does about its saves: counts those that fail, has those that succeed re-read, warns of states
// that did not change, and removes old ones.
#pragma once
#include "train/checkpoint.h"
#include "train/metrics.h"
#include <pthread.h>
#include <stdatomic.h>

typedef struct { // a checkpoint that is whole: its mark, and older ones go. A thread of rank 0
    pthread_t thread;
    bool open, started; // open: on all ranks, from the end of the check to the end of this
    atomic_bool running;
    char dir[4096], reason[1024];
    Status status;
    CheckpointChecked checked;
} Conclusion;

typedef struct {
    Group *world;
    const char *run_dir;
    CheckpointRules rules;
    Metrics *metrics;
    CheckpointCheck *check;
    Conclusion conclusion;
    int64_t start;          // the state that this start began with
    int64_t step, previous; // saved last and before that, and still there; −1: none
    int64_t failures, failures_in_row;
    char digest[CHECKPOINT_DIGEST_BYTES]; // of the one before, on rank 0
    Status trouble;                       // of this rank alone: records that could not be written
} Keeper;

// step: the state that the run begins with; saved: whether the run's folder has it, which is then checked if
// nobody has. Collective.
void keeper_start(Keeper *keeper, Group *world, const char *run_dir, const CheckpointRules *rules,
                  Metrics *metrics, int64_t step, bool saved);
void keeper_end(Keeper *keeper); // no check may be in flight
// What would be lost begins behind this step: the newest saved one, or where this start began.
int64_t keeper_durable(const Keeper *keeper);
// A save of `step` failed, for the reason in status_text(). The same on every rank.
void keeper_failed(Keeper *keeper, int64_t step);
// A save was committed. Begins to re-read it. No check may be in flight.
void keeper_committed(Keeper *keeper, const CheckpointReport *report);
bool keeper_checking(const Keeper *keeper); // from keeper_committed to the conclusion
bool keeper_running(const Keeper *keeper);  // a thread of this rank is at work on it
// Goes on where no rank is running: older ones go, beside the training, or the one that was checked does.
// Collective. false: it was damaged, and is not there any more.
bool keeper_advance(Keeper *keeper);
// Waits for all that. cut: what has not been read yet stays unverified. Collective; the same result.
bool keeper_settle(Keeper *keeper, bool cut);
