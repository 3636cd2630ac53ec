/* SPDX-License-Identifier: Apache-2.0 */
#include "dual.h"

#include <errno.h>
#include <poll.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <time.h>
#include <unistd.h>

#include "../compiler.h"

#define BURST 64

struct dual {
    struct qos_datapath dp;
    struct qos_datapath *slow;
    struct qos_datapath *_Atomic fast; /* NULL: not yet */
    int epoll_fd;
    bool slow_first; /* who is looked at first takes turns, so that a flood by one does not keep the other waiting */
};

struct qos_datapath *qos_dual_fast(const struct qos_datapath *dp)
{
    /* acquire: pairs with the release in qos_dual_add */
    return qos_load_acquire(&((const struct dual *)dp)->fast);
}

/* Both together. Several threads may be here: each leaves what is true, or was a moment ago. */
static void sum(struct dual *d, const struct qos_datapath *fast)
{
    const uint64_t *a = (const uint64_t *)&d->slow->stats, *b = fast ? (const uint64_t *)&fast->stats : NULL;
    uint64_t *out = (uint64_t *)&d->dp.stats;
    for (size_t i = 0; i < sizeof d->dp.stats / sizeof *out; i++)
        __atomic_store_n(&out[i],
                         __atomic_load_n(&a[i], __ATOMIC_RELAXED) + (b ? __atomic_load_n(&b[i], __ATOMIC_RELAXED) : 0),
                         __ATOMIC_RELAXED);
}

static int dual_tx(struct qos_datapath *dp, struct qos_packet *packets, unsigned n)
{
    struct dual *d = (struct dual *)dp;
    struct qos_datapath *fast = qos_dual_fast(dp);
    unsigned done = 0;
    while (done < n) {
        bool by_fast = fast && packets[done].fast;
        unsigned run = 1;
        while (done + run < n && (fast && packets[done + run].fast) == by_fast)
            run++;
        struct qos_datapath *by = by_fast ? fast : d->slow;
        int sent = by->ops->tx(by, packets + done, run);
        if (sent <= 0)
            break;
        done += (unsigned)sent;
        if ((unsigned)sent < run)
            break;
    }
    sum(d, fast);
    return done > 0 || n == 0 ? (int)done : -EAGAIN;
}

/* Into the caller's memory, as all of it comes from here. */
static unsigned receive_fast(struct qos_datapath *fast, struct qos_packet *packets, unsigned n)
{
    struct qos_packet in[BURST];
    unsigned kept = 0;
    if (fast == NULL)
        return 0;
    n = n < BURST ? n : BURST;
    memcpy(in, packets, n * sizeof *in);
    int got = fast->ops->rx(fast, in, n);
    for (int i = 0; i < got; i++) {
        struct qos_packet *p = &packets[kept];
        if (in[i].length <= p->length) {
            memcpy(p->data, in[i].data, in[i].length);
            in[i].data = p->data;
            *p = in[i];
            p->fast = true;
            kept++;
        } else {
            __atomic_fetch_add(&fast->stats.rx_refused, 1, __ATOMIC_RELAXED);
        }
        fast->ops->release(fast, in[i].token);
    }
    return kept;
}

static unsigned receive_slow(struct dual *d, struct qos_packet *packets, unsigned n)
{
    int got = d->slow->ops->rx(d->slow, packets, n);
    for (int i = 0; i < got; i++)
        packets[i].fast = false;
    return got > 0 ? (unsigned)got : 0;
}

static int dual_rx(struct qos_datapath *dp, struct qos_packet *packets, unsigned n)
{
    struct dual *d = (struct dual *)dp;
    struct qos_datapath *fast = qos_dual_fast(dp);
    unsigned got = d->slow_first ? receive_slow(d, packets, n) : receive_fast(fast, packets, n);
    if (got < n)
        got += d->slow_first ? receive_fast(fast, packets + got, n - got) : receive_slow(d, packets + got, n - got);
    d->slow_first = !d->slow_first;
    sum(d, fast);
    return (int)got;
}

static int dual_rx_wait(struct qos_datapath *dp, struct qos_packet *packet, uint64_t timeout_ns)
{
    struct dual *d = (struct dual *)dp;
    const struct qos_packet empty = *packet;
    if (dual_rx(dp, packet, 1) == 1)
        return 1;
    /* not on the two sockets: the fast one may come while we sleep */
    struct pollfd p = {d->epoll_fd, POLLIN, 0};
    struct timespec time = {(time_t)(timeout_ns / 1000000000), (long)(timeout_ns % 1000000000)};
    if (ppoll(&p, 1, &time, NULL) <= 0)
        return 0;
    *packet = empty;
    return dual_rx(dp, packet, 1);
}

static void dual_release(struct qos_datapath *dp, uint64_t token)
{
    (void)dp;
    (void)token; /* packets are received into the caller's memory */
}

static int dual_wait_fd(const struct qos_datapath *dp)
{
    return ((const struct dual *)dp)->epoll_fd;
}

static void dual_close(struct qos_datapath *dp)
{
    struct dual *d = (struct dual *)dp;
    struct qos_datapath *fast = qos_dual_fast(dp);
    close(d->epoll_fd);
    if (fast)
        fast->ops->close(fast);
    d->slow->ops->close(d->slow);
    free(d);
}

static const struct qos_datapath_ops DUAL_OPS = {"xdp and udp", dual_tx,      dual_rx,   dual_rx_wait,
                                                 dual_release,  dual_wait_fd, dual_close};

static int watch(struct dual *d, const struct qos_datapath *dp)
{
    struct epoll_event readable = {.events = EPOLLIN};
    return epoll_ctl(d->epoll_fd, EPOLL_CTL_ADD, dp->ops->wait_fd(dp), &readable) < 0 ? -errno : 0;
}

int qos_dual_open(struct qos_datapath **dp, struct qos_datapath *udp)
{
    struct dual *d = calloc(1, sizeof *d);
    if (d == NULL)
        return -ENOMEM;
    d->slow = udp;
    d->dp.ops = &DUAL_OPS;
    d->dp.capabilities = udp->capabilities;
    d->dp.mtu = udp->mtu;
    d->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    int rc = d->epoll_fd < 0 ? -errno : watch(d, udp);
    if (rc < 0) {
        if (d->epoll_fd >= 0)
            close(d->epoll_fd);
        free(d);
        return rc;
    }
    *dp = &d->dp;
    return 0;
}

int qos_dual_add(struct qos_datapath *dp, struct qos_datapath *fast)
{
    struct dual *d = (struct dual *)dp;
    if (qos_dual_fast(dp) != NULL)
        return -EALREADY;
    int rc = watch(d, fast);
    if (rc == 0)
        qos_store_release(&d->fast, fast); /* pairs with the acquire in qos_dual_fast */
    return rc;
}
