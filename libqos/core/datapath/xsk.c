/* SPDX-License-Identifier: Apache-2.0 */
#include "xsk.h"

#include <errno.h>
#include <linux/if_xdp.h>
#include <poll.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "../compiler.h"

#ifndef SO_PREFER_BUSY_POLL
#define SO_PREFER_BUSY_POLL 69
#endif
#ifndef XDP_PKT_CONTD /* Linux 6.6 */
#define XDP_PKT_CONTD (1 << 0)
#endif
#define LOOK_EVERY 64u      /* looks in vain: a system call */
#define FRAME_PARTS 18u     /* chunks of a frame at most, as the kernel has it (MAX_SKB_FRAGS + 1) */
#define ONE_CHUNK_MTU 3822u /* of 4096, less the kernel's 256, Ethernet and a VLAN tag */
#define KICKS 64u           /* calls in a row that make the kernel send: each takes some 32 frames */
#define WAY_SLOTS (2 * QOS_XSK_WAYS)
#define NO_CHUNK UINT64_MAX

/* One ring of the socket. Each index is written by one side; ours is kept here, and shown when a burst is done. */
struct ring {
    _Atomic uint32_t *producer, *consumer, *flags;
    void *entries;
    void *map;
    size_t map_size;
    uint32_t mine, theirs;
};

struct way {
    struct qos_address to;
    struct qos_udpip_way way;
    bool used;
};

struct xsk {
    struct qos_datapath dp;
    int fd;
    struct qos_xsk_memory memory;
    struct qos_address own;
    bool busy_poll;
    struct ring rx, tx, fill, sent;
    uint8_t *frame;      /* room for one that came in pieces */
    uint64_t dropped;    /* by the kernel, as last seen */
    uint32_t empty;      /* looks in vain */
    uint32_t free_count; /* chunks to send from */
    pthread_mutex_t lock;
    struct way ways[WAY_SLOTS];
    uint64_t free[];
};

/* Sending and receiving count each for itself, and a third reads: nobody sees half a number. */
static void add(uint64_t *counter, uint64_t n)
{
    __atomic_store_n(counter, __atomic_load_n(counter, __ATOMIC_RELAXED) + n, __ATOMIC_RELAXED);
}

/* ---- Rings ---- */

static int map_ring(struct ring *r, int fd, const struct xdp_ring_offset *at, size_t entry, uint64_t page)
{
    r->map_size = at->desc + QOS_XSK_RING * entry;
    r->map = mmap(NULL, r->map_size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd, (off_t)page);
    if (r->map == MAP_FAILED) {
        r->map = NULL;
        return -errno;
    }
    uint8_t *base = r->map;
    r->producer = (_Atomic uint32_t *)(void *)(base + at->producer);
    r->consumer = (_Atomic uint32_t *)(void *)(base + at->consumer);
    r->flags = (_Atomic uint32_t *)(void *)(base + at->flags);
    r->entries = base + at->desc;
    return 0;
}

static uint64_t *address_at(const struct ring *r, uint32_t index)
{
    return (uint64_t *)r->entries + index % QOS_XSK_RING;
}

static struct xdp_desc *frame_at(const struct ring *r, uint32_t index)
{
    return (struct xdp_desc *)r->entries + index % QOS_XSK_RING;
}

/* Room in a ring that we fill. */
static uint32_t room(struct ring *r)
{
    uint32_t used = r->mine - r->theirs;
    if (used < QOS_XSK_RING)
        return QOS_XSK_RING - used;
    r->theirs = qos_load_acquire(r->consumer); /* pairs with the kernel's release: it has read these entries */
    return QOS_XSK_RING - (r->mine - r->theirs);
}

/* Entries in a ring that we empty. */
static uint32_t waiting(struct ring *r)
{
    if (r->theirs == r->mine)
        r->theirs = qos_load_acquire(r->producer); /* pairs with the kernel's release: the entries are written */
    return r->theirs - r->mine;
}

static void show_filled(struct ring *r)
{
    qos_store_release(r->producer, r->mine); /* pairs with the kernel's acquire: the entries are written */
}

