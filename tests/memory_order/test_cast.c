/* SPDX-License-Identifier: Apache-2.0 */
/*
 * libqos/core/datapath/cast.[ch] with the links of shm.[ch]: one producer, two consumers, a ring of two entries, so that each message
 * lies where one before it was. A consumer gets all that is for it, once and in order, whichever way it came; nobody reads or overwrites
 * a payload that is not his.
 */
#include "datapath/shm.h"

#include "model_check.h"

#define DEPTH 8
#define ENTRIES 2
#define CONSUMERS 2
#define MESSAGES 3
#define BOTH 3u

static _Alignas(4096) uint8_t pool[4096 + QOS_POOL_STRIDE];
static _Alignas(QOS_CACHE_LINE) uint8_t links[CONSUMERS][1024];
static _Alignas(QOS_CACHE_LINE) uint8_t ring[256];
static struct qos_cast_sent sent[ENTRIES];
static struct qos_cast_producer cast;
static struct qos_shm_producer producers[CONSUMERS];
static struct qos_shm_consumer consumers[CONSUMERS];
static uint64_t positions[CONSUMERS][QOS_CAST_WINDOW];
static uint8_t states[CONSUMERS][QOS_CAST_WINDOW];
static uint64_t payloads[MESSAGES];
static unsigned holders[MESSAGES], wanted[CONSUMERS], got[CONSUMERS], taken[CONSUMERS], written;

#define LINK(i) ((struct qos_shm_link *)(void *)links[i])
#define RING ((struct qos_cast *)(void *)ring)

static uint64_t slice_of(unsigned message)
{
    return qos_slice_make(0, QOS_POOL_HEADROOM + message * 256, message, 0);
}

static void setup(void)
{
    struct qos_region region = {pool, pool + 4096, 1};
    uint8_t *holds[CONSUMERS];
    memset(ring, 0, sizeof ring);
    memset(sent, 0, sizeof sent);
    memset(pool, 0, 4096);
    memset(payloads, 0, sizeof payloads);
    memset(holders, 0, sizeof holders);
    memset(wanted, 0, sizeof wanted);
    memset(got, 0, sizeof got);
    memset(taken, 0, sizeof taken);
    written = 0;
    cast = (struct qos_cast_producer){.ring = RING, .depth = ENTRIES, .tail = 1, .published = 1, .sent = sent};
    RING->tail = 1;
    for (unsigned i = 0; i < CONSUMERS; i++) {
        free(producers[i].holds);
        holds[i] = links[i];
        MODEL_ASSERT(qos_shm_size(DEPTH) <= sizeof links[0] && qos_shm_init(holds[i], DEPTH) == 0);
        MODEL_ASSERT(qos_shm_producer_open(&producers[i], links[i], DEPTH, &region) == 0);
        MODEL_ASSERT(qos_shm_consumer_open(&consumers[i], links[i], DEPTH, &region) == 0);
        MODEL_ASSERT(qos_shm_join(&producers[i], &cast, slice_of(0)) == 0);
        /* as qos_shm_meet, but here it has few entries */
        consumers[i].cast = (struct qos_cast_consumer){.ring = RING,
                                                       .depth = ENTRIES,
                                                       .bit = UINT64_C(1) << i,
                                                       .at = 1,
                                                       .tail = 1,
                                                       .done = 1,
                                                       .positions = positions[i],
                                                       .states = states[i]};
    }
}

/* ---- The producer ---- */

static void drain(void)
{
    for (unsigned i = 0; i < CONSUMERS; i++) {
        uint64_t slices[2];
        int n = qos_shm_returned(&producers[i], slices, 2);
        MODEL_ASSERT(n >= 0);
        for (int k = 0; k < n; k++) {
            unsigned message = qos_slice_slot(slices[k]);
            MODEL_ASSERT(message < MESSAGES && holders[message] > 0);
            holders[message]--;
        }
    }
}

/* The next message, in the memory of the first one that nobody holds; to `members`, by the ring or one by one. */
static void write_one(uint32_t members, bool by_cast)
{
    unsigned message = 0;
    drain();
    while (message < MESSAGES && holders[message] > 0)
        message++;
    if (message == MESSAGES)
        return;
    uint64_t sequence = written + 1, second = 8 | sequence << 32;
    payloads[message] = sequence;
    if (by_cast) {
        for (unsigned i = 0; i < CONSUMERS; i++)
            qos_shm_publish(&producers[i]);
        if (qos_cast_write(&cast, slice_of(message), second, members) < 0)
            return;
    } else if (qos_cast_unpublished(&cast)) {
        qos_cast_publish(&cast);
    }
    for (unsigned i = 0; i < CONSUMERS; i++) {
        if (!(members >> i & 1))
            continue;
        if (by_cast)
            qos_shm_wrote_cast(&producers[i], 256);
        else
            MODEL_ASSERT(qos_shm_write(&producers[i], slice_of(message), 8, sequence, 256, UINT64_MAX) == 0);
        wanted[i]++;
        holders[message]++;
    }
    written++;
}

