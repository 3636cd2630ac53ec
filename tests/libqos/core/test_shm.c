/* SPDX-License-Identifier: Apache-2.0 */
#include "datapath/shm.h"

#include <signal.h>
#include <sys/wait.h>

#include "check.h"
#include "random.h"
#include "shm_fixture.h"
#include "wait.h"

static void test_depths_are_powers_of_two(void)
{
    static const uint32_t bad[] = {0, 1, 4, 7, 12, QOS_SHM_MAX_DEPTH * 2, UINT32_MAX};
    struct edge e = edge_open(8, 1);
    struct qos_shm_producer p;
    struct qos_shm_consumer c;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        CHECK_EQ(qos_shm_init(e.memory, bad[i]), -EINVAL);
        CHECK_EQ(qos_shm_producer_open(&p, e.memory, bad[i], qos_pool_region(e.pool.pool)), -EINVAL);
        CHECK_EQ(qos_shm_consumer_open(&c, e.memory, bad[i], qos_pool_region(e.pool.pool)), -EINVAL);
    }
    edge_close(&e);
}

static void test_a_message_goes_and_comes_back(void)
{
    struct edge e = edge_open(DEPTH, 2);
    struct qos_shm_message m;
    CHECK_EQ(qos_shm_pop(&e.c, &m), 0);
    CHECK(!qos_shm_ready(&e.c));
    uint64_t slice = edge_borrow(&e, 100);
    memset(qos_pool_payload(e.pool.pool, slice), 0x5a, 100);
    CHECK_EQ(qos_shm_write(&e.p, slice, 100, UINT64_C(0x1122334455667788), 1024, QUOTA), 0);
    CHECK_EQ(qos_cache_emit(e.pool.cache, slice, 1), 0);
    CHECK_EQ(qos_shm_pop(&e.c, &m), 0); /* written, not published */
    qos_shm_publish(&e.p);
    CHECK(qos_shm_ready(&e.c));
    CHECK_EQ(qos_shm_pop(&e.c, &m), 1);
    CHECK_EQ(m.token, slice);
    CHECK_EQ(m.length, 100);
    CHECK_EQ(m.sequence, 0x55667788);
    CHECK(m.data == qos_pool_payload(e.pool.pool, slice));
    CHECK_EQ(m.data[99], 0x5a);
    CHECK_EQ(qos_shm_pop(&e.c, &m), 0);
    CHECK_EQ(e.p.held, 1);
    CHECK_EQ(e.p.held_bytes, 1024);
    CHECK_EQ(edge_drain(&e), 0);
    CHECK_EQ(edge_give_back(&e, slice), 0);
    CHECK_EQ(edge_drain(&e), 1);
    CHECK_EQ(e.p.held, 0);
    CHECK_EQ(e.p.held_bytes, 0);
    CHECK_EQ(edge_reclaim(&e), 0);
    edge_close(&e);
}

static void test_each_side_is_taken_once(void)
{
    struct edge e = edge_open(DEPTH, 1);
    struct qos_shm_producer p;
    struct qos_shm_consumer c;
    const struct qos_region *region = qos_pool_region(e.pool.pool);
    CHECK_EQ(qos_shm_producer_open(&p, e.memory, DEPTH, region), -EBUSY);
    CHECK_EQ(qos_shm_consumer_open(&c, e.memory, DEPTH, region), -EBUSY);
    CHECK_EQ(edge_give_back(&e, edge_send(&e, 1, 1)), 0);
    CHECK_EQ(edge_drain(&e), 1);
    edge_close(&e);
}

static void test_a_failed_opening_keeps_nothing(void)
{
    struct edge e = edge_open(DEPTH, 1);
    const struct qos_region *region = qos_pool_region(e.pool.pool);
    struct qos_shm_producer p;
    struct qos_shm_consumer c;
    CHECK_EQ(qos_shm_init(e.memory, DEPTH), 0);
    edge_back_ring(&e)->magic = 0;
    CHECK_EQ(qos_shm_producer_open(&p, e.memory, DEPTH, region), -EPROTO);
    CHECK_EQ(qos_shm_consumer_open(&c, e.memory, DEPTH, region), -EPROTO);
    edge_back_ring(&e)->magic = QOS_RING_MAGIC;
    CHECK_EQ(qos_shm_producer_open(&p, e.memory, DEPTH, region), 0);
    CHECK_EQ(qos_shm_consumer_open(&c, e.memory, DEPTH, region), 0);
    free(p.holds); /* p and c share one mapping, which close_edge ends */
    edge_close(&e);
}

