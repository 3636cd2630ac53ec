/* SPDX-License-Identifier: Apache-2.0 */
#include "pool.h"

#include <errno.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define NONE UINT32_MAX
#define IDLE_MAX                                                                                                       \
    16u /* idle buffers a cache keeps at most: going to the pool costs a lock, hoarding starves other caches */
#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif

/* Bytes of a slot of each class, header room included. The last is a whole buffer. */
static const uint32_t CLASS_BYTES[QOS_POOL_CLASSES] = {256, 1024, 4096, 16384, QOS_POOL_STRIDE};

/* What the allocator knows of a buffer. Private memory: nothing another process writes is ever read here. */
struct buffer {
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
    struct buffer buffers[];
};

struct qos_cache {
    struct qos_pool *pool;
    uint32_t partial[QOS_POOL_CLASSES]; /* buffers with a free slot */
    uint32_t used;                      /* slots referenced */
    uint32_t idle;                      /* buffers without any */
};

struct owner {
    uint8_t state;
    uint16_t generation;
    uint16_t references;
    uint8_t class;
};

static struct owner owner_of(uint64_t word)
{
    return (struct owner){(uint8_t)(word >> 56), (uint16_t)(word >> 40), (uint16_t)(word >> 24), (uint8_t)(word >> 16)};
}

static uint64_t owner_word(struct owner o)
{
    return (uint64_t)o.state << 56 | (uint64_t)o.generation << 40 | (uint64_t)o.references << 24 |
           (uint64_t)o.class << 16;
}

/* Relaxed: only this process writes, and a report reads each word on its own. */
static struct owner owner_load(const struct qos_pool *pool, uint32_t index)
{
    return owner_of(atomic_load_explicit(&pool->owners[index], memory_order_relaxed));
}

static void owner_store(struct qos_pool *pool, uint32_t index, struct owner o)
{
    atomic_store_explicit(&pool->owners[index], owner_word(o), memory_order_relaxed);
}

struct qos_pool *qos_pool_new(void *base, uint32_t buffers)
{
    if (buffers == 0 || buffers > QOS_POOL_MAX_BUFFERS)
        return NULL;
    struct qos_pool *pool = calloc(1, sizeof *pool + buffers * sizeof(struct buffer));
    if (!pool)
        return NULL;
    pool->region = qos_region_at(base, buffers);
    pool->owners = (_Atomic uint64_t *)base;
    pool->left = buffers;
    pthread_mutex_init(&pool->lock, NULL);
    for (uint32_t i = 0; i < buffers; i++)
        pool->buffers[i].next = i + 1 < buffers ? i + 1 : NONE;
    return pool;
}

void qos_pool_free(struct qos_pool *pool)
{
    if (!pool)
        return;
    pthread_mutex_destroy(&pool->lock);
    free(pool);
}

const struct qos_region *qos_pool_region(const struct qos_pool *pool)
{
    return &pool->region;
}

struct qos_cache *qos_cache_new(struct qos_pool *pool)
{
    struct qos_cache *cache = calloc(1, sizeof *cache);
    if (!cache)
        return NULL;
    cache->pool = pool;
    for (uint32_t i = 0; i < QOS_POOL_CLASSES; i++)
        cache->partial[i] = NONE;
    return cache;
}

static void partial_add(struct qos_cache *cache, uint32_t number)
{
    struct buffer *b = &cache->pool->buffers[number];
    uint32_t *head = &cache->partial[b->class];
    b->next = *head;
    b->previous = NONE;
    if (*head != NONE)
        cache->pool->buffers[*head].previous = number;
    *head = number;
}

static void partial_remove(struct qos_cache *cache, uint32_t number)
{
    struct buffer *b = &cache->pool->buffers[number];
    if (b->previous != NONE)
        cache->pool->buffers[b->previous].next = b->next;
    else
        cache->partial[b->class] = b->next;
    if (b->next != NONE)
        cache->pool->buffers[b->next].previous = b->previous;
}

