// SPDX-License-Identifier: Apache-2.0
// ranks: 2 3 4
// What a waiting rank tells another thread: the call, the group, and which ranks have not come.
#include "comm/exchange.h"
#include "comm_check.h"
#include "core/heartbeat.h"
#include "core/params.h"
#include <pthread.h>
#include <string.h>
#include <unistd.h>

enum { LATE_MS = 900, LOOK_MS = 600 };

typedef struct {
    const char *call;
    HeartbeatGroup group;
    int peers, peer;
} Seen;

static void *look(void *out) {
    Seen *seen = out;
    usleep(LOOK_MS * 1000);
    seen->call = HEARTBEAT_LOAD(call);
    if (!seen->call) return NULL;
    seen->group = *HEARTBEAT_LOAD(group);
    seen->peers = HEARTBEAT_LOAD(peers);
    seen->peer = HEARTBEAT_LOAD(peer[0]);
    return NULL;
}

static int last(void) {
    return comm_world_size() - 1;
}

static void call_maximum(Mesh *mesh) {
    int64_t value = 1;
    group_max_i64(mesh_group(mesh, AXIS_WORLD), &value, 1);
}

static void call_gather(Mesh *mesh) {
    float values[4 * PARAM_ALIGNMENT] = {0};
    Stream stream = check_stream(mesh);
    Tensor all = tensor_view(values, DTYPE_F32, 1, (int64_t[]){4 * PARAM_ALIGNMENT});
    comm_end(all_gather_begin(mesh, AXIS_WORLD, all, stream), NULL, stream);
    stream_destroy(stream);
}

static void call_exchange(Mesh *mesh) {
    enum { EXPERTS = 12 };
    int32_t own[EXPERTS] = {0}, counts[4 * EXPERTS];
    Stream stream = check_stream(mesh);
    ExchangePlan plan = {.shape = {EXPERTS, 1, 1},
                         .ranks = comm_world_size(),
                         .rank = comm_world_rank(),
                         .local_experts = EXPERTS / comm_world_size(),
                         .counts = counts};
    Tensor mine = tensor_view(own, DTYPE_I32, 1, (int64_t[]){EXPERTS});
    exchange_counts_end(exchange_counts_begin(mesh, &plan, mine, stream), &plan, NULL, stream);
    stream_destroy(stream);
}

static void take(void *context, int rank, const void *data, size_t bytes) {
    (void)context, (void)rank, (void)data, (void)bytes;
}

static void call_messages(Mesh *mesh) {
    group_gather_each(mesh_group(mesh, AXIS_WORLD), 0, "x", 1, take, NULL);
}

// The last rank comes late to `call`; what the others' other threads see meanwhile.
static Seen seen_while(void (*call)(Mesh *), Mesh *mesh) {
    Seen seen = {0};
    pthread_t thread;
    group_barrier(mesh_group(mesh, AXIS_WORLD));
    if (comm_world_rank() == last()) {
        usleep(LATE_MS * 1000);
        call(mesh);
        return seen;
    }
    bool waits = call != call_messages || comm_world_rank() == 0;
    double before = heartbeat.waited;
    uint64_t beats = HEARTBEAT_LOAD(beats);
    REQUIRE(pthread_create(&thread, NULL, look, &seen) == 0, "no thread");
    call(mesh);
    pthread_join(thread, NULL);
    CHECK(!waits || heartbeat.waited - before > 0.5 * LATE_MS / 1000, "waited %g s",
          heartbeat.waited - before);
    CHECK(HEARTBEAT_LOAD(beats) > beats, "no beat after %s", seen.call);
    CHECK(!HEARTBEAT_LOAD(call), "still in %s", HEARTBEAT_LOAD(call));
    return seen;
}

static void check_seen(const Seen *seen, const char *call, const char *group, int peers) {
    if (comm_world_rank() == last()) return;
    CHECK(seen->call && strcmp(seen->call, call) == 0, "in %s instead of %s",
          seen->call ? seen->call : "no call", call);
    CHECK(seen->group.name && strcmp(seen->group.name, group) == 0, "%s: another group", call);
    CHECK(seen->peers == peers, "%s: waits for %d ranks instead of %d", call, seen->peers, peers);
    CHECK(peers < 1 || seen->peer == last(), "%s: waits for rank %d", call, seen->peer);
}

int main(int argc, char **argv) {
    comm_start(&argc, &argv);
    Mesh *mesh = check_mesh(comm_world_size());
    Seen seen = seen_while(call_maximum, mesh);
    check_seen(&seen, "maximum", "world", -1);
    seen = seen_while(call_gather, mesh);
    check_seen(&seen, "gather of weights", "world", 1);
    seen = seen_while(call_exchange, mesh);
    check_seen(&seen, "exchange", "expert", 1);
    seen = seen_while(call_messages, mesh);
    if (comm_world_rank() == 0) check_seen(&seen, "message", "world", 1);

    int64_t calls = HEARTBEAT_LOAD(calls[AXIS_WORLD]);
    call_maximum(mesh);
    CHECK(HEARTBEAT_LOAD(calls[AXIS_WORLD]) == calls + 1, "a blocking call is not counted");
    heartbeat_no_peer();
    for (int i = 0; i < 40; i++) heartbeat_add_peer(i % 20);
    CHECK(HEARTBEAT_LOAD(peers) >= 20 && HEARTBEAT_LOAD(peer[HEARTBEAT_PEERS - 1]) == HEARTBEAT_PEERS - 1,
          "the list of ranks overflows");
    mesh_destroy(mesh);
    comm_finish();
    return failures != 0;
}
