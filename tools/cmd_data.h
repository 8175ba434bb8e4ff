// SPDX-License-Identifier: Apache-2.0
// The parts of floe data.
#pragma once
#include "tools/cli.h"

int data_pack(const CliArgs *args);
int data_list(const CliArgs *args);
int data_verify(const CliArgs *args);
int data_sample(const CliArgs *args);
int data_tokenizer(const CliArgs *args);
