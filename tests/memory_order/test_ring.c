/* SPDX-License-Identifier: Apache-2.0 */
/*
 * libqos/core/ring.[ch] on the smallest rings, so that every place is used again, and with indices that pass 2^64. The words are
 * plain memory, and so is the payload here: whatever the indices do not order is a race.
 */
#include "ring.h"

#include "model_check.h"

#define CAPACITY 2
#define MESSAGES 4

static _Alignas(QOS_CACHE_LINE) uint8_t memory[256];
static struct qos_ring *const ring = (struct qos_ring *)(void *)memory;
static struct qos_ring_producer p, p2;
static struct qos_ring_consumer c;
static uint64_t payload[CAPACITY]; /* of the message whose word is in that place */
static uint64_t sent, received;

static void setup(void)
{
    MODEL_ASSERT(qos_ring_init(memory, CAPACITY) == 0);
    ring->tail = ring->head = UINT64_MAX;
    sent = received = 0;
}

static void setup_open(void)
{
    setup();
    MODEL_ASSERT(qos_ring_producer_open(&p, memory, CAPACITY) == 0);
    MODEL_ASSERT(qos_ring_consumer_open(&c, memory, CAPACITY) == 0);
}

/* What was sent and not yet received is still there, and nothing else. */
static void check_rest(void)
{
    uint64_t word;
    while (qos_ring_pop(&c, &word, 1) == 1)
        if (word != ++received)
            model_fail("a word was lost or came twice");
    if (received != sent)
        model_fail("a word was lost");
}

/* ---- push, pop ---- */

static void push(void)
{
    for (int i = 0; i < MESSAGES; i++) {
        uint64_t word = sent + 1;
        int rc = qos_ring_push(&p, &word, 1);
        MODEL_ASSERT(rc == 0 || rc == -EAGAIN);
        sent += rc == 0;
    }
}

static void pop(void)
{
    uint64_t words[CAPACITY];
    for (int i = 0; i < MESSAGES; i++) {
        int64_t n = qos_ring_pop(&c, words, CAPACITY);
        MODEL_ASSERT(n >= 0 && n <= CAPACITY);
        for (int64_t k = 0; k < n; k++)
            MODEL_ASSERT(words[k] == ++received);
    }
}

#define RING_MUTANTS                                                                                                   \
    {"publish relaxed", 0, MODEL_STORE, &((struct qos_ring *)(void *)memory)->tail},                                   \
        {"the consumer's look relaxed", 1, MODEL_LOAD, &((struct qos_ring *)(void *)memory)->tail},                    \
        {"consume relaxed", 1, MODEL_STORE, &((struct qos_ring *)(void *)memory)->head},                               \
        {"the producer's look relaxed", 0, MODEL_LOAD, &((struct qos_ring *)(void *)memory)->head},

static void test_push_and_pop(void)
{
    static const struct model model = {setup_open, {push, pop}, check_rest};
    MODEL_CHECK(&model, RING_MUTANTS);
}

/* ---- write, publish; peek, word, consume ---- */

static void write_burst(void)
{
    for (int i = 0; i < MESSAGES; i++) {
        uint64_t words[CAPACITY] = {sent + 1, sent + 2};
        uint32_t n = i % 2 + 1u;
        int rc = qos_ring_write(&p, words, n);
        MODEL_ASSERT(rc == 0 || rc == -EAGAIN);
        if (rc < 0)
            continue;
        for (uint32_t k = 0; k < n; k++)
            payload[(sent + k) % CAPACITY] = words[k];
        sent += n;
        qos_ring_publish(&p);
    }
}

static void read_in_place(void)
{
    for (int i = 0; i < MESSAGES; i++) {
        int64_t n = qos_ring_peek(&c);
        MODEL_ASSERT(n >= 0 && n <= CAPACITY);
        for (int64_t k = 0; k < n; k++) {
            uint64_t word = qos_ring_word(&c, (uint64_t)k);
            MODEL_ASSERT(word == received + 1 && payload[received % CAPACITY] == word);
            received++;
        }
        if (n > 0)
            qos_ring_consume(&c, (uint64_t)n);
    }
}

static void test_write_and_read_in_place(void)
{
    static const struct model model = {setup_open, {write_burst, read_in_place}, check_rest};
    MODEL_CHECK(&model, RING_MUTANTS);
}

/* ---- Handles: a side is taken once, and the next one goes on where the last one stopped ---- */

/* `sent` is plain: it is the holder's. */
static void push_one(struct qos_ring_producer *side)
{
    if (qos_ring_producer_open(side, memory, CAPACITY) < 0)
        return;
    uint64_t word = sent + 1;
    if (qos_ring_push(side, &word, 1) == 0)
        sent = word;
    qos_ring_producer_close(side);
}

static void push_and_close(void)
{
    push_one(&p);
}

static void open_and_push(void)
{
    push_one(&p2);
    push_one(&p2);
}

static void open_and_pop(void)
{
    uint64_t word;
    MODEL_ASSERT(qos_ring_consumer_open(&c, memory, CAPACITY) == 0);
    for (int i = 0; i < 2; i++)
        if (qos_ring_pop(&c, &word, 1) == 1)
            MODEL_ASSERT(word == ++received);
}

static void test_hand_over_of_a_handle(void)
{
    static const struct model model = {setup, {push_and_close, open_and_push, open_and_pop}, check_rest};
    MODEL_CHECK(&model, {"close relaxed", 0, MODEL_STORE, &((struct qos_ring *)(void *)memory)->producers},
                {"open relaxed", 1, MODEL_UPDATE, &((struct qos_ring *)(void *)memory)->producers}, );
}

int main(void)
{
    CHECK_RUN(test_push_and_pop);
    CHECK_RUN(test_write_and_read_in_place);
    CHECK_RUN(test_hand_over_of_a_handle);
    return check_done();
}
