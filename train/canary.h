// SPDX-License-Identifier: Apache-2.0
// The check before the first step: do tokens come back right from the experts of this run's own layout?
#pragma once
#include "train/state.h"

// Prints what was compared. ERR_RUNTIME names layer, expert and ranks of the worst row where it is off by
// more than the bound. Collective over the world.
Status canary_run(TrainState *state);
