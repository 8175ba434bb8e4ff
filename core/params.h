// SPDX-License-Identifier: Apache-2.0
// The named weights of a run. model describes them; optim places, shards and updates them; checkpoint and
// tools walk them by name. Nobody knows a layer by number.
//
// Weights come in groups: what one layer needs at a time, and what is gathered, reduced and freed together. A
// group's weights are one contiguous f32 range, each weight starting at a multiple of PARAM_ALIGNMENT
// elements; so are its gradients. Padding stays 0.
#pragma once
#include "core/status.h"
#include "core/tensor.h"
#ifdef __cplusplus
extern "C" {
#endif

typedef enum {
    PARAM_DECAY = 1,     // weight decay pulls on it
    PARAM_EMBEDDING = 2, // the token embedding: decays only where optim.decay_embeddings says so
} ParamFlags;

enum { PARAM_ALIGNMENT = 16, PARAM_NAME_BYTES = 64 };

typedef struct {
    char name[PARAM_NAME_BYTES]; // "layers.3.experts.17.gate"
    int dims;
    int64_t dim[2]; // [out, in] or [n]
    DType dtype;    // of the weights that kernels read; the master copy is always f32
    float scale;    // weights stand for stored value × scale (1 unless an 8-bit format needs it)
    float init_mean, init_std;
    unsigned flags;
    int group;
    int64_t offset; // first element within the group
    Tensor weight,
        grad; // placed views; valid only between weights_begin … _end and grads_begin … _end of the group
} Param;

typedef struct {
    char name[PARAM_NAME_BYTES];
    int first, count; // params
    int expert; // held by the ranks of one expert-parallel slot only (replica group); else by the whole world
    int long_lived;   // its gradients stay open while those of other groups come and go (a tied embedding)
    int64_t elements; // with padding; a multiple of PARAM_ALIGNMENT
} ParamGroup;

typedef struct {
    Param *param;
    ParamGroup *group;
    int count, capacity, group_count, group_capacity;
} ParamTable;

// Begins a group; later params_add calls join it. Returns its number.
int params_group(ParamTable *table, int expert, const char *name_format, ...)
    __attribute__((format(printf, 3, 4)));
// Adds a weight [rows] (columns = 0) or [rows, columns] to the newest group; returns its index.
int params_add(ParamTable *table, int64_t rows, int64_t columns, float init_mean, float init_std,
               unsigned flags, const char *name_format, ...) __attribute__((format(printf, 7, 8)));
int params_find(const ParamTable *table, const char *name); // -1 if there is none
int64_t param_size(const Param *param);                     // elements
// Points the group's weight or grad views into memory of group.elements floats (NULL: nowhere).
void params_place_weights(ParamTable *table, int group, float *memory);
void params_place_grads(ParamTable *table, int group, float *memory);
// Value of element i of a fresh weight: a function of (seed, name, i) alone, whatever the layout.
float param_initial(const Param *param, uint64_t seed, int64_t i);
void params_free(ParamTable *table);

// The seam through which a model reaches its weights, so that they and their gradients may live elsewhere in
// between. Every call is Collective over the group's ranks, in the same order everywhere. begin/end pairs do
// not nest for one group.
typedef struct {
    void *context;
    void (*weights_begin)(void *context, int group); // weight views become valid
    void (*weights_end)(void *context, int group);
    void (*grads_begin)(void *context,
                        int group); // grad views become valid; holds this step's sum so far, or zeros
    void (*grads_end)(void *context, int group); // this micro-step has added all that it will to the group
} ParamAccess;
#ifdef __cplusplus
}
#endif
