/* SPDX-License-Identifier: Apache-2.0 */
/* A link of the shared-memory datapath for a test, with the producer's pool, and what a source does with it. */
#ifndef QOS_TEST_SHM_FIXTURE_H
#define QOS_TEST_SHM_FIXTURE_H

#include <errno.h>
#include <sys/mman.h>

#include "check.h"
#include "datapath/shm.h"
#include "pool_fixture.h"

#define DEPTH 16u
#define QUOTA UINT64_MAX

/* A producer with its pool, and a consumer; each has its own mapping of the link. */
struct edge {
    struct pool_fixture pool;
    struct qos_shm_producer p;
    struct qos_shm_consumer c;
    uint8_t *memory; /* a third mapping: what a hostile peer writes goes there */
    uint32_t depth;
};

static inline void *edge_map(int fd, uint32_t depth)
{
    void *memory = mmap(NULL, qos_shm_size(depth), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (!CHECK(memory != MAP_FAILED))
        exit(1);
    return memory;
}

static inline struct edge edge_open(uint32_t depth, uint32_t buffers)
{
    struct edge e = {.pool = pool_open(buffers), .depth = depth};
    int fd = memfd_create("test-shm", MFD_CLOEXEC);
    CHECK_EQ(ftruncate(fd, (off_t)qos_shm_size(depth)), 0);
    e.memory = edge_map(fd, depth);
    CHECK_EQ(qos_shm_init(e.memory, depth), 0);
    CHECK_EQ(qos_shm_producer_open(&e.p, edge_map(fd, depth), depth, qos_pool_region(e.pool.pool)), 0);
    CHECK_EQ(qos_shm_consumer_open(&e.c, edge_map(fd, depth), depth, qos_pool_region(e.pool.pool)), 0);
    close(fd);
    return e;
}

/* Everything that was handed on must have been dropped. */
static inline void edge_close(struct edge *e)
{
    qos_shm_producer_close(&e->p);
    qos_shm_consumer_close(&e->c);
    munmap(e->memory, qos_shm_size(e->depth));
    pool_close(&e->pool);
}

static inline struct qos_ring *edge_forward_ring(const struct edge *e)
{
    return (struct qos_ring *)(void *)(e->memory + QOS_SHM_RINGS);
}

static inline struct qos_ring *edge_back_ring(const struct edge *e)
{
    return (struct qos_ring *)(void *)(e->memory + QOS_SHM_RINGS + qos_ring_size(2 * e->depth));
}

static inline uint64_t edge_borrow(struct edge *e, uint32_t size)
{
    uint64_t slice = 0;
    CHECK_EQ(qos_cache_borrow(e->pool.cache, size, &slice), 0);
    return slice;
}

/* Hand a borrowed slice on, with the only reference: 0, or why not. */
static inline int edge_push(struct edge *e, uint64_t slice, uint32_t size, uint64_t sequence, uint64_t quota)
{
    int rc = qos_shm_write(&e->p, slice, size, sequence, qos_pool_slot_bytes(e->pool.pool, slice), quota);
    if (rc == 0)
        CHECK_EQ(qos_cache_emit(e->pool.cache, slice, 1), 0);
    qos_shm_publish(&e->p);
    return rc;
}

static inline uint64_t edge_send(struct edge *e, uint32_t size, uint64_t sequence)
{
    uint64_t slice = edge_borrow(e, size);
    CHECK_EQ(edge_push(e, slice, size, sequence, QUOTA), 0);
    return slice;
}

static inline int edge_give_back(struct edge *e, uint64_t slice)
{
    int rc = qos_shm_give_back(&e->c, slice, false);
    qos_shm_publish_back(&e->c);
    return rc;
}

/* What a source does with what came back. The number, or a negative errno. */
static inline int edge_drain(struct edge *e)
{
    uint64_t slices[5];
    int n, all = 0;
    while ((n = qos_shm_returned(&e->p, slices, 5)) > 0) {
        for (int i = 0; i < n; i++) {
            e->p.held_bytes -= qos_pool_slot_bytes(e->pool.pool, slices[i]);
            CHECK_EQ(qos_cache_drop(e->pool.cache, slices[i]), 0);
        }
        all += n;
    }
    return n < 0 ? n : all;
}

/* What a source does when the sink is gone. How many it held. */
static inline uint32_t edge_reclaim(struct edge *e)
{
    uint32_t n = 0, index;
    for (; qos_shm_reclaim(&e->p, &index) == 1; n++)
        CHECK_EQ(qos_cache_drop_index(e->pool.cache, index), 0);
    return n;
}

#endif /* QOS_TEST_SHM_FIXTURE_H */
