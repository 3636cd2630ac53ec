/* SPDX-License-Identifier: Apache-2.0
 *
 * Buffers in a memfd, and slices of them.
 *
 * A pool is a region: one owner word per slot, then `buffers` buffers of QOS_POOL_STRIDE bytes. A buffer is cut into equal slots of
 * one size class while somebody uses it, so that 64-byte messages stay dense and a message of 64 KiB still has header room. A slice,
 * one 64-bit word, names a piece of a slot: it is what rings carry.
 *
 *   slice = buffer (20 bits) | payload offset / 8 (13) | slot in the buffer (15) | generation (16)
 *
 * Only the process that allocates writes the owner words. Whoever else maps the region maps it read-only. A generation catches a
 * stale slice of an honest peer; it is no security check: every slice from another process goes through qos_slice_locate first.
 */
#ifndef QOS_POOL_H
#define QOS_POOL_H

#include <errno.h>
#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "compiler.h"

#define QOS_POOL_HEADROOM 192u  /* in front of each payload: Ethernet, VLAN, IPv6, UDP and the wire header */
#define QOS_POOL_PAYLOAD 65536u /* the largest message of one slot */
#define QOS_POOL_STRIDE 69632u  /* 17 pages: QOS_POOL_HEADROOM + QOS_POOL_PAYLOAD, page aligned */
#define QOS_POOL_SLOTS 256u     /* slots in a buffer at most */
#define QOS_POOL_CLASSES 5u     /* 256, 1024, 4096, 16384 bytes, and a whole buffer; header room included */
#define QOS_POOL_MAX_BUFFERS (1u << 16)

/* What a slot is doing; the owner word is state (8) | generation (16) | references (16) | class (8) | reserved (16). */
enum qos_slot_state { QOS_SLOT_FREE = 0, QOS_SLOT_BORROWED = 1, QOS_SLOT_EMITTED = 2 };

struct qos_region {
    uint8_t *base;    /* start of the mapping: the owner words */
    uint8_t *buffers; /* the first buffer */
    uint32_t count;   /* buffers */
};

static inline size_t qos_region_owner_bytes(uint32_t buffers)
{
    return ((size_t)buffers * QOS_POOL_SLOTS * sizeof(uint64_t) + 4095) & ~(size_t)4095;
}

static inline size_t qos_region_size(uint32_t buffers)
{
    return qos_region_owner_bytes(buffers) + (size_t)buffers * QOS_POOL_STRIDE;
}

/* Describe a mapping of qos_region_size(buffers) bytes. */
static inline struct qos_region qos_region_at(void *base, uint32_t buffers)
{
    return (struct qos_region){base, (uint8_t *)base + qos_region_owner_bytes(buffers), buffers};
}

/* Generation of a slot (qos_slice_index), for the process that allocates. */
static inline uint16_t qos_region_generation(const struct qos_region *region, uint32_t index)
{
    const _Atomic uint64_t *owners = (const _Atomic uint64_t *)(const void *)region->base;
    return (uint16_t)(qos_load_relaxed(&owners[index]) >> 40);
}

static inline uint64_t qos_slice_make(uint32_t buffer, uint32_t offset, uint32_t slot, uint16_t generation)
{
    return (uint64_t)buffer << 44 | (uint64_t)(offset / 8) << 31 | (uint64_t)slot << 16 | generation;
}

static inline uint32_t qos_slice_buffer(uint64_t slice)
{
    return (uint32_t)(slice >> 44);
}

static inline uint32_t qos_slice_offset(uint64_t slice)
{
    return (uint32_t)(slice >> 31 & 0x1fff) * 8;
}

static inline uint32_t qos_slice_slot(uint64_t slice)
{
    return (uint32_t)(slice >> 16 & 0x7fff);
}

static inline uint16_t qos_slice_generation(uint64_t slice)
{
    return (uint16_t)slice;
}

/* The address of a slice from another process and of the `length` bytes behind it, or NULL if it leaves its buffer or has less than
 * `headroom` bytes in front. */
static inline uint8_t *qos_slice_locate(const struct qos_region *region, uint64_t slice, uint32_t length,
                                        uint32_t headroom)
{
    uint32_t buffer = qos_slice_buffer(slice), offset = qos_slice_offset(slice);
    if (QOS_UNLIKELY(buffer >= region->count || offset < headroom || length > QOS_POOL_STRIDE - offset))
        return NULL;
    return region->buffers + (size_t)buffer * QOS_POOL_STRIDE + offset;
}

/* Allocation: a pool owns the buffers of one region and hands them out to caches; a cache (one per source or other single-threaded
 * user) cuts them into slots. The pool is locked, a cache is not. */
