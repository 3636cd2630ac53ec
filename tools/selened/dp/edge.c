/* SPDX-License-Identifier: Apache-2.0 */
#include "edge.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "clock.h"
#include "datapath/shm.h"
#include "packet.h"

#define SOCKET_WAIT_MS 200 /* for one client */
#define SWEEP_EVERY 64

static unsigned bucket(uint64_t source, uint64_t sink)
{
    return (unsigned)((source * 0x9e3779b97f4a7c15u ^ sink * 0xc2b2ae3d27d4eb4fu) >> 40) % DP_EDGE_BUCKETS;
}

/* Formatted and sealed memory for an edge: a descriptor and a view, or a negative errno. */
static int create_memory(uint32_t depth, const struct qos_shm_link **link)
{
    size_t size = qos_shm_size(depth);
    int fd = dp_memfd_create("selene-edge", size);
    if (fd < 0)
        return fd;
    int rc = -ENOMEM;
    void *base = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (base != MAP_FAILED) {
        rc = qos_shm_init(base, depth);
        munmap(base, size);
    }
    if (rc == 0)
        rc = dp_memfd_seal(fd, false);
    void *view = rc == 0 ? mmap(NULL, size, PROT_READ, MAP_SHARED, fd, 0) : MAP_FAILED;
    if (view == MAP_FAILED) {
        close(fd);
        return rc < 0 ? rc : -ENOMEM;
    }
    *link = view;
    return fd;
}

static void destroy(struct dp_edge *e)
{
    e->from->pool->edges--;
    munmap((void *)(uintptr_t)e->link, qos_shm_size(e->depth));
    free(e);
}

/* It could not be told: it has gone, and that will be noticed, or it does not read. */
static void not_told(struct dp_session *s, int error)
{
    if (error == -EPIPE || error == -ECONNRESET)
        dp_session_end(s, 0, "");
    else
        dp_session_end(s, ECONNABORTED, "does not read its session socket");
}

static int send_patiently(struct dp_edges *edges, struct dp_session *s, void *packet, size_t length, uint16_t type,
                          const int *fds, int fd_count)
{
    int wait_ms = edges->patience_ms < SOCKET_WAIT_MS ? edges->patience_ms : SOCKET_WAIT_MS;
    uint64_t begin = qos_clock_monotonic_ns();
    int rc = dp_packet_send(s->socket, packet, length, type, 0, fds, fd_count, wait_ms);
    int waited_ms = (int)((qos_clock_monotonic_ns() - begin) / 1000000);
    edges->patience_ms -= waited_ms < wait_ms ? waited_ms : wait_ms;
    if (rc < 0)
        not_told(s, rc);
    return rc;
}

static int tell(struct dp_edges *edges, struct dp_session *s, struct selene_edge_open *packet, uint16_t type,
                int memory, int other)
{
    return send_patiently(edges, s, packet, sizeof *packet, type, (int[]){memory, other}, 2);
}

static void tell_gone(struct dp_edges *edges, struct dp_session *s, uint64_t id)
{
    struct selene_edge_gone packet = {.edge = id};
    if (!s->ending)
        send_patiently(edges, s, &packet, sizeof packet, SELENE_D_EDGE_GONE, NULL, 0);
}

static struct dp_edge *find(struct dp_edges *edges, const struct selene_order_edge *o)
{
    struct dp_edge *e = edges->buckets[bucket(o->source, o->sink)];
    while (e != NULL && (e->source != o->source || e->sink != o->sink))
        e = e->next;
    return e;
}

static uint32_t round_depth(uint32_t depth)
{
    uint32_t rounded = 1;
    while (rounded < depth)
        rounded *= 2;
    return rounded;
}

