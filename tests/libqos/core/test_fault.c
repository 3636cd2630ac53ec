/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Faults around UDP over loopback, which itself loses and reorders nothing as long as its buffers do not failed: what arrives
 * otherwise than it was sent is what the fault datapath says that it did.
 */
#include "datapath/fault.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>

#include "check.h"
#include "clock.h"
#include "udp_fixture.h"

#define LONG_NS 3600000000000ull
#define ROOM 65536u
#define COUNT 2000u

/* A way with faults at one end. */
struct way {
    struct end from, to;
    struct qos_fault_counters done;
};

static struct qos_fault parse(const char *text)
{
    struct qos_fault f;
    char problem[160] = "";
    if (!CHECK_EQ(qos_fault_parse(&f, text, problem, sizeof problem), 0))
        printf("    %s\n", problem);
    return f;
}

static struct way *open_way(const char *text, enum qos_fault_direction side)
{
    struct way *w = calloc(1, sizeof *w);
    if (!CHECK(w != NULL))
        exit(1);
    struct qos_fault f = parse(text);
    f.direction = side;
    w->from = open_end(AF_INET, 0);
    w->to = open_end(AF_INET, 0);
    struct end *at = side == QOS_FAULT_TX ? &w->from : &w->to;
    CHECK_EQ(qos_fault_open(&at->dp, at->dp, &f, &w->done), 0);
    CHECK_EQ(strcmp(at->dp->ops->name, "fault"), 0);
    return w;
}

/* What was done so far; the sender's thread may be doing more. */
static struct qos_fault_counters done_of(const struct way *w)
{
    const uint64_t *from = &w->done.lost;
    struct qos_fault_counters done;
    uint64_t words[sizeof done / sizeof(uint64_t)];
    for (unsigned i = 0; i < sizeof words / sizeof *words; i++)
        words[i] = __atomic_load_n(&from[i], __ATOMIC_RELAXED);
    memcpy(&done, words, sizeof done);
    return done;
}

static void close_way(struct way *w)
{
    if (w->from.dp)
        w->from.dp->ops->close(w->from.dp);
    w->to.dp->ops->close(w->to.dp);
    free(w);
}

static int send_bytes(struct way *w, const void *data, uint32_t length)
{
    struct qos_packet p = {.data = (uint8_t *)(uintptr_t)data, .length = length, .address = w->to.address};
    return w->from.dp->ops->tx(w->from.dp, &p, 1);
}

static int take(struct way *w, struct qos_packet *p, uint64_t timeout_ns)
{
    static uint8_t room[ROOM];
    *p = (struct qos_packet){.data = room, .length = ROOM};
    return w->to.dp->ops->rx_wait(w->to.dp, p, timeout_ns);
}

static uint32_t number_of(const struct qos_packet *p)
{
    uint32_t number = 0;
    memcpy(&number, p->data, p->length < sizeof number ? p->length : sizeof number);
    return number;
}

/* Send COUNT numbers, a hundred at a time; what arrived, in its order. How many. */
static uint32_t transfer(struct way *w, uint32_t *arrived)
{
    struct qos_packet p;
    uint32_t n = 0;
    for (uint32_t i = 0; i < COUNT; i++) {
        CHECK_EQ(send_bytes(w, &i, sizeof i), 1);
        /* an empty datagram meets no fault; in front of it all has arrived that is not held back */
        if (i % 100 == 99) {
            CHECK_EQ(send_bytes(w, "", 0), 1);
            while (CHECK_EQ(take(w, &p, LONG_NS), 1) && p.length > 0)
                arrived[n++] = number_of(&p);
        }
    }
    return n;
}

/* The same seed and packets give the same; another seed does not. */
static uint32_t transfer_twice(const char *text, const char *other, enum qos_fault_direction side, uint32_t *arrived,
                               struct qos_fault_counters *done)
{
    static uint32_t again[2 * COUNT];
    struct way *w = open_way(text, side);
    uint32_t n = transfer(w, arrived);
    *done = done_of(w);
    close_way(w);
    w = open_way(text, side);
    CHECK_EQ(transfer(w, again), n);
    CHECK_EQ(memcmp(arrived, again, n * sizeof *arrived), 0);
    struct qos_fault_counters second = done_of(w);
    CHECK_EQ(memcmp(&second, done, sizeof second), 0);
    close_way(w);
    w = open_way(other, side);
    uint32_t m = transfer(w, again);
    CHECK(m != n || memcmp(arrived, again, n * sizeof *arrived) != 0);
    close_way(w);
    return n;
}