static void test_depth_is_what_a_consumer_may_hold(void)
{
    struct edge e = edge_open(8, 1);
    struct qos_shm_message m;
    uint64_t first = 0, more = edge_borrow(&e, 10);
    for (uint64_t i = 0; i < 8; i++) {
        uint64_t slice = edge_send(&e, 10, i);
        first = i == 0 ? slice : first;
    }
    CHECK_EQ(edge_push(&e, more, 10, 8, QUOTA), -EAGAIN);
    /* taking it is not enough, it must come back */
    CHECK_EQ(qos_shm_pop(&e.c, &m), 1);
    CHECK_EQ(m.token, first);
    CHECK_EQ(edge_push(&e, more, 10, 8, QUOTA), -EAGAIN);
    CHECK_EQ(edge_give_back(&e, first), 0);
    CHECK_EQ(edge_push(&e, more, 10, 8, QUOTA), -EAGAIN);
    CHECK_EQ(edge_drain(&e), 1);
    CHECK_EQ(edge_push(&e, more, 10, 8, QUOTA), 0);
    CHECK_EQ(edge_reclaim(&e), 8);
    edge_close(&e);
}

static void test_a_quota_bounds_the_slots_a_consumer_holds(void)
{
    struct edge e = edge_open(DEPTH, 6);
    const uint64_t quota = 3 * QOS_POOL_STRIDE;
    uint64_t slices[3], small = edge_borrow(&e, 10), big = edge_borrow(&e, 65536);
    for (uint32_t i = 0; i < 3; i++) {
        slices[i] = edge_borrow(&e, 65536);
        CHECK_EQ(edge_push(&e, slices[i], 65536, i, quota), 0);
    }
    CHECK_EQ(edge_push(&e, big, 65536, 3, quota), -EAGAIN);
    CHECK_EQ(edge_push(&e, small, 10, 3, quota), -EAGAIN);
    CHECK_EQ(edge_give_back(&e, slices[1]), 0);
    CHECK_EQ(edge_drain(&e), 1);
    CHECK_EQ(edge_push(&e, small, 10, 3, quota), 0);
    CHECK_EQ(edge_push(&e, big, 65536, 4, quota), -EAGAIN);
    CHECK_EQ(qos_cache_drop(e.pool.cache, big), 0);
    CHECK_EQ(edge_reclaim(&e), 3);
    edge_close(&e);
}

static void test_one_message_passes_any_quota(void)
{
    struct edge e = edge_open(DEPTH, 2);
    uint64_t big = edge_borrow(&e, 65536), small = edge_borrow(&e, 1);
    CHECK_EQ(edge_push(&e, big, 65536, 0, 1000), 0);
    CHECK_EQ(edge_push(&e, small, 1, 1, 1000), -EAGAIN);
    CHECK_EQ(edge_give_back(&e, big), 0);
    CHECK_EQ(edge_drain(&e), 1);
    CHECK_EQ(edge_push(&e, small, 1, 1, 1000), 0);
    CHECK_EQ(edge_reclaim(&e), 1);
    edge_close(&e);
}

static void test_slices_come_back_in_any_order(void)
{
    enum { ROUNDS = 20000 };
    struct edge e = edge_open(DEPTH, 8);
    struct random r = {5};
    uint64_t held[DEPTH], sent = 0, got = 0;
    uint32_t n = 0;
    for (uint32_t round = 0; round < ROUNDS; round++) {
        static const uint32_t most[] = {64, 832, 3904};
        uint32_t size = random_below(&r, most[random_below(&r, 3)] + 1), dice = random_below(&r, 3);
        uint64_t slice = dice == 0 ? edge_borrow(&e, size) : 0;
        struct qos_shm_message m;
        if (dice == 0) {
            int full = e.p.held == DEPTH;
            CHECK_EQ(edge_push(&e, slice, size, sent, QUOTA), full ? -EAGAIN : 0);
            if (full)
                CHECK_EQ(qos_cache_drop(e.pool.cache, slice), 0);
            sent += !full;
        } else if (dice == 1 && qos_shm_pop(&e.c, &m) == 1) {
            CHECK_EQ(m.sequence, (uint32_t)got++);
            held[n++] = m.token;
        } else if (n > 0) {
            uint32_t i = random_below(&r, n);
            CHECK_EQ(edge_give_back(&e, held[i]), 0);
            held[i] = held[--n];
        }
        if (random_below(&r, 4) == 0)
            CHECK(edge_drain(&e) >= 0);
    }
    CHECK(got > ROUNDS / 10);
    CHECK(edge_drain(&e) >= 0);
    CHECK_EQ(e.p.held, sent - got + n);
    CHECK_EQ(edge_reclaim(&e), sent - got + n);
    edge_close(&e);
}

