/* SPDX-License-Identifier: Apache-2.0
 *
 * Each direction is a lane: a list of what is under way, in the order in which it leaves, and a list of what is held back until others
 * have passed it. A datagram that meets no fault while nothing is under way goes through without a copy.
 */
#include "fault.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include "../clock.h"
#include "../compiler.h"

#define RX_RUN 64u        /* receptions of one call, so that it ends in a flood that is all lost */
#define RETRY_NS 1000000u /* the socket buffer is full */
#define RX_SEED 0x5851f42d4c957f2du
#define STACK_BYTES (256 * 1024)

struct held {
    struct held *next;
    uint64_t due_ns;   /* held back: when it goes on in any case */
    uint64_t delay_ns; /* then */
    uint32_t length;
    uint8_t copies;
    uint8_t to_pass; /* so many more overtake it */
    bool overtaken;
    struct qos_address address;
    uint8_t data[];
};

struct lane {
    pthread_mutex_t lock;
    bool faulty;
    uint64_t seed;
    uint64_t datagrams; /* drawn for */
    size_t bytes;       /* held */
    uint64_t last_due_ns;
    struct held *under_way, **last;
    struct held *back;
};

struct fault {
    struct qos_datapath dp;
    struct qos_datapath *inner;
    struct qos_fault settings;
    struct qos_fault_counters *counters, own;
    struct lane tx, rx;
    pthread_t sender;
    pthread_cond_t news; /* for the sender */
    bool sending, stop;
    int epoll_fd, timer_fd; /* rx; -1: the inner datapath's handle will do */
};

static void count(uint64_t *counter, uint64_t n)
{
    __atomic_fetch_add(counter, n, __ATOMIC_RELAXED);
}

static uint32_t datagrams(const struct qos_packet *p)
{
    return p->segment ? (p->length + p->segment - 1) / p->segment : 1;
}

/* ---- What happens to a datagram ---- */

enum { LOSS, DUPLICATE, REORDER, CORRUPT, BIT, DISTANCE, JITTER, DRAWS };

/* splitmix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators, OOPSLA 2014); every draw has a place of its own. */
static uint64_t draw(const struct lane *l, unsigned which)
{
    uint64_t z = l->seed + (l->datagrams * DRAWS + which + 1) * UINT64_C(0x9e3779b97f4a7c15);
    z = (z ^ z >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ z >> 27) * UINT64_C(0x94d049bb133111eb);
    return z ^ z >> 31;
}

/* 0 to n - 1, for n up to 2^32. */
static uint64_t below(const struct lane *l, unsigned which, uint64_t n)
{
    return (draw(l, which) >> 32) * n >> 32;
}

static bool happens(const struct lane *l, unsigned which, uint64_t probability)
{
    return below(l, which, QOS_FAULT_ONE) < probability;
}

/* ---- A lane; its lock held ---- */

static struct held *hold(struct fault *f, struct lane *l, const uint8_t *data, uint32_t length,
                         const struct qos_address *address)
{
    size_t size = sizeof(struct held) + length;
    struct held *h = l->bytes + size <= QOS_FAULT_HELD_BYTES ? malloc(size) : NULL;
    if (h == NULL) {
        count(&f->counters->failed, 1);
        return NULL;
    }
    *h = (struct held){.length = length, .copies = 1, .address = *address};
    memcpy(h->data, data, length);
    l->bytes += size;
    return h;
}

static void depart(struct fault *f, struct lane *l, struct held *h, uint64_t now)
{
    h->due_ns = now + h->delay_ns > l->last_due_ns ? now + h->delay_ns : l->last_due_ns;
    l->last_due_ns = h->due_ns;
    if (h->due_ns > now)
        count(&f->counters->delayed, 1);
    if (h->overtaken)
        count(&f->counters->reordered, 1);
    h->next = NULL;
    *l->last = h;
    l->last = &h->next;
}

/* One that is not lost has come by. */
static void overtake(struct fault *f, struct lane *l, uint64_t now)
{
    for (struct held **at = &l->back; *at != NULL;) {
        struct held *h = *at;
        h->overtaken = true;
        if (--h->to_pass > 0) {
            at = &h->next;
            continue;
        }
        *at = h->next;
        depart(f, l, h, now);
    }
}

