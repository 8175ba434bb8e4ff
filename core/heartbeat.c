// SPDX-License-Identifier: Apache-2.0
#include "core/heartbeat.h"

Heartbeat heartbeat = {.layer = -1, .peers = -1};

void heartbeat_no_peer(void) {
    HEARTBEAT_STORE(peers, 0);
}

void heartbeat_add_peer(int world_rank) {
    int known = HEARTBEAT_LOAD(peers);
    if (known < 0) known = 0;
    for (int i = 0; i < known && i < HEARTBEAT_PEERS; i++)
        if (HEARTBEAT_LOAD(peer[i]) == world_rank) return;
    if (known < HEARTBEAT_PEERS) HEARTBEAT_STORE(peer[known], world_rank);
    HEARTBEAT_STORE(peers, known + 1);
}