/* ---- A consumer in another process, and its death ---- */

enum { TOTAL = 20000, HELD = 5 };

/* Take TOTAL messages, check and give back all but the last HELD, then wait to be killed. */
static void consume(struct edge *e, int ready)
{
    struct qos_shm_message m;
    struct qos_spin spin = qos_spin_new(qos_wait_processors());
    for (uint32_t expected = 0; expected < TOTAL;) {
        int rc = qos_shm_pop(&e->c, &m);
        if (rc == 0) {
            qos_spin_step(&spin);
            continue;
        }
        qos_spin_start(&spin);
        if (!CHECK_EQ(rc, 1) || !CHECK_EQ(m.sequence, expected) || !CHECK_EQ(m.data[0], (uint8_t)expected))
            check_exit_child();
        if (++expected <= TOTAL - HELD)
            CHECK_EQ(edge_give_back(e, m.token), 0);
    }
    if (write(ready, "", 1) == 1)
        pause();
    check_exit_child();
}

static void test_a_dead_consumer_held_exactly_what_it_did_not_give_back(void)
{
    struct edge e = edge_open(DEPTH, 2);
    struct qos_spin spin = qos_spin_new(qos_wait_processors());
    int ready[2];
    char byte;
    CHECK_EQ(pipe(ready), 0);
    pid_t child = check_fork();
    if (child == 0)
        consume(&e, ready[1]);
    close(ready[1]);
    for (uint64_t i = 0; i < TOTAL; i++) {
        uint64_t slice = edge_borrow(&e, 40);
        *qos_pool_payload(e.pool.pool, slice) = (uint8_t)i;
        qos_spin_start(&spin);
        while (edge_push(&e, slice, 40, i, QUOTA) == -EAGAIN) {
            CHECK(edge_drain(&e) >= 0);
            qos_spin_step(&spin);
        }
    }
    CHECK_EQ(read(ready[0], &byte, 1), 1);
    close(ready[0]);
    CHECK(edge_drain(&e) >= 0);
    uint64_t unread[2] = {edge_send(&e, 40, TOTAL), edge_send(&e, 40, TOTAL + 1)}; /* it never sees these */
    kill(child, SIGKILL);
    int status = 0;
    waitpid(child, &status, 0);
    CHECK(WIFSIGNALED(status));
    CHECK(edge_drain(&e) >= 0);
    CHECK_EQ(e.p.held, HELD + 2);
    CHECK_EQ(e.p.held_bytes, (HELD + 2) * 256);
    CHECK_EQ(edge_reclaim(&e), HELD + 2);
    for (int i = 0; i < 2; i++)
        CHECK_EQ(qos_cache_drop(e.pool.cache, unread[i]), -EPROTO);
    edge_close(&e);
}

int main(void)
{
    CHECK_RUN(test_depths_are_powers_of_two);
    CHECK_RUN(test_a_message_goes_and_comes_back);
    CHECK_RUN(test_each_side_is_taken_once);
    CHECK_RUN(test_a_failed_opening_keeps_nothing);
    CHECK_RUN(test_depth_is_what_a_consumer_may_hold);
    CHECK_RUN(test_a_quota_bounds_the_slots_a_consumer_holds);
    CHECK_RUN(test_one_message_passes_any_quota);
    CHECK_RUN(test_slices_come_back_in_any_order);
    CHECK_RUN(test_a_dead_consumer_held_exactly_what_it_did_not_give_back);
    return check_done();
}