/* Take a buffer from the pool and cut it. */
static int buffer_take(struct qos_cache *cache, uint8_t class)
{
    struct qos_pool *pool = cache->pool;
    pthread_mutex_lock(&pool->lock);
    uint32_t number = pool->free;
    if (number != NONE) {
        pool->free = pool->buffers[number].next;
        qos_sub_relaxed(&pool->left, 1);
    }
    pthread_mutex_unlock(&pool->lock);
    if (number == NONE)
        return -EAGAIN;
    struct buffer *b = &pool->buffers[number];
    uint8_t *memory = pool->region.buffers + (size_t)number * QOS_POOL_STRIDE;
    if (!b->populated) {
        /* A page fault costs more than a message. Best effort: an old kernel faults page by page. */
        (void)madvise(memory, QOS_POOL_STRIDE, MADV_POPULATE_WRITE);
        b->populated = true;
    }
    qos_store_relaxed(&b->cache, cache);
    b->class = class;
    b->slots = class == QOS_POOL_CLASSES - 1 ? 1 : (uint16_t)(QOS_POOL_SLOTS * 256u / CLASS_BYTES[class]);
    b->free = b->slots;
    b->first = 0;
    for (uint32_t i = 0; i < b->slots; i++)
        b->after[i] = (uint8_t)(i + 1);
    cache->idle++;
    partial_add(cache, number);
    return 0;
}

static void buffer_give(struct qos_cache *cache, uint32_t number)
{
    struct qos_pool *pool = cache->pool;
    partial_remove(cache, number);
    qos_store_relaxed(&pool->buffers[number].cache, NULL);
    pthread_mutex_lock(&pool->lock);
    pool->buffers[number].next = pool->free;
    pool->free = number;
    qos_add_relaxed(&pool->left, 1);
    pthread_mutex_unlock(&pool->lock);
}

/* Give the pool every buffer of which no slot is used: how many. */
static uint32_t give_idle(struct qos_cache *cache)
{
    uint32_t given = 0;
    for (uint32_t class = 0; class < QOS_POOL_CLASSES; class++) {
        for (uint32_t number = cache->partial[class], next; number != NONE; number = next) {
            next = cache->pool->buffers[number].next;
            if (cache->pool->buffers[number].free == cache->pool->buffers[number].slots) {
                buffer_give(cache, number);
                given++;
            }
        }
    }
    cache->idle = 0;
    return given;
}

static uint8_t class_for(uint32_t size)
{
    uint8_t class = 0;
    while (class < QOS_POOL_CLASSES - 1 && size + QOS_POOL_HEADROOM > CLASS_BYTES[class])
        class++;
    return class;
}

int qos_cache_borrow(struct qos_cache *cache, uint32_t size, uint64_t *slice)
{
    if (QOS_UNLIKELY(size > QOS_POOL_PAYLOAD))
        return -EMSGSIZE;
    uint8_t class = class_for(size);
    if (QOS_UNLIKELY(cache->partial[class] == NONE)) {
        int rc = buffer_take(cache, class);
        if (rc == -EAGAIN && give_idle(cache) > 0) /* those of other classes */
            rc = buffer_take(cache, class);
        if (rc < 0)
            return rc;
    }
    struct qos_pool *pool = cache->pool;
    uint32_t number = cache->partial[class];
    struct buffer *b = &pool->buffers[number];
    uint32_t slot = b->first;
    b->first = b->after[slot];
    cache->idle -= b->free == b->slots;
    if (--b->free == 0)
        partial_remove(cache, number);
    uint32_t index = number * QOS_POOL_SLOTS + slot;
    struct owner o = owner_load(pool, index);
    owner_store(pool, index, (struct owner){QOS_SLOT_BORROWED, o.generation, 1, class});
    cache->used++;
    *slice = qos_slice_make(number, slot * CLASS_BYTES[class] + QOS_POOL_HEADROOM, slot, o.generation);
    return 0;
}

