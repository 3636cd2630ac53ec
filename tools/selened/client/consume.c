/* SPDX-License-Identifier: Apache-2.0
 *
 * Consume and release. Messages come from the edges of local sources and from datagrams the receiver has queued.
 */
#include <endian.h>
#include <errno.h>
#include <sched.h>
#include <string.h>
#include <unistd.h>

#include "internal.h"

#define QOS_SPIN_REMOTE 64u /* polls of the network in a row */
#define FROM_ITEM 1u        /* token[0] is an item, not an edge */
#define FROM_CAST 2u        /* an edge, by the ring for several sinks */
#define FLOOD_NS 400u       /* messages that come faster than this are a flood */
#define FLOOD_RUN 16u
#define LINGER_NS 1500u

static uint64_t header_u64(const uint8_t *payload, uint32_t offset)
{
    uint64_t v;
    memcpy(&v, payload - QOS_WIRE_OVERHEAD + offset, sizeof v);
    return le64toh(v);
}

/* ---- The receiver's side of the queue ---- */

bool selene_sink_queue(struct selene_sink *sink, struct item *item, struct inflow *inflow)
{
    uint32_t tail = qos_load_relaxed(&sink->queue_tail);
    /* acquire: pairs with the release in take: that place has been read */
    if (tail - qos_load_acquire(&sink->queue_head) == SINK_PENDING)
        return false;
    sink->queue[tail % SINK_PENDING] = (struct pending){item, inflow};
    qos_store_release(&sink->queue_tail, tail + 1); /* pairs with the acquire in take */
    return true;
}

static bool take(struct selene_sink *sink, struct pending *p)
{
    uint32_t head = qos_load_relaxed(&sink->queue_head);
    if (head == qos_load_acquire(&sink->queue_tail))
        return false;
    *p = sink->queue[head % SINK_PENDING];
    qos_store_release(&sink->queue_head, head + 1);
    return true;
}

bool selene_sink_ready(struct selene_sink *sink)
{
    if (sink->current.item || qos_load_relaxed(&sink->queue_head) != qos_load_acquire(&sink->queue_tail) ||
        qos_load_relaxed(&sink->changed))
        return true;
    for (uint32_t i = 0; i < sink->edge_count; i++)
        if (qos_shm_ready(&sink->edges[i]->shm))
            return true;
    return false;
}

/* ---- Consume ---- */

static int next_local(struct selene_sink *sink, selene_buffer *out)
{
    struct qos_shm_message m;
    for (uint32_t n = 0; n < sink->edge_count; n++) {
        struct edge_in *edge = sink->edges[sink->edge_turn];
        int rc = qos_shm_pop(&edge->shm, &m);
        if (rc <= 0) {
            if (QOS_UNLIKELY(rc < 0 && !qos_load_relaxed(&edge->gone))) {
                /* the producer writes what it must not: nothing more is taken from it */
                count(&sink->counters->refused, 1);
                qos_store_relaxed(&edge->gone, true);
            }
            if (QOS_UNLIKELY(qos_load_relaxed(&edge->gone) && (edge->held == 0 || sink->postponed)))
                qos_store_relaxed(&sink->changed, true);
            if (++sink->edge_turn >= sink->edge_count)
                sink->edge_turn = 0;
            continue;
        }
        struct sequence *of = &edge->flow->sequence;
        uint64_t sequence = of->started
                                ? of->expected + (uint64_t)(int64_t)(int32_t)(m.sequence - (uint32_t)of->expected)
                                : header_u64(m.data, 32);
        (void)selene_sequence(of, sequence, sink->counters);
        edge->held++;
        if (QOS_UNLIKELY(sink->stamps))
            sink->stamps->system_ns = qos_clock_stamp_ns();
        *out = (selene_buffer){.data = (void *)(uintptr_t)m.data,
                               .size = m.length,
                               .sequence = sequence,
                               .source = edge->source,
                               .token = {(uint64_t)(uintptr_t)edge | (m.by_cast ? FROM_CAST : 0u), m.token}};
        return 1;
    }
    return 0;
}

/* One reference for each message of the datagram that is taken now: with a message one of them is handed out, and comes back for the
 * next while the datagram is the current one, so that in the usual case no counter is touched that another thread may touch. */
