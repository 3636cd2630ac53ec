/* SPDX-License-Identifier: Apache-2.0
 *
 * The shared-memory datapath: a one-way link between two processes of one user. Slices of the producer's pool go forward, come back on
 * a release ring, and nothing is copied. Layout of the link's memory (a sealed memfd that the daemon made):
 *
 *   0    waiting   0 the consumer runs; 1 it sleeps on the producer's bell; 2 it sleeps on its eventfd; 3 it never sleeps, so that the
 *                  producer need not order its words before this look; 4 it sleeps on this word
 *   64   closed    1: the source is closed; what is in the ring is still delivered
 *   68   alone     1: the source has no other consumer, so that nothing is gained by its bell
 *   72   reclaimed 1: the producer has taken back all that the consumer held, and is done with this memory
 *   76   member    number of this consumer in the producer's ring for several (cast.h)
 *   80   cast      where in the producer's pool that is, a slice; 0: nowhere yet
 *   88   from      the position from which it is a member
 *   96   given     when closed: messages that went that way
 *   128  dropped   messages the producer did not give to this consumer because it is slow
 *   136  cast_held messages that it holds by that ring, and told, what it has told of them; for reports
 *   192  done      the consumer's: before this position of that ring it has given all back
 *   256  forward ring, 2 * depth words: slice, then length | low 32 bits of the sequence << 32
 *   ...  release ring, depth words: slices
 *
 * The second word saves the consumer the cache miss of the message's header.
 */
#ifndef QOS_SHM_H
#define QOS_SHM_H

#include <stdint.h>

#include "../pool.h"
#include "../ring.h"
#include "cast.h"

#define QOS_SHM_MAX_DEPTH 65536u
#define QOS_SHM_RINGS 256

enum qos_shm_waiting {
    QOS_SHM_AWAKE = 0,
    QOS_SHM_ON_BELL = 1,
    QOS_SHM_ON_FD = 2,
    QOS_SHM_SPINS = 3,
    QOS_SHM_ON_LINK = 4
};

struct qos_shm_link {
    _Atomic uint32_t waiting;
    _Alignas(QOS_CACHE_LINE) _Atomic uint32_t closed;
    _Atomic uint32_t alone;
    _Atomic uint32_t reclaimed;
    _Atomic uint32_t member;
    _Atomic uint64_t cast, from, given;
    _Alignas(QOS_CACHE_LINE) _Atomic uint64_t dropped;
    _Atomic uint64_t cast_held, told;
    _Alignas(QOS_CACHE_LINE) _Atomic uint64_t done;
};

struct qos_shm_producer {
    struct qos_shm_link *link;
    size_t size;
    struct qos_ring_producer forward;
    struct qos_ring_consumer back;
    uint32_t depth;
    uint32_t held;       /* messages the consumer has not given back */
    uint64_t held_bytes; /* the slots they take; the caller of qos_shm_returned subtracts */
    uint64_t *holds;     /* bitmap over slot indices: what the consumer holds */
    uint32_t slots;
    bool unpublished;               /* words in the forward ring */
    struct qos_cast_producer *cast; /* NULL: not a member */
    uint32_t member;
    uint64_t done;                   /* up to where what came back by it is counted off */
    uint64_t cast_held, told, given; /* by it: held, told one by one, ever */
    struct qos_region pool;          /* our own */
};

struct qos_shm_consumer {
    struct qos_shm_link *link;
    size_t size;
    struct qos_ring_consumer forward;
    struct qos_ring_producer back;
    struct qos_region pool; /* of the producer, read-only */
    uint32_t depth;
    bool given_back; /* words in the release ring that are not published */
    struct qos_cast_consumer cast;
};

struct qos_shm_message {
    uint64_t token; /* and by_cast: for qos_shm_give_back */
    const uint8_t *data;
    uint32_t length;
    uint32_t sequence; /* low 32 bits */
    bool by_cast;
};

/* Bytes of a link of `depth` messages (a power of two up to QOS_SHM_MAX_DEPTH), and its formatting. */
size_t qos_shm_size(uint32_t depth);
int qos_shm_init(void *memory, uint32_t depth);

