/* SPDX-License-Identifier: Apache-2.0
 *
 * Callbacks: run by the library's dispatcher thread, or by whoever is in selene_poll.
 */
#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "internal.h"

#define BURST 64

/* Whether a callback has not closed the sink it was called for. */
static bool exists(struct selene_session *s, const struct selene_sink *sink)
{
    pthread_mutex_lock(&s->lock);
    const struct selene_sink *x = s->sinks;
    while (x && x != sink)
        x = x->next;
    pthread_mutex_unlock(&s->lock);
    return x != NULL;
}

/* Hand a sink's messages to its callback. How many; stops when the set of sinks has changed, for then this one may be gone. */
static int run(struct selene_session *s, struct selene_sink *sink, uint64_t generation)
{
    selene_buffer buffer;
    int n = 0;
    while (n < BURST && selene_sink_next(sink, &buffer) == 1) {
        selene_buffer copy = buffer;
        qos_store_relaxed(&s->consumed, qos_load_relaxed(&s->consumed) + 1);
        sink->callback(sink, &copy, sink->arg);
        n++;
        bool changed = s->sinks_generation != generation;
        if (changed && !exists(s, sink))
            return n; /* its buffers went with it */
        (void)selene_release_buffer(sink, &buffer);
        if (changed)
            return n;
    }
    return n;
}

/* One pass over what is queued at the callback sinks; the dispatch lock, held, keeps them from being closed by other threads. */
static int pass(struct selene_session *s)
{
    int n = 0;
    pthread_mutex_lock(&s->lock);
    uint64_t generation = s->sinks_generation;
    struct selene_sink *sink = s->sinks;
    pthread_mutex_unlock(&s->lock);
    for (; sink && s->sinks_generation == generation; sink = sink->next) {
        if (sink->callback)
            n += run(s, sink, generation);
        if (s->sinks_generation != generation)
            break;
    }
    return n;
}

/* What the callback sinks wait for. */
struct wanted {
    bool any;    /* of them has something */
    bool remote; /* sources */
    bool local;
    bool spin;
};

static struct wanted look_round(struct selene_session *s)
{
    struct wanted w = {false, false, false, false};
    pthread_mutex_lock(&s->lock);
    for (struct selene_sink *x = s->sinks; x; x = x->next) {
        if (!x->callback)
            continue;
        w.any = w.any || selene_sink_ready(x);
        w.remote = w.remote || qos_load_relaxed(&x->remotes) > 0;
        w.local = w.local || x->edge_count > 0;
        w.spin = w.spin || x->spin;
    }
    pthread_mutex_unlock(&s->lock);
    return w;
}

/* Only datagrams can come: then the receive call is the wait, one system call where poll and recv are two. The caller is the receiver. */
static void wait_as_receiver(struct selene_session *s, uint64_t timeout_ns)
{
    qos_store_relaxed(&s->dispatch_sleeping, DISPATCH_RECEIVES);
    qos_fence_seq_cst(); /* pairs with those of selene_sink_wake and selene_dispatch_nudge */
    if (!look_round(s).any && !qos_load_relaxed(&s->closers) && !qos_load_relaxed(&s->stop))
        (void)selene_receive(s, timeout_ns);
    qos_store_relaxed(&s->dispatch_sleeping, 0);
}

static void wait_on_fds(struct selene_session *s, uint64_t timeout_ns)
{
    struct memory *m = s->memory;
    struct pollfd p[3] = {
        {s->callback_fd, POLLIN, 0}, {m->udp ? m->net->ops->wait_fd(m->net) : -1, POLLIN, 0}, {-1, POLLIN, 0}};
    if (qos_load_relaxed(&s->ring_used)) {
        p[2].fd = m->doorbell;
        __atomic_store_n(&m->page->waiting, SELENE_WAIT_FD, __ATOMIC_RELAXED);
    }
    qos_store_relaxed(&s->dispatch_sleeping, DISPATCH_POLLS);
    pthread_mutex_lock(&s->lock);
    for (struct selene_sink *x = s->sinks; x; x = x->next)
        if (x->callback)
            selene_edges_wait(x, QOS_SHM_ON_FD);
    pthread_mutex_unlock(&s->lock);
    qos_fence_seq_cst(); /* pairs with the fences of producers, receiver and datapath process */
    struct timespec ts = {(time_t)(timeout_ns / 1000000000u), (long)(timeout_ns % 1000000000u)};
    struct wanted w = look_round(s);
    bool ring = w.remote && p[2].fd >= 0 && selene_ring_left(s, m); /* for what came while nobody slept nobody rang */
    if (!w.any && !ring && ppoll(p, 3, &ts, NULL) > 0) {
        uint64_t drop;
        char bell[64];
        if (p[0].revents && read(s->callback_fd, &drop, sizeof drop) < 0)
            p[0].revents = 0;
        if (p[2].revents && recv(m->doorbell, bell, sizeof bell, MSG_DONTWAIT) < 0)
            p[2].revents = 0;
    }
    qos_store_relaxed(&s->dispatch_sleeping, 0);
}

