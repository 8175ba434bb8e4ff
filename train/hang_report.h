// SPDX-License-Identifier: Apache-2.0
// What a rank that makes no progress tells: where it is, whom it waits for, and its stack, in
// RUN/log/stack-rank-N.txt. For another thread than the one that hangs; no MPI.
#pragma once
#include "core/heartbeat.h"
#include "train/run_dir.h"

typedef struct {
    const char *run_dir;
    int rank, ranks;
    double seconds; // without progress
    // the heartbeat as it was found
    const char *place, *pass, *call;
    const HeartbeatGroup *group; // where call is not NULL
    int64_t step, calls[HEARTBEAT_KINDS];
    int layer, peers, peer[HEARTBEAT_PEERS];
} HangReport;

// Makes the calling thread the one whose stack is written. Once, before it can hang.
void hang_report_prepare(void);
HangReport hang_report_take(const char *run_dir, int rank, int ranks, double seconds);
void hang_report_write(const HangReport *report);
// Where the call cannot tell who is missing: those of its group that have written no report since `since` (of
// the files' clock), or that have begun fewer calls. Adds them to the report.
void hang_report_find_missing(HangReport *report, int64_t since);
// "rank 2", "ranks 1, 2": those of all that have written no report since then; "" where all have.
void hang_report_silent(const HangReport *report, int64_t since, char *text, size_t size);
// "waits 30 s in exchange of layer 3 (forward) for rank 1"; with the ranks at the end of the file too.
void hang_report_line(const HangReport *report, char *text, size_t size);
