/* SPDX-License-Identifier: Apache-2.0 */
#include "ring.h"

#include <pthread.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>

#include "check.h"
#include "wait.h"

#define WORDS 64u /* capacity of most rings here */

static _Alignas(QOS_CACHE_LINE) uint8_t memory[8192];

struct pair {
    struct qos_ring_producer p;
    struct qos_ring_consumer c;
};

static struct qos_ring *ring(void)
{
    return (struct qos_ring *)(void *)memory;
}

static struct pair open_pair(uint32_t capacity)
{
    struct pair pair = {0};
    CHECK(qos_ring_size(capacity) <= sizeof memory);
    CHECK_EQ(qos_ring_init(memory, capacity), 0);
    CHECK_EQ(qos_ring_producer_open(&pair.p, memory, capacity), 0);
    CHECK_EQ(qos_ring_consumer_open(&pair.c, memory, capacity), 0);
    return pair;
}

static void test_layout_is_fixed(void)
{
    CHECK_EQ(offsetof(struct qos_ring, tail), 64);
    CHECK_EQ(offsetof(struct qos_ring, head), 128);
    CHECK_EQ(offsetof(struct qos_ring, words), 192);
    CHECK_EQ(qos_ring_size(1), 192 + 64);
    CHECK_EQ(qos_ring_size(8), 192 + 64);
    CHECK_EQ(qos_ring_size(16), 192 + 128);
}

static void test_capacity_is_a_power_of_two(void)
{
    static const uint32_t bad[] = {0, 3, 6, 63, QOS_RING_MAX_CAPACITY * 2, UINT32_MAX};
    struct qos_ring_producer p;
    struct qos_ring_consumer c;
    CHECK_EQ(qos_ring_init(memory, 8), 0);
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        CHECK_EQ(qos_ring_init(memory, bad[i]), -EINVAL);
        CHECK_EQ(qos_ring_producer_open(&p, memory, bad[i]), -EINVAL);
        CHECK_EQ(qos_ring_consumer_open(&c, memory, bad[i]), -EINVAL);
    }
}

static void test_only_the_ring_that_was_announced_is_opened(void)
{
    struct qos_ring_producer p;
    struct qos_ring_consumer c;
    CHECK_EQ(qos_ring_init(memory, 8), 0);
    CHECK_EQ(qos_ring_producer_open(&p, memory, 16), -EPROTO);
    CHECK_EQ(qos_ring_consumer_open(&c, memory, 4), -EPROTO);
    ring()->magic++;
    CHECK_EQ(qos_ring_producer_open(&p, memory, 8), -EPROTO);
    CHECK_EQ(qos_ring_consumer_open(&c, memory, 8), -EPROTO);
    ring()->magic--;
    CHECK_EQ(qos_ring_producer_open(&p, memory, 8), 0);
    CHECK_EQ(qos_ring_consumer_open(&c, memory, 8), 0);
}

static void test_each_side_is_taken_once(void)
{
    struct pair pair = open_pair(8);
    struct qos_ring_producer p;
    struct qos_ring_consumer c;
    CHECK_EQ(qos_ring_producer_open(&p, memory, 8), -EBUSY);
    CHECK_EQ(qos_ring_consumer_open(&c, memory, 8), -EBUSY);
    qos_ring_producer_close(&pair.p);
    CHECK_EQ(qos_ring_consumer_open(&c, memory, 8), -EBUSY);
    CHECK_EQ(qos_ring_producer_open(&p, memory, 8), 0);
    qos_ring_consumer_close(&pair.c);
    CHECK_EQ(qos_ring_consumer_open(&c, memory, 8), 0);
}

static void test_new_handles_go_on_where_the_old_ones_stopped(void)
{
    struct pair pair = open_pair(8);
    uint64_t words[8] = {10, 11, 12, 13, 14, 15}, got[8] = {0};
    CHECK_EQ(qos_ring_push(&pair.p, words, 6), 0);
    CHECK_EQ(qos_ring_pop(&pair.c, got, 2), 2);
    qos_ring_producer_close(&pair.p);
    qos_ring_consumer_close(&pair.c);
    CHECK_EQ(qos_ring_producer_open(&pair.p, memory, 8), 0);
    CHECK_EQ(qos_ring_consumer_open(&pair.c, memory, 8), 0);
    CHECK_EQ(qos_ring_push(&pair.p, words, 5), -EAGAIN);
    CHECK_EQ(qos_ring_push(&pair.p, words, 4), 0);
    CHECK_EQ(qos_ring_pop(&pair.c, got, 8), 8);
    CHECK_EQ(got[0], 12);
    CHECK_EQ(got[3], 15);
    CHECK_EQ(got[4], 10);
    CHECK_EQ(got[7], 13);
}

