// SPDX-License-Identifier: Apache-2.0
// Tiny Hugging Face folders of every family, from the tensors that its class reads, written out by hand.
#pragma once
#include "core/rng.h"
#include "model/model_config.h"
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

// L and E stand for every layer and expert. A weight is the tensor's rows from first_row + E·stack on.
typedef struct {
    const char *weight, *tensor;
    int64_t dim[2]; // of the tensor
    int64_t first_row, stack;
    bool transposed; // the weight's element (r, c) is the tensor's (first_row + c, r)
} HfRow;

typedef struct {
    Arch arch;
    int layers, experts;
    const char *config; // the keys of config.json
    const HfRow *row;
} HfFamily;

// Every size is another number. Arctic's layer 0 has no experts; its residual width is not the hidden one.
static const HfFamily hf_family[ARCH_COUNT] = {
    [ARCH_ARCTIC] =
        {ARCH_ARCTIC, 2, 3,
         "'architectures':['ArcticForCausalLM'],'vocab_size':31,'hidden_size':12,'intermediate_size':10,"
         "'num_hidden_layers':2,'num_attention_heads':3,'num_key_value_heads':1,'num_local_experts':3,"
         "'num_experts_per_tok':2,'moe_layer_frequency':2,'parallel_attn_mlp_res':true,'rms_norm_eps':1e-06,"
         "'rope_theta':5000,'residual_ffn_size':14,'router_aux_loss_coef':0.5",
         (const HfRow[]){
             {"embed", "model.embed_tokens.weight", {31, 12}, 0, 0, false},
             {"layers.L.attn_norm", "model.layers.L.input_layernorm.weight", {12}, 0, 0, false},
             {"layers.L.attn.q", "model.layers.L.self_attn.q_proj.weight", {12, 12}, 0, 0, false},
             {"layers.L.attn.k", "model.layers.L.self_attn.k_proj.weight", {4, 12}, 0, 0, false},
             {"layers.L.attn.v", "model.layers.L.self_attn.v_proj.weight", {4, 12}, 0, 0, false},
             {"layers.L.attn.o", "model.layers.L.self_attn.o_proj.weight", {12, 12}, 0, 0, false},
             {"layers.0.dense_norm", "model.layers.0.post_attention_layernorm.weight", {12}, 0, 0, false},
             {"layers.0.dense.gate", "model.layers.0.block_sparse_moe.mlp.w1.weight", {10, 12}, 0, 0, false},
             {"layers.0.dense.up", "model.layers.0.block_sparse_moe.mlp.w3.weight", {10, 12}, 0, 0, false},
             {"layers.0.dense.down", "model.layers.0.block_sparse_moe.mlp.w2.weight", {12, 10}, 0, 0, false},
             {"layers.1.dense_norm", "model.layers.1.residual_layernorm.weight", {12}, 0, 0, false},
             {"layers.1.dense.gate", "model.layers.1.residual_mlp.w1.weight", {14, 12}, 0, 0, false},
             {"layers.1.dense.up", "model.layers.1.residual_mlp.w3.weight", {14, 12}, 0, 0, false},
             {"layers.1.dense.down", "model.layers.1.residual_mlp.w2.weight", {12, 14}, 0, 0, false},
             {"layers.1.moe_norm", "model.layers.1.post_attention_layernorm.weight", {12}, 0, 0, false},
             {"layers.1.router", "model.layers.1.block_sparse_moe.gate.weight", {3, 12}, 0, 0, false},
             {"layers.1.experts.E.gate",
              "model.layers.1.block_sparse_moe.experts.E.w1.weight",
              {10, 12},
              0,
              0,
              false},
             {"layers.1.experts.E.up",
              "model.layers.1.block_sparse_moe.experts.E.w3.weight",
              {10, 12},
              0,
              0,
              false},
             {"layers.1.experts.E.down",
              "model.layers.1.block_sparse_moe.experts.E.w2.weight",
              {12, 10},
              0,
              0,
              false},
             {"final_norm", "model.norm.weight", {12}, 0, 0, false},
             {"head", "lm_head.weight", {31, 12}, 0, 0, false},
             {0}}},
    [ARCH_MIXTRAL] =
        {ARCH_MIXTRAL, 2, 4,
         "'architectures':['MixtralForCausalLM'],'vocab_size':29,'hidden_size':16,'intermediate_size':11,"
         "'num_hidden_layers':2,'num_attention_heads':4,'num_key_value_heads':2,'num_local_experts':4,"
         "'num_experts_per_tok':2,'rms_norm_eps':1e-05,'rope_parameters':{'rope_theta':1e6,'rope_type':'"
         "default'},"
         "'hidden_act':'silu','attention_dropout':0.0,'sliding_window':null,'router_jitter_noise':0.0",
         (const HfRow[]){
             {"embed", "model.embed_tokens.weight", {29, 16}, 0, 0, false},
             {"layers.L.attn_norm", "model.layers.L.input_layernorm.weight", {16}, 0, 0, false},
             {"layers.L.attn.q", "model.layers.L.self_attn.q_proj.weight", {16, 16}, 0, 0, false},
             {"layers.L.attn.k", "model.layers.L.self_attn.k_proj.weight", {8, 16}, 0, 0, false},
             {"layers.L.attn.v", "model.layers.L.self_attn.v_proj.weight", {8, 16}, 0, 0, false},
             {"layers.L.attn.o", "model.layers.L.self_attn.o_proj.weight", {16, 16}, 0, 0, false},
             {"layers.L.moe_norm", "model.layers.L.post_attention_layernorm.weight", {16}, 0, 0, false},
             {"layers.L.router", "model.layers.L.block_sparse_moe.gate.weight", {4, 16}, 0, 0, false},
             {"layers.L.experts.E.gate",
              "model.layers.L.block_sparse_moe.experts.E.w1.weight",
              {11, 16},
              0,
              0,
              false},
             {"layers.L.experts.E.up",
              "model.layers.L.block_sparse_moe.experts.E.w3.weight",
              {11, 16},
              0,
              0,
              false},
             {"layers.L.experts.E.down",
              "model.layers.L.block_sparse_moe.experts.E.w2.weight",
              {16, 11},
              0,
              0,
              false},
             {"final_norm", "model.norm.weight", {16}, 0, 0, false},
             {"head", "lm_head.weight", {29, 16}, 0, 0, false},
             {0}}},
    [ARCH_DBRX] =
        {ARCH_DBRX, 2, 5,
         "'architectures':['DbrxForCausalLM'],'vocab_size':23,'d_model':12,'n_layers':2,'n_heads':6,'max_seq_"
         "len':64,"
         "'resid_pdrop':0.0,'emb_pdrop':0.0,'tie_word_embeddings':false,"
         "'attn_config':{'kv_n_heads':3,'clip_qkv':2.5,'rope_theta':500000},"
         "'ffn_config':{'ffn_hidden_size':7,'moe_num_experts':5,'moe_top_k':4,'moe_jitter_eps':0,'moe_loss_"
         "weight':0.05}",
         (const HfRow[]){
             {"embed", "transformer.wte.weight", {23, 12}, 0, 0, false},
             {"layers.L.attn_norm", "transformer.blocks.L.norm_attn_norm.norm_1.weight", {12}, 0, 0, false},
             {"layers.L.attn.q",
              "transformer.blocks.L.norm_attn_norm.attn.Wqkv.weight",
              {24, 12},
              0,
              0,
              false},
             {"layers.L.attn.k",
              "transformer.blocks.L.norm_attn_norm.attn.Wqkv.weight",
              {24, 12},
              12,
              0,
              false},
             {"layers.L.attn.v",
              "transformer.blocks.L.norm_attn_norm.attn.Wqkv.weight",
              {24, 12},
              18,
              0,
              false},
             {"layers.L.attn.o",
              "transformer.blocks.L.norm_attn_norm.attn.out_proj.weight",
              {12, 12},
              0,
              0,
              false},
             {"layers.L.moe_norm", "transformer.blocks.L.norm_attn_norm.norm_2.weight", {12}, 0, 0, false},
             {"layers.L.router", "transformer.blocks.L.ffn.router.layer.weight", {5, 12}, 0, 0, false},
             {"layers.L.experts.E.gate", "transformer.blocks.L.ffn.experts.mlp.w1", {35, 12}, 0, 7, false},
             {"layers.L.experts.E.up", "transformer.blocks.L.ffn.experts.mlp.v1", {35, 12}, 0, 7, false},
             {"layers.L.experts.E.down", "transformer.blocks.L.ffn.experts.mlp.w2", {35, 12}, 0, 7, true},
             {"final_norm", "transformer.norm_f.weight", {12}, 0, 0, false},
             {"head", "lm_head.weight", {23, 12}, 0, 0, false},
             {0}}},
    [ARCH_GROK] =
        {ARCH_GROK, 2, 3,
         "'architectures':['Grok1ModelForCausalLM'],'vocab_size':19,'hidden_size':8,'intermediate_size':13,"
         "'num_hidden_layers':2,'num_attention_heads':2,'num_key_value_heads':1,'num_experts':3,"
         "'num_experts_per_tok':2,'rms_norm_eps':1e-05,'tie_word_embeddings':true,'attn_output_multiplier':0."
         "25,"
         "'max_attn_value':20.0,'embedding_multiplier_scale':6.5,'output_multiplier_scale':0."
         "5773502691896257",
         (const HfRow[]){{"embed", "model.embed_tokens.weight", {19, 8}, 0, 0, false},
                         {"layers.L.attn_norm", "model.layers.L.pre_attn_norm.scale", {8}, 0, 0, false},
                         {"layers.L.attn.q", "model.layers.L.attn.q_proj.weight", {8, 8}, 0, 0, false},
                         {"layers.L.attn.k", "model.layers.L.attn.k_proj.weight", {4, 8}, 0, 0, false},
                         {"layers.L.attn.v", "model.layers.L.attn.v_proj.weight", {4, 8}, 0, 0, false},
                         {"layers.L.attn.o", "model.layers.L.attn.o_proj.weight", {8, 8}, 0, 0, false},
                         {"layers.L.attn_out_norm", "model.layers.L.post_attn_norm.scale", {8}, 0, 0, false},
                         {"layers.L.moe_norm", "model.layers.L.pre_moe_norm.scale", {8}, 0, 0, false},
                         {"layers.L.ffn_out_norm", "model.layers.L.post_moe_norm.scale", {8}, 0, 0, false},
                         {"layers.L.router", "model.layers.L.moe_block.gate.weight", {3, 8}, 0, 0, false},
                         {"layers.L.experts.E.gate",
                          "model.layers.L.moe_block.experts.E.linear.weight",
                          {13, 8},
                          0,
                          0,
                          false},
                         {"layers.L.experts.E.up",
                          "model.layers.L.moe_block.experts.E.linear_v.weight",
                          {13, 8},
                          0,
                          0,
                          false},
                         {"layers.L.experts.E.down",
                          "model.layers.L.moe_block.experts.E.linear_1.weight",
                          {8, 13},
                          0,
                          0,
                          false},
                         {"final_norm", "model.norm.scale", {8}, 0, 0, false},
                         {0}}},
    [ARCH_LLAMA] =
        {ARCH_LLAMA, 3, 0,
         "'architectures':['LlamaForCausalLM'],'vocab_size':37,'hidden_size':12,'intermediate_size':17,"
         "'num_hidden_layers':3,'num_attention_heads':3,'num_key_value_heads':3,'rms_norm_eps':1e-05,"
         "'rope_theta':500000.0,'rope_scaling':null,'attention_bias':false,'mlp_bias':false,'hidden_act':'"
         "silu'",
         (const HfRow[]){
             {"embed", "model.embed_tokens.weight", {37, 12}, 0, 0, false},
             {"layers.L.attn_norm", "model.layers.L.input_layernorm.weight", {12}, 0, 0, false},
             {"layers.L.attn.q", "model.layers.L.self_attn.q_proj.weight", {12, 12}, 0, 0, false},
             {"layers.L.attn.k", "model.layers.L.self_attn.k_proj.weight", {12, 12}, 0, 0, false},
             {"layers.L.attn.v", "model.layers.L.self_attn.v_proj.weight", {12, 12}, 0, 0, false},
             {"layers.L.attn.o", "model.layers.L.self_attn.o_proj.weight", {12, 12}, 0, 0, false},
             {"layers.L.dense_norm", "model.layers.L.post_attention_layernorm.weight", {12}, 0, 0, false},
             {"layers.L.dense.gate", "model.layers.L.mlp.gate_proj.weight", {17, 12}, 0, 0, false},
             {"layers.L.dense.up", "model.layers.L.mlp.up_proj.weight", {17, 12}, 0, 0, false},
             {"layers.L.dense.down", "model.layers.L.mlp.down_proj.weight", {12, 17}, 0, 0, false},
             {"final_norm", "model.norm.weight", {12}, 0, 0, false},
             {"head", "lm_head.weight", {37, 12}, 0, 0, false},
             {0}}},
};

