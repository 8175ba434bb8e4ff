// SPDX-License-Identifier: Apache-2.0
// A bar on the terminal and Ctrl-C for commands that make a folder.
#pragma once
#include "tools/cli.h"
#include "train/new_folder.h"

// The first INT or TERM from here on stops the work cleanly, a second one ends the process. One at a time.
Watch watch_begin(void);
int watch_end(
    Status status); // clears the bar; prints a failure; the exit code, 128 + the signal where one came