struct qos_pool;
struct qos_cache;

/* `base` is a mapping that this process may write, zeroed and owned by it alone. NULL on lack of memory. */
struct qos_pool *qos_pool_new(void *base, uint32_t buffers);
void qos_pool_free(struct qos_pool *pool);
const struct qos_region *qos_pool_region(const struct qos_pool *pool);

struct qos_cache *qos_cache_new(struct qos_pool *pool);
/* Give back what is free. 0: the cache is gone. Otherwise the number of slots still referenced: call again when they were dropped. */
uint32_t qos_cache_close(struct qos_cache *cache);

/* Borrow a slot for `size` bytes of payload: qos_cache_borrow. 0 and the slice, -EAGAIN (pool empty), -EMSGSIZE. The payload is at
 * qos_pool_payload(), 64-byte aligned, with QOS_POOL_HEADROOM bytes in front. One reference is held.
 *
 * The holder of a borrowed slot hands it on to `references` others (0: frees it): qos_cache_emit. Drop one reference: qos_cache_drop; the
 * slot is free at the last. Both check everything about a slice, which may come from another process: 0, or -EPROTO if it is not a live
 * slot of this cache, its generation is stale or (emit) it was emitted already. */
/* Drop one reference of the slot with this dense number (qos_slice_index), whoever held it. As qos_cache_drop. */
int qos_cache_drop_index(struct qos_cache *cache, uint32_t index);
/* Whether the slice lies in a buffer of this cache. */
int qos_cache_owns(const struct qos_cache *cache, uint64_t slice);
/* Forget a cache whose pool goes away with it. */
void qos_cache_discard(struct qos_cache *cache);
/* Dense number of a slice's slot in its region, below buffers * QOS_POOL_SLOTS: the index of a holder's bitmap. */
static inline uint32_t qos_slice_index(uint64_t slice)
{
    return qos_slice_buffer(slice) * QOS_POOL_SLOTS + qos_slice_slot(slice);
}

/* ---- Inside, and what happens for every message: inlined, since ten calls would take as long as their work ---- */

#define QOS_POOL_NONE UINT32_MAX

/* Bytes of a slot of each class, header room included. The last is a whole buffer. */
static const uint32_t QOS_POOL_CLASS_BYTES[QOS_POOL_CLASSES] = {256, 1024, 4096, 16384, QOS_POOL_STRIDE};

/* What the allocator knows of a buffer. Private memory: nothing another process writes is ever read here. */
struct qos_pool_buffer {
    struct qos_cache *_Atomic cache; /* who cut it; NULL: in the pool. Others may ask (qos_cache_owns) */
    uint32_t next, previous;         /* in the pool's free list, or in the cache's list of buffers with free slots */
    uint16_t free;                   /* free slots */
    uint16_t slots;
    uint8_t first; /* head of the free slots; valid while free > 0 */
    uint8_t class;
    bool populated;
    uint8_t after[QOS_POOL_SLOTS]; /* next free slot */
};

struct qos_pool {
    struct qos_region region;
    _Atomic uint64_t *owners;
    pthread_mutex_t lock; /* the free list */
    uint32_t free;
    _Atomic uint32_t left; /* buffers in it */
    struct qos_pool_buffer buffers[];
};

struct qos_cache {
    struct qos_pool *pool;
    uint32_t partial[QOS_POOL_CLASSES]; /* buffers with a free slot */
    uint32_t used;                      /* slots referenced */
    uint32_t idle;                      /* buffers without any */
};

/* A buffer with free slots of that class in front of the cache's list. 0, -EAGAIN. */
int qos_cache_refill(struct qos_cache *cache, uint32_t class);
/* A buffer has got its first free slot, or lost its last; or none of its slots is used any more. */
void qos_cache_partial(struct qos_cache *cache, uint32_t number);
void qos_cache_full(struct qos_cache *cache, uint32_t number);
void qos_cache_unused(struct qos_cache *cache, uint32_t number);

/* Owner words are read and written relaxed: only this process writes, and a report reads each word on its own. */
static inline uint64_t qos_owner_make(enum qos_slot_state state, uint64_t generation, uint64_t references,
                                      uint32_t class)
{
    return (uint64_t)state << 56 | (generation & 0xffff) << 40 | references << 24 | (uint64_t)class << 16;
}

static inline uint16_t qos_owner_references(uint64_t word)
{
    return (uint16_t)(word >> 24);
}