/* Nobody came to overtake these. */
static void expire(struct fault *f, struct lane *l, uint64_t now)
{
    while (l->back != NULL && l->back->due_ns <= now) {
        struct held *h = l->back;
        l->back = h->next;
        depart(f, l, h, now);
    }
}

/* The next one whose time has come, or NULL. */
static struct held *due(struct fault *f, struct lane *l, uint64_t now)
{
    expire(f, l, now);
    return l->under_way != NULL && l->under_way->due_ns <= now ? l->under_way : NULL;
}

static uint64_t next_due(const struct lane *l)
{
    uint64_t next = l->under_way != NULL ? l->under_way->due_ns : UINT64_MAX;
    return l->back != NULL && l->back->due_ns < next ? l->back->due_ns : next;
}

/* The first one under way has left once. */
static void left(struct lane *l)
{
    struct held *h = l->under_way;
    if (--h->copies > 0)
        return;
    l->under_way = h->next;
    if (l->under_way == NULL)
        l->last = &l->under_way;
    l->bytes -= sizeof *h + h->length;
    free(h);
}

static void hold_back(const struct fault *f, struct lane *l, struct held *h, uint64_t now)
{
    h->to_pass = (uint8_t)(1 + below(l, DISTANCE, QOS_FAULT_OVERTAKEN));
    h->due_ns = now + f->settings.hold;
    h->next = NULL;
    struct held **at = &l->back;
    while (*at != NULL)
        at = &(*at)->next;
    *at = h;
}

/* Decide about one datagram: true if it passes now, as it is and where it is; else it is lost, or on the lists. */
static bool admit(struct fault *f, struct lane *l, const uint8_t *data, uint32_t length,
                  const struct qos_address *address, uint64_t now)
{
    const struct qos_fault *s = &f->settings;
    if (length == 0)
        return true;
    bool lost = happens(l, LOSS, s->loss), twice = happens(l, DUPLICATE, s->duplicate);
    bool back = happens(l, REORDER, s->reorder), corrupt = happens(l, CORRUPT, s->corrupt);
    uint64_t delay_ns = s->delay + (s->jitter ? draw(l, JITTER) % (s->jitter + 1) : 0);
    bool passes = !lost && !back && !corrupt && delay_ns == 0 && l->under_way == NULL;
    if (lost)
        count(&f->counters->lost, 1);
    struct held *h = lost || (passes && !twice) ? NULL : hold(f, l, data, length, address);
    if (h != NULL) {
        h->delay_ns = delay_ns;
        h->copies = twice && !passes ? 2 : 1;
        count(&f->counters->duplicated, twice);
        if (corrupt) {
            uint64_t bit = below(l, BIT, (uint64_t)length * 8);
            h->data[bit / 8] ^= (uint8_t)(1u << bit % 8);
            count(&f->counters->corrupted, 1);
        }
        if (back)
            hold_back(f, l, h, now);
        else
            depart(f, l, h, now);
    }
    if (passes || (h != NULL && !back))
        overtake(f, l, now);
    l->datagrams++;
    return passes;
}

static void free_all(struct held *h)
{
    while (h != NULL) {
        struct held *next = h->next;
        free(h);
        h = next;
    }
}

/* ---- Sending ---- */

/* Send what is due; tx.lock held. */
static void send_due(struct fault *f, uint64_t now)
{
    struct lane *l = &f->tx;
    for (struct held *h; (h = due(f, l, now)) != NULL;) {
        struct qos_packet p = {.data = h->data, .length = h->length, .address = h->address};
        if (f->inner->ops->tx(f->inner, &p, 1) < 0) {
            h->due_ns = now + RETRY_NS;
            return;
        }
        count(&f->dp.stats.tx_errors, p.error != 0);
        count(&f->counters->failed, p.error != 0);
        left(l);
    }
}

static void *sender_main(void *argument)
{
    struct fault *f = argument;
    pthread_mutex_lock(&f->tx.lock);
    while (!f->stop) {
        send_due(f, qos_clock_monotonic_ns());
        uint64_t next = next_due(&f->tx);
        struct timespec ts = {(time_t)(next / 1000000000u), (long)(next % 1000000000u)};
        if (next == UINT64_MAX)
            pthread_cond_wait(&f->news, &f->tx.lock);
        else
            pthread_cond_timedwait(&f->news, &f->tx.lock, &ts);
    }
    pthread_mutex_unlock(&f->tx.lock);
    return NULL;
}

