/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The receive pool of a user: what his sessions receive is copied here once and shared by them read-only.
 *
 * Buffers are filled by appending. Reference counts, generations and the free list are private to this process; each session
 * has private counts of what it holds, so that a client can give back only what it was given, and what a dead client held
 * comes back. All calls but the first three belong to the data thread.
 */
#ifndef DP_RXPOOL_H
#define DP_RXPOOL_H

#include <stdint.h>

#include "memory.h"
#include "pool.h"

struct dp_session;

#define DP_RX_START 112u /* of the first datagram in a buffer: its first payload then lies at QOS_POOL_HEADROOM */

struct dp_rxpool {
    uint32_t uid;
    uint32_t users; /* sessions, counted by the control thread */
    uint32_t edges; /* of their sources, likewise */
    int fd;         /* read-only */
    bool prefaulted;
    struct qos_region region;
    struct dp_session *sessions; /* linked by pool_next; the data thread's */
    uint32_t session_count;      /* of that list */
    uint32_t free_count;
    int32_t current; /* the buffer being filled, -1: none */
    uint32_t offset; /* next datagram in it */
    uint32_t references[SELENE_RX_BUFFERS];
    uint16_t generation[SELENE_RX_BUFFERS];
    uint16_t free[SELENE_RX_BUFFERS]; /* a stack: the warmest buffer is used next */
    struct dp_rxpool *next;           /* of the control thread's list */
};

int dp_rxpool_create(struct dp_memory *memory, uint32_t uid, struct dp_rxpool **pool);
void dp_rxpool_destroy(struct dp_memory *memory, struct dp_rxpool *pool);
/* Fault in what the first datagrams will lie in. */
void dp_rxpool_prefault(const struct dp_memory *memory, const struct dp_rxpool *pool);

void dp_rxpool_join(struct dp_rxpool *pool, struct dp_session *session);
/* Give back everything the session holds and leave. */
void dp_rxpool_leave(struct dp_rxpool *pool, struct dp_session *session);

/* Room for `size` bytes (QOS_WIRE_MAX_DATAGRAM at most): its address and its slice, or NULL when all buffers are held. Nobody
 * holds it yet: without dp_rxpool_hold before the next call the room may be used again. */
uint8_t *dp_rxpool_append(struct dp_rxpool *pool, uint32_t size, uint64_t *slice);
/* May the session hold one more slice of this buffer? As long as it holds fewer than SELENE_RING_CAPACITY slices and a quarter of
 * the pool is free; with less, its quota is a quarter, or its share when many sessions share the pool. */
int dp_rxpool_within_quota(const struct dp_rxpool *pool, const struct dp_session *session, uint32_t buffer);
void dp_rxpool_hold(struct dp_rxpool *pool, struct dp_session *session, uint64_t slice);
/* 0, or -EPROTO: the session does not hold such a slice. */
int dp_rxpool_drop(struct dp_rxpool *pool, struct dp_session *session, uint64_t slice);

#endif
