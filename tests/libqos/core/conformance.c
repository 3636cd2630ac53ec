/* SPDX-License-Identifier: Apache-2.0 */
#include "conformance.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>

#include "check.h"

#define LONG_NS 3600000000000ull
#define ROOM 65536u
#define PLACES 4u

static uint8_t room[PLACES][ROOM], out[ROOM + 1];
static const struct conformance_subject *subject;

static struct conformance_link open_link(void)
{
    struct conformance_link l = {0};
    if (!CHECK_EQ(subject->open(&l, subject->options), 1))
        exit(check_done());
    return l;
}

static void close_link(struct conformance_link *l)
{
    l->a.dp->ops->close(l->a.dp);
    l->b.dp->ops->close(l->b.dp);
}

/* A thread of the datapath may be counting. */
static uint64_t counter(const uint64_t *c)
{
    return __atomic_load_n(c, __ATOMIC_RELAXED);
}

static struct qos_packet empty_place(unsigned i)
{
    return (struct qos_packet){.data = room[i], .length = ROOM, .error = -1};
}

/* Send one packet; whether it was taken. */
static int send_to(const struct conformance_end *from, const struct conformance_end *to, void *data, uint32_t length,
                   int *error)
{
    struct qos_packet p = {.data = data, .length = length, .address = to->address, .error = -1};
    int n = from->dp->ops->tx(from->dp, &p, 1);
    *error = p.error;
    return n;
}

static void send_good(const struct conformance_end *from, const struct conformance_end *to, void *data, uint32_t length)
{
    int error;
    CHECK_EQ(send_to(from, to, data, length, &error), 1);
    CHECK_EQ(error, 0);
}

static void give_back(const struct conformance_end *e, const struct qos_packet *p)
{
    if (e->dp->capabilities & QOS_CAP_OWN_MEMORY)
        e->dp->ops->release(e->dp, p->token);
}

/* The next packet, in its memory until it is given back. */
static struct qos_packet receive_one(const struct conformance_end *e)
{
    struct qos_packet p = empty_place(0);
    CHECK_EQ(e->dp->ops->rx_wait(e->dp, &p, LONG_NS), 1);
    return p;
}

static int readable(const struct conformance_end *e, int timeout_ms)
{
    struct pollfd p = {e->dp->ops->wait_fd(e->dp), POLLIN, 0};
    return poll(&p, 1, timeout_ms) == 1;
}

/* The datagrams of a packet, each a number of four bytes: check that they go on from `next`. */
static uint32_t check_numbers(const struct qos_packet *p, uint32_t next)
{
    uint32_t size = p->segment ? p->segment : p->length, number;
    for (uint32_t at = 0; at < p->length; at += size, next++) {
        memcpy(&number, p->data + at, sizeof number);
        if (!CHECK_EQ(number, next))
            exit(check_done());
    }
    return next;
}

/* ---- What arrives ---- */

static void test_says_what_it_is(void)
{
    struct conformance_link l = open_link();
    const struct qos_datapath_ops *ops = l.a.dp->ops;
    CHECK(ops->name && *ops->name && ops->tx && ops->rx && ops->rx_wait && ops->release && ops->wait_fd && ops->close);
    CHECK_EQ(l.a.dp->capabilities & ~15u, 0);
    CHECK_EQ(l.a.dp->capabilities, l.b.dp->capabilities);
    CHECK(ops->wait_fd(l.a.dp) >= 0);
    struct qos_datapath_stats zero = {0};
    CHECK_EQ(memcmp(&l.a.dp->stats, &zero, sizeof zero), 0);
    close_link(&l);
}

