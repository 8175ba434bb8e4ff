// SPDX-License-Identifier: Apache-2.0
#include "train/canary.h"
#include "core/clock.h"
#include "core/log.h"
#include "core/rng.h"
#include "train/format.h"

// Of a row's largest entry. The CPU's products give a row the same bits whatever stands around it, so that 0
// is expected there; other backends may add in another order, up to √(rows of the weight)·2⁻²⁴.
static const double bound = 1e-5;

// Made-up text: the check needs no data and touches no position in it.
static Tensor made_up_tokens(const TrainState *s) {
    const RunConfig *c = s->config;
    int64_t count = c->batch.micro * (c->batch.seq_len + 1);
    for (int64_t i = 0; i < count; i++)
        s->batch_tokens[i] =
            (int32_t)(rng_u64(7, (uint64_t)comm_world_rank(), (uint64_t)i) % (uint64_t)c->model.vocab);
    return tensor_view(s->batch_tokens, DTYPE_I32, 2, (int64_t[]){c->batch.micro, c->batch.seq_len + 1});
}

// The worst rank's findings, on every rank; sources and owners become ranks of the world.
static Canary worst_of(const TrainState *s, Canary own) {
    Group *world = mesh_group(s->mesh, AXIS_WORLD);
    int first = comm_world_rank() / s->config->parallel.ep * s->config->parallel.ep;
    double worst = own.worst, ranks = group_size(world);
    group_max_f64(world, &worst, 1);
    double reporter = own.worst == worst ? -comm_world_rank() : -ranks; // the lowest rank has the largest
    group_max_f64(world, &reporter, 1);
    group_sum_i64(world, &own.rows, 1);
    own.source += first;
    own.owner += first;
    int64_t rows = own.rows;
    group_broadcast(world, (int)-reporter, &own, sizeof own);
    own.rows = rows;
    return own;
}

Status canary_run(TrainState *s) {
    if (model_moe_layers(s->model) == 0) return OK;
    double begun = clock_seconds();
    Canary found = worst_of(s, model_canary(s->model, made_up_tokens(s)));
    if (!(found.worst <= bound))
        FAIL(ERR_RUNTIME,
             "canary: layer %d: expert %d on rank %d sent a row back to rank %d that is off by %.3g of its "
             "largest "
             "entry from the plain computation (bound %g); nothing was trained. A kernel or the exchange is "
             "wrong on "
             "these machines: see floe doctor; train.canary=false skips this check",
             found.layer, found.expert, found.owner, found.source, found.worst, bound);
    log_rank0(LOG_INFO,
              "canary    %lld rows of %d layers are back from their experts as computed plainly (off by "
              "%.2g, bound "
              "%.0e) | %s",
              (long long)found.rows, model_moe_layers(s->model), found.worst, bound,
              short_duration(clock_seconds() - begun).text);
    return OK;
}
