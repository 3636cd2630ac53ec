/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Two links of shared memory, one for each way, as a datapath: tx copies into a slot and hands it on, rx hands out the slices
 * themselves, release gives them back. SELENE drives the links by itself (datapath/shm.h), with wake-ups that this has no need of.
 */
#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <sys/eventfd.h>

#include "conformance.h"
#include "shm_fixture.h"

#define LINK_DEPTH 256u
#define BUFFERS 512u

struct way {
    struct edge edge;
    int event_fd;
    /* ThreadSanitizer cannot know that the two mappings of the link are one memory, nor that its rings order what is in the pool. */
    _Atomic uint32_t order;
    int ends; /* that are not closed */
};

struct shm_datapath {
    struct qos_datapath dp;
    struct way *out, *in;
    uint64_t sequence;
};

static void take_back(struct way *way)
{
    struct edge *e = &way->edge;
    uint64_t slice;
    while (qos_shm_returned(&e->p, &slice, 1) == 1) {
        qos_add_acq_rel(&way->order, 1); /* pairs with shm_release */
        e->p.held_bytes -= qos_pool_slot_bytes(e->pool.pool, slice);
        if (qos_cache_drop(e->pool.cache, slice) < 0)
            abort();
    }
}

static int tx_one(struct shm_datapath *s, struct qos_packet *p)
{
    struct edge *e = &s->out->edge;
    uint64_t slice, one = 1;
    p->error = p->length > QOS_POOL_PAYLOAD ? EMSGSIZE : 0;
    if (p->error) {
        s->dp.stats.tx_errors++;
        return 1;
    }
    take_back(s->out);
    int rc = qos_cache_borrow(e->pool.cache, p->length, &slice);
    if (rc < 0)
        return rc;
    memcpy(qos_pool_payload(e->pool.pool, slice), p->data, p->length);
    rc = qos_shm_write(&e->p, slice, p->length, s->sequence, qos_pool_slot_bytes(e->pool.pool, slice), QUOTA);
    if (qos_cache_emit(e->pool.cache, slice, rc == 0) < 0)
        abort();
    if (rc < 0)
        return rc;
    qos_add_acq_rel(&s->out->order, 1); /* pairs with shm_rx */
    qos_shm_publish(&e->p);
    s->sequence++;
    s->dp.stats.tx_packets++;
    s->dp.stats.tx_bytes += p->length;
    return write(s->out->event_fd, &one, sizeof one) == sizeof one ? 1 : -EIO;
}

static int shm_tx(struct qos_datapath *dp, struct qos_packet *packets, unsigned n)
{
    int done = 0, rc = 1;
    dp->stats.tx_calls++;
    while ((unsigned)done < n && (rc = tx_one((struct shm_datapath *)dp, &packets[done])) == 1)
        done++;
    return done > 0 || rc == 1 ? done : rc;
}

static int shm_rx(struct qos_datapath *dp, struct qos_packet *packets, unsigned n)
{
    struct shm_datapath *s = (struct shm_datapath *)dp;
    struct qos_shm_message m;
    uint64_t rung;
    unsigned done = 0;
    /* cleared first: what is written after that rings again */
    ssize_t ignored = read(s->in->event_fd, &rung, sizeof rung);
    (void)ignored;
    dp->stats.rx_calls++;
    for (; done < n && qos_shm_pop(&s->in->edge.c, &m) == 1; done++) {
        qos_add_acq_rel(&s->in->order, 1); /* pairs with tx_one */
        packets[done] = (struct qos_packet){.data = (uint8_t *)(uintptr_t)m.data,
                                            .length = m.length,
                                            .address = packets[done].address,
                                            .token = m.token};
        dp->stats.rx_packets++;
        dp->stats.rx_bytes += m.length;
    }
    uint64_t one = 1;
    if (qos_shm_ready(&s->in->edge.c))
        ignored = write(s->in->event_fd, &one, sizeof one);
    return (int)done;
}

static int shm_rx_wait(struct qos_datapath *dp, struct qos_packet *packet, uint64_t timeout_ns)
{
    struct timespec ts = {(time_t)(timeout_ns / 1000000000u), (long)(timeout_ns % 1000000000u)};
    struct pollfd p = {dp->ops->wait_fd(dp), POLLIN, 0};
    int n;
    /* it may be rung for a packet that was taken already */
    while ((n = shm_rx(dp, packet, 1)) == 0 && ppoll(&p, 1, &ts, NULL) == 1)
        continue;
    return n;
}

static void shm_release(struct qos_datapath *dp, uint64_t token)
{
    struct way *in = ((struct shm_datapath *)dp)->in;
    qos_add_acq_rel(&in->order, 1); /* pairs with take_back */
    if (edge_give_back(&in->edge, token) < 0)
        abort();
}

static int shm_wait_fd(const struct qos_datapath *dp)
{
    return ((const struct shm_datapath *)dp)->in->event_fd;
}

static void let_go(struct way *way)
{
    if (--way->ends > 0)
        return;
    take_back(way);
    (void)edge_reclaim(&way->edge); /* what was never read */
    edge_close(&way->edge);
    close(way->event_fd);
    free(way);
}

static void shm_close(struct qos_datapath *dp)
{
    struct shm_datapath *s = (struct shm_datapath *)dp;
    let_go(s->out);
    let_go(s->in);
    free(s);
}

static const struct qos_datapath_ops SHM_OPS = {"shm",       shm_tx,      shm_rx,   shm_rx_wait,
                                                shm_release, shm_wait_fd, shm_close};

static struct way *open_way(void)
{
    struct way *way = malloc(sizeof *way);
    if (way == NULL)
        abort();
    *way = (struct way){.edge = edge_open(LINK_DEPTH, BUFFERS), .event_fd = eventfd(0, EFD_NONBLOCK), .ends = 2};
    return way;
}

static struct qos_datapath *open_end(struct way *out, struct way *in)
{
    struct shm_datapath *s = malloc(sizeof *s);
    if (s == NULL)
        abort();
    *s = (struct shm_datapath){.dp = {.ops = &SHM_OPS, .capabilities = QOS_CAP_OWN_MEMORY}, .out = out, .in = in};
    return &s->dp;
}

int conformance_shm_open(struct conformance_link *link, const void *options)
{
    (void)options;
    struct way *there = open_way(), *back = open_way();
    link->a.dp = open_end(there, back);
    link->b.dp = open_end(back, there);
    return 1;
}
