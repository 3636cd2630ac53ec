/* SPDX-License-Identifier: Apache-2.0
 *
 * Sinks: consume and release. Messages come from the edges of local sources and from datagrams the receiver has queued.
 */
#include <endian.h>
#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <linux/membarrier.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "internal.h"

#define QOS_SPIN_REMOTE 64u /* polls of the network in a row */
#define FROM_ITEM 1u /* token[0] is an item, not an edge */

static uint64_t header_u64(const uint8_t *payload, uint32_t offset)
{
    uint64_t v;
    memcpy(&v, payload - QOS_WIRE_OVERHEAD + offset, sizeof v);
    return le64toh(v);
}

/* ---- What the service thread has left ---- */

static void edge_close(struct selene_sink *sink, struct edge_in *edge)
{
    qos_shm_consumer_close(&edge->shm);
    selene_view_drop(sink->session, edge->view);
    free(edge);
}

void selene_sink_apply(struct selene_sink *sink)
{
    struct selene_session *s = sink->session;
    /* acquire: pairs with the release of who left something; cleared before it is taken, so that nothing is missed */
    if (!qos_exchange_acq_rel(&sink->changed, false))
        return;
    pthread_mutex_lock(&s->lock);
    while (sink->inbox) {
        struct edge_in *edge = sink->inbox;
        if (sink->edge_count == sink->edge_room) {
            uint32_t room = sink->edge_room ? sink->edge_room * 2 : 4;
            struct edge_in **edges = realloc(sink->edges, room * sizeof *edges);
            if (!edges)
                break; /* tried again at the next change */
            sink->edges = edges;
            sink->edge_room = room;
        }
        sink->inbox = edge->next;
        sink->edges[sink->edge_count++] = edge;
        if (sink->spin && sink->poll_fd < 0 && !sink->callback)
            qos_store_relaxed(&edge->shm.link->waiting, QOS_SHM_SPINS);
    }
    for (uint32_t i = 0; i < sink->edge_count; i++) {
        struct edge_in *edge = sink->edges[i];
        if (!qos_load_acquire(&edge->gone))
            continue;
        if (edge->held > 0 || qos_shm_ready(&edge->shm) > 0) {
            qos_store_relaxed(&sink->changed, true); /* look again: what is in the ring is still delivered */
            continue;
        }
        count(&sink->counters->dropped, qos_load_relaxed(&edge->shm.link->dropped)); /* the edge's own count goes with it */
        edge_close(sink, edge);
        sink->edges[i--] = sink->edges[--sink->edge_count];
    }
    /* a restarted datapath process gave us another page */
    sink->counters = (struct selene_counters *)((uint8_t *)s->memory->page + SELENE_PAGE_COUNTERS) + sink->endpoint.index;
    sink->counters->id = sink->endpoint.id;
    sink->counters->kind = 2;
    sink->counters->stream = sink->stream->options.stream;
    sink->counters->channel = sink->endpoint.channel;
    pthread_mutex_unlock(&s->lock);
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
    if (sink->current.item || qos_load_relaxed(&sink->queue_head) != qos_load_acquire(&sink->queue_tail) || qos_load_relaxed(&sink->changed))
        return true;
    for (uint32_t i = 0; i < sink->edge_count; i++)
        if (qos_shm_ready(&sink->edges[i]->shm))
            return true;
    return false;
}

/* ---- Waking ---- */

static void signal_fd(int fd)
{
    uint64_t one = 1;
    ssize_t ignored = write(fd, &one, sizeof one);
    (void)ignored; /* full: it is readable anyway */
}

void selene_sink_notify(struct selene_sink *sink)
{
    /* pairs with the fence in sleep.c: either it sees what we queued, or we see that it sleeps */
    qos_fence_seq_cst();
    if (sink->callback) {
        if (qos_load_relaxed(&sink->session->dispatch_sleeping))
            signal_fd(sink->event_fd);
        return;
    }
    if (qos_load_relaxed(&sink->armed) && qos_exchange_acq_rel(&sink->armed, false))
        signal_fd(sink->event_fd);
    uint32_t how = qos_load_relaxed(&sink->sleeping);
    if (how == SLEEP_TURN)
        selene_next_turn(sink->session);
    else if (how == SLEEP_FD)
        signal_fd(sink->event_fd);
}

void selene_sink_wake(struct selene_sink *sink)
{
    if (sink->callback || sink->poll_fd >= 0)
        signal_fd(sink->event_fd);
    selene_sink_notify(sink);
    uint32_t how = qos_load_relaxed(&sink->sleeping);
    if (how == SLEEP_BELL)
        qos_futex_wake(sink->bell, INT_MAX);
    else if (how == SLEEP_RECEIVER)
        selene_receiver_nudge(sink->session);
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
            if (QOS_UNLIKELY(qos_load_relaxed(&edge->gone)))
                qos_store_relaxed(&sink->changed, true);
            if (++sink->edge_turn >= sink->edge_count)
                sink->edge_turn = 0;
            continue;
        }
        uint64_t sequence = edge->started ? edge->expected + (uint64_t)(int64_t)(int32_t)(m.sequence - (uint32_t)edge->expected)
                                          : header_u64(m.data, 32);
        (void)selene_sequence(&edge->expected, &edge->seen, &edge->started, sequence, sink->counters);
        edge->held++;
        *out = (selene_buffer){.data = (void *)(uintptr_t)m.data, .size = m.length, .sequence = sequence, .source = edge->source,
                               .token = {(uint64_t)(uintptr_t)edge, m.slice}};
        return 1;
    }
    return 0;
}