/* Send datagrams of a packet that pass. If the socket buffer is full, those of one that has begun must not come back to the caller:
 * they wait with the delayed ones. */
static void send_run(struct fault *f, struct qos_packet *p, uint32_t from, uint32_t to, uint64_t now)
{
    struct qos_packet run = *p;
    run.data += from;
    run.length = to - from;
    int n = f->inner->ops->tx(f->inner, &run, 1);
    if (n >= 0 && run.error != 0)
        p->error = run.error;
    uint32_t size = p->segment ? p->segment : p->length;
    for (uint32_t at = from; n < 0 && at < to; at += size) {
        struct held *h = hold(f, &f->tx, p->data + at, to - at < size ? to - at : size, &p->address);
        if (h != NULL)
            depart(f, &f->tx, h, now);
    }
}

/* One packet, which may be several datagrams; tx.lock held. */
static int send_packet(struct fault *f, struct qos_packet *p)
{
    struct lane *l = &f->tx;
    uint32_t size = p->segment ? p->segment : p->length, from = 0, at = 0;
    uint64_t now = qos_clock_monotonic_ns();
    if (p->length == 0)
        return f->inner->ops->tx(f->inner, p, 1);
    if (l->bytes + p->length + sizeof(struct held) > QOS_FAULT_HELD_BYTES)
        return -EAGAIN;
    p->error = 0;
    while (at < p->length) {
        uint32_t end = p->length - at < size ? p->length : at + size;
        bool passes = admit(f, l, p->data + at, end - at, &p->address, now);
        /* what comes behind it leaves after it */
        if (!passes || l->under_way != NULL || end == p->length) {
            uint32_t to = passes ? end : at;
            if (to > from)
                send_run(f, p, from, to, now);
            send_due(f, now);
            from = end;
        }
        at = end;
    }
    return 1;
}

static void count_tx(struct fault *f, const struct qos_packet *p)
{
    if (p->error != 0) {
        count(&f->dp.stats.tx_errors, 1);
        return;
    }
    count(&f->dp.stats.tx_packets, datagrams(p));
    count(&f->dp.stats.tx_bytes, p->length);
}

static int fault_tx(struct qos_datapath *dp, struct qos_packet *packets, unsigned n)
{
    struct fault *f = (struct fault *)dp;
    int done = 0;
    count(&dp->stats.tx_calls, 1);
    if (!f->tx.faulty) {
        done = f->inner->ops->tx(f->inner, packets, n);
    } else {
        pthread_mutex_lock(&f->tx.lock);
        while ((unsigned)done < n && send_packet(f, &packets[done]) == 1)
            done++;
        if (next_due(&f->tx) != UINT64_MAX)
            pthread_cond_signal(&f->news);
        pthread_mutex_unlock(&f->tx.lock);
        if (done == 0 && n > 0)
            done = -EAGAIN;
    }
    for (int i = 0; i < done; i++)
        count_tx(f, &packets[i]);
    return done;
}

/* ---- Receiving ---- */

/* One packet from within, in the caller's memory. */
static int receive(struct fault *f, struct qos_packet *p)
{
    struct qos_packet own = *p;
    int n = f->inner->ops->rx(f->inner, &own, 1);
    if (n == 1 && (f->inner->capabilities & QOS_CAP_OWN_MEMORY)) {
        own.length = own.length < p->length ? own.length : p->length;
        memcpy(p->data, own.data, own.length);
        f->inner->ops->release(f->inner, own.token);
        own.data = p->data;
    }
    if (n == 1)
        *p = own;
    return n;
}

/* Leave in a packet what passes of it. Whether that is anything. */
static bool sift(struct fault *f, struct qos_packet *p)
{
    uint32_t size = p->segment ? p->segment : p->length, kept = 0;
    uint64_t now = qos_clock_monotonic_ns();
    for (uint32_t at = 0; at < p->length; at += size) {
        uint32_t length = p->length - at < size ? p->length - at : size;
        if (!admit(f, &f->rx, p->data + at, length, &p->address, now))
            continue;
        if (kept < at)
            memmove(p->data + kept, p->data + at, length);
        kept += length;
    }
    if (kept == 0 && p->length > 0)
        return false;
    p->length = kept;
    if (kept <= p->segment)
        p->segment = 0;
    return true;
}

