/* SPDX-License-Identifier: Apache-2.0
 *
 * The mappings of a session: its transmit pool, its page of rings and counters, its user's receive pool, and read-only views of other
 * producers' pools. A mapping lives until the last who holds a buffer in it lets go, also beyond the datapath process that made it.
 */
#include <errno.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "internal.h"

/* Map `size` bytes, and refuse what is smaller: touching a truncated file kills. */
static uint8_t *map(int fd, size_t size, int protection)
{
    struct stat st;
    if (fstat(fd, &st) < 0 || st.st_size < 0 || (size_t)st.st_size < size)
        return NULL;
    void *p = mmap(NULL, size, protection, MAP_SHARED, fd, 0);
    return p == MAP_FAILED ? NULL : p;
}

static int open_rings(struct memory *m, uint32_t capacity)
{
    uint8_t *page = (uint8_t *)m->page;
    int rc = qos_ring_producer_open(&m->relay_tx, page + SELENE_PAGE_TX, capacity);
    if (rc == 0)
        rc = qos_ring_consumer_open(&m->relay_done, page + SELENE_PAGE_DONE, capacity);
    if (rc == 0)
        rc = qos_ring_consumer_open(&m->relay_rx, page + SELENE_PAGE_RX, capacity);
    if (rc == 0)
        rc = qos_ring_producer_open(&m->relay_release, page + SELENE_PAGE_RELEASE, capacity);
    return rc;
}

static void unmap(struct memory *m)
{
    if (m->udp)
        m->net->ops->close(m->net);
    if (m->tx_base)
        munmap(m->tx_base, m->tx_size);
    if (m->page)
        munmap(m->page, SELENE_PAGE_SIZE);
    if (m->rx_base)
        munmap(m->rx_base, m->rx_size);
    if (m->wake_fd >= 0)
        close(m->wake_fd);
    if (m->doorbell >= 0)
        close(m->doorbell);
    if (m->credit_cache)
        qos_cache_discard(m->credit_cache);
    qos_pool_free(m->pool);
    free(m);
}

struct memory *selene_memory_map(const struct selene_dp_session *d, const int fds[5])
{
    if (d->tx_buffers == 0 || d->tx_buffers > QOS_POOL_MAX_BUFFERS || d->rx_buffers == 0 ||
        d->rx_buffers > QOS_POOL_MAX_BUFFERS)
        return NULL;
    struct memory *m = calloc(1, sizeof *m);
    if (!m)
        return NULL;
    m->references = 1;
    m->session = d->session;
    m->tx_buffers = d->tx_buffers;
    m->edge_depth = d->edge_depth;
    m->wake_fd = m->doorbell = -1;
    m->tx_size = SELENE_BELL_BYTES + qos_region_size(d->tx_buffers);
    m->rx_size = qos_region_size(d->rx_buffers);
    m->tx_base = map(fds[0], m->tx_size, PROT_READ | PROT_WRITE);
    m->page = (struct selene_page *)map(fds[1], SELENE_PAGE_SIZE, PROT_READ | PROT_WRITE);
    m->rx_base = map(fds[2], m->rx_size, PROT_READ);
    if (m->tx_base)
        m->pool = qos_pool_new(m->tx_base + SELENE_BELL_BYTES, d->tx_buffers);
    if (m->pool)
        m->credit_cache = qos_cache_new(m->pool);
    if (!m->page || !m->rx_base || !m->credit_cache || open_rings(m, d->ring_capacity) < 0) {
        unmap(m);
        return NULL;
    }
    m->rx = qos_region_at(m->rx_base, d->rx_buffers);
    m->wake_fd = fds[3];
    m->doorbell = fds[4];
    for (int i = 0; i < 3; i++)
        close(fds[i]);
    return m;
}

void selene_memory_hold(struct memory *m)
{
    qos_add_relaxed(&m->references, 1);
}

void selene_memory_drop(struct memory *m)
{
    if (m && qos_sub_acq_rel(&m->references, 1) == 1)
        unmap(m);
}

struct pool_view *selene_view_get(struct selene_session *s, uint64_t session, int fd, uint32_t buffers)
{
    for (struct pool_view *v = s->views; v; v = v->next) {
        if (v->session == session && v->region.count == buffers) {
            v->references++;
            return v;
        }
    }
    if (buffers == 0 || buffers > QOS_POOL_MAX_BUFFERS)
        return NULL;
    struct pool_view *v = calloc(1, sizeof *v);
    if (!v)
        return NULL;
    v->size = SELENE_BELL_BYTES + qos_region_size(buffers);
    v->base = map(fd, v->size, PROT_READ);
    if (!v->base) {
        free(v);
        return NULL;
    }
    v->session = session;
    v->region = qos_region_at(v->base + SELENE_BELL_BYTES, buffers);
    v->references = 1;
    v->next = s->views;
    s->views = v;
    return v;
}

void selene_view_drop(struct selene_session *s, struct pool_view *v)
{
    if (--v->references > 0)
        return;
    for (struct pool_view **at = &s->views; *at; at = &(*at)->next) {
        if (*at == v) {
            *at = v->next;
            break;
        }
    }
    munmap(v->base, v->size);
    free(v);
}
