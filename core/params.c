// SPDX-License-Identifier: Apache-2.0
#include "core/params.h"
#include "core/rng.h"
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void *grow(void *memory, int count, int *capacity, size_t item) {
    if (count < *capacity) return memory;
    *capacity = *capacity ? 2 * *capacity : 64;
    memory = realloc(memory, (size_t)*capacity * item);
    REQUIRE(memory, "out of memory: the weight table");
    return memory;
}

int params_group(ParamTable *table, int expert, const char *name_format, ...) {
    table->group = grow(table->group, table->group_count, &table->group_capacity, sizeof *table->group);
    ParamGroup *group = &table->group[table->group_count];
    *group = (ParamGroup){.first = table->count, .expert = expert};
    va_list args;
    va_start(args, name_format);
    vsnprintf(group->name, sizeof group->name, name_format, args);
    va_end(args);
    return table->group_count++;
}

int params_add(ParamTable *table, int64_t rows, int64_t columns, float init_mean, float init_std,
               unsigned flags, const char *name_format, ...) {
    REQUIRE(table->group_count > 0, "params_add before params_group");
    table->param = grow(table->param, table->count, &table->capacity, sizeof *table->param);
    ParamGroup *group = &table->group[table->group_count - 1];
    Param *param = &table->param[table->count];
    *param = (Param){.dims = columns ? 2 : 1,
                     .dim = {rows, columns ? columns : 1},
                     .dtype = DTYPE_F32,
                     .scale = 1,
                     .init_mean = init_mean,
                     .init_std = init_std,
                     .flags = flags,
                     .group = table->group_count - 1,
                     .offset = group->elements};
    va_list args;
    va_start(args, name_format);
    vsnprintf(param->name, sizeof param->name, name_format, args);
    va_end(args);
    group->elements += (param_size(param) + PARAM_ALIGNMENT - 1) / PARAM_ALIGNMENT * PARAM_ALIGNMENT;
    group->count++;
    return table->count++;
}

int params_find(const ParamTable *table, const char *name) {
    for (int i = 0; i < table->count; i++)
        if (!strcmp(table->param[i].name, name)) return i;
    return -1;
}

int64_t param_size(const Param *param) {
    return param->dim[0] * param->dim[1];
}

static Tensor view(const Param *param, float *memory) {
    return tensor_view(memory ? memory + param->offset : NULL, DTYPE_F32, param->dims, param->dim);
}

void params_place_weights(ParamTable *table, int group, float *memory) {
    const ParamGroup *g = &table->group[group];
    for (int i = g->first; i < g->first + g->count; i++)
        table->param[i].weight = view(&table->param[i], memory);
}

void params_place_grads(ParamTable *table, int group, float *memory) {
    const ParamGroup *g = &table->group[group];
    for (int i = g->first; i < g->first + g->count; i++)
        table->param[i].grad = view(&table->param[i], memory);
}

float param_initial(const Param *param, uint64_t seed, int64_t i) {
    if (param->init_std == 0) return param->init_mean;
    return param->init_mean + param->init_std * rng_normal(seed, hash_text(param->name), (uint64_t)i);
}

void params_free(ParamTable *table) {
    free(table->param);
    free(table->group);
    *table = (ParamTable){0};
}