int dp_edge_create(struct dp_edges *edges, const struct selene_order_edge *o, struct dp_session *from,
                   struct dp_session *to, int event_fd)
{
    uint32_t depth = round_depth(o->depth == 0                  ? SELENE_EDGE_DEPTH
                                 : o->depth < DP_EDGE_MAX_DEPTH ? o->depth
                                                                : DP_EDGE_MAX_DEPTH);
    struct dp_edge *e = find(edges, o);
    if (e != NULL && (e->from != from || e->to != to))
        return -EEXIST;
    if (e != NULL) {
        e->order_id = o->edge;
        return 0;
    }
    if (edges->count + edges->leaving_count == DP_EDGE_MAX)
        dp_edge_sweep(edges);
    if (edges->count + edges->leaving_count == DP_EDGE_MAX)
        return -ENOSPC;
    if (from->pool->edges == DP_EDGE_USER_MAX)
        dp_edge_sweep(edges);
    if (from->pool->edges == DP_EDGE_USER_MAX)
        return -EDQUOT;
    e = calloc(1, sizeof *e);
    if (e == NULL)
        return -ENOMEM;
    *e = (struct dp_edge){.id = o->edge,
                          .order_id = o->edge,
                          .source = o->source,
                          .sink = o->sink,
                          .from = from,
                          .to = to,
                          .depth = depth};
    int memory = create_memory(depth, &e->link);
    if (memory < 0) {
        free(e);
        return memory;
    }
    from->pool->edges++;
    struct selene_edge_open packet = {
        .edge = o->edge,
        .source = o->source,
        .sink = o->sink,
        .session = from->id,
        .depth = depth,
        .tx_buffers = SELENE_TX_BUFFERS,
    };
    /* the consumer first: it is ready when the producer begins */
    int rc = tell(edges, to, &packet, SELENE_D_EDGE_SINK, memory, from->tx_fd);
    if (rc == 0) {
        rc = tell(edges, from, &packet, SELENE_D_EDGE_SOURCE, memory, event_fd);
        if (rc < 0)
            tell_gone(edges, to, e->id);
    }
    close(memory);
    if (rc < 0) {
        destroy(e);
        return -ESRCH; /* one of the two has gone, or is as good as that */
    }
    struct dp_edge **p = &edges->buckets[bucket(o->source, o->sink)];
    e->next = *p;
    *p = e;
    edges->count++;
    return 0;
}

static void end(struct dp_edges *edges, struct dp_edge **p)
{
    struct dp_edge *e = *p;
    *p = e->next;
    edges->count--;
    tell_gone(edges, e->from, e->id);
    if (e->to != e->from)
        tell_gone(edges, e->to, e->id);
    if (e->from->ending || qos_load_acquire(&e->link->reclaimed)) {
        destroy(e);
        return;
    }
    e->next = edges->leaving;
    edges->leaving = e;
    if (++edges->leaving_count % SWEEP_EVERY == 0)
        dp_edge_sweep(edges);
}

/* Free those ended ones that are reclaimed, or whose producer is `session`. */
static void sweep(struct dp_edges *edges, const struct dp_session *session)
{
    for (struct dp_edge **p = &edges->leaving; *p != NULL;) {
        struct dp_edge *e = *p;
        if (e->from == session || qos_load_acquire(&e->link->reclaimed)) {
            *p = e->next;
            edges->leaving_count--;
            destroy(e);
        } else {
            p = &e->next;
        }
    }
}

void dp_edge_sweep(struct dp_edges *edges)
{
    sweep(edges, NULL);
}

void dp_edge_end(struct dp_edges *edges, uint64_t order_id)
{
    for (unsigned b = 0; b < DP_EDGE_BUCKETS; b++)
        for (struct dp_edge **p = &edges->buckets[b]; *p != NULL; p = &(*p)->next)
            if ((*p)->order_id == order_id) {
                end(edges, p);
                return;
            }
}

void dp_edge_end_all(struct dp_edges *edges, const struct dp_session *session)
{
    for (unsigned b = 0; b < DP_EDGE_BUCKETS; b++)
        for (struct dp_edge **p = &edges->buckets[b]; *p != NULL;) {
            if ((*p)->from == session || (*p)->to == session)
                end(edges, p);
            else
                p = &(*p)->next;
        }
    sweep(edges, session);
}