static void show_emptied(struct ring *r)
{
    qos_store_release(r->consumer, r->mine); /* pairs with the kernel's acquire: we have read the entries */
}

static bool wants_waking(const struct ring *r)
{
    return qos_load_relaxed(r->flags) & XDP_RING_NEED_WAKEUP;
}

/* ---- Ways ---- */

/* Where an address is, or where it would be put. */
static struct way *find(struct xsk *x, const struct qos_address *to)
{
    uint64_t parts[2];
    memcpy(parts, &to->ip, sizeof parts);
    uint64_t hash = (parts[0] ^ parts[1] ^ to->port) * UINT64_C(0x9e3779b97f4a7c15);
    for (uint32_t i = (uint32_t)(hash >> 40);; i++) {
        struct way *w = &x->ways[i % WAY_SLOTS];
        if (!w->used || qos_address_equal(&w->to, to))
            return w;
    }
}

int qos_xsk_reach(struct qos_datapath *dp, const struct qos_udpip_ends *ends)
{
    struct xsk *x = (struct xsk *)dp;
    struct qos_udpip_way way;
    int rc = qos_udpip_prepare(&way, ends);
    if (rc < 0)
        return rc;
    pthread_mutex_lock(&x->lock);
    struct way *w = find(x, &ends->to);
    uint32_t count = 0;
    for (uint32_t i = 0; !w->used && i < WAY_SLOTS; i++)
        count += x->ways[i].used;
    if (count < QOS_XSK_WAYS)
        *w = (struct way){ends->to, way, true};
    pthread_mutex_unlock(&x->lock);
    return count < QOS_XSK_WAYS ? 0 : -ENOSPC;
}

void qos_xsk_forget(struct qos_datapath *dp, const struct qos_address *to)
{
    struct xsk *x = (struct xsk *)dp;
    pthread_mutex_lock(&x->lock);
    struct way *hole = find(x, to);
    if (hole->used) {
        hole->used = false;
        /* those behind it may have been put there because it was taken */
        for (struct way *w = hole + 1;; w++) {
            if (w == x->ways + WAY_SLOTS)
                w = x->ways;
            if (!w->used)
                break;
            struct way moved = *w;
            w->used = false;
            *find(x, &moved.to) = moved;
        }
    }
    pthread_mutex_unlock(&x->lock);
}

bool qos_xsk_reaches(struct qos_datapath *dp, const struct qos_address *to)
{
    struct xsk *x = (struct xsk *)dp;
    pthread_mutex_lock(&x->lock);
    bool found = find(x, to)->used;
    pthread_mutex_unlock(&x->lock);
    return found;
}

/* ---- Sending; the lock is held ---- */

/* Take back the chunks of what was sent. */
static void reap(struct xsk *x)
{
    uint32_t n = waiting(&x->sent);
    for (uint32_t i = 0; i < n; i++)
        x->free[x->free_count++] = *address_at(&x->sent, x->sent.mine++);
    if (n > 0)
        show_emptied(&x->sent);
}

/* Have the kernel send. What it cannot take now stays in the ring, and goes with the next call. */
static void kick(struct xsk *x)
{
    for (uint32_t i = 0; i < KICKS && wants_waking(&x->tx); i++) {
        add(&x->dp.stats.tx_calls, 1);
        if (sendto(x->fd, NULL, 0, MSG_DONTWAIT, NULL, 0) >= 0 || errno != EAGAIN)
            return;
    }
}

static uint32_t chunks_of(uint32_t bytes)
{
    return (bytes + QOS_XSK_CHUNK - 1) / QOS_XSK_CHUNK;
}

/* One datagram into chunks of ours; there are enough of them. */
static void put_frame(struct xsk *x, const struct qos_udpip_way *way, const uint8_t *payload, uint32_t length)
{
    uint32_t left = way->length + length, header = way->length;
    while (left > 0) {
        uint64_t at = x->free[--x->free_count];
        uint8_t *chunk = x->memory.base + at;
        uint32_t part = left < QOS_XSK_CHUNK ? left : QOS_XSK_CHUNK;
        if (header > 0 && length > 0)
            memcpy(chunk + header, payload, part - header);
        else if (header == 0)
            memcpy(chunk, payload, part);
        if (header > 0)
            qos_udpip_put_pieces(way, chunk, payload, length, NULL, 0, QOS_UDPIP_SUM);
        payload += part - header;
        header = 0;
        left -= part;
        *frame_at(&x->tx, x->tx.mine++) =
            (struct xdp_desc){.addr = at, .len = part, .options = left > 0 ? XDP_PKT_CONTD : 0};
    }
}

