/* SPDX-License-Identifier: Apache-2.0
 *
 * The remote side of the sinks. One thread at a time is the receiver: it takes datagrams from the session's socket and from the receive
 * ring, checks each, and queues it at the sinks of its channel. Whoever waits for a message and finds the role free takes it.
 *
 * A datagram is accepted only from the address that was announced for its source: whoever holds a socket can forge a header.
 */
#include <errno.h>
#include <limits.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "internal.h"

#define RELAY_BURST 64
#define ADAPT_EVERY 64u
#define CONTROL_BURST 32

/* ---- The role ---- */

bool selene_receiver_enter(struct selene_session *s, const struct selene_sink *sink)
{
    if (qos_load_relaxed(&s->receiving) != 0 || (sink && qos_load_relaxed(&s->role_wanted)) ||
        qos_exchange_acq_rel(&s->receiving, 1) != 0)
        return false;
    s->receiving_for = sink;
    return true;
}

/* Let those behind the receiver look round. The caller has passed a fence since what they are to see: it pairs with the fence in
 * sleep.c's sleep_behind_receiver. */
void selene_next_turn(struct selene_session *s)
{
    if (QOS_LIKELY(qos_load_relaxed(&s->followers) == 0))
        return;
    qos_add_acq_rel(&s->turn, 1);
    qos_futex_wake(&s->turn, INT_MAX);
}

void selene_receiver_leave(struct selene_session *s)
{
    qos_store_release(&s->receiving, 0); /* pairs with the exchange in selene_receiver_enter */
    qos_fence_seq_cst();                 /* not an exchange: what follows one may be done before it */
    selene_next_turn(s);
}

/* Make a receiver that sleeps in the kernel look round: an empty datagram from the socket to itself, which a connected one refuses. */
static void nudge(struct selene_session *s, struct memory *m)
{
    struct sockaddr_storage own;
    socklen_t length = sizeof own;
    int fd = m->udp ? m->udp->ops->wait_fd(m->udp) : -1;
    if (fd >= 0 && s->paired && qos_udp_pair(m->udp, NULL) == 0)
        qos_store_release(&s->pair_again, true);
    if (fd >= 0 && getsockname(fd, (struct sockaddr *)&own, &length) == 0)
        (void)sendto(fd, NULL, 0, MSG_DONTWAIT | MSG_NOSIGNAL, (struct sockaddr *)&own, length);
    uint32_t asleep = SELENE_WAIT_FUTEX; /* and nothing else: poll loops must stay armed */
    if (__atomic_compare_exchange_n(&m->page->waiting, &asleep, SELENE_AWAKE, false, __ATOMIC_ACQ_REL,
                                    __ATOMIC_RELAXED))
        qos_futex_wake((const _Atomic uint32_t *)&m->page->waiting, INT_MAX);
}

void selene_receiver_nudge(struct selene_session *s)
{
    if (s->memory && qos_load_acquire(&s->receiving))
        nudge(s, s->memory);
}

void selene_receiver_take(struct selene_session *s)
{
    /* a sink that polls would hardly ever let it be free when we look */
    qos_store_relaxed(&s->role_wanted, true);
    while (!selene_receiver_enter(s, NULL)) {
        selene_receiver_nudge(s);
        struct timespec ts = {0, 1000000};
        nanosleep(&ts, NULL);
    }
    qos_store_relaxed(&s->role_wanted, false);
}

/* ---- Items ---- */

/* An item that is free; the receiver alone takes them. NULL: the sinks hold all. */
static struct item *item_new(struct selene_session *s)
{
    uint32_t hint = qos_load_relaxed(&s->item_hint);
    for (uint32_t i = 0; i < RX_ITEMS; i++) {
        struct item *item = &s->items[(hint + i) % RX_ITEMS];
        /* acquire: pairs with the release in selene_item_drop: its readers are done */
        if (!qos_load_acquire(&item->busy))
            return item;
    }
    return NULL;
}

/* The datapath process' memory: it may be reused once the slice is back. */
static void give_back(struct selene_session *s, struct memory *m, uint64_t slice)
{
    pthread_mutex_lock(&s->relay_lock);
    (void)qos_ring_push(&m->relay_release, &slice, 1); /* as many words as it can have given us */
    pthread_mutex_unlock(&s->relay_lock);
}

void selene_item_drop(struct selene_session *s, struct item *item, uint32_t n)
{
    /* whoever has all references has it alone: nobody can add one */
    if (qos_load_acquire(&item->references) != n && qos_sub_acq_rel(&item->references, n) > n)
        return;
    if (item->slab) {
        qos_sub_acq_rel(&s->slab_references[item->slab - 1], 1);
    } else if (item->memory) {
        give_back(s, item->memory, item->slice);
        selene_memory_drop(item->memory);
    }
    qos_store_relaxed(&s->item_hint, (uint32_t)(item - s->items));
    qos_store_release(&item->busy, false); /* pairs with the acquire in item_new */
}