// config.json's object; key: one more, or one that replaces an earlier one (with value NULL: is removed).
static inline json_t *hf_config_json(Arch arch, const char *key, const char *value) {
    char text[2048];
    snprintf(text, sizeof text, "{%s}", hf_family[arch].config);
    for (char *c = text; *c; c++)
        if (*c == '\'') *c = '"';
    json_t *config = json_loads(text, 0, NULL);
    const char *dot = key ? strchr(key, '.') : NULL;
    json_t *within = config;
    if (dot) { // "ffn_config.moe_top_k"
        char outer[64];
        snprintf(outer, sizeof outer, "%.*s", (int)(dot - key), key);
        within = json_object_get(config, outer);
        key = dot + 1;
    }
    if (key && value)
        json_object_set_new(within, key, json_loads(value, JSON_DECODE_ANY, NULL));
    else if (key)
        json_object_del(within, key);
    return config;
}

static inline void hf_expand(char *out, size_t size, const char *pattern, int layer, int expert) {
    size_t at = 0;
    for (const char *c = pattern; *c; c++) {
        bool number = (*c == 'L' || *c == 'E') && c > pattern && c[-1] == '.' && c[1] == '.';
        at += (size_t)(number ? snprintf(out + at, size - at, "%d", *c == 'L' ? layer : expert)
                              : snprintf(out + at, size - at, "%c", *c));
    }
}