static void test_a_packet_arrives_as_it_was_sent_with_its_source(void)
{
    struct conformance_link l = open_link();
    uint8_t text[] = "hello";
    send_good(&l.a, &l.b, text, 5);
    struct qos_packet p = receive_one(&l.b);
    CHECK_EQ(p.length, 5);
    CHECK_EQ(memcmp(p.data, "hello", 5), 0);
    CHECK_EQ(p.segment, 0);
    CHECK_EQ(p.error, 0);
    if (l.b.dp->capabilities & QOS_CAP_ADDRESSED) {
        CHECK(qos_address_equal(&p.address, &l.a.address));
        /* and it is where an answer goes */
        struct conformance_end answer = {.address = p.address};
        send_good(&l.b, &answer, text, 1);
    } else {
        send_good(&l.b, &l.a, text, 1);
    }
    give_back(&l.b, &p);
    p = receive_one(&l.a);
    CHECK_EQ(p.length, 1);
    give_back(&l.a, &p);
    close_link(&l);
}

static void test_packets_of_every_size(void)
{
    const uint32_t sizes[] = {0, 1, 63, 64, 65, 1472, 1473, 9000, subject->max - 1, subject->max};
    struct conformance_link l = open_link();
    for (uint32_t i = 0; i < ROOM; i++)
        out[i] = (uint8_t)(i * 31 >> 3);
    for (unsigned i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        if (sizes[i] > subject->max)
            continue;
        send_good(&l.a, &l.b, out, sizes[i]);
        struct qos_packet p = receive_one(&l.b);
        CHECK_EQ(p.length, sizes[i]);
        CHECK_EQ(memcmp(p.data, out, p.length), 0);
        give_back(&l.b, &p);
    }
    close_link(&l);
}

static void test_a_packet_too_long_fails_by_itself(void)
{
    struct conformance_link l = open_link();
    int error;
    uint8_t text[] = "after";
    CHECK_EQ(send_to(&l.a, &l.b, out, subject->max + 1, &error), 1);
    if (!subject->late_errors)
        CHECK_EQ(error, EMSGSIZE);
    send_good(&l.a, &l.b, text, 5);
    struct qos_packet p = receive_one(&l.b);
    CHECK_EQ(p.length, 5);
    CHECK_EQ(counter(&l.a.dp->stats.tx_errors), 1);
    give_back(&l.b, &p);
    close_link(&l);
}

static void test_a_failed_packet_stops_no_burst(void)
{
    struct conformance_link l = open_link();
    uint32_t numbers[4] = {0, 0, 0, 1}, got = 0;
    struct qos_packet p[4];
    for (unsigned i = 0; i < 4; i++)
        p[i] = (struct qos_packet){.data = i % 3 ? out : (uint8_t *)&numbers[i],
                                   .length = i % 3 ? subject->max + 1 : 4,
                                   .address = l.b.address,
                                   .error = -1};
    CHECK_EQ(l.a.dp->ops->tx(l.a.dp, p, 4), 4);
    for (unsigned i = 0; i < 4 && !subject->late_errors; i++)
        CHECK_EQ(p[i].error, i % 3 ? EMSGSIZE : 0);
    while (got < 2) {
        struct qos_packet in = receive_one(&l.b);
        got = check_numbers(&in, got);
        give_back(&l.b, &in);
    }
    close_link(&l);
}

/* ---- Bursts ---- */

enum { BURST = 150 }; /* more than one system call takes */

static void test_bursts_arrive_in_order_whatever_is_taken_at_once(void)
{
    static uint32_t numbers[BURST];
    static struct qos_packet packets[BURST];
    for (unsigned take = 1; take <= PLACES; take++) {
        struct conformance_link l = open_link();
        for (uint32_t i = 0; i < BURST; i++) {
            numbers[i] = i;
            packets[i] =
                (struct qos_packet){.data = (uint8_t *)&numbers[i], .length = 4, .address = l.b.address, .error = -1};
        }
        CHECK_EQ(l.a.dp->ops->tx(l.a.dp, packets, 0), 0);
        CHECK_EQ(l.a.dp->ops->tx(l.a.dp, packets, BURST), BURST);
        for (uint32_t i = 0; i < BURST; i++)
            CHECK_EQ(packets[i].error, 0);
        uint32_t next = 0;
        while (next < BURST) {
            struct qos_packet in[PLACES];
            for (unsigned i = 0; i < take; i++)
                in[i] = empty_place(i);
            CHECK(readable(&l.b, -1));
            int n = l.b.dp->ops->rx(l.b.dp, in, take);
            CHECK(n >= 0 && n <= (int)take);
            for (int i = 0; i < n; i++) {
                next = check_numbers(&in[i], next);
                give_back(&l.b, &in[i]);
            }
        }
        CHECK_EQ(next, BURST);
        CHECK_EQ(counter(&l.a.dp->stats.tx_packets), BURST);
        CHECK_EQ(counter(&l.a.dp->stats.tx_bytes), BURST * 4);
        CHECK_EQ(counter(&l.b.dp->stats.rx_packets), BURST);
        CHECK_EQ(counter(&l.b.dp->stats.rx_bytes), BURST * 4);
        close_link(&l);
    }
}