static inline int qos_cache_borrow(struct qos_cache *cache, uint32_t size, uint64_t *slice)
{
    uint32_t class = 0;
    while (class < QOS_POOL_CLASSES - 1 && size + QOS_POOL_HEADROOM > QOS_POOL_CLASS_BYTES[class])
        class ++;
    if (QOS_UNLIKELY(size > QOS_POOL_PAYLOAD))
        return -EMSGSIZE;
    if (QOS_UNLIKELY(cache->partial[class] == QOS_POOL_NONE)) {
        int rc = qos_cache_refill(cache, class);
        if (rc < 0)
            return rc;
    }
    struct qos_pool *pool = cache->pool;
    uint32_t number = cache->partial[class];
    struct qos_pool_buffer *b = &pool->buffers[number];
    uint32_t slot = b->first;
    b->first = b->after[slot];
    cache->idle -= b->free == b->slots;
    if (QOS_UNLIKELY(--b->free == 0))
        qos_cache_full(cache, number);
    _Atomic uint64_t *owner = &pool->owners[number * QOS_POOL_SLOTS + slot];
    uint16_t generation = (uint16_t)(qos_load_relaxed(owner) >> 40);
    qos_store_relaxed(owner, qos_owner_make(QOS_SLOT_BORROWED, generation, 1, class));
    cache->used++;
    *slice = qos_slice_make(number, slot * QOS_POOL_CLASS_BYTES[class] + QOS_POOL_HEADROOM, slot, generation);
    return 0;
}

static inline uint8_t *qos_pool_payload(const struct qos_pool *pool, uint64_t slice)
{
    return pool->region.buffers + (size_t)qos_slice_buffer(slice) * QOS_POOL_STRIDE + qos_slice_offset(slice);
}

/* Bytes that the slot of a live slice takes in the pool. */
static inline uint32_t qos_pool_slot_bytes(const struct qos_pool *pool, uint64_t slice)
{
    return QOS_POOL_CLASS_BYTES[pool->buffers[qos_slice_buffer(slice)].class];
}

/* The buffer of a live slice of this cache and its owner word, or NULL. */
static inline struct qos_pool_buffer *qos_cache_live(struct qos_cache *cache, uint64_t slice, uint64_t *word)
{
    struct qos_pool *pool = cache->pool;
    uint32_t number = qos_slice_buffer(slice), slot = qos_slice_slot(slice);
    if (QOS_UNLIKELY(number >= pool->region.count))
        return NULL;
    struct qos_pool_buffer *b = &pool->buffers[number];
    if (QOS_UNLIKELY(qos_load_relaxed(&b->cache) != cache || slot >= b->slots))
        return NULL;
    *word = qos_load_relaxed(&pool->owners[number * QOS_POOL_SLOTS + slot]);
    return QOS_LIKELY(qos_owner_references(*word) > 0 && (uint16_t)(*word >> 40) == qos_slice_generation(slice)) ? b
                                                                                                                 : NULL;
}

static inline int qos_cache_drop(struct qos_cache *cache, uint64_t slice)
{
    uint64_t word;
    struct qos_pool_buffer *b = qos_cache_live(cache, slice, &word);
    if (QOS_UNLIKELY(!b))
        return -EPROTO;
    uint32_t number = qos_slice_buffer(slice), slot = qos_slice_slot(slice);
    _Atomic uint64_t *owner = &cache->pool->owners[number * QOS_POOL_SLOTS + slot];
    if (qos_owner_references(word) > 1) {
        qos_store_relaxed(owner, word - (UINT64_C(1) << 24));
        return 0;
    }
    qos_store_relaxed(owner, qos_owner_make(QOS_SLOT_FREE, (word >> 40) + 1, 0, b->class));
    cache->used--;
    b->after[slot] = b->first;
    b->first = (uint8_t)slot;
    if (QOS_UNLIKELY(b->free++ == 0))
        qos_cache_partial(cache, number);
    if (QOS_UNLIKELY(b->free == b->slots))
        qos_cache_unused(cache, number);
    return 0;
}

static inline int qos_cache_emit(struct qos_cache *cache, uint64_t slice, uint32_t references)
{
    uint64_t word;
    if (QOS_UNLIKELY(references == 0))
        return qos_cache_drop(cache, slice);
    struct qos_pool_buffer *b = qos_cache_live(cache, slice, &word);
    if (QOS_UNLIKELY(!b || word >> 56 != QOS_SLOT_BORROWED || references > UINT16_MAX))
        return -EPROTO;
    qos_store_relaxed(&cache->pool->owners[qos_slice_index(slice)],
                      qos_owner_make(QOS_SLOT_EMITTED, word >> 40, references, b->class));
    return 0;
}

#endif
