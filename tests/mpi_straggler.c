// SPDX-License-Identifier: Apache-2.0
// ranks: 2 3
// Slow ranks: told after 20 slow steps of 50, not after 19; with the phase; at most once in 50 steps.
#include "comm_check.h"
#include "train/straggler.h"
#include <stdlib.h>
#include <string.h>

enum { LAYERS = 2 };

static double unit = 0.01;
// Every rank needs 10 ms a step (unit), a slow one `slow` times as much: 4 ms data, the rest attention.
static StepMetrics step_of(Group *world, int slow_rank, double slow, double *own_s, LayerTimeline *layer) {
    memset(layer, 0, LAYERS * sizeof *layer);
    for (int rank = 0; rank < group_size(world); rank++) own_s[rank] = rank == slow_rank ? unit * slow : unit;
    double own = own_s[group_rank(world)];
    layer[1].phase[PASS_BACKWARD][PHASE_ATTENTION] = own - 0.004;
    return (StepMetrics){.own_s = own_s, .layer = layer, .layers = LAYERS, .own_data_s = 0.004};
}

static int steps_until_told(Group *world, Stragglers *s, double slow, int period, int most, Straggler *out) {
    double own_s[8];
    LayerTimeline layer[LAYERS];
    for (int step = 1; step <= most; step++) {
        StepMetrics m = step_of(world, step % period ? -1 : group_size(world) - 1, slow, own_s, layer);
        if (stragglers_step(s, &m, out)) return step;
    }
    return 0;
}

int main(int argc, char **argv) {
    comm_start(&argc, &argv);
    Mesh *mesh = check_mesh(1);
    Group *world = mesh_group(mesh, AXIS_WORLD);
    int last = group_size(world) - 1;
    Straggler found = {0};

    Stragglers s = stragglers_create(world);
    int told = steps_until_told(world, &s, 1.5, 1, 200, &found);
    CHECK(told == 20, "told after %d steps", told);
    CHECK(found.rank == last && found.slow_steps == 20, "rank %d, %d steps", found.rank, found.slow_steps);
    CHECK(found.phase && strcmp(found.phase, "attention") == 0, "phase %s", found.phase);
    CHECK(found.lost > 0 && found.lost < 0.005 && found.host[0], "lost %g s on %s", found.lost, found.host);
    told = steps_until_told(world, &s, 1.5, 1, 200, &found);
    CHECK(told == 50, "told again after %d steps", told);
    stragglers_free(&s);

    s = stragglers_create(world);
    told = steps_until_told(world, &s, 1.29, 1, 200, &found);
    CHECK(told == 0, "a rank at 1.29 of the median is told after %d steps", told);
    told = steps_until_told(world, &s, 2, 3, 300, &found); // 16 or 17 of 50
    CHECK(told == 0, "a rank that is slow in every third step is told after %d steps", told);
    told = steps_until_told(world, &s, 2, 2, 300, &found); // 25 of 50
    CHECK(told > 0 && found.slow_steps == 20, "after %d steps, %d slow", told, found.slow_steps);
    stragglers_free(&s);

    unit = 0.001;
    s = stragglers_create(world);
    told = steps_until_told(world, &s, 2.9, 1, 200, &found);
    CHECK(told == 0, "a rank that loses 1.9 ms of short steps is told after %d steps", told);
    told = steps_until_told(world, &s, 3.1, 1, 200, &found);
    CHECK(told == 20, "one that loses 2.1 ms after %d steps", told);
    stragglers_free(&s);
    mesh_destroy(mesh);
    comm_finish();
    return failures != 0;
}