typedef struct {
    char weight[128], tensor[128];
    HfRow row;
} HfWeight;

// Every weight of the family's tiny model; owned by the caller.
static inline HfWeight *hf_weights(Arch arch, int *count) {
    const HfFamily *f = &hf_family[arch];
    HfWeight *all = NULL;
    *count = 0;
    for (const HfRow *row = f->row; row->weight; row++) {
        int layers = strstr(row->weight, ".L.") ? f->layers : 1,
            experts = strstr(row->weight, ".E.") ? f->experts : 1;
        for (int i = 0; i < layers * experts; i++) {
            all = realloc(all, (size_t)(*count + 1) * sizeof *all);
            HfWeight *w = &all[(*count)++];
            w->row = *row;
            w->row.first_row += i % experts * row->stack;
            hf_expand(w->weight, sizeof w->weight, row->weight, i / experts, i % experts);
            hf_expand(w->tensor, sizeof w->tensor, row->tensor, i / experts, i % experts);
        }
    }
    return all;
}

static inline float hf_value(const char *tensor, int64_t i) {
    return (float)(rng_u64(3, hash_text(tensor), (uint64_t)i) % 512) / 256 - 1; // exact in bf16
}

// Value of a weight's element in row-major order; columns: the weight's, 1 for vectors.
static inline float hf_expected(const HfWeight *w, int64_t columns, int64_t i) {
    int64_t r = i / columns, c = i % columns;
    return hf_value(w->tensor, w->row.transposed ? (w->row.first_row + c) * w->row.dim[1] + r
                                                 : (w->row.first_row + r) * columns + c);
}

