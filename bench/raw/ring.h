/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The barest single-producer single-consumer ring of 64-bit words between two processes: what the project's ring is
 * measured against. It checks nothing that comes from the other side, which a ring between distrusting processes must.
 */
#ifndef QOS_BENCH_RAW_RING_H
#define QOS_BENCH_RAW_RING_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "raw.h"

#define RAW_RING_SLOTS 4096u

struct raw_ring {
    _Alignas(RAW_CACHE_LINE) _Atomic uint32_t tail; /* written by the producer */
    uint32_t head_seen;                             /* producer's copy of head: spares a cache miss per push */
    _Alignas(RAW_CACHE_LINE) _Atomic uint32_t head; /* written by the consumer */
    uint32_t tail_seen;                             /* consumer's copy of tail */
    _Alignas(RAW_CACHE_LINE) uint64_t slots[RAW_RING_SLOTS];
};

/* Pushes up to `count` words, returns how many. The release pairs with the acquire in raw_ring_pop. */
static inline uint32_t raw_ring_push(struct raw_ring *ring, const uint64_t *words, uint32_t count)
{
    uint32_t tail = atomic_load_explicit(&ring->tail, memory_order_relaxed);
    if (RAW_RING_SLOTS - (tail - ring->head_seen) < count)
        ring->head_seen = atomic_load_explicit(&ring->head, memory_order_acquire);
    uint32_t space = RAW_RING_SLOTS - (tail - ring->head_seen);
    count = count < space ? count : space;
    for (uint32_t i = 0; i < count; i++)
        ring->slots[(tail + i) % RAW_RING_SLOTS] = words[i];
    if (count > 0)
        atomic_store_explicit(&ring->tail, tail + count, memory_order_release);
    return count;
}

/* Pops up to `count` words, returns how many. The release pairs with the acquire of head in raw_ring_push. */
static inline uint32_t raw_ring_pop(struct raw_ring *ring, uint64_t *words, uint32_t count)
{
    uint32_t head = atomic_load_explicit(&ring->head, memory_order_relaxed);
    if (ring->tail_seen - head < count)
        ring->tail_seen = atomic_load_explicit(&ring->tail, memory_order_acquire);
    uint32_t filled = ring->tail_seen - head;
    count = count < filled ? count : filled;
    for (uint32_t i = 0; i < count; i++)
        words[i] = ring->slots[(head + i) % RAW_RING_SLOTS];
    if (count > 0)
        atomic_store_explicit(&ring->head, head + count, memory_order_release);
    return count;
}

static inline void raw_relax(bool yielding)
{
    if (yielding)
        sched_yield();
}

#endif