static uint32_t arrived[2 * COUNT];
static const enum qos_fault_direction SIDES[] = {QOS_FAULT_TX, QOS_FAULT_RX};

/* ---- Each fault ---- */

static void test_without_faults_everything_passes(void)
{
    for (int i = 0; i < 2; i++) {
        struct way *w = open_way("seed=3", SIDES[i]);
        CHECK_EQ(transfer(w, arrived), COUNT);
        for (uint32_t k = 0; k < COUNT; k++)
            CHECK_EQ(arrived[k], k);
        struct qos_fault_counters done = done_of(w), none = {0};
        CHECK_EQ(memcmp(&done, &none, sizeof done), 0);
        close_way(w);
    }
}

static void test_loss_is_counted_and_follows_from_the_seed(void)
{
    for (int i = 0; i < 2; i++) {
        struct qos_fault_counters done;
        uint32_t n = transfer_twice("loss=0.1,seed=1", "loss=0.1,seed=2", SIDES[i], arrived, &done);
        CHECK_EQ(n + done.lost, COUNT);
        CHECK(done.lost > COUNT / 20 && done.lost < COUNT / 5);
        CHECK_EQ(done.duplicated + done.reordered + done.corrupted + done.delayed + done.failed, 0);
        for (uint32_t k = 1; k < n; k++)
            CHECK(arrived[k] > arrived[k - 1]);
    }
}

static void test_all_or_nothing_is_lost(void)
{
    struct way *w = open_way("loss=1", QOS_FAULT_RX);
    CHECK_EQ(transfer(w, arrived), 0);
    CHECK_EQ(done_of(w).lost, COUNT);
    close_way(w);
    w = open_way("loss=0,duplicate=1", QOS_FAULT_TX);
    CHECK_EQ(transfer(w, arrived), 2 * COUNT);
    CHECK_EQ(done_of(w).duplicated, COUNT);
    close_way(w);
}

static void test_a_duplicate_follows_its_original(void)
{
    for (int i = 0; i < 2; i++) {
        struct qos_fault_counters done;
        uint32_t n = transfer_twice("duplicate=0.1,seed=1", "duplicate=0.1,seed=2", SIDES[i], arrived, &done);
        CHECK_EQ(n, COUNT + done.duplicated);
        CHECK(done.duplicated > COUNT / 20);
        uint64_t seen = 0;
        for (uint32_t k = 1; k < n; k++) {
            CHECK(arrived[k] == arrived[k - 1] || arrived[k] == arrived[k - 1] + 1);
            seen += arrived[k] == arrived[k - 1];
        }
        CHECK_EQ(seen, done.duplicated);
    }
}

/* Those that come after a later one. */
static uint64_t count_late(uint32_t n)
{
    uint64_t late = 0;
    uint32_t highest = 0;
    for (uint32_t k = 0; k < n; k++) {
        late += arrived[k] < highest;
        highest = arrived[k] > highest ? arrived[k] : highest;
    }
    return late;
}

static void test_what_was_overtaken_is_counted_and_not_lost(void)
{
    for (int i = 0; i < 2; i++) {
        struct qos_fault_counters done;
        uint32_t n =
            transfer_twice("reorder=0.1,hold=60s,seed=1", "reorder=0.1,hold=60s,seed=2", SIDES[i], arrived, &done);
        CHECK(done.reordered > COUNT / 20);
        CHECK_EQ(count_late(n), done.reordered);
        /* what is still held back is of the last ones */
        uint64_t sum = 0;
        uint32_t settled = COUNT - 100;
        for (uint32_t k = 0; k < n; k++)
            sum += arrived[k] < settled ? arrived[k] : 0;
        CHECK_EQ(sum, (uint64_t)settled * (settled - 1) / 2);
    }
}