typedef struct {
    Arch arch;
    int files;
    bool brain;                   // BF16, not F32
    const char *skip, *misshapen; // tensors that the file lacks or has in another shape
    const char *surplus;          // an empty one more
    const char *copy_of, *copy;   // one more, with the values of another
    int64_t kv_rows;              // of k_proj and v_proj; 0: the family's
    int64_t equal_rows,
        equal_group;     // of k_proj and v_proj: blocks of rows, of which so many in a row are equal
    const char *changed; // tensor whose element changed_at is another
    int64_t changed_at;
    const char *spoilt; // its element 5 is NaN, its element 7 infinite
    const char *type;   // of `misshapen`, instead of another shape
} HfFolder;

static inline bool hf_is_kv(const HfWeight *w) {
    return strstr(w->tensor, "k_proj") || strstr(w->tensor, "v_proj");
}

static inline void hf_write_values(const HfFolder *f, const HfWeight *w, FILE *out) {
    int64_t columns = w->row.dim[1] ? w->row.dim[1] : 1;
    for (int64_t i = 0; i < w->row.dim[0] * columns; i++) {
        int64_t from = i;
        if (f->equal_rows && hf_is_kv(w)) {
            int64_t block = f->equal_rows * columns;
            from = i / (block * f->equal_group) * block * f->equal_group + i % block;
        }
        if (f->changed && !strcmp(w->tensor, f->changed) && i == f->changed_at) from += 1000;
        float value = hf_value(f->copy && !strcmp(w->tensor, f->copy) ? f->copy_of : w->tensor, from);
        uint32_t bits = i == 5 ? 0x7fc00000u : 0xff800000u;
        if (f->spoilt && !strcmp(w->tensor, f->spoilt) && (i == 5 || i == 7)) memcpy(&value, &bits, 4);
        fwrite((char *)&value + (f->brain ? 2 : 0), 1, f->brain ? 2 : 4, out);
    }
}