/* Put one packet into the ring. 0; a positive errno, if it will never go; -EAGAIN: there is no room now. */
static int put_packet(struct xsk *x, const struct qos_packet *p)
{
    const struct way *to = find(x, &p->address);
    uint32_t size = p->segment && p->segment < p->length ? p->segment : p->length;
    if (!to->used)
        return EHOSTUNREACH;
    if (size > x->dp.mtu)
        return EMSGSIZE;
    uint32_t frames = size > 0 ? (p->length + size - 1) / size : 1;
    uint32_t chunks = frames * chunks_of(to->way.length + size);
    if (chunks > x->memory.tx_chunks)
        return EMSGSIZE;
    if (x->free_count < chunks || room(&x->tx) < chunks) {
        /* what lies in the ring has to go first */
        show_filled(&x->tx);
        kick(x);
        reap(x);
        if (x->free_count < chunks || room(&x->tx) < chunks)
            return -EAGAIN;
    }
    for (uint32_t at = 0, i = 0; i < frames; i++, at += size)
        put_frame(x, &to->way, p->data + at, p->length - at < size ? p->length - at : size);
    add(&x->dp.stats.tx_packets, frames);
    add(&x->dp.stats.tx_bytes, p->length);
    return 0;
}

static int xsk_tx(struct qos_datapath *dp, struct qos_packet *packets, unsigned n)
{
    struct xsk *x = (struct xsk *)dp;
    unsigned done = 0;
    pthread_mutex_lock(&x->lock);
    uint32_t before = x->tx.mine;
    for (; done < n; done++) {
        int rc = put_packet(x, &packets[done]);
        if (rc < 0)
            break;
        packets[done].error = (int16_t)rc;
        add(&dp->stats.tx_errors, rc > 0);
    }
    if (x->tx.mine != before) {
        show_filled(&x->tx);
        kick(x);
        reap(x);
    }
    pthread_mutex_unlock(&x->lock);
    return done > 0 || n == 0 ? (int)done : -EAGAIN;
}

/* ---- Receiving ---- */

static void give_chunk(struct xsk *x, uint64_t address)
{
    /* there is always room: the ring has more entries than there are chunks */
    *address_at(&x->fill, x->fill.mine++) = address & ~(uint64_t)(QOS_XSK_CHUNK - 1);
}

/* What the kernel had to throw away for want of chunks or room. */
static void look_at_losses(struct xsk *x)
{
    struct xdp_statistics found = {0};
    socklen_t size = sizeof found;
    if (getsockopt(x->fd, SOL_XDP, XDP_STATISTICS, &found, &size) < 0)
        return;
    uint64_t dropped = found.rx_dropped + found.rx_ring_full;
    add(&x->dp.stats.rx_overflow, dropped - x->dropped);
    x->dropped = dropped;
}

/* Copy a frame in pieces to where the caller wants it, from the entry at `first`. The caller's packet, or false: it is none of ours, or there
 * is no room for it. */
static bool put_together(struct xsk *x, uint32_t first, uint32_t parts, struct qos_packet *p)
{
    uint8_t *frame = x->frame;
    uint32_t size = 0;
    for (uint32_t i = 0; i < parts; i++) {
        const struct xdp_desc *d = frame_at(&x->rx, first + i);
        memcpy(frame + size, x->memory.base + d->addr, d->len);
        size += d->len;
    }
    struct qos_udpip_datagram datagram;
    if (qos_udpip_parse(frame, size, false, &datagram) < 0 || datagram.to.port != x->own.port ||
        datagram.length > p->length)
        return false;
    memcpy(p->data, datagram.payload, datagram.length);
    p->length = datagram.length;
    p->address = datagram.from;
    p->token = NO_CHUNK;
    return true;
}

