// SPDX-License-Identifier: Apache-2.0
// What the machine could do if it did nothing but matrix products.
#pragma once
#include "train/state.h"

// FLOP/s of all ranks together, each of which multiplies for some 20 ms at the same time. Collective over the
// world.
double peak_measure(const TrainState *state);