static void test_segments_are_datagrams_in_order(void)
{
    enum { SEGMENT = 1000, SEGMENTS = 10, TAIL = 300 };
    struct conformance_link l = open_link();
    if (!(l.a.dp->capabilities & QOS_CAP_SEGMENTATION)) {
        close_link(&l);
        return;
    }
    for (uint32_t i = 0; i < SEGMENTS; i++)
        memcpy(out + i * SEGMENT, &i, sizeof i);
    struct qos_packet p = {
        .data = out, .length = (SEGMENTS - 1) * SEGMENT + TAIL, .segment = SEGMENT, .address = l.b.address};
    CHECK_EQ(l.a.dp->ops->tx(l.a.dp, &p, 1), 1);
    CHECK_EQ(p.error, 0);
    uint32_t next = 0, bytes = 0;
    while (next < SEGMENTS) {
        struct qos_packet in = receive_one(&l.b);
        CHECK(in.segment == 0 || (l.b.dp->capabilities & QOS_CAP_COALESCED_RX));
        next = check_numbers(&in, next);
        bytes += in.length;
        give_back(&l.b, &in);
    }
    CHECK_EQ(bytes, p.length);
    CHECK_EQ(counter(&l.a.dp->stats.tx_packets), SEGMENTS);
    CHECK_EQ(counter(&l.b.dp->stats.rx_packets), SEGMENTS);
    close_link(&l);
}

static void test_memory_of_its_own_stays_until_it_is_given_back(void)
{
    struct conformance_link l = open_link();
    struct qos_packet held[8];
    if (l.b.dp->capabilities & QOS_CAP_OWN_MEMORY) {
        for (uint32_t i = 0; i < 8; i++) {
            send_good(&l.a, &l.b, &i, sizeof i);
            held[i] = receive_one(&l.b);
        }
        for (uint32_t i = 8; i-- > 0;) {
            CHECK_EQ(check_numbers(&held[i], i), i + 1);
            give_back(&l.b, &held[i]);
        }
    }
    close_link(&l);
}

/* ---- Nothing is lost in silence ---- */

enum { FLOOD = 2000 }; /* more than a socket buffer holds */

static void test_what_was_taken_arrives_or_is_counted(void)
{
    struct conformance_link l = open_link();
    uint64_t taken = 0, arrived = 0, bytes = 0;
    int error, full = 0;
    for (uint32_t i = 0; i < FLOOD && !full; i++) {
        int n = send_to(&l.a, &l.b, out, 100 + i % 400, &error);
        full = n == -EAGAIN;
        CHECK(full || (n == 1 && error == 0));
        taken += !full;
    }
    /* The kernel tells what it lost with a packet that was queued after the loss; so more are sent until all are accounted for. */
    while (arrived + counter(&l.b.dp->stats.rx_overflow) < taken) {
        struct qos_packet p = empty_place(0);
        if (l.b.dp->ops->rx(l.b.dp, &p, 1) == 1) {
            arrived += p.segment ? (p.length + p.segment - 1) / p.segment : 1;
            bytes += p.length;
            give_back(&l.b, &p);
        } else if (!readable(&l.b, 10)) {
            taken += send_to(&l.a, &l.b, out, 100, &error) == 1;
        }
    }
    CHECK_EQ(arrived + counter(&l.b.dp->stats.rx_overflow), taken);
    CHECK_EQ(counter(&l.a.dp->stats.tx_packets), taken);
    CHECK_EQ(counter(&l.b.dp->stats.rx_packets), arrived);
    CHECK_EQ(counter(&l.b.dp->stats.rx_bytes), bytes);
    CHECK(counter(&l.a.dp->stats.tx_bytes) >= bytes);
    CHECK_EQ(counter(&l.a.dp->stats.tx_errors), 0);
    CHECK_EQ(counter(&l.a.dp->stats.rx_packets), 0);
    CHECK(full || counter(&l.a.dp->stats.tx_calls) >= FLOOD);
    close_link(&l);
}

