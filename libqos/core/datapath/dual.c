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

#include "xsk.h"

#define BURST 64

struct dual {
    struct qos_datapath dp;
    struct qos_datapath *fast, *slow;
    int epoll_fd;
    bool slow_first; /* who is looked at first takes turns, so that a flood by one does not keep the other waiting */
};

/* Both together. Several threads may be here: each leaves what is true, or was a moment ago. */
static void sum(struct dual *d)
{
    const uint64_t *a = (const uint64_t *)&d->fast->stats, *b = (const uint64_t *)&d->slow->stats;
    uint64_t *out = (uint64_t *)&d->dp.stats;
    for (size_t i = 0; i < sizeof d->dp.stats / sizeof *out; i++)
        __atomic_store_n(&out[i], __atomic_load_n(&a[i], __ATOMIC_RELAXED) + __atomic_load_n(&b[i], __ATOMIC_RELAXED),
                         __ATOMIC_RELAXED);
}

static bool goes_fast(struct dual *d, const struct qos_packet *p)
{
    uint32_t size = p->segment && p->segment < p->length ? p->segment : p->length;
    return size <= d->fast->mtu && qos_xsk_reaches(d->fast, &p->address);
}

static int dual_tx(struct qos_datapath *dp, struct qos_packet *packets, unsigned n)
{
    struct dual *d = (struct dual *)dp;
    unsigned done = 0;
    while (done < n) {
        bool fast = goes_fast(d, &packets[done]);
        unsigned run = 1;
        while (done + run < n && goes_fast(d, &packets[done + run]) == fast)
            run++;
        struct qos_datapath *by = fast ? d->fast : d->slow;
        int sent = by->ops->tx(by, packets + done, run);
        if (sent <= 0)
            break;
        done += (unsigned)sent;
        if ((unsigned)sent < run)
            break;
    }
    sum(d);
    return done > 0 || n == 0 ? (int)done : -EAGAIN;
}

/* Into the caller's memory, as all of it comes from here. */
static unsigned receive_fast(struct dual *d, struct qos_packet *packets, unsigned n)
{
    struct qos_packet in[BURST];
    unsigned kept = 0;
    n = n < BURST ? n : BURST;
    memcpy(in, packets, n * sizeof *in);
    int got = d->fast->ops->rx(d->fast, in, n);
    for (int i = 0; i < got; i++) {
        struct qos_packet *p = &packets[kept];
        if (in[i].length <= p->length) {
            memcpy(p->data, in[i].data, in[i].length);
            in[i].data = p->data;
            *p = in[i];
            kept++;
        } else {
            d->fast->stats.rx_refused++;
        }
        d->fast->ops->release(d->fast, in[i].token);
    }
    return kept;
}

static unsigned receive_slow(struct dual *d, struct qos_packet *packets, unsigned n)
{
    int got = d->slow->ops->rx(d->slow, packets, n);
    return got > 0 ? (unsigned)got : 0;
}

static int dual_rx(struct qos_datapath *dp, struct qos_packet *packets, unsigned n)
{
    struct dual *d = (struct dual *)dp;
    unsigned got = d->slow_first ? receive_slow(d, packets, n) : receive_fast(d, packets, n);
    if (got < n)
        got += d->slow_first ? receive_fast(d, packets + got, n - got) : receive_slow(d, packets + got, n - got);
    d->slow_first = !d->slow_first;
    sum(d);
    return (int)got;
}

static int dual_rx_wait(struct qos_datapath *dp, struct qos_packet *packet, uint64_t timeout_ns)
{
    struct dual *d = (struct dual *)dp;
    const struct qos_packet empty = *packet;
    if (dual_rx(dp, packet, 1) == 1)
        return 1;
    struct pollfd p[] = {{d->fast->ops->wait_fd(d->fast), POLLIN, 0}, {d->slow->ops->wait_fd(d->slow), POLLIN, 0}};
    struct timespec time = {(time_t)(timeout_ns / 1000000000), (long)(timeout_ns % 1000000000)};
    if (ppoll(p, 2, &time, NULL) <= 0)
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
    close(d->epoll_fd);
    d->fast->ops->close(d->fast);
    d->slow->ops->close(d->slow);
    free(d);
}

static const struct qos_datapath_ops DUAL_OPS = {"xdp and udp", dual_tx,      dual_rx,   dual_rx_wait,
                                                 dual_release,  dual_wait_fd, dual_close};

int qos_dual_open(struct qos_datapath **dp, struct qos_datapath *fast, struct qos_datapath *slow)
{
    struct dual *d = calloc(1, sizeof *d);
    if (d == NULL)
        return -ENOMEM;
    d->fast = fast;
    d->slow = slow;
    d->dp.ops = &DUAL_OPS;
    d->dp.capabilities = slow->capabilities & fast->capabilities & ~(uint32_t)QOS_CAP_OWN_MEMORY;
    d->dp.capabilities |= slow->capabilities & QOS_CAP_COALESCED_RX;
    d->dp.mtu = fast->mtu;
    d->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    struct epoll_event readable = {.events = EPOLLIN};
    if (d->epoll_fd < 0 || epoll_ctl(d->epoll_fd, EPOLL_CTL_ADD, fast->ops->wait_fd(fast), &readable) < 0 ||
        epoll_ctl(d->epoll_fd, EPOLL_CTL_ADD, slow->ops->wait_fd(slow), &readable) < 0) {
        int rc = -errno;
        if (d->epoll_fd >= 0)
            close(d->epoll_fd);
        free(d);
        return rc;
    }
    *dp = &d->dp;
    return 0;
}