static void begin_current(struct selene_sink *sink)
{
    struct item *item = sink->current.item;
    sink->current_offset = sink->current_index = 0;
    sink->spare = item->wire.count > 0 ? item->wire.count : 1;
    if (sink->spare > 1)
        qos_add_relaxed(&item->references, sink->spare - 1);
}

static void finish_current(struct selene_sink *sink)
{
    if (sink->spare > 0)
        selene_item_drop(sink->session, sink->current.item, sink->spare);
    sink->current.item = NULL;
}

/* Let go of every datagram that was received for it. */
void selene_sink_discard(struct selene_sink *sink)
{
    struct pending p;
    if (sink->current.item)
        finish_current(sink);
    while (take(sink, &p)) {
        selene_item_taken(sink->session, p.item);
        selene_item_drop(sink->session, p.item, 1);
    }
}

static int next_remote(struct selene_sink *sink, selene_buffer *out)
{
    for (;;) {
        struct item *item = sink->current.item;
        if (!item) {
            if (!take(sink, &sink->current))
                return 0;
            item = sink->current.item;
            begin_current(sink);
            count(&sink->counters->datagrams, 1);
            if (item->wire.flags & QOS_WIRE_RELIABLE)
                selene_item_taken(sink->session, item);
        }
        const uint8_t *payload;
        uint32_t length, delta;
        int rc = sink->current_index < item->wire.count
                     ? qos_frame_next(item->data, &item->wire, &sink->current_offset, &payload, &length, &delta)
                     : 0;
        if (rc <= 0) {
            if (rc < 0)
                count(&sink->counters->refused, 1);
            finish_current(sink);
            continue;
        }
        struct inflow *flow = sink->current.inflow;
        uint64_t sequence = item->wire.sequence + sink->current_index++;
        if (selene_sequence(&flow->sequence, sequence, sink->counters) == SEQUENCE_DUPLICATE)
            continue;
        if (QOS_UNLIKELY(sink->stamps))
            sink->stamps->system_ns = item->arrived_ns;
        sink->spare--;
        if (sink->current_index == item->wire.count)
            finish_current(sink); /* who has its last message keeps it */
        *out = (selene_buffer){.data = (void *)(uintptr_t)payload,
                               .size = length,
                               .sequence = sequence,
                               .source = item->wire.source,
                               .token = {(uint64_t)(uintptr_t)item | FROM_ITEM, (uint64_t)(uintptr_t)sink}};
        return 1;
    }
}

/* Without waiting: 1 and a message, 0, or -ENOBUFS. */
int selene_sink_next(struct selene_sink *sink, selene_buffer *buffer)
{
    if (QOS_UNLIKELY(qos_load_relaxed(&sink->changed)))
        selene_sink_apply(sink);
    if (QOS_UNLIKELY(sink->held >= SINK_HELD_MAX))
        return selene_fail(-ENOBUFS, "this sink holds %u messages: release some before consuming more", sink->held);
    int rc = next_local(sink, buffer);
    if (rc == 0)
        rc = next_remote(sink, buffer);
    if (rc == 1) {
        sink->held++;
        count(&sink->counters->messages, 1);
        count(&sink->counters->bytes, buffer->size);
        if (QOS_UNLIKELY(sink->stamps))
            sink->stamps->api_ns = qos_clock_stamp_ns();
    }
    return rc;
}

/* A short spin over the edges alone, which is all there is to look at for a sink without remote sources. */
static void spin_local(struct selene_sink *sink)
{
    for (uint32_t i = 0; i < QOS_SPIN_EAGER; i++) {
        if (i < QOS_SPIN_GENTLE)
            qos_cpu_relax();
        for (uint32_t k = 0; k < sink->edge_count; k++)
            if (qos_shm_ready(&sink->edges[k]->shm))
                return;
        if (qos_load_relaxed(&sink->changed))
            return;
    }
}

/* In a flood, a sink that is faster than its sources would take each message as it comes, and every look at an edge costs its source
 * cache misses that take longer than the message. It waits a moment, and takes some together. */
static void linger(struct selene_sink *sink)
{
    uint64_t now = qos_clock_monotonic_ns(), messages = sink->counters->messages;
    bool flood = now - sink->emptied_ns < FLOOD_NS * (messages - sink->emptied);
    sink->emptied = messages;
    sink->emptied_ns = now;
    sink->floods = flood ? sink->floods + 1 : 0;
    while (sink->floods >= FLOOD_RUN && qos_clock_monotonic_ns() - now < LINGER_NS)
        qos_cpu_relax();
}