static void publish(void)
{
    if (qos_cast_unpublished(&cast))
        qos_cast_publish(&cast);
    for (unsigned i = 0; i < CONSUMERS; i++)
        qos_shm_publish(&producers[i]);
}

static void send(uint32_t members, bool by_cast)
{
    write_one(members, by_cast);
    publish();
}

/* ---- A consumer ---- */

static bool take(unsigned i)
{
    struct qos_shm_message m = {0};
    int rc = qos_shm_pop(&consumers[i], &m);
    MODEL_ASSERT(rc >= 0);
    if (rc == 0)
        return false;
    unsigned message = (unsigned)((m.data - (pool + 4096) - QOS_POOL_HEADROOM) / 256);
    MODEL_ASSERT(message < MESSAGES && payloads[message] == m.sequence);
    MODEL_ASSERT(m.sequence > got[i]); /* in order */
    got[i] = m.sequence;
    MODEL_ASSERT(qos_shm_give_back(&consumers[i], m.token, m.by_cast) == 0);
    qos_shm_publish_back(&consumers[i]);
    return true;
}

static void consume(unsigned i)
{
    for (int k = 0; k < 2; k++)
        taken[i] += take(i);
}

static void first(void)
{
    consume(0);
}

static void second(void)
{
    consume(1);
}

/* What nobody has taken yet is still there; and all comes back. */
static void check_all(void)
{
    for (unsigned i = 0; i < CONSUMERS; i++) {
        while (take(i))
            taken[i]++;
        MODEL_ASSERT(taken[i] == wanted[i]);
    }
    drain();
    for (unsigned i = 0; i < CONSUMERS; i++)
        MODEL_ASSERT(producers[i].held == 0 && producers[i].cast_held == 0);
    MODEL_ASSERT(cast.occupied == 0);
}

/* ---- Scenarios ---- */

static void send_two(void)
{
    send(BOTH, true);
    send(BOTH, true);
}

static void send_to_each(void)
{
    send(1, true);
    send(BOTH, true);
    send(2, true);
}

static void send_mixed(void)
{
    write_one(BOTH, true);
    write_one(1, false);
    publish();
}

static void send_mixed_back(void)
{
    write_one(1, false);
    write_one(BOTH, true);
    publish();
}

/* The ring's memory becomes something that looks like a message. */
static void send_and_end(void)
{
    send(BOTH, true);
    for (unsigned i = 0; i < CONSUMERS; i++)
        qos_shm_end(&producers[i]);
    drain();
    if (cast.occupied > 0)
        return;
    qos_fence_seq_cst();
    for (unsigned i = 0; i < ENTRIES; i++)
        qos_store_relaxed(&RING->entries[i].stamp, (uint64_t)(2 + i % 2) << 16 | BOTH);
    qos_store_relaxed(&RING->tail, 4);
}

#define STAMP(i) (&RING->entries[i].stamp)

static void test_entries_are_used_again(void)
{
    static const struct model two = {setup, {send_two, first, second}, check_all};
    static const struct model each = {setup, {send_to_each, first}, check_all};
    MODEL_CHECK(&two, {"the tail relaxed", 0, MODEL_STORE, &RING->tail},
                {"a consumer's look at the tail relaxed", 1, MODEL_LOAD, &RING->tail},
                {"a consumer is done relaxed", 1, MODEL_STORE, &LINK(0)->done},
                {"the look at what is done relaxed", 0, MODEL_LOAD, &LINK(0)->done}, );
    MODEL_CHECK(&each, {"the tail relaxed", 0, MODEL_STORE, &RING->tail}, );
}

static void test_both_ways_in_order(void)
{
    static const struct model mixed = {setup, {send_mixed, first}, check_all};
    static const struct model back = {setup, {send_mixed_back, first}, check_all};
    MODEL_CHECK(&mixed, {"the tail relaxed", 0, MODEL_STORE, &RING->tail}, );
    MODEL_CHECK(&back, {"the tail relaxed", 0, MODEL_STORE, &RING->tail}, );
}

static void test_the_ring_ends(void)
{
    static const struct model model = {setup, {send_and_end, first, second}, check_all};
    MODEL_CHECK(&model, {"no fence at the end", 0, MODEL_FENCE, NULL}, );
}

int main(void)
{
    CHECK_RUN(test_entries_are_used_again);
    CHECK_RUN(test_both_ways_in_order);
    CHECK_RUN(test_the_ring_ends);
    return check_done();
}
