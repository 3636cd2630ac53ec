/* SPDX-License-Identifier: Apache-2.0 */
#include "session.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "packet.h"

#define PREFAULT_BUFFERS 8
#define SOCKET_BYTES (1 << 20) /* edges are announced faster than a busy client reads */
#define SOCKET_WAIT_MS 200

#define TX_BYTES (SELENE_BELL_BYTES + qos_region_size(SELENE_TX_BUFFERS))

_Static_assert(sizeof(struct qos_ring) + SELENE_RING_CAPACITY * 8 <= SELENE_PAGE_RING_BYTES, "a ring fits its room");
_Static_assert(sizeof(struct selene_page) <= SELENE_PAGE_TX, "the page's head fits in front of the rings");

/* Format the rings and acquire our sides while nobody else can write there. */
static int open_rings(struct dp_session *s)
{
    uint8_t *page = (uint8_t *)s->page;
    static const uint32_t offsets[] = {SELENE_PAGE_TX, SELENE_PAGE_DONE, SELENE_PAGE_RX, SELENE_PAGE_RELEASE};
    int rc = 0;
    for (unsigned i = 0; i < 4 && rc == 0; i++)
        rc = qos_ring_init(page + offsets[i], SELENE_RING_CAPACITY);
    if (rc == 0)
        rc = qos_ring_consumer_open(&s->ring_tx, page + SELENE_PAGE_TX, SELENE_RING_CAPACITY);
    if (rc == 0)
        rc = qos_ring_producer_open(&s->ring_done, page + SELENE_PAGE_DONE, SELENE_RING_CAPACITY);
    if (rc == 0)
        rc = qos_ring_producer_open(&s->ring_rx, page + SELENE_PAGE_RX, SELENE_RING_CAPACITY);
    if (rc == 0)
        rc = qos_ring_consumer_open(&s->ring_release, page + SELENE_PAGE_RELEASE, SELENE_RING_CAPACITY);
    return rc;
}

static int create_page(struct dp_session *s, int *fd)
{
    *fd = dp_memfd_create("selene-page", SELENE_PAGE_SIZE);
    if (*fd < 0)
        return *fd;
    void *page = mmap(NULL, SELENE_PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, *fd, 0);
    if (page == MAP_FAILED)
        return -errno;
    s->page = page;
    s->page->magic = SELENE_PAGE_MAGIC;
    s->page->version = SELENE_PROTO_VERSION;
    s->page->session = s->id;
    s->page->dp_sleeping = 1;
    int rc = open_rings(s);
    return rc < 0 ? rc : dp_memfd_seal(*fd, false);
}

static int create_tx(struct dp_memory *memory, struct dp_session *s, int *fd)
{
    *fd = dp_memfd_create("selene-tx", TX_BYTES);
    if (*fd < 0)
        return *fd;
    /* the datapath only reads what a client sends */
    s->tx_base = dp_memory_map(memory, *fd, TX_BYTES, PROT_READ);
    if (s->tx_base == NULL)
        return -errno;
    s->tx = qos_region_at(s->tx_base + SELENE_BELL_BYTES, SELENE_TX_BUFFERS);
    int rc = dp_memfd_seal(*fd, false);
    if (rc < 0)
        return rc;
    s->tx_fd = dp_memfd_reopen(*fd);
    return s->tx_fd < 0 ? s->tx_fd : 0;
}

/* Send everything the client needs. The descriptors it alone writes through are closed by the caller. */
static int announce(struct dp_session *s, int tx, int page, int doorbell)
{
    struct selene_dp_session packet = {
        .session = s->id,
        .tx_buffers = SELENE_TX_BUFFERS,
        .rx_buffers = SELENE_RX_BUFFERS,
        .ring_capacity = SELENE_RING_CAPACITY,
        .edge_depth = SELENE_EDGE_DEPTH,
    };
    int fds[] = {tx, page, s->pool->fd, s->wake_fd, doorbell};
    return dp_packet_send(s->socket, &packet, sizeof packet, SELENE_D_SESSION, 0, fds, 5, SOCKET_WAIT_MS);
}

int dp_session_create(struct dp_memory *memory, struct dp_rxpool *pool, uint64_t id, uint32_t uid, int socket,
                      struct dp_session **out)
{
    struct dp_session *s = calloc(1, sizeof *s);
    if (s == NULL)
        return -ENOMEM;
    int tx = -1, page = -1, bell[2] = {-1, -1};
    s->id = id;
    s->uid = uid;
    s->pool = pool;
    s->socket = socket;
    s->tx_fd = s->doorbell = s->page_fd = -1;
    int rc = s->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (rc < 0)
        rc = -errno;
    if (rc >= 0)
        rc = create_tx(memory, s, &tx);
    if (rc >= 0)
        rc = create_page(s, &page);
    if (rc >= 0)
        rc = s->page_fd = dp_memfd_reopen(page);
    if (rc >= 0 && socketpair(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, bell) < 0)
        rc = -errno;
    s->doorbell = bell[0];
    if (rc >= 0) {
        /* What is never read is not taken either: to close a stranger's descriptor can block (a socket that lingers, FUSE). */
        shutdown(socket, SHUT_RD);
        shutdown(s->doorbell, SHUT_RD);
        int bytes = SOCKET_BYTES;
        if (setsockopt(socket, SOL_SOCKET, SO_SNDBUFFORCE, &bytes, sizeof bytes) < 0)
            setsockopt(socket, SOL_SOCKET, SO_SNDBUF, &bytes, sizeof bytes); /* as much as an ordinary user gets */
        rc = announce(s, tx, page, bell[1]);
    }
    /* memory stays through the mappings; the client has its own descriptors */
    int mine[] = {tx, page, bell[1]};
    for (unsigned i = 0; i < 3; i++)
        if (mine[i] >= 0)
            close(mine[i]);
    if (rc < 0) {
        s->socket = -1; /* still the caller's */
        dp_session_destroy(memory, s);
        return rc;
    }
    *out = s;
    return 0;
}

void dp_session_end(struct dp_session *s, int error, const char *text)
{
    if (s->ending)
        return;
    s->ending = true;
    s->end_error = error;
    s->end_text = text;
}

void dp_session_destroy(struct dp_memory *memory, struct dp_session *s)
{
    if (s->tx_base != NULL)
        dp_memory_unmap(memory, s->tx_base);
    if (s->page != NULL)
        munmap(s->page, SELENE_PAGE_SIZE);
    int fds[] = {s->socket, s->tx_fd, s->wake_fd, s->doorbell, s->page_fd};
    for (unsigned i = 0; i < 5; i++)
        if (fds[i] >= 0)
            close(fds[i]);
    free(s);
}

void dp_session_prefault(const struct dp_memory *memory, const struct dp_session *s)
{
    dp_memory_prefault(memory, s->tx.buffers, (size_t)PREFAULT_BUFFERS * QOS_POOL_STRIDE, false);
    dp_memory_prefault(memory, s->page, SELENE_PAGE_COUNTERS, true);
}