static void test_a_batch_goes_in_whole_or_not_at_all(void)
{
    struct pair pair = open_pair(8);
    uint64_t words[9] = {1, 2, 3, 4, 5, 6, 7, 8, 9}, got[9];
    CHECK_EQ(qos_ring_push(&pair.p, words, 9), -EAGAIN);
    CHECK_EQ(qos_ring_push(&pair.p, words, UINT32_MAX), -EAGAIN);
    CHECK_EQ(qos_ring_peek(&pair.c), 0);
    CHECK_EQ(qos_ring_push(&pair.p, words, 5), 0);
    CHECK_EQ(qos_ring_push(&pair.p, words + 5, 4), -EAGAIN);
    CHECK_EQ(qos_ring_peek(&pair.c), 5);
    CHECK_EQ(qos_ring_push(&pair.p, words + 5, 3), 0);
    CHECK_EQ(qos_ring_push(&pair.p, words, 1), -EAGAIN);
    CHECK_EQ(qos_ring_push(&pair.p, words, 0), 0);
    CHECK_EQ(qos_ring_pop(&pair.c, got, 5), 5);
    CHECK_EQ(qos_ring_pop(&pair.c, got + 5, 9), 3);
    CHECK_EQ(memcmp(got, words, 8 * sizeof *words), 0);
    CHECK_EQ(qos_ring_pop(&pair.c, got, 1), 0);
}

static void test_written_words_are_seen_when_they_are_published(void)
{
    struct pair pair = open_pair(4);
    uint64_t words[3] = {1, 2, 3}, got[4];
    CHECK_EQ(qos_ring_write(&pair.p, words, 3), 0);
    CHECK_EQ(qos_ring_peek(&pair.c), 0);
    CHECK_EQ(qos_ring_write(&pair.p, words, 2), -EAGAIN);
    CHECK_EQ(qos_ring_write(&pair.p, words, 1), 0);
    CHECK_EQ(qos_ring_peek(&pair.c), 0);
    qos_ring_publish(&pair.p);
    CHECK_EQ(qos_ring_pop(&pair.c, got, 4), 4);
    CHECK_EQ(got[2], 3);
    CHECK_EQ(got[3], 1);
    /* what was never published is not there for a new producer either */
    CHECK_EQ(qos_ring_write(&pair.p, words, 3), 0);
    qos_ring_producer_close(&pair.p);
    CHECK_EQ(qos_ring_producer_open(&pair.p, memory, 4), 0);
    CHECK_EQ(qos_ring_push(&pair.p, words + 2, 1), 0);
    CHECK_EQ(qos_ring_pop(&pair.c, got, 4), 1);
    CHECK_EQ(got[0], 3);
}

static void test_peeked_words_stay_until_they_are_consumed(void)
{
    struct pair pair = open_pair(4);
    uint64_t words[4] = {5, 6, 7, 8};
    CHECK_EQ(qos_ring_push(&pair.p, words, 4), 0);
    CHECK_EQ(qos_ring_peek(&pair.c), 4);
    CHECK_EQ(qos_ring_word(&pair.c, 0), 5);
    CHECK_EQ(qos_ring_word(&pair.c, 3), 8);
    CHECK_EQ(qos_ring_push(&pair.p, words, 1), -EAGAIN);
    qos_ring_consume(&pair.c, 1);
    CHECK_EQ(qos_ring_word(&pair.c, 0), 6);
    CHECK_EQ(qos_ring_push(&pair.p, words, 2), -EAGAIN);
    CHECK_EQ(qos_ring_push(&pair.p, words, 1), 0);
}

/* Push and pop batches of changing size against two counters, from indices that start at `start`. */
static void run_through(uint32_t capacity, uint64_t start, uint64_t rounds)
{
    struct pair pair = {0};
    CHECK_EQ(qos_ring_init(memory, capacity), 0);
    qos_store_relaxed(&ring()->tail, start);
    qos_store_relaxed(&ring()->head, start);
    CHECK_EQ(qos_ring_producer_open(&pair.p, memory, capacity), 0);
    CHECK_EQ(qos_ring_consumer_open(&pair.c, memory, capacity), 0);
    uint64_t in = 0, out = 0, words[WORDS];
    for (uint64_t round = 0; round < rounds; round++) {
        uint32_t n = (uint32_t)(round * 7 % (capacity + 1));
        for (uint32_t i = 0; i < n; i++)
            words[i] = in + i;
        int rc = qos_ring_push(&pair.p, words, n);
        if (!CHECK_EQ(rc, in - out + n <= capacity ? 0 : -EAGAIN))
            return;
        in += rc == 0 ? n : 0;
        int64_t got = qos_ring_pop(&pair.c, words, round * 5 % capacity + 1);
        for (int64_t i = 0; i < got; i++)
            if (!CHECK_EQ(words[i], out++))
                return;
        CHECK(got >= 0 && out <= in);
    }
    CHECK(out > rounds / 4);
}