/* ---- Waiting ---- */

static void test_nothing_there_is_no_packet(void)
{
    struct conformance_link l = open_link();
    struct qos_packet p[2] = {empty_place(0), empty_place(1)};
    CHECK_EQ(l.b.dp->ops->rx(l.b.dp, p, 1), 0);
    CHECK_EQ(l.b.dp->ops->rx(l.b.dp, p, 2), 0);
    CHECK_EQ(l.b.dp->ops->rx_wait(l.b.dp, p, 1000000), 0);
    CHECK_EQ(l.b.dp->ops->rx_wait(l.b.dp, p, 1), 0);
    CHECK_EQ(l.b.dp->ops->rx_wait(l.b.dp, p, 0), 0);
    CHECK(!readable(&l.b, 0));
    CHECK_EQ(counter(&l.b.dp->stats.rx_packets), 0);
    close_link(&l);
}

static void test_the_wait_handle_tells_of_packets(void)
{
    struct conformance_link l = open_link();
    for (uint32_t i = 0; i < 3; i++) {
        struct qos_packet p = empty_place(0);
        send_good(&l.a, &l.b, &i, sizeof i);
        do
            CHECK(readable(&l.b, -1));
        while (l.b.dp->ops->rx(l.b.dp, &p, 1) == 0);
        CHECK_EQ(check_numbers(&p, i), i + 1);
        give_back(&l.b, &p);
        CHECK_EQ(l.b.dp->ops->rx(l.b.dp, &p, 1), 0);
        CHECK(!readable(&l.b, 0));
    }
    close_link(&l);
}

enum { STREAM = 2000 };

struct stream {
    const struct conformance_end *from, *to;
    _Atomic uint32_t arrived; /* the sender stays near */
    int failed;
};

static void *send_stream(void *argument)
{
    struct stream *s = argument;
    for (uint32_t i = 0; i < STREAM && !s->failed; i++) {
        int error = 0, n;
        while (i - atomic_load(&s->arrived) > 100)
            sched_yield();
        while ((n = send_to(s->from, s->to, &i, sizeof i, &error)) == -EAGAIN)
            sched_yield();
        s->failed = n != 1 || error != 0;
    }
    return NULL;
}

static void receive_stream(struct stream *s)
{
    for (uint32_t next = 0; next < STREAM;) {
        struct qos_packet p = receive_one(s->to);
        next = check_numbers(&p, next);
        give_back(s->to, &p);
        atomic_store(&s->arrived, next);
    }
}

static void test_a_waiting_receiver_gets_what_another_thread_sends(void)
{
    struct conformance_link l = open_link();
    struct stream there = {.from = &l.a, .to = &l.b}, back = {.from = &l.b, .to = &l.a};
    pthread_t thread;
    if (!CHECK_EQ(pthread_create(&thread, NULL, send_stream, &there), 0))
        return;
    receive_stream(&there);
    pthread_join(thread, NULL);
    CHECK(!there.failed);
    if (!CHECK_EQ(pthread_create(&thread, NULL, send_stream, &back), 0))
        return;
    receive_stream(&back);
    pthread_join(thread, NULL);
    CHECK(!back.failed);
    close_link(&l);
}

/* ---- The end, and the other end's ---- */

