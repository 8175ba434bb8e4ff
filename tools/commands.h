// SPDX-License-Identifier: Apache-2.0
// The subcommands of floe: one file each. argv[0] is the subcommand's name; the value is the exit code.
#pragma once
typedef int command_fn(int argc, char **argv);
command_fn command_train, command_config, command_data, command_ckpt, command_eval, command_generate,
    command_bench, command_slurm, command_doctor, command_completion, command_version;
