/* SPDX-License-Identifier: Apache-2.0 */
#include "rxpool.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "frame.h"
#include "session.h"

#define PREFAULT_BUFFERS 16
#define QUOTA_RESERVE 16 /* buffers that are nobody's share */

_Static_assert(DP_RX_START + QOS_WIRE_OVERHEAD == QOS_POOL_HEADROOM, "first payload at the head room's end");
_Static_assert(DP_RX_START + QOS_WIRE_MAX_DATAGRAM <= QOS_POOL_STRIDE, "every datagram fits an empty buffer");

int dp_rxpool_create(struct dp_memory *memory, uint32_t uid, struct dp_rxpool **out)
{
    struct dp_rxpool *pool = calloc(1, sizeof *pool);
    if (pool == NULL)
        return -ENOMEM;
    size_t size = qos_region_size(SELENE_RX_BUFFERS);
    int fd = dp_memfd_create("selene-rx", size), rc = fd;
    if (fd < 0)
        goto fail;
    /* mapped writable before the seal, which forbids every later writable mapping */
    void *base = dp_memory_map(memory, fd, size, PROT_READ | PROT_WRITE);
    if (base == NULL) {
        rc = -errno;
        goto fail;
    }
    pool->uid = uid;
    pool->region = qos_region_at(base, SELENE_RX_BUFFERS);
    pool->current = -1;
    for (uint32_t i = 0; i < SELENE_RX_BUFFERS; i++)
        pool->free[pool->free_count++] = (uint16_t)(SELENE_RX_BUFFERS - 1 - i);
    rc = dp_memfd_seal(fd, true);
    if (rc == 0)
        rc = pool->fd = dp_memfd_reopen(fd);
    if (rc < 0) {
        dp_memory_unmap(memory, base);
        goto fail;
    }
    close(fd);
    *out = pool;
    return 0;
fail:
    if (fd >= 0)
        close(fd);
    free(pool);
    return rc;
}

void dp_rxpool_destroy(struct dp_memory *memory, struct dp_rxpool *pool)
{
    dp_memory_unmap(memory, pool->region.base);
    close(pool->fd);
    free(pool);
}

void dp_rxpool_prefault(const struct dp_memory *memory, const struct dp_rxpool *pool)
{
    dp_memory_prefault(memory, pool->region.buffers, (size_t)PREFAULT_BUFFERS * QOS_POOL_STRIDE, true);
}

/* The owner word of a buffer, for reports: nothing here reads it back. */
static void publish(struct dp_rxpool *pool, uint32_t buffer, enum qos_slot_state state)
{
    uint64_t *words = (uint64_t *)(void *)pool->region.base;
    uint64_t references = pool->references[buffer] < 0xffff ? pool->references[buffer] : 0xffff;
    uint64_t word = (uint64_t)state << 56 | (uint64_t)pool->generation[buffer] << 40 | references << 24 |
                    (uint64_t)(QOS_POOL_CLASSES - 1) << 16;
    __atomic_store_n(&words[(size_t)buffer * QOS_POOL_SLOTS], word, __ATOMIC_RELAXED);
}

static void start_buffer(struct dp_rxpool *pool, uint32_t buffer)
{
    pool->current = (int32_t)buffer;
    pool->offset = DP_RX_START;
    pool->generation[buffer]++;
    publish(pool, buffer, QOS_SLOT_BORROWED);
}

void dp_rxpool_join(struct dp_rxpool *pool, struct dp_session *session)
{
    session->pool_next = pool->sessions;
    pool->sessions = session;
    pool->session_count++;
}

static void unreference(struct dp_rxpool *pool, uint32_t buffer, uint32_t n)
{
    pool->references[buffer] -= n;
    bool current = pool->current == (int32_t)buffer;
    if (pool->references[buffer] == 0 && !current)
        pool->free[pool->free_count++] = (uint16_t)buffer;
    enum qos_slot_state state = current                         ? QOS_SLOT_BORROWED
                                : pool->references[buffer] == 0 ? QOS_SLOT_FREE
                                                                : QOS_SLOT_EMITTED;
    publish(pool, buffer, state);
}

void dp_rxpool_leave(struct dp_rxpool *pool, struct dp_session *session)
{
    for (uint32_t i = 0; i < SELENE_RX_BUFFERS; i++) {
        uint32_t n = session->holds[i];
        session->holds[i] = 0;
        if (n != 0)
            unreference(pool, i, n);
    }
    session->held = session->slices = 0;
    for (struct dp_session **p = &pool->sessions; *p != NULL; p = &(*p)->pool_next)
        if (*p == session) {
            *p = session->pool_next;
            pool->session_count--;
            break;
        }
}

uint8_t *dp_rxpool_append(struct dp_rxpool *pool, uint32_t size, uint64_t *slice)
{
    if (pool->current >= 0) {
        uint32_t buffer = (uint32_t)pool->current;
        /* nobody holds anything of it: start over, in memory that is still in the cache */
        if (pool->references[buffer] == 0 && pool->offset != DP_RX_START) {
            start_buffer(pool, buffer);
        } else if (pool->offset > QOS_POOL_PAYLOAD - 8 || size > QOS_POOL_STRIDE - pool->offset) {
            /* full: it comes back when its last slice does */
            pool->current = -1;
            publish(pool, buffer, QOS_SLOT_EMITTED);
        }
    }
    if (pool->current < 0) {
        if (pool->free_count == 0)
            return NULL;
        start_buffer(pool, pool->free[--pool->free_count]);
    }
    uint32_t buffer = (uint32_t)pool->current, offset = pool->offset;
    *slice = qos_slice_make(buffer, offset, 0, pool->generation[buffer]);
    /* the next one such that the payload of its first record is cache-line aligned, like that of the first */
    uint32_t line = QOS_CACHE_LINE, shift = DP_RX_START % line;
    pool->offset = (offset + size + line - 1 - shift) / line * line + shift;
    return pool->region.buffers + (size_t)buffer * QOS_POOL_STRIDE + offset;
}

int dp_rxpool_within_quota(const struct dp_rxpool *pool, const struct dp_session *session, uint32_t buffer)
{
    /* so that there is always room on its RELEASE ring for what it gives back */
    if (session->slices == SELENE_RING_CAPACITY)
        return 0;
    uint32_t quota = SELENE_RX_BUFFERS / 4;
    if (pool->session_count > 3)
        quota = (SELENE_RX_BUFFERS - QUOTA_RESERVE) / pool->session_count;
    /* Buffers are shared, so what a session holds may be spread thinly over many: the quota counts when they are scarce. */
    return session->holds[buffer] != 0 || pool->free_count > SELENE_RX_BUFFERS / 4 ||
           session->held < (quota > 0 ? quota : 1);
}

void dp_rxpool_hold(struct dp_rxpool *pool, struct dp_session *session, uint64_t slice)
{
    uint32_t buffer = qos_slice_buffer(slice);
    session->held += session->holds[buffer]++ == 0;
    session->slices++;
    pool->references[buffer]++;
    publish(pool, buffer, QOS_SLOT_BORROWED);
}

int dp_rxpool_drop(struct dp_rxpool *pool, struct dp_session *session, uint64_t slice)
{
    uint32_t buffer = qos_slice_buffer(slice);
    if (buffer >= SELENE_RX_BUFFERS || session->holds[buffer] == 0 ||
        qos_slice_generation(slice) != pool->generation[buffer])
        return -EPROTO;
    session->held -= --session->holds[buffer] == 0;
    session->slices--;
    unreference(pool, buffer, 1);
    return 0;
}
