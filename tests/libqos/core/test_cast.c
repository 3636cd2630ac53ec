/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A ring for several consumers, through their links: all get what they were given, in order and once, whoever holds what for how long,
 * stands still, leaves or comes; and every slot comes back.
 */
#include "datapath/shm.h"

#include <errno.h>
#include <sys/mman.h>

#include "check.h"
#include "pool_fixture.h"
#include "random.h"

#define EDGES 5u
#define HELD 512u

static uint32_t depth = 256; /* of the links */

/* How a consumer behaves; drawn anew now and then. */
enum habit { QUICK, SLOW, STILL, MISER, HABITS };

struct end {
    struct qos_shm_producer p;
    struct qos_shm_consumer c;
    bool open;
    enum habit habit;
    uint64_t next;           /* the lowest sequence it may get */
    uint64_t expected[8192]; /* what it was given, by turn */
    uint64_t given, got;
    struct qos_shm_message held[HELD];
    uint32_t held_count;
};

struct host {
    struct pool_fixture pool;
    struct qos_cast_producer cast;
    uint64_t cast_slice;
    uint64_t sequence;
    struct end ends[EDGES];
    struct random r;
    uint64_t by_cast, alone;
};

static void join(struct host *h, struct end *e)
{
    void *memory[2];
    int fd = memfd_create("test-cast", MFD_CLOEXEC);
    CHECK_EQ(ftruncate(fd, (off_t)qos_shm_size(depth)), 0);
    for (int i = 0; i < 2; i++)
        memory[i] = mmap(NULL, qos_shm_size(depth), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    CHECK_EQ(qos_shm_init(memory[0], depth), 0);
    memset(e, 0, sizeof *e);
    CHECK_EQ(qos_shm_producer_open(&e->p, memory[0], depth, qos_pool_region(h->pool.pool)), 0);
    CHECK_EQ(qos_shm_consumer_open(&e->c, memory[1], depth, qos_pool_region(h->pool.pool)), 0);
    e->open = true;
    if (h->cast.ring)
        CHECK_EQ(qos_shm_join(&e->p, &h->cast, h->cast_slice), 0);
}

static void drain(struct host *h, struct end *e)
{
    uint64_t slices[7];
    int n;
    while ((n = qos_shm_returned(&e->p, slices, 7)) > 0) {
        for (int i = 0; i < n; i++) {
            e->p.held_bytes -= qos_pool_slot_bytes(h->pool.pool, slices[i]);
            CHECK_EQ(qos_cache_drop(h->pool.cache, slices[i]), 0);
        }
    }
    CHECK_EQ(n, 0);
}

static void leave(struct host *h, struct end *e)
{
    uint32_t index, n = 0, held = e->p.held;
    for (; qos_shm_reclaim(&e->p, &index) == 1; n++)
        CHECK_EQ(qos_cache_drop_index(h->pool.cache, index), 0);
    CHECK_EQ(n, held);
    qos_shm_producer_close(&e->p);
    qos_shm_consumer_close(&e->c);
    e->open = false;
}

static void expect(struct end *e, uint64_t sequence)
{
    e->expected[e->given++ % 8192] = sequence;
}

/* As a source does (emit.c). */
static void send(struct host *h)
{
    uint64_t slice, sequence = h->sequence++;
    uint32_t members = 0, holders = 0;
    if (qos_cache_borrow(h->pool.cache, 8 + random_below(&h->r, 200), &slice) < 0)
        return;
    uint32_t bytes = qos_pool_slot_bytes(h->pool.pool, slice);
    memcpy(qos_pool_payload(h->pool.pool, slice), &sequence, 8);
    for (uint32_t i = 0; h->cast.ring && i < EDGES; i++) {
        struct qos_shm_producer *p = &h->ends[i].p;
        if (!h->ends[i].open)
            continue;
        if (qos_shm_room(p, bytes, UINT64_MAX) && random_below(&h->r, 8) > 0)
            members |= 1u << p->member;
        qos_shm_publish(p);
    }
    if (members && qos_cast_write(&h->cast, slice, 8 | sequence << 32, members) < 0)
        members = 0;
    for (uint32_t i = 0; i < EDGES; i++) {
        struct end *e = &h->ends[i];
        if (!e->open)
            continue;
        if (h->cast.ring && members >> e->p.member & 1) {
            qos_shm_wrote_cast(&e->p, bytes);
            h->by_cast++;
        } else {
            if (h->cast.ring && qos_cast_unpublished(&h->cast))
                qos_cast_publish(&h->cast);
            if (qos_shm_write(&e->p, slice, 8, sequence, bytes, UINT64_MAX) < 0)
                continue;
            h->alone++;
        }
        expect(e, sequence);
        holders++;
    }
    CHECK_EQ(qos_cache_emit(h->pool.cache, slice, holders), 0);
    if (random_below(&h->r, 3) > 0)
        return;
    if (h->cast.ring && qos_cast_unpublished(&h->cast))
        qos_cast_publish(&h->cast);
    for (uint32_t i = 0; i < EDGES; i++)
        if (h->ends[i].open)
            qos_shm_publish(&h->ends[i].p);
}

static void give_back(struct end *e, uint32_t i)
{
    CHECK_EQ(qos_shm_give_back(&e->c, e->held[i].token, e->held[i].by_cast), 0);
    e->held[i] = e->held[--e->held_count];
}

static bool take(struct end *e)
{
    struct qos_shm_message m;
    if (e->held_count == HELD)
        return false;
    bool ready = qos_shm_ready(&e->c);
    int rc = qos_shm_pop(&e->c, &m);
    CHECK_EQ(rc, ready);
    if (rc != 1)
        return false;
    uint64_t sequence;
    memcpy(&sequence, m.data, 8);
    CHECK_EQ(sequence, e->expected[e->got % 8192]);
    CHECK_EQ(m.sequence, (uint32_t)sequence);
    e->got++;
    e->held[e->held_count++] = m;
    return true;
}

static void act(struct host *h, struct end *e)
{
    uint32_t dice = random_below(&h->r, 4);
    if (!e->open || e->habit == STILL || (e->habit == SLOW && random_below(&h->r, 40) > 0))
        return;
    if (dice < 2 || e->held_count == 0) {
        for (uint32_t n = random_below(&h->r, 6); n > 0 && take(e); n--)
            ;
    } else if (e->habit == MISER) { /* keeps the first ones, and gives back what came after them */
        while (e->held_count > 3)
            give_back(e, e->held_count - 1);
    } else {
        for (uint32_t n = random_below(&h->r, 8); n > 0 && e->held_count > 0; n--)
            give_back(e, random_below(&h->r, 2) ? 0 : random_below(&h->r, e->held_count));
    }
    qos_shm_publish_back(&e->c);
}

static void open_cast(struct host *h)
{
    CHECK_EQ(qos_cache_borrow(h->pool.cache, QOS_POOL_PAYLOAD, &h->cast_slice), 0);
    CHECK_EQ(qos_cast_producer_open(&h->cast, qos_pool_payload(h->pool.pool, h->cast_slice), QOS_CAST_DEPTH), 0);
    for (uint32_t i = 0; i < EDGES; i++)
        if (h->ends[i].open)
            CHECK_EQ(qos_shm_join(&h->ends[i].p, &h->cast, h->cast_slice), 0);
}

static void settle(struct host *h)
{
    qos_cast_publish(&h->cast);
    for (uint32_t i = 0; i < EDGES; i++) {
        struct end *e = &h->ends[i];
        if (!e->open)
            continue;
        qos_shm_publish(&e->p);
        for (bool more = true; more;) {
            more = take(e);
            while (e->held_count > 0)
                give_back(e, random_below(&h->r, e->held_count));
            qos_shm_publish_back(&e->c);
        }
        CHECK_EQ(e->got, e->given);
        drain(h, e);
        CHECK_EQ(e->p.held, 0);
        CHECK_EQ(e->p.held_bytes, 0);
        CHECK_EQ(qos_shm_outstanding(e->p.link, depth), 0);
    }
    CHECK_EQ(h->cast.occupied, 0);
}

static void run(uint64_t seed, uint32_t steps)
{
    static struct host h;
    h = (struct host){.pool = pool_open(64), .r = {seed}};
    join(&h, &h.ends[0]);
    for (uint32_t step = 0; step < steps; step++) {
        struct end *e = &h.ends[random_below(&h.r, EDGES)];
        uint32_t dice = random_below(&h.r, 2000);
        if (step == 100)
            open_cast(&h);
        if (dice == 0 && e->open)
            leave(&h, e);
        else if (dice < 4 && !e->open)
            join(&h, e);
        else if (dice < 20)
            e->habit = (enum habit)random_below(&h.r, HABITS);
        else if (dice < 700)
            send(&h);
        else if (dice < 1700)
            act(&h, e);
        else if (e->open)
            drain(&h, e);
    }
    CHECK(h.by_cast > steps / 20 && h.alone > steps / 50);
    settle(&h);
    for (uint32_t i = 0; i < EDGES; i++)
        if (h.ends[i].open)
            leave(&h, &h.ends[i]);
    CHECK_EQ(qos_cache_drop(h.pool.cache, h.cast_slice), 0);
    qos_cast_producer_close(&h.cast);
    pool_close(&h.pool);
}

static void test_many_consumers_of_every_habit(void)
{
    for (uint64_t seed = 1; seed <= 20; seed++)
        run(seed, 60000);
}

static void two_ends(struct host *h, uint32_t buffers)
{
    *h = (struct host){.pool = pool_open(buffers), .r = {3}};
    join(h, &h->ends[0]);
    join(h, &h->ends[1]);
    open_cast(h);
}

static void close_ends(struct host *h)
{
    leave(h, &h->ends[0]);
    leave(h, &h->ends[1]);
    CHECK_EQ(h->cast.occupied, 0);
    CHECK_EQ(qos_cache_drop(h->pool.cache, h->cast_slice), 0);
    qos_cast_producer_close(&h->cast);
    pool_close(&h->pool);
}

/* One that stands still for long finds its messages where they were, however far the others have gone. */
static void test_one_that_stood_still(void)
{
    static struct host h;
    two_ends(&h, 64);
    h.ends[0].habit = STILL;
    for (uint32_t i = 0; i < 50 * QOS_CAST_DEPTH; i++) {
        send(&h);
        act(&h, &h.ends[1]);
        drain(&h, &h.ends[1]);
    }
    CHECK_EQ(h.ends[0].p.held, depth);
    CHECK(h.cast.tail > 20 * QOS_CAST_DEPTH);
    settle(&h);
    close_ends(&h);
}

/* One that keeps a message gives back all that comes after it, in numbers without end. */
static void test_one_message_that_is_kept(void)
{
    static struct host h;
    two_ends(&h, 64);
    for (uint32_t round = 0; round < 3; round++) {
        for (uint32_t i = 0; i < 5 * QOS_CAST_WINDOW; i++) {
            send(&h);
            for (uint32_t k = 0; k < 2; k++) {
                struct end *e = &h.ends[k];
                while (take(e))
                    ;
                while (e->held_count > (k == 0))
                    give_back(e, e->held_count - 1);
                qos_shm_publish_back(&e->c);
                drain(&h, e);
                CHECK(e->p.held <= 2 * QOS_CAST_UNTOLD); /* and what is written, but not published */
            }
        }
        settle(&h);
        CHECK(!h.ends[0].c.cast.single);
    }
    close_ends(&h);
}

/* Where too much of the ring is held, messages go the other way, and come in order nevertheless. */
static void test_a_ring_that_is_held(void)
{
    static struct host h;
    depth = 4096;
    two_ends(&h, 64);
    h.ends[0].habit = STILL;
    for (uint32_t i = 0; i < 3500; i++) {
        send(&h);
        act(&h, &h.ends[1]);
        drain(&h, &h.ends[1]);
    }
    CHECK(h.cast.occupied > QOS_CAST_DEPTH / 4 * 3);
    CHECK(h.ends[0].p.held > QOS_CAST_DEPTH);
    settle(&h);
    close_ends(&h);
    depth = 256;
}

static void test_members_are_limited(void)
{
    static struct host h;
    two_ends(&h, 8);
    for (uint32_t i = 2; i < QOS_CAST_MEMBERS; i++)
        CHECK_EQ(qos_cast_join(&h.cast), (int)i);
    CHECK_EQ(qos_cast_join(&h.cast), -EAGAIN);
    close_ends(&h);
}

/* What a consumer may write that is not so. */
static void test_a_hostile_consumer_is_found_out(void)
{
    static struct host h;
    for (int what = 0; what < 5; what++) {
        two_ends(&h, 8);
        for (int i = 0; i < 40; i++)
            send(&h);
        qos_cast_publish(&h.cast);
        struct end *e = &h.ends[0];
        uint64_t slices[8], word = UINT64_C(1) << 63;
        static const uint64_t positions[] = {0, 1u << 20, UINT64_MAX >> 1};
        if (what < 3) {
            word |= positions[what];
            CHECK_EQ(qos_ring_push(&e->c.back, &word, 1), 0);
        } else {
            qos_store_release(&e->c.link->done, what == 3 ? h.cast.tail + 1 : 0);
        }
        CHECK_EQ(qos_shm_returned(&e->p, slices, 8), -EPROTO);
        CHECK_EQ(qos_shm_returned(&e->p, slices, 8), -EPROTO); /* it stays so */
        close_ends(&h);
    }
}

/* And a producer: where the ring lies, who one is, what it holds. */
static void test_a_hostile_producer_reaches_nothing(void)
{
    static struct host h;
    struct random r = {11};
    for (int round = 0; round < 300; round++) {
        h = (struct host){.pool = pool_open(4), .r = {13}};
        join(&h, &h.ends[0]);
        struct qos_shm_link *link = h.ends[0].p.link;
        struct qos_shm_message m;
        open_cast(&h);
        if (round % 3 == 0) {
            qos_store_relaxed(&link->cast, random_u64(&r));
            qos_store_relaxed(&link->member, (uint32_t)random_below(&r, 40));
        }
        qos_store_relaxed(&link->from, round % 2 ? 1 : random_u64(&r));
        for (uint32_t i = 0; i < QOS_CAST_DEPTH; i++) {
            struct qos_cast_entry *e = &h.cast.ring->entries[i];
            *e = (struct qos_cast_entry){random_u64(&r), random_u64(&r), (uint64_t)i << 16 | 0xffff};
        }
        qos_store_relaxed(&h.cast.ring->tail, random_below(&r, 2) ? 2000 : random_u64(&r));
        for (int i = 0; i < 50; i++) {
            int rc = qos_shm_pop(&h.ends[0].c, &m);
            if (rc == 1)
                CHECK(m.data >= h.pool.base && m.data + m.length <= h.pool.base + qos_region_size(4));
            else
                CHECK(rc == 0 || rc == -EPROTO);
            (void)qos_shm_ready(&h.ends[0].c);
        }
        leave(&h, &h.ends[0]);
        CHECK_EQ(qos_cache_drop(h.pool.cache, h.cast_slice), 0);
        qos_cast_producer_close(&h.cast);
        pool_close(&h.pool);
    }
}

int main(void)
{
    CHECK_RUN(test_many_consumers_of_every_habit);
    CHECK_RUN(test_one_that_stood_still);
    CHECK_RUN(test_one_message_that_is_kept);
    CHECK_RUN(test_a_ring_that_is_held);
    CHECK_RUN(test_members_are_limited);
    CHECK_RUN(test_a_hostile_consumer_is_found_out);
    CHECK_RUN(test_a_hostile_producer_reaches_nothing);
    return check_done();
}