static void test_the_only_one_goes_on_without_being_overtaken(void)
{
    for (int i = 0; i < 2; i++) {
        struct way *w = open_way("reorder=1", SIDES[i]);
        struct qos_packet p;
        uint32_t number = 7;
        CHECK_EQ(send_bytes(w, &number, sizeof number), 1);
        CHECK_EQ(take(w, &p, LONG_NS), 1);
        CHECK_EQ(number_of(&p), 7);
        CHECK_EQ(done_of(w).reordered, 0);
        close_way(w);
    }
}

static void test_corruption_turns_one_bit(void)
{
    for (int i = 0; i < 2; i++) {
        struct way *w = open_way("corrupt=1,seed=5", SIDES[i]);
        uint8_t zero[100] = {0};
        for (uint32_t k = 1; k <= 100; k++) {
            struct qos_packet p;
            uint32_t bits = 0;
            CHECK_EQ(send_bytes(w, zero, k), 1);
            CHECK_EQ(take(w, &p, LONG_NS), 1);
            CHECK_EQ(p.length, k);
            for (uint32_t b = 0; b < p.length; b++)
                bits += (uint32_t)__builtin_popcount(p.data[b]);
            CHECK_EQ(bits, 1);
            CHECK_EQ(done_of(w).corrupted, k);
        }
        for (uint32_t k = 0; k < sizeof zero; k++)
            CHECK_EQ(zero[k], 0); /* the sender's memory is his own */
        close_way(w);
    }
}

static void test_everything_at_once_adds_up(void)
{
    for (int i = 0; i < 2; i++) {
        struct way *w =
            open_way("loss=0.05,duplicate=0.05,reorder=0.05,corrupt=0.02,delay=200us,jitter=300us,seed=9", SIDES[i]);
        struct qos_packet p;
        uint64_t n = 0;
        for (uint32_t k = 0; k < COUNT; k++) {
            CHECK_EQ(send_bytes(w, &k, sizeof k), 1);
            while (take(w, &p, 0) == 1)
                n++;
        }
        while (take(w, &p, 10 * QOS_FAULT_HOLD_NS) == 1)
            n++;
        CHECK_EQ(n + done_of(w).lost, COUNT + done_of(w).duplicated);
        CHECK(done_of(w).delayed > 0 && done_of(w).corrupted > 0 && done_of(w).reordered > 0);
        CHECK_EQ(done_of(w).failed, 0);
        close_way(w);
    }
}

/* ---- Delay ---- */

static void test_delay_keeps_the_order_and_its_time(void)
{
    for (int i = 0; i < 2; i++) {
        struct way *w = open_way("delay=3ms,jitter=2ms,seed=4", SIDES[i]);
        static uint64_t sent[100];
        for (uint32_t k = 0; k < 100; k++) {
            sent[k] = qos_clock_monotonic_ns();
            CHECK_EQ(send_bytes(w, &k, sizeof k), 1);
        }
        for (uint32_t k = 0; k < 100; k++) {
            struct qos_packet p;
            CHECK_EQ(take(w, &p, LONG_NS), 1);
            CHECK_EQ(number_of(&p), k);
            CHECK(qos_clock_monotonic_ns() - sent[k] >= 3000000);
        }
        CHECK_EQ(done_of(w).delayed, 100);
        close_way(w);
    }
}

static void test_the_wait_handle_tells_when_a_delayed_one_is_due(void)
{
    struct way *w = open_way("delay=20ms", QOS_FAULT_RX);
    struct pollfd p = {w->to.dp->ops->wait_fd(w->to.dp), POLLIN, 0};
    struct qos_packet in;
    uint32_t number = 5;
    CHECK_EQ(send_bytes(w, &number, sizeof number), 1);
    CHECK_EQ(poll(&p, 1, -1), 1); /* it has come in, and is held */
    CHECK_EQ(take(w, &in, 1), 0);
    CHECK_EQ(poll(&p, 1, 0), 0);
    CHECK_EQ(poll(&p, 1, -1), 1); /* it is due */
    CHECK_EQ(take(w, &in, 0), 1);
    CHECK_EQ(number_of(&in), 5);
    CHECK_EQ(poll(&p, 1, 0), 0);
    close_way(w);
}