/* `memory` is a mapping of qos_shm_size(depth) bytes; both sides keep it until close, which unmaps it. */
int qos_shm_producer_open(struct qos_shm_producer *p, void *memory, uint32_t depth, const struct qos_region *pool);
void qos_shm_producer_close(struct qos_shm_producer *p);
int qos_shm_consumer_open(struct qos_shm_consumer *c, void *memory, uint32_t depth, const struct qos_region *pool);
void qos_shm_consumer_close(struct qos_shm_consumer *c);

/* Whether the consumer may hold another slot: of depth messages, and of `quota` bytes unless it holds nothing. */
static inline bool qos_shm_room(const struct qos_shm_producer *p, uint32_t slot_bytes, uint64_t quota)
{
    return p->held < p->depth && (p->held_bytes + slot_bytes <= quota || p->held == 0);
}

/* Hand a slice on; the consumer sees it at qos_ring_publish(&p->forward). 0, -EAGAIN (no room), -EPROTO. */
static inline int qos_shm_write(struct qos_shm_producer *p, uint64_t slice, uint32_t length, uint64_t sequence,
                                uint32_t slot_bytes, uint64_t quota)
{
    if (QOS_UNLIKELY(!qos_shm_room(p, slot_bytes, quota)))
        return -EAGAIN;
    uint64_t words[2] = {slice, (uint64_t)length | sequence << 32};
    int rc = qos_ring_write(&p->forward, words, 2);
    if (QOS_UNLIKELY(rc < 0))
        return rc;
    uint32_t index = qos_slice_index(slice);
    p->holds[index / 64] |= UINT64_C(1) << (index % 64);
    p->held++;
    p->held_bytes += slot_bytes;
    p->unpublished = true;
    return 0;
}

/* Show the consumer what was written for it alone. */
static inline void qos_shm_publish(struct qos_shm_producer *p)
{
    if (!p->unpublished)
        return;
    qos_ring_publish(&p->forward);
    p->unpublished = false;
}

/* Make the consumer a member of a ring for several, which lies in our pool at `slice`. 0, -EAGAIN: it has no place for one more. */
int qos_shm_join(struct qos_shm_producer *p, struct qos_cast_producer *cast, uint64_t slice);

/* A message was written for it by that ring (qos_cast_write). */
static inline void qos_shm_wrote_cast(struct qos_shm_producer *p, uint32_t slot_bytes)
{
    p->held++;
    p->held_bytes += slot_bytes;
    p->cast_held++;
    p->given++;
}

/* For reports: how much of what it holds went that way. */
static inline void qos_shm_report(struct qos_shm_producer *p)
{
    if (p->cast) {
        qos_store_relaxed(&p->link->cast_held, p->cast_held);
        qos_store_relaxed(&p->link->told, p->told);
    }
}

/* Nothing more is written. */
static inline void qos_shm_end(struct qos_shm_producer *p)
{
    qos_store_relaxed(&p->link->given, p->given);
    qos_store_release(&p->link->closed, 1); /* pairs with the acquire in qos_cast_seek */
}

/* Up to `max` slices that came back, by whichever ring; each was held, and is counted off. The number, or -EPROTO: next is one that the
 * consumer did not hold. */
int qos_shm_returned(struct qos_shm_producer *p, uint64_t *slices, uint32_t max);
/* Take all that the consumer still holds, one by one, when it is gone: 1 and a slot index, or 0. */
int qos_shm_reclaim(struct qos_shm_producer *p, uint32_t *index);

/* Become a member of the ring that the link names: 0, -EPROTO (it is not in the pool), -ENOMEM. */
int qos_shm_meet(struct qos_shm_consumer *c);

/* What lies in front in both: the entry in the ring for several, or NULL, and in `ready` what qos_ring_peek says. Whichever was published
 * first is seen if the other is: see cast.h. */
