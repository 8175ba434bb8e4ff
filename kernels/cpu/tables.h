// SPDX-License-Identifier: Apache-2.0
// The CPU's tables, one for each instruction set. Only kernels_for and tests choose among them.
#pragma once
#include "kernels/kernels.h"

extern const Kernels cpu_kernels_v2, cpu_kernels_v3, cpu_kernels_v4;
