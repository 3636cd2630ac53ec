/* SPDX-License-Identifier: Apache-2.0 */
/* What either side of a link may write into the memory they share, and what the other makes of it. */
#include "datapath/shm.h"

#include "check.h"
#include "shm_fixture.h"

/* ---- A hostile consumer ---- */

static void test_only_what_is_held_is_taken_back(void)
{
    struct edge e = edge_open(DEPTH, 4);
    uint64_t held = edge_send(&e, 10, 0), mine = edge_borrow(&e, 10), stale = edge_borrow(&e, 3904);
    CHECK_EQ(qos_cache_drop(e.pool.cache, stale), 0);
    uint32_t buffer = qos_slice_buffer(held), offset = qos_slice_offset(held), slot = qos_slice_slot(held);
    uint16_t generation = qos_slice_generation(held);
    uint64_t hostile[] = {
        mine,
        stale,
        held ^ 1, /* another generation: it could not be dropped, and was not held */
        held + 1,
        qos_slice_make(4, offset, slot, generation),
        qos_slice_make(0xfffff, offset, slot, generation),
        qos_slice_make(buffer, offset, slot + QOS_POOL_SLOTS, generation),
        qos_slice_make(buffer, offset, slot + 1, generation),
        UINT64_MAX,
    };
    for (size_t i = 0; i < sizeof hostile / sizeof *hostile; i++) {
        uint64_t slices[4];
        CHECK_EQ(edge_give_back(&e, hostile[i]), 0);
        CHECK_EQ(qos_shm_returned(&e.p, slices, 4), -EPROTO);
        CHECK_EQ(qos_shm_returned(&e.p, slices, 4), -EPROTO); /* it stays so */
        CHECK_EQ(e.p.held, 1);
        qos_ring_consume(&e.p.back, 1);
    }
    CHECK_EQ(qos_cache_drop(e.pool.cache, mine), 0);
    CHECK_EQ(edge_reclaim(&e), 1);
    edge_close(&e);
}

static void test_a_slot_of_the_next_buffer_does_not_pass_for_a_held_one(void)
{
    /* (buffer 0, slot 256) has the number of (buffer 1, slot 0) */
    struct edge e = edge_open(DEPTH, 2);
    uint64_t one = edge_send(&e, 65536, 0), two = edge_send(&e, 65536, 1), slices[1];
    uint64_t higher = qos_slice_buffer(one) ? one : two;
    uint64_t alias = qos_slice_make(0, QOS_POOL_HEADROOM, QOS_POOL_SLOTS, qos_slice_generation(higher));
    CHECK_EQ(qos_slice_index(alias), qos_slice_index(higher));
    CHECK_EQ(edge_give_back(&e, alias), 0);
    CHECK_EQ(qos_shm_returned(&e.p, slices, 1), -EPROTO);
    CHECK_EQ(edge_reclaim(&e), 2);
    edge_close(&e);
}

static void test_giving_back_twice_is_refused(void)
{
    struct edge e = edge_open(DEPTH, 1);
    uint64_t slice = edge_send(&e, 10, 0);
    CHECK_EQ(edge_give_back(&e, slice), 0);
    CHECK_EQ(edge_give_back(&e, slice), 0);
    CHECK_EQ(edge_drain(&e), -EPROTO);
    CHECK_EQ(e.p.held, 0);
    CHECK_EQ(e.p.held_bytes, 0);
    CHECK_EQ(edge_reclaim(&e), 0);
    edge_close(&e);
}

static void test_what_came_back_before_rubbish_is_not_lost(void)
{
    struct edge e = edge_open(DEPTH, 1);
    uint64_t good[2] = {edge_send(&e, 10, 0), edge_send(&e, 10, 1)}, slices[8];
    (void)edge_send(&e, 10, 2);
    CHECK_EQ(edge_give_back(&e, good[1]), 0);
    CHECK_EQ(edge_give_back(&e, good[0]), 0);
    CHECK_EQ(edge_give_back(&e, UINT64_MAX), 0);
    CHECK_EQ(qos_shm_returned(&e.p, slices, 0), 0);
    CHECK_EQ(qos_shm_returned(&e.p, slices, 8), 2);
    CHECK_EQ(slices[0], good[1]);
    CHECK_EQ(slices[1], good[0]);
    CHECK_EQ(qos_shm_returned(&e.p, slices, 8), -EPROTO);
    CHECK_EQ(e.p.held, 1);
    CHECK_EQ(qos_cache_drop(e.pool.cache, good[0]), 0);
    CHECK_EQ(qos_cache_drop(e.pool.cache, good[1]), 0);
    CHECK_EQ(edge_reclaim(&e), 1);
    edge_close(&e);
}

