/* SPDX-License-Identifier: Apache-2.0 */
#include "shm.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

_Static_assert(sizeof(struct qos_shm_link) == QOS_SHM_RINGS, "the rings follow the link's words");

static int depth_valid(uint32_t depth)
{
    return depth >= 8 && depth <= QOS_SHM_MAX_DEPTH && (depth & (depth - 1)) == 0;
}

size_t qos_shm_size(uint32_t depth)
{
    return QOS_SHM_RINGS + qos_ring_size(2 * depth) + qos_ring_size(depth);
}

int qos_shm_init(void *memory, uint32_t depth)
{
    if (!depth_valid(depth))
        return -EINVAL;
    memset(memory, 0, QOS_SHM_RINGS);
    uint8_t *rings = (uint8_t *)memory + QOS_SHM_RINGS;
    int rc = qos_ring_init(rings, 2 * depth);
    return rc < 0 ? rc : qos_ring_init(rings + qos_ring_size(2 * depth), depth);
}

int qos_shm_producer_open(struct qos_shm_producer *p, void *memory, uint32_t depth, const struct qos_region *pool)
{
    if (!depth_valid(depth))
        return -EINVAL;
    uint8_t *rings = (uint8_t *)memory + QOS_SHM_RINGS;
    *p = (struct qos_shm_producer){.link = memory,
                                   .size = qos_shm_size(depth),
                                   .depth = depth,
                                   .slots = pool->count * QOS_POOL_SLOTS,
                                   .pool = *pool};
    int rc = qos_ring_producer_open(&p->forward, rings, 2 * depth);
    if (rc < 0)
        return rc;
    p->holds = calloc(p->slots / 64, sizeof *p->holds);
    rc = p->holds ? qos_ring_consumer_open(&p->back, rings + qos_ring_size(2 * depth), depth) : -ENOMEM;
    if (rc < 0) {
        qos_ring_producer_close(&p->forward);
        free(p->holds);
    }
    return rc;
}

void qos_shm_producer_close(struct qos_shm_producer *p)
{
    free(p->holds);
    qos_store_release(&p->link->reclaimed, 1);
    munmap(p->link, p->size);
    p->link = NULL;
}

int qos_shm_consumer_open(struct qos_shm_consumer *c, void *memory, uint32_t depth, const struct qos_region *pool)
{
    if (!depth_valid(depth))
        return -EINVAL;
    uint8_t *rings = (uint8_t *)memory + QOS_SHM_RINGS;
    *c = (struct qos_shm_consumer){.link = memory, .size = qos_shm_size(depth), .depth = depth, .pool = *pool};
    int rc = qos_ring_consumer_open(&c->forward, rings, 2 * depth);
    if (rc < 0)
        return rc;
    rc = qos_ring_producer_open(&c->back, rings + qos_ring_size(2 * depth), depth);
    if (rc < 0)
        qos_ring_consumer_close(&c->forward);
    return rc;
}

void qos_shm_consumer_close(struct qos_shm_consumer *c)
{
    munmap(c->link, c->size);
    c->link = NULL;
}

/* Whether the consumer holds exactly this. It must not pass for a slice of another buffer, nor for a stale one: what is counted off
 * here is dropped. */
static int holds(const struct qos_shm_producer *p, uint64_t slice)
{
    uint32_t index = qos_slice_index(slice);
    return qos_slice_slot(slice) < QOS_POOL_SLOTS && index < p->slots && (p->holds[index / 64] >> (index % 64) & 1) &&
           qos_slice_generation(slice) == qos_region_generation(&p->pool, index);
}

int qos_shm_returned(struct qos_shm_producer *p, uint64_t *slices, uint32_t max)
{
    int64_t ready = qos_ring_peek(&p->back);
    uint32_t n = 0;
    for (; n < max && n < ready; n++) {
        uint64_t slice = qos_ring_word(&p->back, n);
        if (QOS_UNLIKELY(!holds(p, slice)))
            break;
        uint32_t index = qos_slice_index(slice);
        p->holds[index / 64] &= ~(UINT64_C(1) << (index % 64));
        p->held--;
        slices[n] = slice;
    }
    if (n == 0)
        return ready < 0 || (ready > 0 && max > 0) ? -EPROTO : 0;
    qos_ring_consume(&p->back, n);
    return (int)n;
}

int qos_shm_reclaim(struct qos_shm_producer *p, uint32_t *index)
{
    for (uint32_t w = 0; w < p->slots / 64; w++) {
        if (p->holds[w] == 0)
            continue;
        uint32_t bit = (uint32_t)__builtin_ctzll(p->holds[w]);
        p->holds[w] &= p->holds[w] - 1;
        *index = w * 64 + bit;
        return 1;
    }
    return 0;
}
