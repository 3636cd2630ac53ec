/* SPDX-License-Identifier: Apache-2.0 */
/* A pool of its own for a test, in shared memory, with one cache. */
#ifndef QOS_TEST_POOL_FIXTURE_H
#define QOS_TEST_POOL_FIXTURE_H

#include <errno.h>
#include <sys/mman.h>

#include "check.h"
#include "pool.h"

struct pool_fixture {
    uint8_t *base;
    uint32_t buffers;
    struct qos_pool *pool;
    struct qos_cache *cache;
};

static inline struct pool_fixture pool_open(uint32_t buffers)
{
    struct pool_fixture f = {.buffers = buffers};
    f.base = mmap(NULL, qos_region_size(buffers), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (f.base != MAP_FAILED)
        f.pool = qos_pool_new(f.base, buffers);
    if (f.pool)
        f.cache = qos_cache_new(f.pool);
    if (!CHECK(f.cache != NULL))
        exit(1);
    return f;
}

/* Every slot must be back, and the pool whole: as many whole buffers can be borrowed as it has. */
static inline void pool_close(struct pool_fixture *f)
{
    uint64_t slice;
    CHECK_EQ(qos_cache_close(f->cache), 0);
    struct qos_cache *cache = qos_cache_new(f->pool);
    for (uint32_t i = 0; i < f->buffers; i++)
        CHECK_EQ(qos_cache_borrow(cache, QOS_POOL_PAYLOAD, &slice), 0);
    CHECK_EQ(qos_cache_borrow(cache, QOS_POOL_PAYLOAD, &slice), -EAGAIN);
    qos_cache_discard(cache);
    qos_pool_free(f->pool);
    munmap(f->base, qos_region_size(f->buffers));
}

#endif /* QOS_TEST_POOL_FIXTURE_H */