/* ---- Datagrams in; remote_lock held ---- */

struct arrival {
    uint8_t *data;
    uint32_t size;
    const struct qos_address *from; /* NULL: the datapath process has checked it */
    bool copy;                      /* small: the item keeps a copy */
    uint32_t slab;                  /* else index + 1; 0: relayed */
    uint64_t slice;
};

void selene_hand_out(struct selene_session *s, struct item *item)
{
    struct remote *r = item->remote;
    if (r->sinks == 0) { /* they were closed while it was set aside */
        selene_item_drop(s, item, 1);
        return;
    }
    qos_store_relaxed(&item->references, r->sinks);
    qos_store_relaxed(&item->untaken, r->sinks);
    uint32_t credit = item->wire.credit;
    bool reliable = item->wire.flags & QOS_WIRE_RELIABLE;
    for (uint32_t i = 0; i < r->sinks; i++) {
        struct selene_sink *sink = r->inflows[i]->sink;
        if (selene_sink_queue(sink, item, r->inflows[i])) {
            if (sink != s->receiving_for)
                selene_sink_notify(sink);
        } else {
            count(&sink->counters->dropped, item->wire.count);
            selene_item_taken(s, item);
            selene_item_drop(s, item, 1);
        }
    }
    /* the sinks may be done with the item by now */
    if (!reliable)
        selene_credit_taken(s, r, credit);
}

/* Hand it to the sinks, or set it aside. Whether anybody keeps it. */
static bool deliver(struct selene_session *s, const struct arrival *a, const struct qos_wire *wire, struct remote *r)
{
    struct item *item = r->sinks ? item_new(s) : NULL;
    if (!item) {
        for (uint32_t i = 0; i < r->sinks; i++)
            count(&r->inflows[i]->sink->counters->dropped, wire->count);
        return false;
    }
    item->wire = *wire;
    item->data = a->data;
    if (a->copy) {
        item->data = item->copy + RX_OFFSET;
        memcpy(item->data, a->data, a->size);
    }
    item->size = a->size;
    item->slab = a->slab;
    item->slice = a->slice;
    item->memory = NULL;
    item->remote = r;
    item->arrived_ns = s->arrived_ns;
    qos_store_relaxed(&item->references, 1);
    qos_store_relaxed(&item->busy, true);
    if (a->slab) {
        qos_add_relaxed(&s->slab_references[a->slab - 1], 1);
    } else if (!a->copy) {
        selene_memory_hold(s->memory);
        item->memory = s->memory;
    }
    selene_path_deliver(s, r, item);
    return true;
}

/* Check one datagram and hand it on. Whether anybody keeps it. */
static bool handle(struct selene_session *s, const struct arrival *a)
{
    struct qos_wire w;
    if (qos_frame_decode(a->data, a->size, &w) < 0) {
        if (a->size > 0) /* empty: a nudge */
            count(&s->counters->refused, 1);
        return false;
    }
    if (w.type == QOS_WIRE_CREDIT) {
        selene_credit_arrived(s, &w, a->from);
        return false;
    }
    struct remote *r = selene_remote_of(s, w.source);
    if (!r) {
        /* Its announcement was written to the control socket before the source could send; maybe nobody has read it yet. */
        pthread_mutex_unlock(&s->remote_lock);
        selene_sync_control(s);
        pthread_mutex_lock(&s->remote_lock);
        r = selene_remote_of(s, w.source);
    }
    /* parts of a larger message: nobody puts them together yet */
    if (!r || (a->from && !qos_address_equal(a->from, &r->address)) || w.flags & QOS_WIRE_FRAGMENT) {
        count(&s->counters->refused, 1);
        return false;
    }
    if (w.type == QOS_WIRE_PROBE) {
        /* what was sent before the probe and has not come is lost: nothing of it waits for a sink */
        if (!selene_remote_busy(s, r))
            selene_credit_note(r, w.credit);
        selene_credit_send(s, r, QOS_WIRE_ANSWER);
        return false;
    }
    return w.type == QOS_WIRE_DATA && deliver(s, a, &w, r);
}

/* ---- The socket ---- */

static uint8_t *slab_at(const struct selene_session *s, uint32_t index)
{
    return s->slabs + (size_t)index * QOS_POOL_STRIDE;
}

/* A slab nobody holds; RX_SLABS if all are held. */
static uint32_t slab_free(struct selene_session *s, uint32_t from)
{
    for (uint32_t i = 0; i < RX_SLABS; i++) {
        uint32_t index = (from + i) % RX_SLABS;
        /* acquire: pairs with the decrement in selene_item_drop: its reader is done */
        if (qos_load_acquire(&s->slab_references[index]) == 0)
            return index;
    }
    return RX_SLABS;
}