static void test_closing_leaves_nothing_behind_with_traffic_under_way(void)
{
    for (int read_some = 0; read_some < 2; read_some++) {
        struct conformance_link l = open_link();
        for (uint32_t i = 0; i < 50; i++) {
            send_good(&l.a, &l.b, &i, sizeof i);
            send_good(&l.b, &l.a, &i, sizeof i);
        }
        if (read_some) {
            struct qos_packet p = receive_one(&l.b);
            give_back(&l.b, &p);
        }
        close_link(&l);
    }
}

static void test_a_peer_that_went_is_no_obstacle_when_it_is_back(void)
{
    if (subject->reopen == NULL)
        return;
    struct conformance_link l = open_link();
    struct qos_packet p = empty_place(0);
    uint8_t text[] = "again";
    int error;
    l.b.dp->ops->close(l.b.dp);
    for (int i = 0; i < 10; i++) {
        CHECK_EQ(send_to(&l.a, &l.b, text, 5, &error), 1);
        CHECK(error == 0 || error == ECONNREFUSED);
        CHECK_EQ(l.a.dp->ops->rx(l.a.dp, &p, 1), 0);
        CHECK_EQ(l.a.dp->ops->rx_wait(l.a.dp, &p, 1000), 0);
    }
    /* the refusal was taken note of, and does not keep waking who waits */
    while (readable(&l.a, 0))
        CHECK_EQ(l.a.dp->ops->rx(l.a.dp, &p, 1), 0);
    subject->reopen(&l, subject->options);
    /* the first may still be told of the time before */
    do
        CHECK_EQ(send_to(&l.a, &l.b, text, 5, &error), 1);
    while (error == ECONNREFUSED);
    p = receive_one(&l.b);
    CHECK_EQ(p.length, 5);
    send_good(&l.b, &l.a, text, 4);
    p = receive_one(&l.a);
    CHECK_EQ(p.length, 4);
    close_link(&l);
}

static const struct {
    const char *name;
    void (*run)(void);
} TESTS[] = {
    {"says_what_it_is", test_says_what_it_is},
    {"a_packet_arrives_as_it_was_sent_with_its_source", test_a_packet_arrives_as_it_was_sent_with_its_source},
    {"packets_of_every_size", test_packets_of_every_size},
    {"a_packet_too_long_fails_by_itself", test_a_packet_too_long_fails_by_itself},
    {"a_failed_packet_stops_no_burst", test_a_failed_packet_stops_no_burst},
    {"bursts_arrive_in_order_whatever_is_taken_at_once", test_bursts_arrive_in_order_whatever_is_taken_at_once},
    {"segments_are_datagrams_in_order", test_segments_are_datagrams_in_order},
    {"memory_of_its_own_stays_until_it_is_given_back", test_memory_of_its_own_stays_until_it_is_given_back},
    {"what_was_taken_arrives_or_is_counted", test_what_was_taken_arrives_or_is_counted},
    {"nothing_there_is_no_packet", test_nothing_there_is_no_packet},
    {"the_wait_handle_tells_of_packets", test_the_wait_handle_tells_of_packets},
    {"a_waiting_receiver_gets_what_another_thread_sends", test_a_waiting_receiver_gets_what_another_thread_sends},
    {"closing_leaves_nothing_behind_with_traffic_under_way", test_closing_leaves_nothing_behind_with_traffic_under_way},
    {"a_peer_that_went_is_no_obstacle_when_it_is_back", test_a_peer_that_went_is_no_obstacle_when_it_is_back},
};

void conformance_run(const struct conformance_subject *s)
{
    struct conformance_link l = {0};
    char name[128];
    subject = s;
    check_begin(s->name);
    if (s->open(&l, s->options) != 1) {
        CHECK_SKIP(s->resource, "this datapath cannot be opened here");
        return;
    }
    close_link(&l);
    for (unsigned i = 0; i < sizeof TESTS / sizeof *TESTS; i++) {
        snprintf(name, sizeof name, "%s: %s", s->name, TESTS[i].name);
        check_begin(name);
        TESTS[i].run();
    }
    check_state.test = s->name; /* the one that was built here is gone */
}
