/* SPDX-License-Identifier: Apache-2.0 */
#include "pool.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define IDLE_MAX                                                                                                       \
    16u /* idle buffers a cache keeps at most: going to the pool costs a lock, hoarding starves other caches */
#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif

struct qos_pool *qos_pool_new(void *base, uint32_t buffers)
{
    if (buffers == 0 || buffers > QOS_POOL_MAX_BUFFERS)
        return NULL;
    struct qos_pool *pool = calloc(1, sizeof *pool + buffers * sizeof(struct qos_pool_buffer));
    if (!pool)
        return NULL;
    pool->region = qos_region_at(base, buffers);
    pool->owners = (_Atomic uint64_t *)base;
    pool->left = buffers;
    pthread_mutex_init(&pool->lock, NULL);
    for (uint32_t i = 0; i < buffers; i++)
        pool->buffers[i].next = i + 1 < buffers ? i + 1 : QOS_POOL_NONE;
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
        cache->partial[i] = QOS_POOL_NONE;
    return cache;
}

void qos_cache_partial(struct qos_cache *cache, uint32_t number)
{
    struct qos_pool_buffer *b = &cache->pool->buffers[number];
    uint32_t *head = &cache->partial[b->class];
    b->next = *head;
    b->previous = QOS_POOL_NONE;
    if (*head != QOS_POOL_NONE)
        cache->pool->buffers[*head].previous = number;
    *head = number;
}

void qos_cache_full(struct qos_cache *cache, uint32_t number)
{
    struct qos_pool_buffer *b = &cache->pool->buffers[number];
    if (b->previous != QOS_POOL_NONE)
        cache->pool->buffers[b->previous].next = b->next;
    else
        cache->partial[b->class] = b->next;
    if (b->next != QOS_POOL_NONE)
        cache->pool->buffers[b->next].previous = b->previous;
}

/* Take a buffer from the pool and cut it. */
static int buffer_take(struct qos_cache *cache, uint32_t class)
{
    struct qos_pool *pool = cache->pool;
    pthread_mutex_lock(&pool->lock);
    uint32_t number = pool->free;
    if (number != QOS_POOL_NONE) {
        pool->free = pool->buffers[number].next;
        qos_sub_relaxed(&pool->left, 1);
    }
    pthread_mutex_unlock(&pool->lock);
    if (number == QOS_POOL_NONE)
        return -EAGAIN;
    struct qos_pool_buffer *b = &pool->buffers[number];
    uint8_t *memory = pool->region.buffers + (size_t)number * QOS_POOL_STRIDE;
    if (!b->populated) {
        /* A page fault costs more than a message. Best effort: an old kernel faults page by page. */
        (void)madvise(memory, QOS_POOL_STRIDE, MADV_POPULATE_WRITE);
        b->populated = true;
    }
    qos_store_relaxed(&b->cache, cache);
    b->class = (uint8_t)class;
    b->slots = class == QOS_POOL_CLASSES - 1 ? 1 : (uint16_t)(QOS_POOL_SLOTS * 256u / QOS_POOL_CLASS_BYTES[class]);
    b->free = b->slots;
    b->first = 0;
    for (uint32_t i = 0; i < b->slots; i++)
        b->after[i] = (uint8_t)(i + 1);
    cache->idle++;
    qos_cache_partial(cache, number);
    return 0;
}

static void buffer_give(struct qos_cache *cache, uint32_t number)
{
    struct qos_pool *pool = cache->pool;
    qos_cache_full(cache, number);
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
        for (uint32_t number = cache->partial[class], next; number != QOS_POOL_NONE; number = next) {
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

int qos_cache_refill(struct qos_cache *cache, uint32_t class)
{
    int rc = buffer_take(cache, class);
    if (rc == -EAGAIN && give_idle(cache) > 0) /* those of other classes */
        rc = buffer_take(cache, class);
    return rc;
}

/* One per class stays in any case, the others while the pool has plenty. */
void qos_cache_unused(struct qos_cache *cache, uint32_t number)
{
    const struct qos_pool_buffer *b = &cache->pool->buffers[number];
    if (b->next == QOS_POOL_NONE && b->previous == QOS_POOL_NONE)
        cache->idle++;
    else if (cache->idle < IDLE_MAX && qos_load_relaxed(&cache->pool->left) >= cache->pool->region.count / 4)
        cache->idle++;
    else
        buffer_give(cache, number);
}

int qos_cache_drop_index(struct qos_cache *cache, uint32_t index)
{
    uint32_t number = index / QOS_POOL_SLOTS;
    if (number >= cache->pool->region.count)
        return -EPROTO;
    return qos_cache_drop(
        cache, qos_slice_make(number, 0, index % QOS_POOL_SLOTS, qos_region_generation(&cache->pool->region, index)));
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
