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

/* Borrow a slot for `size` bytes of payload. 0 and the slice, -EAGAIN (pool empty), -EMSGSIZE. The payload is at
 * qos_pool_payload(), 64-byte aligned, with QOS_POOL_HEADROOM bytes in front. One reference is held. */
int qos_cache_borrow(struct qos_cache *cache, uint32_t size, uint64_t *slice);
uint8_t *qos_pool_payload(const struct qos_pool *pool, uint64_t slice);

/* The holder of a borrowed slot hands it on to `references` others (0: frees it). Drop one reference; the slot is free at the last.
 * Both check everything about a slice, which may come from another process: 0, or -EPROTO if it is not a live slot of this cache, its
 * generation is stale or (emit) it was emitted already. */
int qos_cache_emit(struct qos_cache *cache, uint64_t slice, uint32_t references);
int qos_cache_drop(struct qos_cache *cache, uint64_t slice);
/* Drop one reference of the slot with this dense number (qos_slice_index), whoever held it. As qos_cache_drop. */
int qos_cache_drop_index(struct qos_cache *cache, uint32_t index);
/* Whether the slice lies in a buffer of this cache. */
int qos_cache_owns(const struct qos_cache *cache, uint64_t slice);
/* Forget a cache whose pool goes away with it. */
void qos_cache_discard(struct qos_cache *cache);
/* Bytes that the slot of a live slice takes in the pool. */
uint32_t qos_pool_slot_bytes(const struct qos_pool *pool, uint64_t slice);

/* Dense number of a slice's slot in its region, below buffers * QOS_POOL_SLOTS: the index of a holder's bitmap. */
static inline uint32_t qos_slice_index(uint64_t slice)
{
    return qos_slice_buffer(slice) * QOS_POOL_SLOTS + qos_slice_slot(slice);
}

#endif
