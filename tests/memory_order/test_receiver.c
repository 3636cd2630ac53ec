/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Between the threads of one session: the role of the receiver and who sleeps behind it, the queue to another sink, and what of a
 * datagram may be used again (tools/selened/client/receive.c, consume.c, sleep.c).
 */
#include "../../tools/selened/client/consume.c"
#include "../../tools/selened/client/receive.c"

#include "session.h"

static struct selene_session session;
static struct memory memory;
static struct qos_datapath udp;
static struct selene_stream stream;
static struct selene_sink sinks[2];
static struct pending queues[2][SINK_PENDING];
static struct item items[RX_ITEMS];
static uint8_t slabs[2 * QOS_POOL_STRIDE];
static struct inflow inflows[2];
static struct remote remote;
static struct selene_counters counters;
static uint8_t datagram[64];
static unsigned received[MODEL_THREADS];

/* Nothing comes from the network. Whoever waits there has the role, and looks round after a while. */
static int rx_wait(struct qos_datapath *dp, struct qos_packet *packet, uint64_t timeout_ns)
{
    (void)dp;
    (void)packet;
    (void)timeout_ns;
    received[model_self()]++;
    return 0;
}

/* Two sinks with remote sources and no others. */
static void setup(void)
{
    static const struct qos_datapath_ops ops = {.rx_wait = rx_wait};
    memset(&session, 0, sizeof session);
    memset(received, 0, sizeof received);
    memset(items, 0, 2 * sizeof *items);
    udp.ops = &ops;
    memory = (struct memory){.references = 1, .udp = &udp, .net = &udp};
    session.memory = &memory;
    session.items = items;
    session.slabs = slabs;
    remote = (struct remote){.window = 1u << 30, .sinks = 1, .inflows = {&inflows[1]}};
    for (unsigned i = 0; i < 2; i++) {
        sinks[i] = model_sink(&session, &stream, &memory, &counters);
        sinks[i].remotes = 1;
        sinks[i].queue = queues[i];
        inflows[i] = (struct inflow){.sink = &sinks[i]};
    }
}

/* Thread 0 has the role, for sink 0. */
static void setup_receiver(void)
{
    setup();
    session.receiving = 1;
    session.receiving_for = &sinks[0];
}

/* ---- Datagrams for another sink ---- */

static void receive_for_other(void)
{
    struct arrival a = {.data = datagram, .size = sizeof datagram, .copy = true};
    struct qos_wire wire = {.count = 1};
    pthread_mutex_lock(&session.remote_lock);
    MODEL_ASSERT(deliver(&session, &a, &wire, &remote));
    pthread_mutex_unlock(&session.remote_lock);
    selene_receiver_leave(&session);
}

static void take_from_other(void)
{
    struct pending p;
    while (!take(&sinks[1], &p))
        selene_sink_sleep(&sinks[1], UINT64_MAX);
    MODEL_ASSERT(p.item == &items[0] && p.item->wire.count == 1 && p.item->size == sizeof datagram);
    selene_item_drop(&session, p.item, 1);
}

static void test_datagram_for_a_follower(void)
{
    static const struct model model = {setup_receiver, {receive_for_other, take_from_other}, NULL};
    MODEL_CHECK(&model, {"no fence in the receiver", 0, MODEL_FENCE, NULL},
                {"no fence in the follower", 1, MODEL_FENCE, NULL},
                {"queue relaxed", 0, MODEL_STORE, &sinks[1].queue_tail},
                {"the follower's look relaxed", 1, MODEL_LOAD, &sinks[1].queue_tail}, );
}

/* ---- The role is handed over: a follower sleeps until it is free, and no longer ---- */

static void leave_role(void)
{
    selene_receiver_leave(&session);
}

static void become_receiver(void)
{
    while (received[model_self()] == 0)
        selene_sink_sleep(&sinks[model_self()], UINT64_MAX);
}

static void test_role_is_handed_over(void)
{
    static const struct model model = {setup_receiver, {leave_role, become_receiver}, NULL};
    MODEL_CHECK(&model, {"no fence in the receiver", 0, MODEL_FENCE, NULL},
                {"no fence in the follower", 1, MODEL_FENCE, NULL}, );
}

static void test_both_get_the_role(void)
{
    static const struct model model = {setup, {become_receiver, become_receiver}, NULL};
    MODEL_CHECK(&model, {"no fence in one of them", 0, MODEL_FENCE, NULL}, );
}

/* The service thread wants the role: no sink takes it before, but none sleeps behind nobody either. */
static void want_role(void)
{
    qos_store_relaxed(&session.role_wanted, true);
    if (selene_receiver_enter(&session, NULL))
        selene_receiver_leave(&session);
    qos_store_relaxed(&session.role_wanted, false);
}