static void test_every_capacity_wraps_around(void)
{
    for (uint32_t capacity = 1; capacity <= WORDS; capacity *= 2)
        run_through(capacity, 0, 1000);
}

static void test_indices_wrap_around_at_64_bits(void)
{
    for (uint32_t capacity = 1; capacity <= WORDS; capacity *= 2)
        run_through(capacity, UINT64_MAX - 100, 1000);
}

static void test_a_consumer_refuses_an_impossible_tail(void)
{
    uint64_t words[4] = {1, 2, 3, 4}, got[8];
    static const uint64_t bad[] = {9 + 2, 1, 0, UINT64_MAX, UINT64_C(1) << 63, UINT64_C(1) << 32};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct pair pair = open_pair(8);
        CHECK_EQ(qos_ring_push(&pair.p, words, 2), 0);
        CHECK_EQ(qos_ring_pop(&pair.c, got, 8), 2);
        CHECK_EQ(qos_ring_push(&pair.p, words, 3), 0);
        qos_store_relaxed(&ring()->tail, bad[i]);
        CHECK_EQ(qos_ring_peek(&pair.c), -EPROTO);
        CHECK_EQ(qos_ring_pop(&pair.c, got, 8), -EPROTO);
        CHECK_EQ(qos_load_relaxed(&ring()->head), 2);
        /* the truth is still accepted */
        qos_store_relaxed(&ring()->tail, 5);
        CHECK_EQ(qos_ring_pop(&pair.c, got, 8), 3);
    }
}

static void test_a_producer_refuses_an_impossible_head(void)
{
    uint64_t words[8] = {1, 2, 3, 4, 5, 6, 7, 8}, got[8];
    static const uint64_t bad[] = {11, UINT64_MAX, UINT64_C(1) << 63, 1, 10 + (UINT64_C(1) << 32)};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct pair pair = open_pair(8);
        CHECK_EQ(qos_ring_push(&pair.p, words, 2), 0);
        CHECK_EQ(qos_ring_pop(&pair.c, got, 8), 2);
        CHECK_EQ(qos_ring_push(&pair.p, words, 8), 0);
        uint64_t replaced = 99;
        qos_store_relaxed(&ring()->head, bad[i]);
        CHECK_EQ(qos_ring_push(&pair.p, &replaced, 1), -EPROTO);
        CHECK_EQ(qos_load_relaxed(&ring()->tail), 10);
        CHECK_EQ(qos_ring_pop(&pair.c, got, 8), 8);
        CHECK_EQ(memcmp(got, words, sizeof words), 0);
        CHECK_EQ(qos_ring_push(&pair.p, &replaced, 1), 0);
    }
}

static void test_opening_refuses_impossible_indices(void)
{
    struct qos_ring_producer p;
    static const uint64_t heads[] = {101, 91, UINT64_MAX, 0};
    CHECK_EQ(qos_ring_init(memory, 8), 0);
    qos_store_relaxed(&ring()->tail, 100);
    for (size_t i = 0; i < sizeof heads / sizeof *heads; i++) {
        qos_store_relaxed(&ring()->head, heads[i]);
        CHECK_EQ(qos_ring_producer_open(&p, memory, 8), -EPROTO);
    }
    /* and does not keep the side */
    qos_store_relaxed(&ring()->head, 92);
    CHECK_EQ(qos_ring_producer_open(&p, memory, 8), 0);
}

/* ---- Two threads, two processes ---- */

#define STREAM 2000000u

static uint32_t processors; /* looked up before there are threads */

/* Push `count` words, numbered from 0, in batches of 1 to 7. The first error, or 0. */
static int push_stream(void *mem, uint32_t capacity, uint64_t count)
{
    struct qos_ring_producer p;
    int rc = qos_ring_producer_open(&p, mem, capacity);
    struct qos_spin spin = qos_spin_new(processors);
    for (uint64_t next = 0; rc == 0 && next < count;) {
        uint64_t words[7];
        uint32_t n = 1 + (uint32_t)(next % 7);
        if (n > count - next)
            n = (uint32_t)(count - next);
        for (uint32_t i = 0; i < n; i++)
            words[i] = next + i;
        rc = qos_ring_push(&p, words, n);
        if (rc == 0) {
            next += n;
            qos_spin_start(&spin);
        } else if (rc == -EAGAIN) {
            qos_spin_step(&spin);
            rc = 0;
        }
    }
    return rc;
}

