// SPDX-License-Identifier: Apache-2.0
#include "tools/launch_internal.h"
#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void show(const char *data, size_t bytes) {
    fwrite(data, 1, bytes, stderr);
    fflush(stderr);
}

static bool is_rule(const char *line, size_t length) { // -------…
    size_t dashes = 0;
    while (dashes < length && line[dashes] == '-') dashes++;
    return dashes >= 40 && (dashes == length || line[dashes] == '\n');
}

// "[host:1234] …", what mpirun and the MPI library say of themselves; mpirun sets it apart by empty lines.
static bool is_library_word(const char *line, size_t length) {
    size_t i = 1;
    if (line[0] == '\n') return true;
    if (strncmp(line, "mpirun: ", 8) == 0 || strncmp(line, "orterun: ", 9) == 0) return true;
    if (length < 5 || line[0] != '[') return false;
    while (i < length && !isspace((unsigned char)line[i]) && line[i] != ':' && line[i] != ']') i++;
    if (i == length || line[i] != ':' || i + 1 == length || !isdigit((unsigned char)line[i + 1]))
        return false;
    while (++i < length && isdigit((unsigned char)line[i])) {
    }
    return i < length && line[i] == ']';
}

// Rank of a line "[rank 3] error: …"; −1: it is none.
static int error_rank(const char *line) {
    int rank, end = 0;
    return sscanf(line, "[rank %d] error:%n", &rank, &end) == 1 && end ? rank : -1;
}

static void keep_banner(LaunchOutput *output, const char *line, size_t length) {
    enum { BANNER_MOST = 1 << 16 };
    if (output->banner_bytes + length > BANNER_MOST) return;
    char *grown = realloc(output->banner, output->banner_bytes + length);
    if (!grown) return;
    memcpy(grown + output->banner_bytes, line, length);
    output->banner = grown;
    output->banner_bytes += length;
}

static void judge(LaunchOutput *output, const char *line, size_t length) {
    if (output->verbose) {
        show(line, length);
        return;
    }
    bool rule = is_rule(line, length);
    if (rule) output->in_banner = !output->in_banner;
    if (rule || output->in_banner || is_library_word(line, length)) {
        keep_banner(output, line, length);
        return;
    }
    int rank = error_rank(line);
    if (rank >= 0 && output->first_failed >= 0 && rank != output->first_failed) return;
    if (rank >= 0) output->first_failed = rank;
    if (rank >= 0 || strncmp(line, "error:", 6) == 0 || strstr(line, ": error: ")) output->rank_spoke = true;
    show(line, length);
}

void launch_output_take(LaunchOutput *output, const char *data, size_t bytes) {
    for (size_t i = 0; i < bytes; i++) {
        output->line[output->length++] = data[i];
        if (data[i] != '\n' && output->length < sizeof output->line - 1) continue;
        output->line[output->length] = 0;
        judge(output, output->line, output->length);
        output->length = 0;
    }
}

void launch_output_pause(LaunchOutput *output) {
    bool may_be_banner = output->in_banner || output->line[0] == '-' || output->line[0] == '[';
    bool bar = output->line[0] == '\r' || output->line[0] == '\033';
    if (!output->length || (may_be_banner && !bar && !output->verbose)) return;
    show(output->line, output->length);
    output->length = 0;
}

void launch_output_end(LaunchOutput *output, bool failed) {
    output->line[output->length] = 0;
    if (output->length) judge(output, output->line, output->length);
    if (failed && !output->rank_spoke) show(output->banner ? output->banner : "", output->banner_bytes);
    free(output->banner);
    output->banner = NULL;
}