/* Something has come from the kernel or the ring. */
static void stamp_arrival(struct selene_session *s)
{
    if (QOS_UNLIKELY(qos_load_relaxed(&s->stamping)))
        s->arrived_ns = qos_clock_stamp_ns();
}

static int take_packet(struct selene_session *s, const struct qos_packet *p)
{
    bool copy = p->length <= RX_COPYBREAK;
    struct arrival a = {.from = &p->address, .copy = copy, .slab = copy ? 0 : s->staging + 1};
    uint32_t step = p->segment ? p->segment : qos_frame_segment(p->data, p->length);
    int kept = 0;
    pthread_mutex_lock(&s->remote_lock);
    for (uint32_t at = 0; at < p->length || at == 0; at += step) {
        a.data = p->data + at;
        a.size = p->length - at < step ? p->length - at : step;
        kept += handle(s, &a);
        if (step == 0)
            break;
    }
    pthread_mutex_unlock(&s->remote_lock);
    return kept;
}

/* A buffer for the next reception: the staging slab, or another if messages in it are held. */
static bool stage(struct selene_session *s, struct qos_packet *p)
{
    if (qos_load_acquire(&s->slab_references[s->staging]) != 0) {
        uint32_t next = slab_free(s, s->staging + 1);
        if (next == RX_SLABS)
            return false;
        s->staging = next;
    }
    p->data = slab_at(s, s->staging) + RX_OFFSET;
    p->length = QOS_POOL_STRIDE - RX_OFFSET;
    return true;
}

/* Let the kernel put datagrams together in a flood, and not for single ones: 64 receptions of single ones in a row, at more than 250,000
 * a second, switch it on, at fewer than 20,000 off. */
static void adapt(struct selene_session *s, struct qos_datapath *udp, bool together)
{
    s->receptions = together ? 0 : s->receptions + 1;
    if (s->receptions < ADAPT_EVERY || !(udp->capabilities & QOS_CAP_COALESCED_RX))
        return;
    uint64_t now = qos_clock_stamp_ns(), passed = now - s->receptions_ns;
    s->receptions = 0;
    s->receptions_ns = now;
    bool want = s->coalescing ? passed < ADAPT_EVERY * 50000ull : passed < ADAPT_EVERY * 4000ull;
    if (want != s->coalescing && qos_udp_coalesce(udp, want) == 0)
        s->coalescing = want;
}

static int receive_socket(struct selene_session *s, uint64_t timeout_ns)
{
    struct qos_datapath *udp = s->memory->udp, *net = s->memory->net;
    struct qos_packet p;
    if (QOS_UNLIKELY(qos_load_relaxed(&s->pair_again))) {
        pthread_mutex_lock(&s->remote_lock);
        selene_pair(s);
        pthread_mutex_unlock(&s->remote_lock);
    }
    int kept = 0;
    /* probes and credit must not hide what is behind them from somebody who looks only now and then */
    for (int i = 0; kept == 0 && i < CONTROL_BURST; i++, timeout_ns = 0) {
        if (!udp || !stage(s, &p))
            return 0;
        int n = timeout_ns ? net->ops->rx_wait(net, &p, timeout_ns) : net->ops->rx(net, &p, 1);
        if (n != 1)
            return 0;
        stamp_arrival(s);
        adapt(s, udp, p.segment != 0);
        kept = take_packet(s, &p);
    }
    return kept;
}

/* ---- The receive ring ---- */

/* For poll loops: silence the doorbell and ask to be rung for what comes from now on. The role is held, so that nobody else can take the
 * ring for empty meanwhile; all that was there before must then be taken. */
static void rearm(struct memory *m)
{
    char drop[64];
    while (recv(m->doorbell, drop, sizeof drop, MSG_DONTWAIT) > 0)
        ;
    __atomic_store_n(&m->page->waiting, SELENE_WAIT_FD, __ATOMIC_RELAXED);
    qos_fence_seq_cst(); /* pairs with the fence in selened-dp after it has pushed */
}

static int receive_ring(struct selene_session *s)
{
    struct memory *m = s->memory;
    uint64_t words[2];
    int kept = 0, most = RELAY_BURST;
    if (qos_load_relaxed(&s->polled)) {
        rearm(m);
        most = SELENE_RING_CAPACITY / 2;
    }
    for (int i = 0; i < most && qos_ring_peek(&m->relay_rx) >= 2 && qos_ring_pop(&m->relay_rx, words, 2) == 2; i++) {
        struct arrival a = {.size = (uint32_t)words[1], .slice = words[0]};
        stamp_arrival(s);
        a.data = qos_slice_locate(&m->rx, a.slice, a.size, 0);
        bool keep = false;
        if (a.data) {
            pthread_mutex_lock(&s->remote_lock);
            keep = handle(s, &a);
            pthread_mutex_unlock(&s->remote_lock);
        }
        kept += keep;
        if (!keep)
            give_back(s, m, a.slice);
    }
    return kept;
}