uint8_t *qos_pool_payload(const struct qos_pool *pool, uint64_t slice)
{
    return pool->region.buffers + (size_t)qos_slice_buffer(slice) * QOS_POOL_STRIDE + qos_slice_offset(slice);
}

/* The buffer of a live slice of this cache and its owner word, or NULL. */
static struct buffer *live(struct qos_cache *cache, uint64_t slice, struct owner *o)
{
    struct qos_pool *pool = cache->pool;
    uint32_t number = qos_slice_buffer(slice), slot = qos_slice_slot(slice);
    if (QOS_UNLIKELY(number >= pool->region.count))
        return NULL;
    struct buffer *b = &pool->buffers[number];
    if (QOS_UNLIKELY(qos_load_relaxed(&b->cache) != cache || slot >= b->slots))
        return NULL;
    *o = owner_load(pool, number * QOS_POOL_SLOTS + slot);
    return QOS_LIKELY(o->references > 0 && o->generation == qos_slice_generation(slice)) ? b : NULL;
}

int qos_cache_emit(struct qos_cache *cache, uint64_t slice, uint32_t references)
{
    struct owner o;
    if (QOS_UNLIKELY(references == 0))
        return qos_cache_drop(cache, slice);
    if (QOS_UNLIKELY(!live(cache, slice, &o) || o.state != QOS_SLOT_BORROWED || references > UINT16_MAX))
        return -EPROTO;
    o.state = QOS_SLOT_EMITTED;
    o.references = (uint16_t)references;
    owner_store(cache->pool, qos_slice_index(slice), o);
    return 0;
}

uint32_t qos_pool_slot_bytes(const struct qos_pool *pool, uint64_t slice)
{
    return CLASS_BYTES[pool->buffers[qos_slice_buffer(slice)].class];
}

int qos_cache_drop(struct qos_cache *cache, uint64_t slice)
{
    struct qos_pool *pool = cache->pool;
    struct owner o;
    struct buffer *b = live(cache, slice, &o);
    if (!b)
        return -EPROTO;
    if (--o.references > 0) {
        owner_store(cache->pool, qos_slice_index(slice), o);
        return 0;
    }
    uint32_t number = qos_slice_buffer(slice), slot = qos_slice_slot(slice);
    owner_store(cache->pool, qos_slice_index(slice),
                (struct owner){QOS_SLOT_FREE, (uint16_t)(o.generation + 1), 0, o.class});
    cache->used--;
    b->after[slot] = b->first;
    b->first = (uint8_t)slot;
    if (b->free++ == 0)
        partial_add(cache, number);
    if (b->free < b->slots)
        return 0;
    /* one buffer per class stays in any case, the others while the pool has plenty */
    if (b->next == NONE && b->previous == NONE)
        cache->idle++;
    else if (cache->idle < IDLE_MAX && qos_load_relaxed(&pool->left) >= pool->region.count / 4)
        cache->idle++;
    else
        buffer_give(cache, number);
    return 0;
}

int qos_cache_drop_index(struct qos_cache *cache, uint32_t index)
{
    uint32_t number = index / QOS_POOL_SLOTS;
    if (number >= cache->pool->region.count)
        return -EPROTO;
    return qos_cache_drop(cache,
                          qos_slice_make(number, 0, index % QOS_POOL_SLOTS, owner_load(cache->pool, index).generation));
}

int qos_cache_owns(const struct qos_cache *cache, uint64_t slice)
{
    uint32_t number = qos_slice_buffer(slice);
    return number < cache->pool->region.count && qos_load_relaxed(&cache->pool->buffers[number].cache) == cache;
}

void qos_cache_discard(struct qos_cache *cache)
{
    free(cache);
}

uint32_t qos_cache_close(struct qos_cache *cache)
{
    (void)give_idle(cache);
    uint32_t used = cache->used;
    if (used == 0)
        free(cache);
    return used;
}
