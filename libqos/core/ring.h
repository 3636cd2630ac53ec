/* SPDX-License-Identifier: Apache-2.0
 *
 * Bounded lock-free single-producer single-consumer ring of 64-bit words, for two threads or two processes.
 *
 * Strategy: the ring moves words (slices), never data and never pointers. The layout is fixed-width and the same in every C
 * library. Each side is a handle that keeps its own index privately and treats everything the other side can write as untrusted:
 * an index is accepted only if (tail - head) <= capacity, so a corrupted or hostile peer yields -EPROTO and never an out-of-bounds
 * access. A handle is acquired; a second producer (or consumer) on the same ring is refused with -EBUSY.
 *
 * Across processes there are only SPSC rings: a producer killed between reserve and commit of a multi-producer ring would block
 * everybody else. A producer killed here simply never publishes its words.
 */
#ifndef QOS_RING_H
#define QOS_RING_H

#include <errno.h>
#include <stddef.h>
#include <stdint.h>

#include "compiler.h"

#define QOS_RING_MAGIC 0x31474e49u /* "ING1" */
#define QOS_RING_MAX_CAPACITY (1u << 20)

/* In shared memory. The words follow the struct. */
struct qos_ring {
    uint32_t magic;
    uint32_t capacity; /* words; a power of two */
    _Atomic uint32_t producers;
    _Atomic uint32_t consumers;
    _Alignas(QOS_CACHE_LINE) _Atomic uint64_t tail; /* next word the producer writes */
    _Alignas(QOS_CACHE_LINE) _Atomic uint64_t head; /* next word the consumer reads */
    _Alignas(QOS_CACHE_LINE) uint64_t words[];
};

struct qos_ring_producer {
    struct qos_ring *ring;
    uint64_t *words;
    uint64_t mask;
    uint64_t tail; /* private, authoritative */
    uint64_t head; /* last head seen */
};

struct qos_ring_consumer {
    struct qos_ring *ring;
    uint64_t *words;
    uint64_t mask;
    uint64_t head; /* private, authoritative */
    uint64_t tail; /* last tail seen */
};

/* Bytes a ring of `capacity` words takes, a multiple of the cache line. */
static inline size_t qos_ring_size(uint32_t capacity)
{
    return sizeof(struct qos_ring) +
           (((size_t)capacity * sizeof(uint64_t) + QOS_CACHE_LINE - 1) & ~(size_t)(QOS_CACHE_LINE - 1));
}

/* Format memory at `mem` (cache-line aligned, at least qos_ring_size bytes). 0, or -EINVAL for a capacity that is not a power of two. */
int qos_ring_init(void *mem, uint32_t capacity);

/* Acquire a side. `capacity` is what the caller was told by the owner of the memory, never what the memory itself says.
 * 0, -EINVAL (no ring has that capacity), -EBUSY (the side is taken), -EPROTO (not a ring of that capacity, or impossible indices). */
int qos_ring_producer_open(struct qos_ring_producer *producer, void *mem, uint32_t capacity);
int qos_ring_consumer_open(struct qos_ring_consumer *consumer, void *mem, uint32_t capacity);
void qos_ring_producer_close(struct qos_ring_producer *producer);
void qos_ring_consumer_close(struct qos_ring_consumer *consumer);

/* Write all `n` words or none, unseen by the consumer until qos_ring_publish. 0, -EAGAIN (not enough room), -EPROTO (the consumer's
 * index is impossible). */
static inline int qos_ring_write(struct qos_ring_producer *p, const uint64_t *words, uint32_t n)
{
    uint64_t capacity = p->mask + 1;
    if (QOS_UNLIKELY(p->tail - p->head + n > capacity)) {
        /* acquire: pairs with the release in qos_ring_consume: the consumer has read those words before we overwrite them */
        uint64_t head = qos_load_acquire(&p->ring->head);
        if (QOS_UNLIKELY(p->tail - head > capacity))
            return -EPROTO;
        p->head = head;
        if (p->tail - head + n > capacity)
            return -EAGAIN;
    }
    for (uint32_t i = 0; i < n; i++)
        p->words[(p->tail + i) & p->mask] = words[i];
    p->tail += n;
    return 0;
}

/* Show the consumer everything written. Once per burst: each time costs it, and then us, a cache miss. */
static inline void qos_ring_publish(struct qos_ring_producer *p)
{
    /* release: pairs with the acquire in qos_ring_peek: whoever sees the index sees the words and the payload behind them */
    qos_store_release(&p->ring->tail, p->tail);
}

static inline int qos_ring_push(struct qos_ring_producer *p, const uint64_t *words, uint32_t n)
{
    int rc = qos_ring_write(p, words, n);
    if (QOS_LIKELY(rc == 0))
        qos_ring_publish(p);
    return rc;
}

/* Words that can be read now (0 to capacity), or -EPROTO. They stay the producer's until qos_ring_consume. */
static inline int64_t qos_ring_peek(struct qos_ring_consumer *c)
{
    if (c->tail == c->head) {
        /* acquire: pairs with the release in qos_ring_push */
        uint64_t tail = qos_load_acquire(&c->ring->tail);
        if (QOS_UNLIKELY(tail - c->head > c->mask + 1))
            return -EPROTO;
        c->tail = tail;
    }
    return (int64_t)(c->tail - c->head);
}

/* The i-th readable word, i < qos_ring_peek(). A relaxed read of one copy: a hostile producer may rewrite it at any time. */
static inline uint64_t qos_ring_word(const struct qos_ring_consumer *c, uint64_t i)
{
    return *(const volatile uint64_t *)&c->words[(c->head + i) & c->mask];
}

/* Give `n` read words back to the producer. */
static inline void qos_ring_consume(struct qos_ring_consumer *c, uint64_t n)
{
    c->head += n;
    /* release: pairs with the acquire in qos_ring_push */
    qos_store_release(&c->ring->head, c->head);
}

/* Pop up to `max` words. The number popped, or -EPROTO. */
static inline int64_t qos_ring_pop(struct qos_ring_consumer *c, uint64_t *words, uint64_t max)
{
    int64_t ready = qos_ring_peek(c);
    if (ready <= 0)
        return ready;
    uint64_t n = (uint64_t)ready < max ? (uint64_t)ready : max;
    for (uint64_t i = 0; i < n; i++)
        words[i] = qos_ring_word(c, i);
    qos_ring_consume(c, n);
    return (int64_t)n;
}

#endif