static bool ring_ready(struct memory *m)
{
    return qos_ring_peek(&m->relay_rx) != 0 || qos_ring_peek(&m->relay_done) != 0;
}

/* Sleep until the ring or the socket may have something. */
static void sleep_for_ring(struct selene_session *s, uint64_t timeout_ns)
{
    struct memory *m = s->memory;
    _Atomic uint32_t *waiting = (_Atomic uint32_t *)&m->page->waiting;
    struct timespec ts = {(time_t)(timeout_ns / 1000000000u), (long)(timeout_ns % 1000000000u)};
    uint32_t how = m->udp ? SELENE_WAIT_FD : SELENE_WAIT_FUTEX;
    atomic_store_explicit(waiting, how, memory_order_relaxed);
    /* pairs with the fence in selened-dp after it has pushed: either it sees that we sleep, or we see its words */
    qos_fence_seq_cst();
    if (!ring_ready(m)) {
        if (how == SELENE_WAIT_FUTEX) {
            (void)qos_futex_wait(waiting, SELENE_WAIT_FUTEX, timeout_ns);
        } else {
            struct pollfd p[2] = {{m->doorbell, POLLIN, 0}, {m->net->ops->wait_fd(m->net), POLLIN, 0}};
            if (ppoll(p, 2, &ts, NULL) > 0 && p[0].revents) {
                char drop[64];
                while (recv(m->doorbell, drop, sizeof drop, MSG_DONTWAIT) > 0)
                    ;
            }
        }
    }
    atomic_store_explicit(waiting, SELENE_AWAKE, memory_order_relaxed);
}

/* While something is set aside: what it waits for is in the socket or in the ring, and each may hold a lot. */
static int drain_paths(struct selene_session *s)
{
    int kept = 0, n;
    for (int i = 0; i < RX_ITEMS && s->changing_paths && (n = receive_socket(s, 0)) > 0; i++)
        kept += n;
    return kept + receive_ring(s);
}

/* Take what has arrived; wait up to timeout_ns if nothing has. The caller is the receiver. How many datagrams were queued. */
int selene_receive(struct selene_session *s, uint64_t timeout_ns)
{
    struct memory *m = s->memory;
    int kept = 0;
    if (QOS_UNLIKELY(s->changing_paths)) {
        kept = drain_paths(s);
        if (kept == 0)
            timeout_ns = selene_path_due(s, timeout_ns);
        if (kept > 0 || timeout_ns == 0)
            return kept;
    }
    if (!qos_load_relaxed(&s->ring_used) && m->udp)
        return receive_socket(s, timeout_ns);
    kept = receive_socket(s, 0) + receive_ring(s);
    if (kept > 0 || timeout_ns == 0)
        return kept;
    /* Left in their ring, outcomes would keep a sink from sleeping; only a source waits for them. */
    if (qos_ring_peek(&m->relay_done) != 0) {
        selene_relay_done(s, m);
        if (!s->receiving_for)
            return 0;
    }
    sleep_for_ring(s, timeout_ns);
    return receive_socket(s, 0) + receive_ring(s);
}

int selene_receive_init(struct selene_session *s)
{
    s->items = aligned_alloc(QOS_CACHE_LINE, RX_ITEMS * sizeof *s->items);
    void *slabs = mmap(NULL, (size_t)RX_SLABS * QOS_POOL_STRIDE, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (!s->items || slabs == MAP_FAILED) {
        free(s->items);
        return -ENOMEM;
    }
    s->slabs = slabs;
    for (uint32_t i = 0; i < RX_ITEMS; i++)
        s->items[i].busy = false; /* the rest is touched when it is used */
    return 0;
}

void selene_receive_free(struct selene_session *s)
{
    for (uint32_t i = 0; i < 256; i++) {
        while (s->remotes[i]) {
            struct remote *r = s->remotes[i];
            s->remotes[i] = r->next;
            for (uint32_t k = 0; k < r->sinks; k++)
                free(r->inflows[k]);
            for (uint32_t k = 0; k < r->aside_count; k++)
                selene_item_drop(s, r->aside[k], 1);
            free(r->aside);
            free(r);
        }
    }
    free(s->items);
    munmap(s->slabs, (size_t)RX_SLABS * QOS_POOL_STRIDE);
}