static void sleep_twice(void)
{
    selene_sink_sleep(&sinks[1], UINT64_MAX);
    selene_sink_sleep(&sinks[1], UINT64_MAX);
}

static void test_role_is_wanted(void)
{
    static const struct model model = {setup, {want_role, sleep_twice}, NULL};
    MODEL_CHECK(&model, {"no fence in the service thread", 0, MODEL_FENCE, NULL},
                {"no fence in the sleeper", 1, MODEL_FENCE, NULL}, {"nobody is woken", 0, MODEL_WAKE, &session.turn}, );
}

/* What the receiver alone may touch, as receiving_for, is handed over with the role. */
static void try_role(void)
{
    if (selene_receiver_enter(&session, NULL))
        selene_receiver_leave(&session);
}

static void test_one_receiver_at_a_time(void)
{
    static const struct model model = {setup, {try_role, try_role, try_role}, NULL};
    MODEL_CHECK(&model, {"enter relaxed", 0, MODEL_UPDATE, &session.receiving},
                {"leave relaxed", 0, MODEL_STORE, &session.receiving}, );
}

/* ---- The queue to a sink: one place left ---- */

static void setup_full_queue(void)
{
    setup();
    sinks[0].queue_head = UINT32_MAX - 1;
    sinks[0].queue_tail = sinks[0].queue_head + SINK_PENDING - 1;
    for (uint32_t i = 0; i < SINK_PENDING - 1; i++)
        queues[0][(sinks[0].queue_head + i) % SINK_PENDING].item = &items[i % 8];
}

static void queue_some(void)
{
    for (unsigned i = 0, n = SINK_PENDING - 1; i < 3; i++)
        n += selene_sink_queue(&sinks[0], &items[n % 8], NULL);
}

static void take_some(void)
{
    struct pending p;
    for (unsigned i = 0; i < 3; i++)
        MODEL_ASSERT(take(&sinks[0], &p) && p.item == &items[i % 8]);
}

static void test_queue_is_full(void)
{
    static const struct model model = {setup_full_queue, {queue_some, take_some}, NULL};
    MODEL_CHECK(&model, {"take relaxed", 1, MODEL_STORE, &sinks[0].queue_head},
                {"the receiver's look relaxed", 0, MODEL_LOAD, &sinks[0].queue_head}, );
}

/* ---- Items and slabs are used again when their last reader is done ---- */

/* Two sinks have item 0; it lies in slab 0, or in itself. */
static void setup_item(void)
{
    setup();
    items[0].busy = true;
    items[0].references = 2;
    session.slab_references[1] = 1;
}

static void setup_slab(void)
{
    setup_item();
    items[0].slab = 1;
    session.slab_references[0] = 1;
}

static void read_and_drop(void)
{
    MODEL_ASSERT(items[0].copy[0] == 0 && slabs[RX_OFFSET] == 0);
    selene_item_drop(&session, &items[0], 1);
}

static void use_item_again(void)
{
    struct item *item = item_new(&session);
    item->copy[0] = 0; /* a write; what is written is the same, so that setup need not undo it */
}

static void use_slab_again(void)
{
    struct qos_packet p;
    if (stage(&session, &p))
        p.data[0] = 0;
}

static void test_item_is_used_again(void)
{
    static const struct model model = {setup_item, {read_and_drop, read_and_drop, use_item_again}, NULL};
    MODEL_CHECK(&model, {"the first reader's drop relaxed", 0, MODEL_UPDATE, &items[0].references},
                {"the last reader's look relaxed", 0, MODEL_LOAD | MODEL_UPDATE, &items[0].references},
                {"busy relaxed", 0, MODEL_STORE, &items[0].busy},
                {"the receiver's look relaxed", 2, MODEL_LOAD, &items[0].busy}, );
}

static void test_slab_is_used_again(void)
{
    static const struct model model = {setup_slab, {read_and_drop, read_and_drop, use_slab_again}, NULL};
    MODEL_CHECK(&model, {"drop relaxed", 0, MODEL_UPDATE, &session.slab_references[0]},
                {"the receiver's look relaxed", 2, MODEL_LOAD, &session.slab_references[0]}, );
}

int main(void)
{
    CHECK_RUN(test_datagram_for_a_follower);
    CHECK_RUN(test_role_is_handed_over);
    CHECK_RUN(test_both_get_the_role);
    CHECK_RUN(test_role_is_wanted);
    CHECK_RUN(test_one_receiver_at_a_time);
    CHECK_RUN(test_queue_is_full);
    CHECK_RUN(test_item_is_used_again);
    CHECK_RUN(test_slab_is_used_again);
    return check_done();
}