static void wait_for_any(struct selene_session *s, uint64_t timeout_ns)
{
    struct wanted w = look_round(s);
    bool sleep = timeout_ns > 0 && !w.spin;
    if (sleep && w.remote && !w.local && s->memory->udp && !qos_load_relaxed(&s->ring_used) &&
        selene_receiver_enter(s, NULL)) {
        wait_as_receiver(s, timeout_ns);
        selene_receiver_leave(s);
        return;
    }
    if (sleep)
        wait_on_fds(s, timeout_ns);
    int kept = 0;
    if (w.remote && selene_receiver_enter(s, NULL)) {
        kept = selene_receive(s, 0);
        selene_receiver_leave(s);
    }
    if (w.spin && kept == 0)
        qos_spin_step(&s->dispatch_spinner);
}

/* With the dispatch lock: until something was handled, the time is over, somebody else wants the lock, or the session ends. */
static int dispatch(struct selene_session *s, uint64_t timeout_ns)
{
    uint64_t begin = qos_clock_monotonic_ns(), passed = 0;
    qos_spin_start(&s->dispatch_spinner);
    for (bool last = false, flushed = false;; last = passed >= timeout_ns) {
        int n = pass(s);
        if (n > 0 || last || qos_load_acquire(&s->closers) || qos_load_acquire(&s->stop))
            return n;
        /* what the caller and its callbacks have emitted; batches of others stay open when all that comes is credit for them */
        if (!flushed && qos_load_acquire(&s->open_batches))
            (void)selene_flush_session(s, true);
        flushed = true;
        uint64_t left = timeout_ns > passed ? timeout_ns - passed : 0;
        wait_for_any(s, left < SLICE_SLEEP_NS ? left : SLICE_SLEEP_NS);
        passed = qos_clock_monotonic_ns() - begin;
    }
}

/* A mutex alone would let a thread that runs callbacks in a loop keep all others out. */
static void give_way(void)
{
    struct timespec ts = {0, 1000000};
    nanosleep(&ts, NULL);
}

void selene_dispatch_nudge(struct selene_session *s)
{
    uint64_t one = 1;
    ssize_t ignored = write(s->callback_fd, &one, sizeof one);
    (void)ignored;
    qos_fence_seq_cst(); /* pairs with the fence in wait_as_receiver: either it sees why it is to wake, or we see that it sleeps */
    if (qos_load_relaxed(&s->dispatch_sleeping) == DISPATCH_RECEIVES)
        selene_receiver_nudge(s);
}

static void announce(struct selene_session *s, _Atomic uint32_t *who)
{
    qos_add_acq_rel(who, 1);
    selene_dispatch_nudge(s);
}

void selene_dispatch_enter(struct selene_session *s)
{
    announce(s, &s->closers);
    pthread_mutex_lock(&s->dispatch_lock);
}

void selene_dispatch_leave(struct selene_session *s)
{
    pthread_mutex_unlock(&s->dispatch_lock);
    qos_sub_acq_rel(&s->closers, 1);
}

int selene_poll(selene_session *s, int timeout_ms)
{
    uint64_t timeout_ns = timeout_ms < 0 ? UINT64_MAX : (uint64_t)timeout_ms * 1000000u;
    uint64_t begin = qos_clock_monotonic_ns(), passed = 0;
    int n;
    announce(s, &s->pollers); /* the dispatcher gives way to whoever polls */
    for (;;) {
        pthread_mutex_lock(&s->dispatch_lock);
        n = dispatch(s, timeout_ns - passed);
        pthread_mutex_unlock(&s->dispatch_lock);
        passed = qos_clock_monotonic_ns() - begin;
        if (n > 0 || passed >= timeout_ns || qos_load_acquire(&s->stop))
            break;
        give_way();
    }
    qos_sub_acq_rel(&s->pollers, 1);
    return n;
}

static void *dispatcher(void *arg)
{
    struct selene_session *s = arg;
    (void)prctl(PR_SET_NAME, "selene-dispatch");
    while (!qos_load_acquire(&s->stop)) {
        pthread_mutex_lock(&s->dispatch_lock);
        if (qos_load_acquire(&s->pollers) == 0)
            (void)dispatch(s, SLICE_SLEEP_NS);
        pthread_mutex_unlock(&s->dispatch_lock);
        if (qos_load_acquire(&s->pollers) || qos_load_acquire(&s->closers))
            give_way();
    }
    return NULL;
}

int selene_dispatch_start(struct selene_session *s)
{
    int rc = 0;
    pthread_mutex_lock(&s->lock);
    if (!s->dispatching) {
        s->dispatch_spinner = qos_spin_new(qos_wait_processors());
        rc = -pthread_create(&s->dispatcher, NULL, dispatcher, s);
        s->dispatching = rc == 0;
    }
    pthread_mutex_unlock(&s->lock);
    return rc < 0 ? selene_fail(rc, "cannot start the thread that runs callbacks") : 0;
}

void selene_dispatch_stop(struct selene_session *s)
{
    selene_dispatch_nudge(s);
    if (s->dispatching)
        pthread_join(s->dispatcher, NULL);
    s->dispatching = false;
}
