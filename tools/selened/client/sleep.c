/* SPDX-License-Identifier: Apache-2.0
 *
 * How a sink's thread sleeps. The cheapest way that covers all a message may come from:
 *
 *   one local source, nothing remote   the source's only sink on its link; several on the bell, so that one call wakes them all
 *   only remote sources                as the receiver, in the kernel's receive call; or behind the one that is
 *   anything else                      poll over the sink's eventfd, the socket and the doorbell
 *
 * Each sleep is preceded by a fence and a look, and each waker looks after a fence: one of the two sees the other. But for the
 * first, nobody sleeps longer than 100 ms at a time.
 */
#include <limits.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "internal.h"

void selene_edges_wait(struct selene_sink *sink, uint32_t how)
{
    for (uint32_t i = 0; i < sink->edge_count; i++)
        qos_store_relaxed(&sink->edges[i]->shm.link->waiting, how);
}

static void sleep_on_bell(struct selene_sink *sink, uint64_t timeout_ns)
{
    struct edge_in *edge = sink->edges[0];
    const _Atomic uint32_t *bell = (const _Atomic uint32_t *)(const void *)edge->view->base;
    qos_store_relaxed(&sink->bell, bell);
    uint32_t before = qos_load_relaxed(bell);
    qos_store_relaxed(&sink->sleeping, SLEEP_BELL);
    selene_edges_wait(sink, QOS_SHM_ON_BELL);
    qos_fence_seq_cst(); /* pairs with the fence in emit.c's publish */
    /* The source pays for one wake-up, however many sinks it has. If this one is killed just here, the others find the message when
     * their sleep is over. */
    if (!selene_sink_ready(sink) && qos_futex_wait(bell, before, timeout_ns) == 0)
        (void)qos_futex_wake(bell, INT_MAX);
    selene_edges_wait(sink, QOS_SHM_AWAKE);
    qos_store_relaxed(&sink->sleeping, AWAKE);
}

/* The kernel looks up a word that is mapped read-only, as the bell is, twice; and a timer costs as much again. So the only sink of a
 * source sleeps on its link, and without a time-out if it can: whoever wakes it changes the word first. */
static void sleep_on_link(struct selene_sink *sink, uint64_t timeout_ns)
{
    _Atomic uint32_t *word = &sink->edges[0]->shm.link->waiting;
    qos_store_relaxed(&sink->sleeping, SLEEP_LINK);
    qos_store_relaxed(word, QOS_SHM_ON_LINK);
    qos_fence_seq_cst(); /* pairs with the fences in publish and selene_sink_wake */
    if (!selene_sink_ready(sink) && qos_load_relaxed(&sink->remotes) == 0)
        (void)qos_futex_wait(word, QOS_SHM_ON_LINK, timeout_ns);
    qos_store_relaxed(word, QOS_SHM_AWAKE);
    qos_store_relaxed(&sink->sleeping, AWAKE);
}

static void sleep_as_receiver(struct selene_sink *sink, uint64_t timeout_ns)
{
    qos_store_relaxed(&sink->sleeping, SLEEP_RECEIVER);
    qos_fence_seq_cst();
    if (!selene_sink_ready(sink))
        (void)selene_receive(sink->session, timeout_ns);
    qos_store_relaxed(&sink->sleeping, AWAKE);
    selene_receiver_leave(sink->session);
}

static void sleep_behind_receiver(struct selene_sink *sink, uint64_t timeout_ns)
{
    struct selene_session *s = sink->session;
    uint32_t before = qos_load_acquire(&s->turn);
    qos_add_acq_rel(&s->followers, 1);
    qos_store_relaxed(&sink->sleeping, SLEEP_TURN);
    qos_fence_seq_cst(); /* pairs with the fences in selene_sink_notify and selene_next_turn */
    if (!selene_sink_ready(sink) && qos_load_acquire(&s->receiving))
        (void)qos_futex_wait(&s->turn, before, timeout_ns);
    qos_store_relaxed(&sink->sleeping, AWAKE);
    qos_sub_acq_rel(&s->followers, 1);
}

static void sleep_on_fds(struct selene_sink *sink, uint64_t timeout_ns)
{
    struct selene_session *s = sink->session;
    struct memory *m = sink->memory;
    bool remote = qos_load_relaxed(&sink->remotes) > 0, ring = remote && qos_load_relaxed(&s->ring_used);
    struct pollfd p[3] = {{sink->event_fd, POLLIN, 0}, {-1, POLLIN, 0}, {-1, POLLIN, 0}};
    if (remote && m->udp)
        p[1].fd = m->net->ops->wait_fd(m->net);
    if (ring) {
        p[2].fd = m->doorbell;
        __atomic_store_n(&m->page->waiting, SELENE_WAIT_FD, __ATOMIC_RELAXED);
    }
    qos_store_relaxed(&sink->sleeping, SLEEP_FD);
    selene_edges_wait(sink, QOS_SHM_ON_FD);
    qos_fence_seq_cst(); /* pairs with the fences of producers, receiver and datapath process */
    struct timespec ts = {(time_t)(timeout_ns / 1000000000u), (long)(timeout_ns % 1000000000u)};
    /* the ring too: for what came while nobody slept the doorbell was not rung */
    if (!selene_sink_ready(sink) && !(ring && selene_ring_left(s, m)) && ppoll(p, 3, &ts, NULL) > 0) {
        uint64_t drop;
        char bell[64];
        if (p[0].revents && read(sink->event_fd, &drop, sizeof drop) < 0)
            p[0].revents = 0;
        if (p[2].revents && recv(m->doorbell, bell, sizeof bell, MSG_DONTWAIT) < 0)
            p[2].revents = 0;
    }
    selene_edges_wait(sink, QOS_SHM_AWAKE);
    qos_store_relaxed(&sink->sleeping, AWAKE);
    if (remote && selene_receiver_enter(s, sink)) {
        (void)selene_receive(s, 0);
        selene_receiver_leave(s);
    }
}

void selene_sink_sleep(struct selene_sink *sink, uint64_t timeout_ns)
{
    bool remote = qos_load_relaxed(&sink->remotes) > 0, one = !remote && sink->edge_count == 1;
    uint64_t slice_ns = timeout_ns < SLICE_SLEEP_NS ? timeout_ns : SLICE_SLEEP_NS;
    if (one && qos_load_relaxed(&sink->edges[0]->shm.link->alone))
        sleep_on_link(sink, timeout_ns);
    else if (one)
        sleep_on_bell(sink, slice_ns);
    else if (!remote || sink->edge_count > 0)
        sleep_on_fds(sink, slice_ns);
    else if (selene_receiver_enter(sink->session, sink))
        sleep_as_receiver(sink, slice_ns);
    else
        sleep_behind_receiver(sink, slice_ns);
}
