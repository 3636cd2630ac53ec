/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Client and datapath process: who pushes into a ring of the session page wakes whom sleeps. On one side the client library, on the
 * other the data thread's own loop up to what it does with the words (tools/selened/dp/data.c, wake.c).
 */
#include "../../tools/selened/dp/data.c"

#include <endian.h>
#include <poll.h>

#include "frame.h"
#include "session.h"

#define WORDS 8
#define WAKE_FD MODEL_FD
#define DOORBELL (MODEL_FD + 1)
#define EVENT (MODEL_FD + 2)

static struct selene_session session;
static struct memory memory;
static struct selene_page page;
static struct dp_data data;
static struct dp_session client;
static struct selene_stream stream;
static struct selene_sink sink;
static struct selene_counters counters[2];
static struct remote remote;
static struct inflow inflow;
static struct pending queue[SINK_PENDING];
static struct item items[RX_ITEMS];
static _Alignas(4096) uint8_t pool[2 * (4096 + QOS_POOL_STRIDE)];
static _Alignas(QOS_CACHE_LINE) uint8_t tx[256], done[256], rx[256], release[256];

static void join_ring(struct qos_ring_producer *p, struct qos_ring_consumer *c, void *ring)
{
    MODEL_ASSERT(qos_ring_size(WORDS) <= sizeof tx && qos_ring_init(ring, WORDS) == 0);
    MODEL_ASSERT(qos_ring_producer_open(p, ring, WORDS) == 0);
    MODEL_ASSERT(qos_ring_consumer_open(c, ring, WORDS) == 0);
}

/* A relayed session of which the data thread believes that it is asleep. */
static void setup(void)
{
    memset(&session, 0, sizeof session);
    memset(&page, 0, sizeof page);
    memset(&client, 0, sizeof client);
    memory = (struct memory){.page = &page, .wake_fd = WAKE_FD, .doorbell = DOORBELL};
    session.memory = &memory;
    session.ring_used = true;
    client.page = &page;
    client.doorbell = DOORBELL;
    page.dp_sleeping = 1;
    data.active_count = data.wake_count = data.deferred_count = data.rounds = 0;
    data.net.fd = -1;
    join_ring(&memory.relay_tx, &client.ring_tx, tx);
    join_ring(&client.ring_done, &memory.relay_done, done);
    join_ring(&client.ring_rx, &memory.relay_rx, rx);
    join_ring(&memory.relay_release, &client.ring_release, release);
    model_watch(WAKE_FD, &client);
    memory.references = 1;
    memory.rx = qos_region_at(pool, 2);
    sink = model_sink(&session, &stream, &memory, &counters[0]);
    sink.remotes = 1;
    sink.queue = queue;
    inflow = (struct inflow){.sink = &sink};
    remote = (struct remote){.id = 1, .window = 1u << 30, .sinks = 1, .inflows = {&inflow}};
    for (uint32_t i = 0; i < 256; i++)
        session.remotes[i] = &remote; /* wherever it is looked for */
    session.counters = &counters[1];
    session.items = items;
    items[0].busy = items[1].busy = false;
}

/* ---- To the datapath process ---- */

static void client_pushes(void)
{
    for (uint64_t i = 1; i <= 2; i++)
        MODEL_ASSERT(selene_relay_push(&session, &memory, i, 0, SELENE_TO_ROUTE) == 0);
}

static void data_thread_takes(void)
{
    uint64_t words[2], taken = 0;
    while (taken < 2) {
        look(&data);
        for (uint32_t i = 0; i < data.active_count; i++)
            while (qos_ring_pop(&data.active[i]->ring_tx, words, 2) == 2)
                MODEL_ASSERT(words[0] == ++taken);
    }
}

static void test_data_thread_sleeps(void)
{
    static const struct model model = {setup, {client_pushes, data_thread_takes}, NULL};
    MODEL_CHECK(&model, {"no fence in the client", 0, MODEL_FENCE, NULL},
                {"no fence in the data thread", 1, MODEL_FENCE, NULL},
                {"publish relaxed", 0, MODEL_STORE, &((struct qos_ring *)(void *)tx)->tail}, );
}

/* ---- To the client ---- */

static void setup_with_socket(void)
{
    static uint8_t slabs[QOS_POOL_STRIDE];
    setup();
    memory.udp = memory.net = model_silent_udp();
    session.slabs = slabs;
}

static void push_datagram(uint64_t number)
{
    /* one buffer per datagram: where it comes again, the client has given it back */
    uint64_t words[2] = {qos_slice_make((uint32_t)number - 1, QOS_POOL_HEADROOM, 0, 0), QOS_WIRE_OVERHEAD + 8};
    uint8_t *at = qos_slice_locate(&memory.rx, words[0], (uint32_t)words[1], 0);
    struct qos_wire wire = {.type = QOS_WIRE_DATA, .count = 1, .length = 16, .source = 1, .sequence = number};
    qos_frame_encode(at, &wire);
    *(uint64_t *)(void *)(at + QOS_WIRE_HEADER) = htole64(8); /* the record: length, delta */
    *(uint64_t *)(void *)(at + QOS_WIRE_OVERHEAD) = number;
    MODEL_ASSERT(qos_ring_push(&client.ring_rx, words, 2) == 0);
    dp_wake_later(&data, &client);
    dp_wake_flush(&data);
}