/* The same for a sink with remote sources only: polls the network without letting go of the role. */
static void spin_remote(struct selene_sink *sink)
{
    struct selene_session *s = sink->session;
    if (!selene_receiver_enter(s, sink))
        return;
    uint32_t polls = 0;
    while (polls < QOS_SPIN_REMOTE && selene_receive(s, 0) == 0 && !qos_load_relaxed(&sink->changed))
        polls++;
    selene_receiver_leave(s);
    if (polls == QOS_SPIN_REMOTE)
        qos_spin_yield(&sink->spinner);
}

/* As selene_sink_next, looking at the network too. */
static int look(struct selene_sink *sink, selene_buffer *buffer)
{
    struct selene_session *s = sink->session;
    int rc = selene_sink_next(sink, buffer);
    /* a poll loop wakes for what has come for others of the session too, and would not sleep again if nobody took it */
    bool network = qos_load_relaxed(&sink->remotes) > 0 || sink->poll_fd >= 0;
    if (rc != 0 || !network || !selene_receiver_enter(s, sink))
        return rc;
    (void)selene_receive(s, 0);
    selene_receiver_leave(s);
    return selene_sink_next(sink, buffer);
}

/* The caller will poll the descriptor: from now on every message makes it readable. 1 if one came meanwhile. */
static int arm(struct selene_sink *sink, selene_buffer *buffer)
{
    uint64_t drop;
    ssize_t ignored = read(sink->event_fd, &drop, sizeof drop);
    (void)ignored;
    qos_store_relaxed(&sink->armed, true);
    selene_edges_wait(sink, QOS_SHM_ON_FD);
    qos_fence_seq_cst(); /* pairs with the fences of producers and receiver; the receive ring is armed by who looks at it */
    return look(sink, buffer);
}

/* Before sleeping, let whoever may answer us run, if that has helped before. Whether something has come. */
static bool courtesy(struct selene_sink *sink)
{
    if (sink->edge_count == 0 || !qos_courtesy_due(&sink->courtesy))
        return false;
    uint64_t before = qos_clock_stamp_ns();
    sched_yield();
    bool paid = selene_sink_ready(sink);
    qos_courtesy_learn(&sink->courtesy, paid, qos_clock_stamp_ns() - before);
    return paid;
}

static int consume(struct selene_sink *sink, int flags, uint64_t timeout_ns, selene_buffer *buffer)
{
    if (sink->callback)
        return selene_fail(-EBUSY, "this sink has a callback: its messages go there");
    qos_store_relaxed(&sink->session->consumed, qos_load_relaxed(&sink->session->consumed) + 1);
    /* whoever is going to sleep in the receive call anyway need not ask the network before */
    bool wait = !(flags & SELENE_DONTWAIT) && timeout_ns > 0;
    int rc = wait ? selene_sink_next(sink, buffer) : look(sink, buffer);
    if (rc != 0)
        return rc;
    if (!wait) {
        if (sink->poll_fd >= 0)
            rc = arm(sink, buffer);
        return rc != 0 ? rc : -EAGAIN;
    }
    struct selene_session *s = sink->session;
    if (qos_load_acquire(&s->open_batches))
        (void)selene_flush_session(s, true);
    uint64_t begin = timeout_ns == UINT64_MAX ? 0 : qos_clock_monotonic_ns(), passed = 0;
    qos_spin_start(&sink->spinner);
    if (sink->spin && !sink->spinner.shared && qos_load_relaxed(&sink->remotes) == 0)
        linger(sink);
    for (uint32_t looks = 1;; looks++) {
        if (!sink->spin) {
            if (!courtesy(sink))
                selene_sink_sleep(sink, timeout_ns - passed);
        } else if (sink->spinner.shared)
            ;
        else if (qos_load_relaxed(&sink->remotes) == 0)
            spin_local(sink);
        else if (sink->edge_count == 0)
            spin_remote(sink);
        rc = sink->spin ? look(sink, buffer) : selene_sink_next(sink, buffer);
        if (rc != 0)
            return rc;
        if (sink->spin)
            qos_spin_step(&sink->spinner);
        /* a spinner reads the clock now and then: reading it takes as long as a look */
        if (begin && (!sink->spin || looks % 64 == 0) && (passed = qos_clock_monotonic_ns() - begin) >= timeout_ns)
            return -ETIMEDOUT;
    }
}