/* Pop until `count` words came: how many came in order. */
static uint64_t pop_stream(struct qos_ring_consumer *c, uint64_t count)
{
    uint64_t expected = 0, words[16];
    struct qos_spin spin = qos_spin_new(processors);
    while (expected < count) {
        uint64_t left = count - expected;
        int64_t n = qos_ring_pop(c, words, left < 16 ? left : 16);
        if (n < 0)
            return expected;
        for (int64_t i = 0; i < n; i++)
            if (words[i] != expected++)
                return expected - 1;
        if (n == 0)
            qos_spin_step(&spin);
        else
            qos_spin_start(&spin);
    }
    return expected;
}

static void *produce(void *result)
{
    *(int *)result = push_stream(memory, WORDS, STREAM);
    return NULL;
}

static void test_two_threads_move_words_in_order(void)
{
    struct qos_ring_consumer c;
    pthread_t thread;
    int result = -1;
    CHECK_EQ(qos_ring_init(memory, WORDS), 0);
    CHECK_EQ(qos_ring_consumer_open(&c, memory, WORDS), 0);
    if (!CHECK_EQ(pthread_create(&thread, NULL, produce, &result), 0))
        return;
    CHECK_EQ(pop_stream(&c, STREAM), STREAM);
    pthread_join(thread, NULL);
    CHECK_EQ(result, 0);
    CHECK_EQ(qos_ring_peek(&c), 0);
}

static void *shared_ring(uint32_t capacity)
{
    void *mem = mmap(NULL, qos_ring_size(capacity), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (!CHECK(mem != MAP_FAILED))
        return NULL;
    CHECK_EQ(qos_ring_init(mem, capacity), 0);
    return mem;
}

static void test_two_processes_move_words_in_order(void)
{
    void *mem = shared_ring(WORDS);
    struct qos_ring_consumer c;
    if (!mem)
        return;
    pid_t child = check_fork();
    if (child == 0) {
        CHECK_EQ(push_stream(mem, WORDS, STREAM / 10), 0);
        check_exit_child();
    }
    CHECK_EQ(qos_ring_consumer_open(&c, mem, WORDS), 0);
    CHECK_EQ(pop_stream(&c, STREAM / 10), STREAM / 10);
    int status = -1;
    waitpid(child, &status, 0);
    CHECK_EQ(status, 0);
    munmap(mem, qos_ring_size(WORDS));
}

static void test_a_killed_producer_leaves_only_whole_words(void)
{
    void *mem = shared_ring(WORDS);
    struct qos_ring_consumer c;
    struct qos_ring_producer p;
    if (!mem)
        return;
    pid_t child = check_fork();
    if (child == 0) {
        (void)push_stream(mem, WORDS, UINT64_MAX);
        _exit(1);
    }
    CHECK_EQ(qos_ring_consumer_open(&c, mem, WORDS), 0);
    CHECK_EQ(pop_stream(&c, 10000), 10000);
    kill(child, SIGKILL);
    int status = 0;
    waitpid(child, &status, 0);
    CHECK(WIFSIGNALED(status));
    uint64_t words[WORDS], expected = 10000;
    for (int64_t n; (n = qos_ring_pop(&c, words, WORDS)) != 0;) {
        if (!CHECK(n > 0))
            return;
        for (int64_t i = 0; i < n; i++)
            CHECK_EQ(words[i], expected++);
    }
    /* its side stays taken: whoever owns the memory makes a new ring */
    CHECK_EQ(qos_ring_producer_open(&p, mem, WORDS), -EBUSY);
    munmap(mem, qos_ring_size(WORDS));
}

int main(void)
{
    processors = qos_wait_processors();
    CHECK_RUN(test_layout_is_fixed);
    CHECK_RUN(test_capacity_is_a_power_of_two);
    CHECK_RUN(test_only_the_ring_that_was_announced_is_opened);
    CHECK_RUN(test_each_side_is_taken_once);
    CHECK_RUN(test_new_handles_go_on_where_the_old_ones_stopped);
    CHECK_RUN(test_a_batch_goes_in_whole_or_not_at_all);
    CHECK_RUN(test_written_words_are_seen_when_they_are_published);
    CHECK_RUN(test_peeked_words_stay_until_they_are_consumed);
    CHECK_RUN(test_every_capacity_wraps_around);
    CHECK_RUN(test_indices_wrap_around_at_64_bits);
    CHECK_RUN(test_a_consumer_refuses_an_impossible_tail);
    CHECK_RUN(test_a_producer_refuses_an_impossible_head);
    CHECK_RUN(test_opening_refuses_impossible_indices);
    CHECK_RUN(test_two_threads_move_words_in_order);
    CHECK_RUN(test_two_processes_move_words_in_order);
    CHECK_RUN(test_a_killed_producer_leaves_only_whole_words);
    return check_done();
}
