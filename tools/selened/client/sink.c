/* SPDX-License-Identifier: Apache-2.0
 *
 * Sinks: their life, what the service thread has left for them, how they are woken. consume.c has the way in.
 */
#include <errno.h>
#include <limits.h>
#include <linux/membarrier.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "internal.h"

#define IDLE_FLOWS 16 /* of how many local sources without an edge a sink remembers what has come */

/* ---- What the service thread has left ---- */

/* What is known of a source; of those without an edge only some are kept. session->lock held. */
static struct local_flow *flow_of(struct selene_sink *sink, uint64_t source)
{
    struct local_flow **oldest = NULL;
    uint32_t idle = 0;
    for (struct local_flow **at = &sink->flows; *at; at = &(*at)->next) {
        if ((*at)->source == source)
            return *at;
        if ((*at)->edges == 0) {
            oldest = at;
            idle++;
        }
    }
    if (idle >= IDLE_FLOWS) {
        struct local_flow *flow = *oldest;
        *oldest = flow->next;
        free(flow);
    }
    struct local_flow *flow = calloc(1, sizeof *flow);
    if (flow) {
        *flow = (struct local_flow){.next = sink->flows, .source = source};
        sink->flows = flow;
    }
    return flow;
}

static void edge_close(struct selene_sink *sink, struct edge_in *edge)
{
    if (edge->flow)
        edge->flow->edges--;
    qos_shm_consumer_close(&edge->shm);
    selene_view_drop(sink->session, edge->view);
    free(edge);
}

/* The descriptors of the session that may bring a message; closed ones have left the set by themselves. */
static void watch(struct selene_sink *sink)
{
    const struct memory *m = sink->memory;
    int members[2] = {m->doorbell, m->udp ? m->net->ops->wait_fd(m->net) : -1};
    for (int i = 0; i < 2; i++) {
        struct epoll_event e = {.events = EPOLLIN};
        if (members[i] >= 0)
            (void)epoll_ctl(sink->poll_fd, EPOLL_CTL_ADD, members[i], &e);
    }
}

/* The session's memory is another after a restart of the datapath process. session->lock held. */
static void memory_take(struct selene_sink *sink)
{
    struct memory *m = sink->session->memory;
    struct selene_counters *counters =
        (struct selene_counters *)((uint8_t *)m->page + SELENE_PAGE_COUNTERS) + sink->endpoint.index;
    if (sink->memory != m) {
        if (sink->counters)
            *counters = *sink->counters; /* what was counted stays so */
        selene_memory_hold(m);
        selene_memory_drop(sink->memory);
        sink->memory = m;
        if (sink->poll_fd >= 0)
            watch(sink);
    }
    sink->counters = counters;
    sink->counters->id = sink->endpoint.id;
    sink->counters->kind = 2;
    sink->counters->stream = sink->stream->options.stream;
    sink->counters->channel = sink->endpoint.channel;
}

/* Move the edge at the inbox's `at` to the sink's own; not yet if it follows one from the same source that still has messages:
 * then 1. -ENOMEM. */
static int attach(struct selene_sink *sink, struct edge_in **at)
{
    struct edge_in *edge = *at;
    struct local_flow *flow = flow_of(sink, edge->source);
    for (uint32_t i = 0; flow && flow->edges > 0 && i < sink->edge_count; i++)
        if (sink->edges[i]->flow == flow && qos_shm_ready(&sink->edges[i]->shm) > 0)
            return 1;
    if (sink->edge_count == sink->edge_room) {
        uint32_t room = sink->edge_room ? sink->edge_room * 2 : 4;
        struct edge_in **edges = realloc(sink->edges, room * sizeof *edges);
        if (!edges)
            return -ENOMEM;
        sink->edges = edges;
        sink->edge_room = room;
    }
    if (!flow)
        return -ENOMEM;
    *at = edge->next;
    edge->flow = flow;
    flow->edges++;
    sink->edges[sink->edge_count++] = edge;
    if (sink->spin && sink->poll_fd < 0 && !sink->callback)
        qos_store_relaxed(&edge->shm.link->waiting, QOS_SHM_SPINS);
    return 0;
}

void selene_sink_count_edges(struct selene_sink *sink)
{
    uint64_t dropped = 0;
    for (uint32_t i = 0; i < sink->edge_count; i++)
        dropped += qos_load_relaxed(&sink->edges[i]->shm.link->dropped);
    for (const struct edge_in *edge = sink->inbox; edge; edge = edge->next)
        dropped += qos_load_relaxed(&edge->shm.link->dropped);
    __atomic_store_n(&sink->counters->edge_dropped, dropped, __ATOMIC_RELAXED);
}

