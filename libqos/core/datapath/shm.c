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
    if (p->cast)
        p->cast->members &= ~(1u << p->member);
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
    qos_cast_consumer_close(&c->cast);
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

/* What is told one by one, and then all before `done`. Up to `max` slices in all. */
int qos_shm_returned(struct qos_shm_producer *p, uint64_t *slices, uint32_t max)
{
    /* acquire: pairs with the release in qos_shm_publish_back; and before the look at the ring: what was told before is seen there */
    uint64_t done = p->cast ? qos_load_acquire(&p->link->done) : 0;
    int64_t ready = qos_ring_peek(&p->back);
    uint32_t n = 0;
    bool wrong = ready < 0;
    for (; n < max && n < ready; n++) {
        uint64_t word = qos_ring_word(&p->back, n);
        if (word & QOS_CAST_TOLD) {
            if (QOS_UNLIKELY(!p->cast || !qos_cast_returned(p->cast, p->member, word & ~QOS_CAST_TOLD, &slices[n])))
                break;
            p->cast_held--;
            p->told++;
        } else {
            if (QOS_UNLIKELY(!holds(p, word)))
                break;
            uint32_t index = qos_slice_index(word);
            p->holds[index / 64] &= ~(UINT64_C(1) << (index % 64));
            slices[n] = word;
        }
        p->held--;
    }
    wrong = wrong || (n < max && n < ready);
    if (n > 0)
        qos_ring_consume(&p->back, n);
    if (p->cast && !wrong && n == ready && done != p->done) {
        wrong = done - p->done > p->cast->tail - p->done; /* it never was given any of these */
        for (; !wrong && n < max && p->done != done; p->done++) {
            /* behind one that is held for long lies more than there are entries, and nothing of it is this consumer's */
            if (QOS_UNLIKELY(done - p->done > p->cast->depth))
                p->done = qos_cast_oldest(p->cast, p->member, p->done, done - p->cast->depth);
            if (qos_cast_returned(p->cast, p->member, p->done, &slices[n])) {
                p->cast_held--;
                p->held--;
                n++;
            }
        }
    }
    qos_shm_report(p);
    return n == 0 && wrong && max > 0 ? -EPROTO : (int)n;
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
    for (uint64_t slice; p->cast && p->cast_held > 0 && p->done != p->cast->tail; p->done++) {
        if (p->cast->tail - p->done > p->cast->depth)
            p->done = qos_cast_oldest(p->cast, p->member, p->done, p->cast->tail - p->cast->depth);
        if (!qos_cast_returned(p->cast, p->member, p->done, &slice))
            continue;
        p->cast_held--;
        *index = qos_slice_index(slice);
        return 1;
    }
    return 0;
}

int qos_shm_join(struct qos_shm_producer *p, struct qos_cast_producer *cast, uint64_t slice)
{
    int member = qos_cast_join(cast);
    if (member < 0)
        return member;
    p->cast = cast;
    p->member = (uint32_t)member;
    p->done = cast->tail;
    qos_store_relaxed(&p->link->done, p->done);
    qos_store_relaxed(&p->link->member, p->member);
    qos_store_relaxed(&p->link->from, p->done);
    qos_store_release(&p->link->cast, slice); /* pairs with the acquire in qos_shm_meet */
    return 0;
}

int qos_shm_meet(struct qos_shm_consumer *c)
{
    uint64_t slice = qos_load_acquire(&c->link->cast); /* pairs with the release in qos_shm_join */
    uint32_t member = qos_load_relaxed(&c->link->member);
    const uint8_t *ring = qos_slice_locate(&c->pool, slice, (uint32_t)qos_cast_size(QOS_CAST_DEPTH), QOS_POOL_HEADROOM);
    if (!ring || qos_slice_offset(slice) % QOS_CACHE_LINE != 0 || member >= QOS_CAST_MEMBERS)
        return -EPROTO;
    return qos_cast_consumer_open(&c->cast, (const struct qos_cast *)(const void *)ring, QOS_CAST_DEPTH, member,
                                  qos_load_relaxed(&c->link->from));
}