int selene_consume_data(selene_sink *sink, int flags, selene_buffer *buffer)
{
    return consume(sink, flags, UINT64_MAX, buffer);
}

int selene_consume_timeout(selene_sink *sink, uint64_t timeout_ns, selene_buffer *buffer)
{
    return consume(sink, 0, timeout_ns, buffer);
}

int selene_consume_burst(selene_sink *sink, int flags, selene_buffer *buffers, uint32_t n)
{
    if (n == 0)
        return 0;
    int rc = consume(sink, flags, UINT64_MAX, &buffers[0]);
    if (rc <= 0)
        return rc;
    uint32_t got = 1;
    while (got < n && selene_sink_next(sink, &buffers[got]) == 1)
        got++;
    return (int)got;
}

int selene_data_available(selene_sink *sink, int flags)
{
    struct selene_session *s = sink->session;
    for (;;) {
        if (qos_load_relaxed(&sink->changed))
            selene_sink_apply(sink);
        if (qos_load_relaxed(&sink->remotes) && selene_receiver_enter(s, sink)) {
            (void)selene_receive(s, 0);
            selene_receiver_leave(s);
        }
        /* in one step: what the service thread announces in between must not be taken for this */
        bool edge_going = qos_exchange_acq_rel(&sink->changed, false);
        bool ready = selene_sink_ready(sink);
        if (edge_going)
            qos_store_relaxed(&sink->changed, true);
        if (ready || flags & SELENE_DONTWAIT)
            return ready;
        selene_sink_sleep(sink, SLICE_SLEEP_NS);
    }
}

/* ---- Release ---- */

/* `seen`: the edge whose release ring has unpublished slices, so that a burst publishes once. */
static int release(struct selene_sink *sink, selene_buffer *buffer, struct edge_in **seen)
{
    uint64_t token = buffer->token[0];
    if (QOS_UNLIKELY(token == 0 || sink->held == 0))
        return selene_fail(-EINVAL, "this sink does not hold that buffer");
    if (token & FROM_ITEM) {
        if (buffer->token[1] != (uint64_t)(uintptr_t)sink)
            return selene_fail(-EINVAL, "that buffer is another sink's");
        struct item *item = (struct item *)(uintptr_t)(token & ~(uint64_t)FROM_ITEM);
        if (item == sink->current.item)
            sink->spare++;
        else
            selene_item_drop(sink->session, item, 1);
    } else {
        struct edge_in *edge = NULL;
        for (uint32_t i = 0; i < sink->edge_count && !edge; i++)
            if ((uint64_t)(uintptr_t)sink->edges[i] == (token & ~(uint64_t)FROM_CAST))
                edge = sink->edges[i];
        if (!edge || edge->held == 0)
            return selene_fail(-EINVAL, "this sink does not hold that buffer");
        if (QOS_UNLIKELY(--edge->held == 0 && qos_load_relaxed(&edge->gone)))
            qos_store_relaxed(&sink->changed, true);
        (void)qos_shm_give_back(&edge->shm, buffer->token[1], token & FROM_CAST);
        if (*seen && *seen != edge)
            qos_shm_publish_back(&(*seen)->shm);
        *seen = edge;
    }
    sink->held--;
    buffer->token[0] = 0;
    buffer->data = NULL;
    return 0;
}

int selene_release_burst(selene_sink *sink, selene_buffer *buffers, uint32_t n)
{
    struct edge_in *seen = NULL;
    int rc = 0;
    for (uint32_t i = 0; i < n; i++) {
        int one = release(sink, &buffers[i], &seen);
        rc = rc < 0 ? rc : one;
    }
    if (seen)
        qos_shm_publish_back(&seen->shm);
    return rc;
}

int selene_release_buffer(selene_sink *sink, selene_buffer *buffer)
{
    return selene_release_burst(sink, buffer, 1);
}

uint64_t selene_buffer_sent_ns(const selene_buffer *buffer)
{
    const uint8_t *payload = buffer->data;
    uint32_t delta;
    if (!payload)
        return 0;
    if (!(buffer->token[0] & FROM_ITEM))
        return header_u64(payload, 40);
    memcpy(&delta, payload - sizeof delta, sizeof delta);
    return ((const struct item *)(uintptr_t)(buffer->token[0] & ~(uint64_t)FROM_ITEM))->wire.send_ns + le32toh(delta);
}
