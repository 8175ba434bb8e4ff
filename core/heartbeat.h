// SPDX-License-Identifier: Apache-2.0
// Where this process is and what it waits for, told by its main thread with plain stores; another thread (the
// watchdog) may look at any time. Texts are string constants.
#pragma once
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

// A group of ranks as a waiting process tells it: member i is rank first + i·stride of the world.
typedef struct {
    const char *name;
    int kind; // counts calls[kind]
    int first, stride, size, rank;
} HeartbeatGroup;

enum { HEARTBEAT_KINDS = 3, HEARTBEAT_PEERS = 16 };

typedef struct {
    _Atomic uint64_t beats; // grows with every sign of progress
    _Atomic int64_t step;   // that is being computed
    // what was begun or ended last
    _Atomic(const char *) place;
    _Atomic(const char *) pass; // "forward", "backward" or NULL
    _Atomic int layer;          // −1: of none
    // what is waited for
    _Atomic(const char *) call; // NULL: nothing
    _Atomic(const HeartbeatGroup *) group;
    _Atomic int peers;                      // ranks that are waited for and known; −1: the call cannot tell
    _Atomic int peer[HEARTBEAT_PEERS];      // the first of them, ranks of the world
    _Atomic int64_t calls[HEARTBEAT_KINDS]; // blocking calls begun on each kind of group, in the same order
                                            // on all its ranks
    double waited; // seconds blocked for other ranks so far; of the main thread alone
} Heartbeat;
extern Heartbeat heartbeat;

#define HEARTBEAT_STORE(member, value) atomic_store_explicit(&heartbeat.member, (value), memory_order_relaxed)
#define HEARTBEAT_LOAD(member)         atomic_load_explicit(&heartbeat.member, memory_order_relaxed)

static inline void heartbeat_beat(void) { // one thread writes: no locked instruction
    HEARTBEAT_STORE(beats, HEARTBEAT_LOAD(beats) + 1);
}

static inline void heartbeat_at_layer(const char *place, int layer, const char *pass) {
    HEARTBEAT_STORE(place, place);
    HEARTBEAT_STORE(layer, layer);
    HEARTBEAT_STORE(pass, pass);
    heartbeat_beat();
}

static inline void heartbeat_at(const char *place) {
    heartbeat_at_layer(place, -1, (const char *)0);
}

static inline void heartbeat_step(int64_t step) {
    HEARTBEAT_STORE(step, step);
}

// Around whatever blocks for other ranks.
static inline void heartbeat_wait(const char *call, const HeartbeatGroup *group) {
    HEARTBEAT_STORE(peers, -1);
    HEARTBEAT_STORE(group, group);
    atomic_store_explicit(&heartbeat.call, call, memory_order_release);
}
static inline void heartbeat_wait_over(double seconds) {
    HEARTBEAT_STORE(call, (const char *)0);
    heartbeat.waited += seconds;
    heartbeat_beat();
}
void heartbeat_no_peer(void);            // the list of ranks that are waited for is empty now
void heartbeat_add_peer(int world_rank); // once for each rank, however often it is called
