// SPDX-License-Identifier: Apache-2.0
// A rank whose processor or memory is faulty: its kernels compute what FLOE_FAULT says, once each, flip a bit
// of what they are given, or lag. FLOE_FAULT=FAULT:RANK:STEP[:WHERE],…; RANK −1: all ranks; WHERE: which
// element and bit. Every fault but a lag is told on stderr. The kernel table of the program is changed before
// main runs.
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "core/heartbeat.h"
#include "kernels/kernels.h"
#include <dlfcn.h>
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { MOST = 32, EXPERT_FFN = 48 }; // EXPERT_FFN: of the model that the tests train

typedef struct {
    char name[32];
    int step;
    uint64_t where;
    bool done;
} Fault;
static Fault fault[MOST];
static int faults, own_rank;
static const Heartbeat *beats; // the program's
static Kernels sound;

static Fault *due(const char *name) {
    int64_t step = atomic_load_explicit(&beats->step, memory_order_relaxed);
    for (int i = 0; i < faults; i++)
        if (!fault[i].done && fault[i].step == step && strcmp(fault[i].name, name) == 0) return &fault[i];
    return NULL;
}

static bool happens(const char *name) {
    Fault *f = due(name);
    if (!f) return false;
    f->done = true;
    fprintf(stderr, "fault: %s on rank %d in step %d\n", name, own_rank, f->step);
    return true;
}

// From its step on, in each call.
static void lag(const char *name) {
    int64_t step = atomic_load_explicit(&beats->step, memory_order_relaxed);
    for (int i = 0; i < faults; i++)
        if (fault[i].step <= step && strcmp(fault[i].name, name) == 0) usleep(5000);
}