static void test_impossible_indices_stop_a_producer(void)
{
    struct edge e = edge_open(8, 1);
    uint64_t slices[8], slice = edge_borrow(&e, 10);
    qos_store_relaxed(&edge_back_ring(&e)->tail, 9);
    CHECK_EQ(qos_shm_returned(&e.p, slices, 8), -EPROTO);
    qos_store_relaxed(&edge_back_ring(&e)->tail, UINT64_MAX);
    CHECK_EQ(qos_shm_returned(&e.p, slices, 8), -EPROTO);
    /* messages come back without the head of the forward ring having moved: it is full in the end, and nothing is overwritten */
    qos_store_relaxed(&edge_back_ring(&e)->tail, 0);
    for (uint64_t i = 0; i < 8; i++) {
        CHECK_EQ(edge_give_back(&e, edge_send(&e, 10, i)), 0);
        CHECK_EQ(edge_drain(&e), 1);
    }
    CHECK_EQ(edge_push(&e, slice, 10, 8, QUOTA), -EAGAIN);
    qos_store_relaxed(&edge_forward_ring(&e)->head, 17);
    CHECK_EQ(edge_push(&e, slice, 10, 8, QUOTA), -EPROTO);
    CHECK_EQ(e.p.held, 0);
    CHECK_EQ(qos_cache_drop(e.pool.cache, slice), 0);
    edge_close(&e);
}

/* ---- A hostile producer ---- */

/* Write two words and a tail past the producer's handle, as another program would. */
static void forge(const struct edge *e, uint64_t first, uint64_t second, uint64_t tail)
{
    struct qos_ring *ring = edge_forward_ring(e);
    ring->words[0] = first;
    ring->words[1] = second;
    qos_store_release(&ring->tail, tail);
}

static void test_hostile_slices_stop_a_consumer(void)
{
    static const struct {
        uint32_t buffer, offset, length;
    } cases[] = {
        {4, 192, 10},
        {0xfffff, 192, 10},
        {0, 184, 10}, /* no head room: the header would lie in front */
        {0, 0, 0},
        {0, 192, QOS_POOL_STRIDE - 191},
        {3, 65528, QOS_POOL_STRIDE - 65527},
        {0, 192, UINT32_MAX},
        {3, 192, 1u << 31},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct edge e = edge_open(DEPTH, 4);
        struct qos_shm_message m;
        forge(&e, qos_slice_make(cases[i].buffer, cases[i].offset, 0, 0), cases[i].length, 2);
        CHECK_EQ(qos_shm_pop(&e.c, &m), -EPROTO);
        CHECK_EQ(qos_shm_pop(&e.c, &m), -EPROTO); /* it stays so */
        CHECK_EQ(qos_load_relaxed(&edge_forward_ring(&e)->head), 0);
        edge_close(&e);
    }
}

static void test_odd_and_impossible_indices_stop_a_consumer(void)
{
    static const uint64_t tails[] = {1, 3, 2 * DEPTH - 1, 2 * DEPTH + 1, 2 * DEPTH + 2, UINT64_MAX, UINT64_MAX - 1};
    for (size_t i = 0; i < sizeof tails / sizeof *tails; i++) {
        struct edge e = edge_open(DEPTH, 1);
        struct qos_shm_message m;
        forge(&e, qos_slice_make(0, 192, 0, 0), 10, tails[i]);
        CHECK_EQ(qos_shm_pop(&e.c, &m), -EPROTO);
        CHECK(qos_shm_ready(&e.c)); /* so that a sleeper looks, and learns of it */
        edge_close(&e);
    }
}

int main(void)
{
    CHECK_RUN(test_only_what_is_held_is_taken_back);
    CHECK_RUN(test_a_slot_of_the_next_buffer_does_not_pass_for_a_held_one);
    CHECK_RUN(test_giving_back_twice_is_refused);
    CHECK_RUN(test_what_came_back_before_rubbish_is_not_lost);
    CHECK_RUN(test_impossible_indices_stop_a_producer);
    CHECK_RUN(test_hostile_slices_stop_a_consumer);
    CHECK_RUN(test_odd_and_impossible_indices_stop_a_consumer);
    return check_done();
}