static void data_thread_pushes(void)
{
    push_datagram(1);
    push_datagram(2);
}

static void take(uint64_t number)
{
    MODEL_ASSERT(model_consume(&sink, 0) == number);
}

static void client_takes(void)
{
    take(1);
    take(2);
}

#define WAKE_MUTANTS                                                                                                   \
    {"no fence in the data thread", 0, MODEL_FENCE, NULL}, {"no fence in the client", 1, MODEL_FENCE, NULL},           \
        {"publish relaxed", 0, MODEL_STORE, &((struct qos_ring *)(void *)rx)->tail},

static void test_client_sleeps_on_futex(void)
{
    static const struct model model = {setup, {data_thread_pushes, client_takes}, NULL};
    MODEL_CHECK(&model, WAKE_MUTANTS);
}

static void test_client_sleeps_on_doorbell(void)
{
    static const struct model model = {setup_with_socket, {data_thread_pushes, client_takes}, NULL};
    MODEL_CHECK(&model, WAKE_MUTANTS);
}

/* ---- To a client that polls the descriptors ---- */

static void setup_polled(void)
{
    setup_with_socket();
    session.polled = true;
    sink.poll_fd = sink.event_fd = EVENT;
}

static void data_thread_pushes_one(void)
{
    push_datagram(1);
}

/* Once: while another has the role, the doorbell goes on ringing. */
static void client_polls(void)
{
    struct pollfd p[2] = {{EVENT, POLLIN, 0}, {DOORBELL, POLLIN, 0}};
    if (model_consume(&sink, SELENE_DONTWAIT) == 0)
        MODEL_ASSERT(ppoll(p, 2, NULL, NULL) > 0);
}

#define POLL_MUTANTS                                                                                                   \
    {"no fence in the data thread", 0, MODEL_FENCE, NULL}, {"no fence in the client", 1, MODEL_FENCE, NULL},           \
        {"publish relaxed", 0, MODEL_STORE, &((struct qos_ring *)(void *)rx)->tail},                                   \
        {"not armed again", 1, MODEL_OMIT, &page.waiting},

static void test_client_polls(void)
{
    static const struct model model = {setup_polled, {data_thread_pushes_one, client_polls}, NULL};
    MODEL_CHECK(&model, POLL_MUTANTS);
}

/* Another thread of the session, for a source that waits for credit: it silences the doorbell too. */
static void look_for_credit(void)
{
    if (selene_receiver_enter(&session, NULL)) {
        (void)selene_receive(&session, 0);
        selene_receiver_leave(&session);
    }
}

static void test_another_silences_the_doorbell(void)
{
    static const struct model model = {setup_polled, {data_thread_pushes_one, client_polls, look_for_credit}, NULL};
    MODEL_CHECK(&model, POLL_MUTANTS{"no fence in the other", 2, MODEL_FENCE, NULL}, );
}

/* ---- To a client with local sources too, asleep on all its descriptors ---- */

static void setup_mixed(void)
{
    static _Alignas(QOS_CACHE_LINE) uint8_t link[1024];
    static struct edge_in edge, *edges[] = {&edge};
    setup_with_socket();
    memset(&edge, 0, sizeof edge);
    MODEL_ASSERT(qos_shm_size(8) <= sizeof link && qos_shm_init(link, 8) == 0);
    MODEL_ASSERT(qos_shm_consumer_open(&edge.shm, link, 8, &memory.rx) == 0);
    sink.event_fd = EVENT;
    sink.edges = edges;
    sink.edge_count = 1;
    sink.courtesy.skip = UINT32_MAX; /* it would look at the clock */
}

static void client_takes_first(void)
{
    take(1);
}

static void test_client_sleeps_on_descriptors(void)
{
    static const struct model model = {setup_mixed, {data_thread_pushes_one, client_takes_first}, NULL};
    MODEL_CHECK(&model, WAKE_MUTANTS);
}

/* ---- Receive buffers come back and are used again ---- */

static void data_thread_uses_again(void)
{
    uint64_t slice;
    push_datagram(1);
    for (int i = 0; i < 2; i++)
        if (qos_ring_pop(&client.ring_release, &slice, 1) == 1)
            memset(qos_slice_locate(&memory.rx, slice, 0, 0) + QOS_WIRE_OVERHEAD, 0, sizeof(uint64_t));
}

static void client_takes_one(void)
{
    take(1);
}

static void test_receive_buffer_is_used_again(void)
{
    static const struct model model = {setup, {data_thread_uses_again, client_takes_one}, NULL};
    MODEL_CHECK(&model, {"release relaxed", 1, MODEL_STORE, &((struct qos_ring *)(void *)release)->tail},
                {"the data thread's look relaxed", 0, MODEL_LOAD, &((struct qos_ring *)(void *)release)->tail}, );
}

int main(void)
{
    CHECK_RUN(test_data_thread_sleeps);
    CHECK_RUN(test_client_sleeps_on_futex);
    CHECK_RUN(test_client_sleeps_on_doorbell);
    CHECK_RUN(test_client_polls);
    CHECK_RUN(test_another_silences_the_doorbell);
    CHECK_RUN(test_client_sleeps_on_descriptors);
    CHECK_RUN(test_receive_buffer_is_used_again);
    return check_done();
}