static bool take_due(struct fault *f, struct qos_packet *p)
{
    struct held *h = due(f, &f->rx, qos_clock_monotonic_ns());
    if (h == NULL)
        return false;
    p->length = h->length < p->length ? h->length : p->length;
    p->segment = 0;
    p->error = 0;
    p->address = h->address;
    memcpy(p->data, h->data, p->length);
    left(&f->rx);
    return true;
}

/* The wait handle is readable when the next one is due. */
static void set_timer(const struct fault *f)
{
    uint64_t next = next_due(&f->rx);
    struct itimerspec at = {.it_value = {(time_t)(next / 1000000000u), (long)(next % 1000000000u)}};
    if (next == UINT64_MAX)
        at = (struct itimerspec){0};
    (void)timerfd_settime(f->timer_fd, TFD_TIMER_ABSTIME, &at, NULL);
}

static void count_rx(struct fault *f, const struct qos_packet *packets, int n)
{
    struct qos_datapath_stats *s = &f->dp.stats;
    count(&s->rx_calls, 1);
    for (const struct qos_packet *p = packets; p < packets + n; p++) {
        count(&s->rx_packets, datagrams(p));
        count(&s->rx_bytes, p->length);
    }
    __atomic_store_n(&s->rx_overflow, __atomic_load_n(&f->inner->stats.rx_overflow, __ATOMIC_RELAXED),
                     __ATOMIC_RELAXED);
}

static int fault_rx(struct qos_datapath *dp, struct qos_packet *packets, unsigned n)
{
    struct fault *f = (struct fault *)dp;
    int done = 0;
    if (!f->rx.faulty) {
        done = f->inner->ops->rx(f->inner, packets, n);
    } else {
        pthread_mutex_lock(&f->rx.lock);
        for (unsigned run = 0; (unsigned)done < n && run < RX_RUN + n; run++) {
            struct qos_packet *p = &packets[done];
            uint32_t room = p->length;
            if (take_due(f, p)) {
                done++;
                continue;
            }
            if (receive(f, p) != 1)
                break;
            if (sift(f, p))
                done++;
            else
                p->length = room;
        }
        set_timer(f);
        pthread_mutex_unlock(&f->rx.lock);
    }
    count_rx(f, packets, done);
    return done;
}

static int fault_rx_wait(struct qos_datapath *dp, struct qos_packet *packet, uint64_t timeout_ns)
{
    struct fault *f = (struct fault *)dp;
    if (!f->rx.faulty) {
        int n = f->inner->ops->rx_wait(f->inner, packet, timeout_ns);
        count_rx(f, packet, n);
        return n;
    }
    uint64_t end = qos_clock_monotonic_ns() + timeout_ns;
    for (;;) {
        int n = fault_rx(dp, packet, 1);
        uint64_t now = qos_clock_monotonic_ns();
        if (n != 0 || now >= end)
            return n;
        struct timespec ts = {(time_t)((end - now) / 1000000000u), (long)((end - now) % 1000000000u)};
        struct pollfd p = {dp->ops->wait_fd(dp), POLLIN, 0};
        if (ppoll(&p, 1, &ts, NULL) < 0)
            return 0;
    }
}

static void fault_release(struct qos_datapath *dp, uint64_t token)
{
    struct fault *f = (struct fault *)dp;
    if (!f->rx.faulty)
        f->inner->ops->release(f->inner, token);
}

static int fault_wait_fd(const struct qos_datapath *dp)
{
    const struct fault *f = (const struct fault *)dp;
    return f->epoll_fd >= 0 ? f->epoll_fd : f->inner->ops->wait_fd(f->inner);
}

/* What is still under way leaves now; what the socket buffer has no room for is lost. */
static void send_rest(struct fault *f)
{
    for (struct held *h = f->tx.back; h != NULL; h = h->next)
        h->due_ns = h->delay_ns = 0;
    for (struct held *h = f->tx.under_way; h != NULL; h = h->next)
        h->due_ns = 0;
    f->tx.last_due_ns = 0;
    send_due(f, qos_clock_monotonic_ns());
    for (struct held *h = f->tx.under_way; h != NULL; h = h->next)
        count(&f->counters->failed, h->copies);
}