static void finish_current(struct selene_sink *sink)
{
    selene_item_drop(sink->session, sink->current.item);
    sink->current.item = NULL;
}

static int next_remote(struct selene_sink *sink, selene_buffer *out)
{
    for (;;) {
        struct item *item = sink->current.item;
        if (!item) {
            if (!take(sink, &sink->current))
                return 0;
            item = sink->current.item;
            sink->current_offset = sink->current_index = 0;
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
        if (selene_sequence(&flow->expected, &flow->seen, &flow->started, sequence, sink->counters) == SEQUENCE_DUPLICATE)
            continue;
        /* with its last message the datagram's own reference is handed on */
        if (sink->current_index == item->wire.count)
            sink->current.item = NULL;
        else
            qos_add_relaxed(&item->references, 1);
        *out = (selene_buffer){.data = (void *)(uintptr_t)payload, .size = length, .sequence = sequence, .source = item->wire.source,
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
    if (rc == 0 && sink->queue)
        rc = next_remote(sink, buffer);
    if (rc == 1) {
        sink->held++;
        count(&sink->counters->messages, 1);
        count(&sink->counters->bytes, buffer->size);
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
    if (rc != 0 || qos_load_relaxed(&sink->remotes) == 0 || !selene_receiver_enter(s, sink))
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
    if (qos_load_relaxed(&sink->session->ring_used))
        __atomic_store_n(&sink->session->memory->page->waiting, SELENE_WAIT_FD, __ATOMIC_RELAXED);
    qos_fence_seq_cst(); /* pairs with the fences of producers, receiver and datapath process */
    return look(sink, buffer);
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
        (void)selene_flush_session(s, 0);
    uint64_t begin = timeout_ns == UINT64_MAX ? 0 : qos_clock_monotonic_ns(), passed = 0;
    qos_spin_start(&sink->spinner);
    for (uint32_t looks = 1;; looks++) {
        if (!sink->spin)
            selene_sink_sleep(sink, timeout_ns - passed);
        else if (sink->spinner.shared)
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
        bool edge_going = qos_load_relaxed(&sink->changed);
        qos_store_relaxed(&sink->changed, false);
        bool ready = selene_sink_ready(sink);
        qos_store_relaxed(&sink->changed, edge_going || qos_load_relaxed(&sink->changed));
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
        selene_item_drop(sink->session, (struct item *)(uintptr_t)(token & ~(uint64_t)FROM_ITEM));
    } else {
        struct edge_in *edge = NULL;
        for (uint32_t i = 0; i < sink->edge_count && !edge; i++)
            if ((uint64_t)(uintptr_t)sink->edges[i] == token)
                edge = sink->edges[i];
        if (!edge || edge->held == 0)
            return selene_fail(-EINVAL, "this sink does not hold that buffer");
        edge->held--;
        (void)qos_shm_give_back(&edge->shm, buffer->token[1]);
        if (*seen && *seen != edge)
            qos_ring_publish(&(*seen)->shm.back);
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
        qos_ring_publish(&seen->shm.back);
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

/* ---- Life ---- */

int selene_sink_fd(selene_sink *sink)
{
    struct memory *m = sink->session->memory;
    if (sink->callback)
        return selene_fail(-EBUSY, "this sink has a callback: poll the session with selene_poll");
    if (sink->poll_fd >= 0)
        return sink->poll_fd;
    int fd = epoll_create1(EPOLL_CLOEXEC);
    if (fd < 0)
        return selene_fail(-errno, "epoll: %s", strerror(errno));
    int members[3] = {sink->event_fd, m->doorbell, m->udp ? m->udp->ops->wait_fd(m->udp) : -1};
    for (int i = 0; i < 3; i++) {
        struct epoll_event e = {.events = EPOLLIN};
        if (members[i] >= 0)
            (void)epoll_ctl(fd, EPOLL_CTL_ADD, members[i], &e);
    }
    sink->poll_fd = fd;
    sink->spin = false;
    selene_edges_wait(sink, QOS_SHM_AWAKE);
    /* From here on it sleeps. A producer that still believes it never does has looked without a fence: let every processor pass one. */
    (void)syscall(SYS_membarrier, MEMBARRIER_CMD_GLOBAL, 0, 0);
    signal_fd(sink->event_fd); /* the first consume arms it */
    return fd;
}

static int create(struct selene_stream *stream, uint64_t channel, const char *name, selene_data_cb callback, void *arg,
                  struct selene_sink **out)
{
    struct selene_session *s = stream->session;
    struct selene_sink *sink = calloc(1, sizeof *sink);
    if (!sink)
        return selene_fail(-ENOMEM, "no memory for a sink");
    sink->session = s;
    sink->stream = stream;
    sink->endpoint.channel = channel;
    memcpy(sink->endpoint.name, name, strlen(name) + 1);
    sink->callback = callback;
    sink->arg = arg;
    sink->poll_fd = -1;
    sink->spinner = qos_spin_new(qos_wait_processors());
    sink->spin = stream->options.wait == SELENE_WAIT_SPIN || (stream->options.wait == SELENE_WAIT_AUTO && stream->options.resources);
    sink->event_fd = callback ? s->callback_fd : eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    pthread_mutex_lock(&s->lock);
    int rc = sink->event_fd < 0 ? -errno : selene_index_take(s, &sink->endpoint.index);
    if (rc == 0) {
        sink->next = s->sinks;
        s->sinks = sink;
        s->sinks_generation++;
        sink->counters = (struct selene_counters *)((uint8_t *)s->memory->page + SELENE_PAGE_COUNTERS) + sink->endpoint.index;
        qos_store_release(&sink->changed, true);
    }
    pthread_mutex_unlock(&s->lock);
    if (rc == 0)
        rc = selene_declare_endpoint(stream, &sink->endpoint, SELENE_C_SINK, sink->event_fd);
    else
        selene_fail(rc, "no room for another endpoint in this session (%d)", SELENE_MAX_ENDPOINTS);
    if (rc == 0 && callback)
        rc = selene_dispatch_start(s);
    if (rc < 0) {
        selene_close_sink(sink);
        return rc;
    }
    *out = sink;
    return 0;
}

int selene_create_sink(selene_stream *stream, uint64_t channel, selene_data_cb callback, void *arg, selene_sink **sink)
{
    return create(stream, channel, "", callback, arg, sink);
}

int selene_create_named_sink(selene_stream *stream, const char *name, selene_data_cb callback, void *arg, selene_sink **sink)
{
    size_t length = strlen(name);
    if (length == 0 || length > SELENE_MAX_NAME)
        return selene_fail(-EINVAL, "a channel name has 1 to %d bytes, this one %zu", SELENE_MAX_NAME, length);
    return create(stream, selene_channel_of(name), name, callback, arg, sink);
}

void selene_close_sink(selene_sink *sink)
{
    if (!sink)
        return;
    struct selene_session *s = sink->session;
    pthread_mutex_lock(&s->dispatch_lock);
    selene_remotes_forget(s, sink); /* the receiver queues nothing from here on */
    struct pending p;
    if (sink->current.item)
        finish_current(sink);
    while (sink->queue && take(sink, &p)) {
        selene_item_taken(s, p.item);
        selene_item_drop(s, p.item);
    }
    if (sink->endpoint.id)
        (void)selene_withdraw(s, sink->endpoint.id, 2);
    pthread_mutex_lock(&s->lock);
    for (struct selene_sink **at = &s->sinks; *at; at = &(*at)->next) {
        if (*at == sink) {
            *at = sink->next;
            s->indices[sink->endpoint.index / 64] &= ~(UINT64_C(1) << (sink->endpoint.index % 64));
            memset(sink->counters, 0, sizeof *sink->counters);
            break;
        }
    }
    s->sinks_generation++;
    while (sink->inbox) {
        struct edge_in *edge = sink->inbox;
        sink->inbox = edge->next;
        edge_close(sink, edge);
    }
    for (uint32_t i = 0; i < sink->edge_count; i++)
        edge_close(sink, sink->edges[i]);
    pthread_mutex_unlock(&s->lock);
    pthread_mutex_unlock(&s->dispatch_lock);
    if (!sink->callback && sink->event_fd >= 0)
        close(sink->event_fd);
    if (sink->poll_fd >= 0)
        close(sink->poll_fd);
    free(sink->edges);
    free(sink->queue);
    free(sink);
}

uint64_t selene_sink_id(const selene_sink *sink)
{
    return sink->endpoint.id;
}

void selene_sink_get_stats(const selene_sink *sink, selene_sink_stats *stats)
{
    struct selene_session *s = sink->session;
    pthread_mutex_lock(&s->lock); /* the sink's thread changes its edges with it held */
    /* not sink->counters: after a restart of the datapath process they point into the old page until that thread has looked */
    const struct selene_counters *c = (const struct selene_counters *)((uint8_t *)s->memory->page + SELENE_PAGE_COUNTERS) + sink->endpoint.index;
    *stats = (selene_sink_stats){c->messages, c->bytes, c->datagrams, c->lost, c->duplicated, c->reordered, c->dropped, c->refused,
                                 0, qos_load_relaxed(&sink->remotes)};
    for (uint32_t i = 0; i < sink->edge_count; i++) {
        stats->dropped += qos_load_relaxed(&sink->edges[i]->shm.link->dropped);
        stats->local_sources += !qos_load_relaxed(&sink->edges[i]->gone);
    }
    /* and what that thread has not looked at yet */
    for (const struct edge_in *edge = sink->inbox; edge; edge = edge->next) {
        stats->dropped += qos_load_relaxed(&edge->shm.link->dropped);
        stats->local_sources += !qos_load_relaxed(&edge->gone);
    }
    pthread_mutex_unlock(&s->lock);
}
