/* SPDX-License-Identifier: Apache-2.0 */
#include "ring.h"

#include <string.h>

int qos_ring_init(void *mem, uint32_t capacity)
{
    if (capacity == 0 || capacity > QOS_RING_MAX_CAPACITY || (capacity & (capacity - 1)) != 0)
        return -EINVAL;
    struct qos_ring *ring = mem;
    memset(ring, 0, sizeof *ring);
    ring->magic = QOS_RING_MAGIC;
    ring->capacity = capacity;
    return 0;
}

static int check(const struct qos_ring *ring, uint32_t capacity)
{
    if (capacity == 0 || capacity > QOS_RING_MAX_CAPACITY || (capacity & (capacity - 1)) != 0)
        return -EINVAL;
    return ring->magic == QOS_RING_MAGIC && ring->capacity == capacity ? 0 : -EPROTO;
}

static int acquire(_Atomic uint32_t *side)
{
    uint32_t free = 0;
    return qos_cas_acq_rel(side, &free, 1) ? 0 : -EBUSY;
}

int qos_ring_producer_open(struct qos_ring_producer *producer, void *mem, uint32_t capacity)
{
    struct qos_ring *ring = mem;
    int rc = check(ring, capacity);
    if (rc == 0)
        rc = acquire(&ring->producers);
    if (rc < 0)
        return rc;
    uint64_t tail = qos_load_acquire(&ring->tail);
    uint64_t head = qos_load_acquire(&ring->head);
    if (tail - head > capacity) {
        qos_store_release(&ring->producers, 0);
        return -EPROTO;
    }
    *producer = (struct qos_ring_producer){ring, ring->words, capacity - 1, tail, head};
    return 0;
}

int qos_ring_consumer_open(struct qos_ring_consumer *consumer, void *mem, uint32_t capacity)
{
    struct qos_ring *ring = mem;
    int rc = check(ring, capacity);
    if (rc == 0)
        rc = acquire(&ring->consumers);
    if (rc < 0)
        return rc;
    uint64_t head = qos_load_acquire(&ring->head);
    *consumer = (struct qos_ring_consumer){ring, ring->words, capacity - 1, head, head};
    return 0;
}

void qos_ring_producer_close(struct qos_ring_producer *producer)
{
    qos_store_release(&producer->ring->producers, 0);
    producer->ring = NULL;
}

void qos_ring_consumer_close(struct qos_ring_consumer *consumer)
{
    qos_store_release(&consumer->ring->consumers, 0);
    consumer->ring = NULL;
}