static void discard(struct fault *f)
{
    struct lane *lanes[] = {&f->tx, &f->rx};
    for (int i = 0; i < 2; i++) {
        free_all(lanes[i]->under_way);
        free_all(lanes[i]->back);
        pthread_mutex_destroy(&lanes[i]->lock);
    }
    pthread_cond_destroy(&f->news);
    if (f->epoll_fd >= 0)
        close(f->epoll_fd);
    if (f->timer_fd >= 0)
        close(f->timer_fd);
    free(f);
}

static void fault_close(struct qos_datapath *dp)
{
    struct fault *f = (struct fault *)dp;
    struct qos_datapath *inner = f->inner;
    if (f->sending) {
        pthread_mutex_lock(&f->tx.lock);
        f->stop = true;
        pthread_cond_signal(&f->news);
        pthread_mutex_unlock(&f->tx.lock);
        pthread_join(f->sender, NULL);
        send_rest(f);
    }
    discard(f);
    inner->ops->close(inner);
}

/* ---- Opening ---- */

static int start_sender(struct fault *f)
{
    pthread_attr_t attributes;
    sigset_t all, before;
    sigfillset(&all);
    pthread_attr_init(&attributes);
    pthread_attr_setstacksize(&attributes, STACK_BYTES);
    pthread_sigmask(SIG_SETMASK, &all, &before); /* signals are for the threads of the application */
    int rc = -pthread_create(&f->sender, &attributes, sender_main, f);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    pthread_attr_destroy(&attributes);
    f->sending = rc == 0;
    return rc;
}

/* One handle for what comes from within and for what is due. */
static int open_handle(struct fault *f)
{
    f->timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
    f->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    struct epoll_event event = {.events = EPOLLIN};
    if (f->timer_fd < 0 || f->epoll_fd < 0 || epoll_ctl(f->epoll_fd, EPOLL_CTL_ADD, f->timer_fd, &event) < 0 ||
        epoll_ctl(f->epoll_fd, EPOLL_CTL_ADD, f->inner->ops->wait_fd(f->inner), &event) < 0)
        return -errno;
    return 0;
}

static const struct qos_datapath_ops FAULT_OPS = {"fault",       fault_tx,      fault_rx,   fault_rx_wait,
                                                  fault_release, fault_wait_fd, fault_close};

int qos_fault_open(struct qos_datapath **dp, struct qos_datapath *inner, const struct qos_fault *fault,
                   struct qos_fault_counters *counters)
{
    struct fault *f = calloc(1, sizeof *f);
    if (f == NULL)
        return -ENOMEM;
    bool faulty = fault->loss | fault->duplicate | fault->reorder | fault->corrupt | fault->delay | fault->jitter;
    f->dp.ops = &FAULT_OPS;
    f->dp.capabilities = inner->capabilities;
    f->dp.mtu = inner->mtu;
    f->inner = inner;
    f->settings = *fault;
    f->counters = counters != NULL ? counters : &f->own;
    f->tx.faulty = faulty && (fault->direction & QOS_FAULT_TX);
    f->rx.faulty = faulty && (fault->direction & QOS_FAULT_RX);
    f->tx.seed = fault->seed;
    f->rx.seed = fault->seed ^ RX_SEED;
    f->tx.last = &f->tx.under_way;
    f->rx.last = &f->rx.under_way;
    f->epoll_fd = f->timer_fd = -1;
    pthread_mutex_init(&f->tx.lock, NULL);
    pthread_mutex_init(&f->rx.lock, NULL);
    pthread_condattr_t attributes;
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_cond_init(&f->news, &attributes);
    pthread_condattr_destroy(&attributes);
    int rc = 0;
    if (f->rx.faulty) {
        f->dp.capabilities &= ~(uint32_t)QOS_CAP_OWN_MEMORY;
        rc = open_handle(f);
    }
    if (rc == 0 && f->tx.faulty)
        rc = start_sender(f);
    if (rc < 0) {
        discard(f);
        return rc;
    }
    *dp = &f->dp;
    return 0;
}