static void test_what_is_under_way_leaves_when_the_sender_closes(void)
{
    struct way *w = open_way("delay=60s,reorder=0.5", QOS_FAULT_TX);
    struct qos_packet p;
    for (uint32_t k = 0; k < 50; k++)
        CHECK_EQ(send_bytes(w, &k, sizeof k), 1);
    w->from.dp->ops->close(w->from.dp);
    w->from.dp = NULL;
    uint64_t sum = 0;
    for (uint32_t k = 0; k < 50; k++) {
        CHECK_EQ(take(w, &p, LONG_NS), 1);
        sum += number_of(&p);
    }
    CHECK_EQ(sum, 50 * 49 / 2);
    close_way(w);
}

/* ---- Trains of datagrams ---- */

static void test_each_datagram_of_a_train_has_its_own_fate(void)
{
    enum { SEGMENT = 100, SEGMENTS = 50, TAIL = 40 };
    for (int i = 0; i < 2; i++) {
        struct way *w = open_way("loss=0.2,duplicate=0.1,reorder=0.1,seed=11", SIDES[i]);
        if (!(w->from.dp->capabilities & QOS_CAP_SEGMENTATION)) {
            CHECK_SKIP("gso", "the kernel has no UDP_SEGMENT (before 4.18)");
            close_way(w);
            return;
        }
        uint8_t train[(SEGMENTS - 1) * SEGMENT + TAIL] = {0};
        for (uint32_t k = 0; k < SEGMENTS; k++)
            memcpy(train + k * SEGMENT, &k, sizeof k);
        struct qos_packet p = {
            .data = train, .length = sizeof train, .segment = SEGMENT, .address = w->to.address, .error = -1};
        CHECK_EQ(w->from.dp->ops->tx(w->from.dp, &p, 1), 1);
        CHECK_EQ(p.error, 0);
        CHECK_EQ(w->from.dp->stats.tx_packets, SEGMENTS);
        uint64_t n = 0;
        while (take(w, &p, 10 * QOS_FAULT_HOLD_NS) == 1) {
            uint32_t size = p.segment ? p.segment : p.length;
            for (uint32_t at = 0; at < p.length; at += size, n++) {
                uint32_t number, length = p.length - at < size ? p.length - at : size;
                memcpy(&number, p.data + at, sizeof number);
                CHECK(number < SEGMENTS);
                CHECK_EQ(length, number == SEGMENTS - 1 ? TAIL : SEGMENT);
            }
        }
        CHECK_EQ(n + done_of(w).lost, SEGMENTS + done_of(w).duplicated);
        CHECK(done_of(w).lost > 0 && done_of(w).duplicated > 0 && done_of(w).reordered > 0);
        CHECK_EQ(w->to.dp->stats.rx_packets, n);
        close_way(w);
    }
}

/* ---- Bounds ---- */

static void test_what_is_held_is_bounded(void)
{
    static uint8_t data[60000];
    struct way *w = open_way("delay=60s", QOS_FAULT_TX);
    uint64_t n = 0;
    int rc;
    while ((rc = send_bytes(w, data, sizeof data)) == 1)
        n++;
    CHECK_EQ(rc, -EAGAIN);
    CHECK(n > 200 && n * sizeof data < QOS_FAULT_HELD_BYTES);
    CHECK_EQ(done_of(w).failed, 0);
    close_way(w);
    w = open_way("delay=60s", QOS_FAULT_RX);
    struct qos_packet p;
    for (uint64_t k = 0; k < n + 10; k++) {
        CHECK_EQ(send_bytes(w, data, sizeof data), 1);
        while (take(w, &p, 0) == 0 && done_of(w).delayed + done_of(w).failed + w->to.dp->stats.rx_overflow <= k)
            continue;
    }
    CHECK(done_of(w).failed > 0);
    close_way(w);
}

/* ---- In words ---- */