static uint64_t mix(uint64_t x) { // splitmix64
    x += UINT64_C(0x9e3779b97f4a7c15);
    x = (x ^ x >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    x = (x ^ x >> 27) * UINT64_C(0x94d049bb133111eb);
    return x ^ x >> 31;
}

static int64_t elements(Tensor t) { // nothing of the program is called: other programs load this, too
    int64_t n = 1;
    for (int i = 0; i < t.rank; i++) n *= t.dim[i];
    return n;
}

// Bits 0 … 31, or, where a change of any size must show in the next update, one that makes a factor of 1.1 to
// 2¹⁶.
static void flip(const char *name, Tensor t, bool large) {
    Fault *f = due(name);
    if (!f || !happens(name)) return;
    int64_t n = elements(t), at = (int64_t)(mix(f->where) % (uint64_t)n);
    float *value = tensor_f32(t);
    while (large && value[at] == 0) at = (at + 1) % n;
    int bit = large ? 20 + (int)(mix(~f->where) % 8) : (int)(mix(~f->where) % 32);
    uint32_t bits;
    memcpy(&bits, &value[at], sizeof bits);
    bits ^= UINT32_C(1) << bit;
    fprintf(stderr, "fault: element %ld, bit %d: %g becomes ", (long)at, bit, (double)value[at]);
    memcpy(&value[at], &bits, sizeof bits);
    fprintf(stderr, "%g\n", (double)value[at]);
}

// ---- kernels

static void cross_entropy(Tensor logprob, Tensor logits, Tensor targets, float scale, Stream stream) {
    sound.cross_entropy(logprob, logits, targets, scale, stream);
    if (happens("kill-loss")) raise(SIGKILL);
    if (happens("loss")) tensor_f32(logprob)[5] = NAN;
    if (happens("loss-spike"))
        for (int64_t t = 0; t < elements(logprob); t++) tensor_f32(logprob)[t] *= 100;
}

static void attention_forward(Tensor out, Tensor lse, Tensor q, Tensor k, Tensor v,
                              const AttentionShape *shape, Stream stream) {
    lag("slow-attention");
    sound.attention_forward(out, lse, q, k, v, shape, stream);
}

static void embedding_forward(Tensor y, Tensor table, Tensor tokens, Stream stream) {
    flip("flip-dense", table, false);
    sound.embedding_forward(y, table, tokens, stream);
}

static void embedding_backward(Tensor dtable, Tensor dy, Tensor tokens, Stream stream) {
    sound.embedding_backward(dtable, dy, tokens, stream);
    float *one = tensor_f32(dtable) + 7;
    if (happens("kill-backward")) raise(SIGKILL);
    if (happens("gradient")) *one = NAN;
    if (happens("infinite")) *one = -INFINITY;
    if (happens("huge")) *one = 1e30f;     // its square is beyond AdamW's moments
    if (happens("overflow")) *one = 3e38f; // on two ranks: their sum is
    if (happens("gradient-spike")) *one += 1e3f;
}

static void glu_backward(Tensor dgate, Tensor dup, Tensor act, Tensor dscale, Tensor dact, Tensor gate,
                         Tensor up, Tensor scale, Activation activation, Stream stream) {
    if (up.dim[1] == EXPERT_FFN) lag("slow-experts");
    sound.glu_backward(dgate, dup, act, dscale, dact, gate, up, scale, activation, stream);
    if (up.dim[1] == EXPERT_FFN && up.dim[0] > 0 && happens("expert-gradient")) tensor_f32(dup)[3] = NAN;
}

// The forward products of experts with rows: of their gate or up matrix (f, h).
static void matmul(Tensor c, Tensor a, bool a_transposed, Tensor b, bool b_transposed, Into into,
                   Stream stream) {
    if (b_transposed && !a_transposed && b.dim[0] == EXPERT_FFN && a.dim[0] > 0) {
        flip("flip-expert", b, false);
        if (happens("expert-weight")) tensor_f32(b)[5] = NAN;
    }
    sound.matmul(c, a, a_transposed, b, b_transposed, into, stream);
}

static void adamw(Tensor weight, Tensor master, Tensor m, Tensor v, Tensor grad, const AdamwStep *step,
                  Stream stream) {
    if (due("idle")) return; // every time
    lag("slow-optimizer");
    if (happens("kill-update")) raise(SIGKILL);
    flip("flip-m", m, true);
    flip("flip-v", v, true);
    sound.adamw(weight, master, m, v, grad, step, stream);
    if (due("update")) tensor_f32(weight)[elements(weight) - 1] = NAN; // of every weight
}

// ---- set-up

static void die(const char *why) {
    fprintf(stderr, "preload_nan_flip: %s\n", why);
    _exit(99);
}

static void read_faults(const char *text) {
    for (int used; *text && faults < MOST; text += used + (text[used] == ',')) {
        Fault *f = &fault[faults];
        int rank, step, n = 0;
        unsigned long long where = 0;
        if (sscanf(text, "%31[^:]:%d:%d%n", f->name, &rank, &step, &used) < 3) die("FLOE_FAULT is none");
        if (sscanf(text + used, ":%llu%n", &where, &n) == 1) used += n;
        f->step = step;
        f->where = where;
        if (rank == own_rank || rank < 0) faults++;
    }
}

__attribute__((constructor)) static void begin(void) {
    const char *rank = getenv("OMPI_COMM_WORLD_RANK"), *text = getenv("FLOE_FAULT");
    const Kernels *(*table_for)(Device) = (const Kernels *(*)(Device))dlsym(RTLD_DEFAULT, "kernels_for");
    if (!rank || !text || !table_for) return; // the front end, mpirun
    own_rank = atoi(rank);
    beats = dlsym(RTLD_DEFAULT, "heartbeat");
    if (!beats) die("no heartbeat in this program");
    read_faults(text);
    Kernels *table = (Kernels *)table_for((Device){DEVICE_CPU, 0});
    sound = *table;
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE), from = (uintptr_t)table / page * page;
    if (mprotect((void *)from, (uintptr_t)(table + 1) - from, PROT_READ | PROT_WRITE) != 0)
        die("the kernel table cannot be changed");
    table->cross_entropy = cross_entropy;
    table->attention_forward = attention_forward;
    table->embedding_forward = embedding_forward;
    table->embedding_backward = embedding_backward;
    table->glu_backward = glu_backward;
    table->matmul = matmul;
    table->adamw = adamw;
}