static inline void hf_add_entry(const HfFolder *f, json_t *header, const HfWeight *w, int64_t *at) {
    int64_t rows = w->row.dim[0], columns = w->row.dim[1],
            size = rows * (columns ? columns : 1) * (f->brain ? 2 : 4);
    bool odd = f->misshapen && !strcmp(f->misshapen, w->tensor);
    const char *type = odd && f->type ? f->type : f->brain ? "BF16" : "F32";
    json_t *shape = odd && !f->type ? json_pack("[I, i, i]", (json_int_t)rows, 1, columns ? (int)columns : 1)
                    : columns       ? json_pack("[I, I]", (json_int_t)rows, (json_int_t)columns)
                                    : json_pack("[I]", (json_int_t)rows);
    json_object_set_new(header, w->tensor,
                        json_pack("{s:s, s:o, s:[I, I]}", "dtype", type, "shape", shape, "data_offsets",
                                  (json_int_t)*at, (json_int_t)(*at + size)));
    *at += size;
}

// The tensors whose number mod files is `number`.
static inline void hf_write_shard(const HfFolder *f, const char *path, const char *name, int number,
                                  json_t *map) {
    int count, tensors = 0;
    HfWeight *all = hf_weights(f->arch, &count);
    json_t *header = json_object();
    int64_t at = 0;
    bool *mine = calloc((size_t)count + 2, sizeof *mine);
    all = realloc(all, (size_t)(count + 2) * sizeof *all);
    if (f->copy) {
        for (int i = 0; i < count; i++)
            if (!strcmp(all[i].tensor, f->copy_of)) all[count] = all[i];
        snprintf(all[count++].tensor, sizeof all->tensor, "%s", f->copy);
    }
    for (int i = 0; i < count; i++) {
        if (f->kv_rows && hf_is_kv(&all[i])) all[i].row.dim[0] = f->kv_rows;
        if (all[i].row.first_row || (f->skip && !strcmp(f->skip, all[i].tensor)) ||
            tensors++ % f->files != number)
            continue;
        mine[i] = true;
        hf_add_entry(f, header, &all[i], &at);
        json_object_set_new(map, all[i].tensor, json_string(name));
    }
    if (f->surplus && number == 0) {
        json_object_set_new(header, f->surplus,
                            json_pack("{s:s, s:[i], s:[I, I]}", "dtype", "F32", "shape", 0, "data_offsets",
                                      (json_int_t)at, (json_int_t)at));
        json_object_set_new(map, f->surplus, json_string(name));
    }
    char *text = json_dumps(header, JSON_COMPACT);
    FILE *out = fopen(path, "wb");
    for (int i = 0; i < 8; i++) fputc((int)(strlen(text) >> 8 * i & 255), out);
    fputs(text, out);
    for (int i = 0; i < count; i++)
        if (mine[i]) hf_write_values(f, &all[i], out);
    fclose(out);
    free(text);
    free(mine);
    free(all);
    json_decref(header);
}

// The model's files, with their index where there are several: {"weight_map": …}, owned by the caller.
static inline json_t *hf_write_files(const HfFolder *f, const char *dir) {
    json_t *map = json_object();
    for (int i = 0; i < f->files; i++) {
        char name[64], path[256];
        if (f->files == 1)
            snprintf(name, sizeof name, "model.safetensors");
        else
            snprintf(name, sizeof name, "model-%05d-of-%05d.safetensors", i + 1, f->files);
        snprintf(path, sizeof path, "%s/%s", dir, name);
        hf_write_shard(f, path, name, i, map);
    }
    return json_pack("{s:o}", "weight_map", map);
}
