/* SPDX-License-Identifier: Apache-2.0 */
#include "fsck.h"

#include <string.h>
#include <unistd.h>

#include "datapath/shm.h"

static uint64_t mix(uint64_t digest, uint64_t value)
{
    return (digest ^ value) * UINT64_C(0x100000001b3) + (digest >> 29);
}

/* Call `add` for the parts of a memfd's range that were ever written: to read the others would give them memory. */
static void each_part(const struct dp_session *s, int fd, off_t start, off_t end,
                      void (*add)(const struct dp_session *s, size_t from, size_t to, struct selene_fsck_row *row),
                      struct selene_fsck_row *row)
{
    for (off_t at = start; at < end;) {
        off_t from = lseek(fd, at, SEEK_DATA);
        if (from < 0 || from >= end)
            return;
        at = lseek(fd, from, SEEK_HOLE);
        if (at < 0 || at > end)
            at = end;
        add(s, (size_t)(from > start ? from - start : 0), (size_t)(at - start), row);
    }
}

static void add_slots(const struct dp_session *s, size_t from, size_t to, struct selene_fsck_row *row)
{
    for (size_t at = from; at < to; at += sizeof(uint64_t)) {
        uint64_t word = qos_load_relaxed((const _Atomic uint64_t *)(const void *)(s->tx.base + at));
        row->digest = mix(row->digest, word);
        if (word >> 56 == QOS_SLOT_BORROWED)
            row->borrowed++;
        if (word >> 56 != QOS_SLOT_EMITTED)
            continue;
        row->emitted++;
        row->references += word >> 24 & 0xffff;
    }
}

static void add_counters(const struct dp_session *s, size_t from, size_t to, struct selene_fsck_row *row)
{
    const uint8_t *counters = (const uint8_t *)s->page + SELENE_PAGE_COUNTERS;
    for (size_t at = from; at < to; at += sizeof(struct selene_counters)) {
        const uint8_t *word = counters + at + offsetof(struct selene_counters, returning);
        row->returning += __atomic_load_n((const uint64_t *)(const void *)word, __ATOMIC_RELAXED);
    }
}

static void add_edge(const struct dp_edge *e, struct selene_fsck_row *row)
{
    uint64_t n = qos_shm_outstanding(e->link, e->depth);
    row->held += n;
    row->digest = mix(row->digest, n);
}

static uint64_t ring_index(const struct dp_session *s, size_t ring, size_t index)
{
    const uint8_t *at = (const uint8_t *)s->page + ring + index;
    return qos_load_relaxed((const _Atomic uint64_t *)(const void *)at);
}

void dp_fsck_session(const struct dp_session *s, const struct dp_edges *edges, struct selene_fsck_row *row)
{
    *row = (struct selene_fsck_row){.kind = SELENE_FSCK_TX, .uid = s->uid, .session = s->id};
    each_part(s, s->tx_fd, SELENE_BELL_BYTES, SELENE_BELL_BYTES + (off_t)qos_region_owner_bytes(s->tx.count), add_slots,
              row);
    for (unsigned b = 0; b < DP_EDGE_BUCKETS; b++)
        for (const struct dp_edge *e = edges->buckets[b]; e != NULL; e = e->next)
            if (e->from == s)
                add_edge(e, row);
    uint64_t held = row->held;
    for (const struct dp_edge *e = edges->leaving; e != NULL; e = e->next)
        if (e->from == s)
            add_edge(e, row);
    row->leaving = row->held - held;
    uint64_t pushed = ring_index(s, SELENE_PAGE_TX, offsetof(struct qos_ring, tail));
    uint64_t popped = ring_index(s, SELENE_PAGE_DONE, offsetof(struct qos_ring, head));
    row->relayed = (pushed - popped) / 2;
    each_part(s, s->page_fd, SELENE_PAGE_COUNTERS, SELENE_PAGE_SIZE, add_counters, row);
    row->digest = mix(mix(mix(row->digest, pushed), popped), row->returning);
}

/* Whether what the sessions say they hold of a buffer, its count and the free list agree. */
static bool agrees(const struct dp_rxpool *pool, uint32_t buffer, const bool *is_free)
{
    uint64_t held = 0;
    for (const struct dp_session *s = pool->sessions; s != NULL; s = s->pool_next)
        held += s->holds[buffer];
    bool current = pool->current == (int32_t)buffer;
    return held == pool->references[buffer] && is_free[buffer] == (held == 0 && !current);
}

void dp_fsck_rxpool(const struct dp_rxpool *pool, struct selene_fsck_row *row)
{
    bool is_free[SELENE_RX_BUFFERS] = {false};
    *row = (struct selene_fsck_row){.kind = SELENE_FSCK_RX, .uid = pool->uid, .free = pool->free_count};
    for (uint32_t i = 0; i < pool->free_count; i++) {
        row->faults += is_free[pool->free[i]]; /* twice */
        is_free[pool->free[i]] = true;
    }
    for (uint32_t i = 0; i < SELENE_RX_BUFFERS; i++) {
        row->faults += !agrees(pool, i, is_free);
        row->emitted += pool->references[i] > 0;
        row->references += pool->references[i];
        row->digest = mix(row->digest, (uint64_t)pool->references[i] << 32 | pool->generation[i]);
    }
    for (const struct dp_session *s = pool->sessions; s != NULL; s = s->pool_next)
        row->relayed += s->slices;
}