/* A frame in one chunk, which the caller then has. */
static bool hand_out(struct xsk *x, const struct xdp_desc *d, struct qos_packet *p)
{
    struct qos_udpip_datagram datagram;
    uint8_t *frame = x->memory.base + d->addr;
    if (qos_udpip_parse(frame, d->len, false, &datagram) < 0 || datagram.to.port != x->own.port)
        return false;
    p->data = frame + (datagram.payload - frame);
    p->length = datagram.length;
    p->address = datagram.from;
    p->token = d->addr;
    return true;
}

/* Entries of the frame that begins at `first`; 0: the rest of it is not there yet. */
static uint32_t parts_of(struct xsk *x, uint32_t first, uint32_t available)
{
    for (uint32_t i = 0; i < available; i++) {
        if (!(frame_at(&x->rx, first + i)->options & XDP_PKT_CONTD))
            return i + 1;
    }
    return 0;
}

static int xsk_rx(struct qos_datapath *dp, struct qos_packet *packets, unsigned n)
{
    struct xsk *x = (struct xsk *)dp;
    unsigned got = 0;
    uint32_t available = waiting(&x->rx);
    add(&dp->stats.rx_calls, 1);
    while (got < n && available > 0) {
        uint32_t parts = parts_of(x, x->rx.mine, available);
        if (parts == 0) {
            uint32_t before = available;
            x->rx.theirs = qos_load_acquire(x->rx.producer); /* as in waiting */
            available = x->rx.theirs - x->rx.mine;
            if (available == before)
                break;
            continue;
        }
        struct qos_packet *p = &packets[got];
        const struct xdp_desc *d = frame_at(&x->rx, x->rx.mine);
        bool mine = parts == 1             ? hand_out(x, d, p)
                    : parts <= FRAME_PARTS ? put_together(x, x->rx.mine, parts, p)
                                           : false;
        for (uint32_t i = 0; (!mine || parts > 1) && i < parts; i++)
            give_chunk(x, frame_at(&x->rx, x->rx.mine + i)->addr);
        x->rx.mine += parts;
        available -= parts;
        if (mine) {
            p->segment = 0;
            p->error = 0;
            add(&dp->stats.rx_packets, 1);
            add(&dp->stats.rx_bytes, p->length);
            got++;
        } else {
            add(&dp->stats.rx_refused, 1);
        }
    }
    show_emptied(&x->rx);
    show_filled(&x->fill);
    if (got == 0) {
        if (x->busy_poll || wants_waking(&x->fill))
            (void)recvfrom(x->fd, NULL, 0, MSG_DONTWAIT, NULL, NULL);
        if (++x->empty % LOOK_EVERY == 0)
            look_at_losses(x);
    }
    return (int)got;
}

static void xsk_release(struct qos_datapath *dp, uint64_t token)
{
    struct xsk *x = (struct xsk *)dp;
    if (token == NO_CHUNK)
        return;
    give_chunk(x, token);
    show_filled(&x->fill);
}

static int xsk_rx_wait(struct qos_datapath *dp, struct qos_packet *packet, uint64_t timeout_ns)
{
    struct xsk *x = (struct xsk *)dp;
    const struct qos_packet empty = *packet;
    if (xsk_rx(dp, packet, 1) == 1)
        return 1;
    look_at_losses(x);
    struct pollfd p = {.fd = x->fd, .events = POLLIN};
    struct timespec time = {(time_t)(timeout_ns / 1000000000), (long)(timeout_ns % 1000000000)};
    if (ppoll(&p, 1, &time, NULL) <= 0)
        return 0;
    *packet = empty;
    return xsk_rx(dp, packet, 1);
}

static int xsk_wait_fd(const struct qos_datapath *dp)
{
    return ((const struct xsk *)dp)->fd;
}

/* ---- Opening and closing ---- */

static void unmap(struct ring *r)
{
    if (r->map != NULL)
        munmap(r->map, r->map_size);
}

static void destroy(struct xsk *x)
{
    unmap(&x->rx);
    unmap(&x->tx);
    unmap(&x->fill);
    unmap(&x->sent);
    pthread_mutex_destroy(&x->lock);
    free(x->frame);
    free(x);
}