static inline const struct qos_cast_entry *qos_shm_look(struct qos_shm_consumer *c, int64_t *ready)
{
    *ready = qos_ring_peek(&c->forward);
    if (QOS_LIKELY(!c->cast.ring)) {
        if (QOS_LIKELY(qos_load_relaxed(&c->link->cast) == 0))
            return NULL;
        if (qos_shm_meet(c) < 0) {
            *ready = -EPROTO;
            return NULL;
        }
    }
    const struct qos_cast_entry *e = qos_cast_seek(&c->cast, &c->link->closed, &c->link->given);
    if (e && *ready == 0)
        *ready = qos_ring_peek(&c->forward);
    return e;
}

/* Next message: 1, 0 (nothing), -EPROTO (a slice outside the pool, or a broken index). */
static inline int qos_shm_pop(struct qos_shm_consumer *c, struct qos_shm_message *m)
{
    int64_t ready;
    const struct qos_cast_entry *e = qos_shm_look(c, &ready);
    if (ready <= 0 && !e)
        return ready < 0 ? -EPROTO : 0;
    if (QOS_UNLIKELY(ready < 0 || ready & 1))
        return -EPROTO;
    uint64_t slice = 0, second = 0;
    if (ready) {
        slice = qos_ring_word(&c->forward, 0);
        second = qos_ring_word(&c->forward, 1);
    }
    if (e) {
        uint64_t of_cast = *(const volatile uint64_t *)&e->second;
        if (ready && (int32_t)((second >> 32) - (of_cast >> 32)) < 0) {
            e = NULL;
        } else {
            slice = *(const volatile uint64_t *)&e->slice;
            second = of_cast;
        }
    }
    m->token = slice;
    m->length = (uint32_t)second;
    m->sequence = (uint32_t)(second >> 32);
    m->data = qos_slice_locate(&c->pool, slice, m->length, QOS_POOL_HEADROOM);
    if (QOS_UNLIKELY(!m->data))
        return -EPROTO;
    if (!e) {
        qos_ring_consume(&c->forward, 2);
        m->by_cast = false;
    } else {
        m->token = qos_cast_take(&c->cast);
        m->by_cast = true;
    }
    return 1;
}

/* Whether pop would return one. */
static inline int qos_shm_ready(struct qos_shm_consumer *c)
{
    int64_t ready;
    return qos_shm_look(c, &ready) || ready != 0;
}

/* Give a message back; the producer sees it at qos_shm_publish_back. 0, or -EPROTO. It cannot be full: no more than depth are out. */
static inline int qos_shm_give_back(struct qos_shm_consumer *c, uint64_t token, bool by_cast)
{
    uint64_t told[QOS_CAST_UNTOLD + 1];
    uint32_t n = 1;
    if (!by_cast)
        told[0] = token;
    else if ((n = qos_cast_give_back(&c->cast, token, told)) == 0)
        return 0;
    c->given_back = true;
    return qos_ring_write(&c->back, told, n);
}

static inline void qos_shm_publish_back(struct qos_shm_consumer *c)
{
    if (c->given_back)
        qos_ring_publish(&c->back);
    c->given_back = false;
    if (!c->cast.dirty)
        return;
    /* release: pairs with the acquire in qos_shm_returned: what was told before is there, and we have read the messages */
    qos_store_release(&c->link->done, c->cast.done);
    c->cast.dirty = false;
}

/* Messages between the two, seen by a third: given and not taken back. The memory is both sides' to write, so this is a report. */
static inline uint64_t qos_shm_outstanding(const struct qos_shm_link *link, uint32_t depth)
{
    const uint8_t *rings = (const uint8_t *)link + QOS_SHM_RINGS;
    const struct qos_ring *forward = (const struct qos_ring *)(const void *)rings;
    const struct qos_ring *back = (const struct qos_ring *)(const void *)(rings + qos_ring_size(2 * depth));
    return qos_load_relaxed(&forward->tail) / 2 - (qos_load_relaxed(&back->head) - qos_load_relaxed(&link->told)) +
           qos_load_relaxed(&link->cast_held);
}

#endif