static void test_settings_in_words(void)
{
    struct qos_fault f =
        parse("loss=0.01,delay=2ms,jitter=1.5us,reorder=1,duplicate=0,corrupt=.001,seed=7,direction=rx");
    CHECK_EQ(f.loss, 10000000);
    CHECK_EQ(f.delay, 2000000);
    CHECK_EQ(f.jitter, 1500);
    CHECK_EQ(f.hold, QOS_FAULT_HOLD_NS);
    CHECK_EQ(f.reorder, QOS_FAULT_ONE);
    CHECK_EQ(f.duplicate, 0);
    CHECK_EQ(f.corrupt, 1000000);
    CHECK_EQ(f.seed, 7);
    CHECK_EQ(f.direction, QOS_FAULT_RX);
    f = parse("seed=18446744073709551615");
    CHECK_EQ(f.seed, UINT64_MAX);
    CHECK_EQ(f.direction, QOS_FAULT_BOTH);
    f = parse("delay=60s,hold=1ms");
    CHECK_EQ(f.delay, QOS_FAULT_MAX_NS);
    CHECK_EQ(f.hold, 1000000);
}

static void test_words_that_mean_nothing_are_refused(void)
{
    static const char *const bad[][2] = {
        {"", "found '', accepted loss="},
        {"loss", "found 'loss', accepted loss="},
        {"lost=1", "found 'lost=1', accepted loss="},
        {"loss=0.1,", "found '', accepted"},
        {"loss=", "loss: found '', accepted a probability from 0 to 1"},
        {"loss=1.1", "loss: found '1.1', accepted a probability"},
        {"loss=-1", "loss: found '-1', accepted a probability"},
        {"loss=0.1x", "loss: found '0.1x', accepted a probability"},
        {"loss=.", "loss: found '.', accepted a probability"},
        {"loss=1e-3", "loss: found '1e-3', accepted a probability"},
        {"loss=99999999999999999999", "loss: found '99999999999999999999', accepted a probability"},
        {"loss=18446744073.8", "loss: found '18446744073.8', accepted a probability"},
        {"delay=2", "delay: found '2', accepted a time up to 60s with its unit"},
        {"delay=61s", "delay: found '61s', accepted a time"},
        {"delay=2m", "delay: found '2m', accepted a time"},
        {"delay=18446744073709551615s", "delay: found '18446744073709551615s', accepted a time"},
        {"seed=18446744073709551616", "seed: found '18446744073709551616', accepted a number"},
        {"seed=1.5", "seed: found '1.5', accepted a number"},
        {"direction=up", "direction: found 'up', accepted tx, rx or both"},
        {"direction=", "direction: found '', accepted tx, rx or both"},
        {"seed=1,seed=1", "found seed twice, accepted once"},
    };
    for (unsigned i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct qos_fault f;
        char problem[160] = "";
        CHECK_EQ(qos_fault_parse(&f, bad[i][0], problem, sizeof problem), -EINVAL);
        if (!CHECK(strstr(problem, bad[i][1]) == problem))
            printf("    %s: %s\n", bad[i][0], problem);
    }
}

int main(void)
{
    CHECK_RUN(test_without_faults_everything_passes);
    CHECK_RUN(test_loss_is_counted_and_follows_from_the_seed);
    CHECK_RUN(test_all_or_nothing_is_lost);
    CHECK_RUN(test_a_duplicate_follows_its_original);
    CHECK_RUN(test_what_was_overtaken_is_counted_and_not_lost);
    CHECK_RUN(test_the_only_one_goes_on_without_being_overtaken);
    CHECK_RUN(test_corruption_turns_one_bit);
    CHECK_RUN(test_everything_at_once_adds_up);
    CHECK_RUN(test_delay_keeps_the_order_and_its_time);
    CHECK_RUN(test_the_wait_handle_tells_when_a_delayed_one_is_due);
    CHECK_RUN(test_what_is_under_way_leaves_when_the_sender_closes);
    CHECK_RUN(test_each_datagram_of_a_train_has_its_own_fate);
    CHECK_RUN(test_what_is_held_is_bounded);
    CHECK_RUN(test_settings_in_words);
    CHECK_RUN(test_words_that_mean_nothing_are_refused);
    return check_done();
}