void selene_sink_apply(struct selene_sink *sink)
{
    struct selene_session *s = sink->session;
    /* acquire: pairs with the release of who left something; cleared before it is taken, so that nothing is missed */
    if (!qos_exchange_acq_rel(&sink->changed, false))
        return;
    pthread_mutex_lock(&s->lock);
    for (uint32_t i = 0; i < sink->edge_count; i++) {
        struct edge_in *edge = sink->edges[i];
        if (!qos_load_acquire(&edge->gone))
            continue;
        /* looked at again when there is nothing left of it: what is in the ring is still delivered */
        if (edge->held > 0 || qos_shm_ready(&edge->shm) > 0)
            continue;
        count(&sink->counters->dropped,
              qos_load_relaxed(&edge->shm.link->dropped)); /* the edge's own count goes with it */
        edge_close(sink, edge);
        sink->edges[i--] = sink->edges[--sink->edge_count];
    }
    if (sink->edge_turn >= sink->edge_count)
        sink->edge_turn = 0; /* it was the turn of one that is gone */
    sink->postponed = false;
    for (struct edge_in **at = &sink->inbox; *at;) {
        int rc = attach(sink, at);
        if (rc == 0)
            continue;
        if (rc > 0)
            sink->postponed = true;
        else
            qos_store_relaxed(&sink->changed, true); /* tried again */
        at = &(*at)->next;
    }
    memory_take(sink);
    selene_sink_count_edges(sink);
    pthread_mutex_unlock(&s->lock);
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
        /* in the receive call it is itself who queues */
        if (qos_load_relaxed(&sink->session->dispatch_sleeping) == DISPATCH_POLLS)
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
    if (sink->callback) {
        selene_dispatch_nudge(sink->session);
        return;
    }
    if (sink->poll_fd >= 0)
        signal_fd(sink->event_fd);
    selene_sink_notify(sink);
    uint32_t how = qos_load_relaxed(&sink->sleeping);
    if (how == SLEEP_BELL) {
        qos_futex_wake(qos_load_relaxed(&sink->bell), INT_MAX);
    } else if (how == SLEEP_LINK) {
        /* It sleeps without a time-out: the word changes first, so that this cannot come between its look and its sleep. Unless it
         * has been woken meanwhile: by now the word may say that it sleeps in another way. */
        _Atomic uint32_t *word = &sink->edges[0]->shm.link->waiting;
        how = QOS_SHM_ON_LINK;
        if (qos_cas_acq_rel(word, &how, QOS_SHM_AWAKE))
            qos_futex_wake(word, 1);
    } else if (how == SLEEP_RECEIVER) {
        selene_receiver_nudge(sink->session);
    }
}

/* ---- Life ---- */

int selene_sink_fd(selene_sink *sink)
{
    if (sink->callback)
        return selene_fail(-EBUSY, "this sink has a callback: poll the session with selene_poll");
    if (sink->poll_fd >= 0)
        return sink->poll_fd;
    int fd = epoll_create1(EPOLL_CLOEXEC);
    if (fd < 0)
        return selene_fail(-errno, "epoll: %s", strerror(errno));
    struct epoll_event own = {.events = EPOLLIN};
    (void)epoll_ctl(fd, EPOLL_CTL_ADD, sink->event_fd, &own);
    sink->poll_fd = fd;
    watch(sink);
    qos_store_relaxed(&sink->session->polled, true);
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
    qos_add_relaxed(&stream->references, 1);
    sink->endpoint.channel = channel;
    memcpy(sink->endpoint.name, name, strlen(name) + 1);
    sink->callback = callback;
    sink->arg = arg;
    sink->poll_fd = -1;
    sink->spinner = qos_spin_new(qos_wait_processors());
    sink->spin = stream->options.wait == SELENE_WAIT_SPIN ||
                 (stream->options.wait == SELENE_WAIT_AUTO && stream->options.resources);
    sink->event_fd = callback ? s->callback_fd : eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    sink->queue = calloc(SINK_PENDING, sizeof *sink->queue); /* pages that nobody touches until a remote source comes */
    pthread_mutex_lock(&s->lock);
    int rc = !sink->queue ? -ENOMEM : sink->event_fd < 0 ? -errno : selene_index_take(s, &sink->endpoint.index);
    if (rc == 0) {
        sink->next = s->sinks;
        s->sinks = sink;
        s->sinks_generation++;
        memory_take(sink);
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

int selene_create_named_sink(selene_stream *stream, const char *name, selene_data_cb callback, void *arg,
                             selene_sink **sink)
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
    selene_sink_stamp(sink, NULL);
    selene_dispatch_enter(s);
    selene_remotes_forget(s, sink); /* the receiver queues nothing from here on */
    selene_sink_discard(sink);
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
    while (sink->flows) {
        struct local_flow *flow = sink->flows;
        sink->flows = flow->next;
        free(flow);
    }
    pthread_mutex_unlock(&s->lock);
    selene_remotes_forget(s, sink); /* until here one could be announced to it */
    selene_sink_discard(sink);
    selene_dispatch_leave(s);
    if (!sink->callback && sink->event_fd >= 0)
        close(sink->event_fd);
    if (sink->poll_fd >= 0)
        close(sink->poll_fd);
    selene_memory_drop(sink->memory);
    free(sink->edges);
    free(sink->queue);
    selene_stream_drop(sink->stream);
    free(sink);
}

void selene_sink_stamp(selene_sink *sink, selene_stamps *stamps)
{
    if (stamps && !sink->stamps)
        qos_add_relaxed(&sink->session->stamping, 1);
    else if (!stamps && sink->stamps)
        qos_sub_acq_rel(&sink->session->stamping, 1);
    sink->stamps = stamps;
}

uint64_t selene_sink_id(const selene_sink *sink)
{
    return sink->endpoint.id;
}

void selene_sink_get_stats(const selene_sink *sink, selene_sink_stats *stats)
{
    struct selene_session *s = sink->session;
    pthread_mutex_lock(&s->lock); /* the sink's thread changes its edges with it held */
    const struct selene_counters *c = sink->counters;
    *stats = (selene_sink_stats){c->messages,  c->bytes,   c->datagrams, c->lost, c->duplicated,
                                 c->reordered, c->dropped, c->refused,   0,       qos_load_relaxed(&sink->remotes)};
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