static void xsk_close(struct qos_datapath *dp)
{
    struct xsk *x = (struct xsk *)dp;
    close(x->fd);
    destroy(x);
}

static const struct qos_datapath_ops XSK_OPS = {"xdp",       xsk_tx,      xsk_rx,   xsk_rx_wait,
                                                xsk_release, xsk_wait_fd, xsk_close};

static int map_rings(struct xsk *x)
{
    struct xdp_mmap_offsets at;
    socklen_t size = sizeof at;
    if (getsockopt(x->fd, SOL_XDP, XDP_MMAP_OFFSETS, &at, &size) < 0)
        return -errno;
    if (size != sizeof at)
        return -ENOPROTOOPT; /* Linux before 5.4 */
    int rc = map_ring(&x->rx, x->fd, &at.rx, sizeof(struct xdp_desc), XDP_PGOFF_RX_RING);
    if (rc == 0)
        rc = map_ring(&x->tx, x->fd, &at.tx, sizeof(struct xdp_desc), XDP_PGOFF_TX_RING);
    if (rc == 0)
        rc = map_ring(&x->fill, x->fd, &at.fr, sizeof(uint64_t), XDP_UMEM_PGOFF_FILL_RING);
    if (rc == 0)
        rc = map_ring(&x->sent, x->fd, &at.cr, sizeof(uint64_t), XDP_UMEM_PGOFF_COMPLETION_RING);
    if (rc < 0)
        return rc;
    /* what somebody else has under way we know nothing of */
    return qos_load_relaxed(x->tx.producer) != 0 || qos_load_relaxed(x->fill.producer) != 0 ? -EALREADY : 0;
}

static bool polls_busily(int fd)
{
    int polling = 0;
    socklen_t size = sizeof polling;
    return getsockopt(fd, SOL_SOCKET, SO_PREFER_BUSY_POLL, &polling, &size) == 0 && polling;
}

/* The largest datagram that fits into a frame. */
static uint32_t payload_of(const struct qos_xsk_device *device, const struct qos_address *own)
{
    uint32_t overhead = IN6_IS_ADDR_V4MAPPED(&own->ip) ? QOS_UDPIP_OVERHEAD4 : QOS_UDPIP_OVERHEAD6;
    uint32_t mtu = device->mtu;
    if (!(device->flags & QOS_XSK_PIECES) && mtu > ONE_CHUNK_MTU)
        mtu = ONE_CHUNK_MTU;
    return mtu > overhead ? mtu - overhead : 0;
}

int qos_xsk_open(struct qos_datapath **dp, int fd, const struct qos_xsk_device *device,
                 const struct qos_xsk_memory *memory, const struct qos_address *own)
{
    if (!qos_xsk_is_usable(memory) || payload_of(device, own) == 0)
        return -EINVAL;
    struct xsk *x = calloc(1, sizeof *x + memory->tx_chunks * sizeof *x->free);
    if (x == NULL)
        return -ENOMEM;
    pthread_mutex_init(&x->lock, NULL);
    x->fd = fd;
    x->memory = *memory;
    x->own = *own;
    x->dp.ops = &XSK_OPS;
    x->dp.capabilities = QOS_CAP_SEGMENTATION | QOS_CAP_OWN_MEMORY | QOS_CAP_ADDRESSED;
    x->dp.mtu = payload_of(device, own);
    x->frame = malloc(FRAME_PARTS * QOS_XSK_CHUNK);
    int rc = x->frame != NULL ? map_rings(x) : -ENOMEM;
    if (rc < 0) {
        destroy(x);
        return rc;
    }
    x->busy_poll = polls_busily(fd);
    for (uint32_t i = 0; i < memory->tx_chunks; i++)
        x->free[x->free_count++] = (uint64_t)(memory->rx_chunks + i) * QOS_XSK_CHUNK;
    for (uint32_t i = 0; i < memory->rx_chunks; i++)
        give_chunk(x, (uint64_t)i * QOS_XSK_CHUNK);
    show_filled(&x->fill);
    *dp = &x->dp;
    return 0;
}
