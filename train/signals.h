// SPDX-License-Identifier: Apache-2.0
// What someone outside asks of a running job. TERM, INT, HUP and USR2: save and stop; USR1: save and go on;
// the second of TERM, INT and HUP ends the process at once. The files RUN/ctl/save and RUN/ctl/stop ask the
// same, --max-time asks to stop.
#pragma once
#include "comm/group.h"

typedef struct {
    Group *world;
    const char *run_dir; // borrowed; NULL: no control files
    double deadline;     // of clock_seconds(); 0: none
    double next_look;    // when the control files are looked at again
    bool stop, save;     // asked and agreed; who saves sets save back to false
    int64_t carried[2];  // travels with a poll: this rank's before it, all ranks' maximum after it
    const char *reason;  // what asked last: "SIGTERM", "ctl/stop", "--max-time", …
} Signals;

// From here on signals are noted instead of ending the process. Call first: a job may be asked to stop while
// it starts.
void signals_catch(void);
// What was noted before a job was there to tell: the signal that asks for a stop, or SIGUSR1, which is then
// forgotten; 0: nothing.
int signals_noted(void);
// run_dir's control files that lie there from before are removed.
void signals_start(Signals *signals, Group *world, const char *run_dir, double max_seconds);
// Adds what any rank was asked since the last poll: the same on all ranks. own: this rank's trouble since
// then, if any; where a rank has some, all return it. Collective.
Status signals_poll(Signals *signals, Status own);
