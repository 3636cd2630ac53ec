/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The UDP datapath over loopback. A datagram may be on its way for a moment after it was sent, so a receiver waits for it
 * (rx_wait, an hour at most: the watchdog comes first) and never concludes from one empty look that it is lost.
 */
#include "datapath/datapath.h"

#include <errno.h>
#include <net/if.h>
#include <netinet/udp.h>
#include <pthread.h>
#include <signal.h>
#include <time.h>

#include "check.h"
#include "udp_fixture.h"

#define LONG_NS 3600000000000ull
#define ROOM 65536

static uint8_t room[4][ROOM];

struct link {
    struct end a, b;
};

static struct link open_link(void)
{
    struct link l = {open_end(AF_INET, 0), open_end(AF_INET, 0)};
    if (!CHECK(l.a.dp != NULL && l.b.dp != NULL))
        exit(check_done());
    return l;
}

static void close_link(struct link *l)
{
    l->a.dp->ops->close(l->a.dp);
    l->b.dp->ops->close(l->b.dp);
}

static int send_one(struct end *from, const struct end *to, void *data, uint32_t length)
{
    struct qos_packet p = {.data = data, .length = length, .address = to->address};
    CHECK_EQ(from->dp->ops->tx(from->dp, &p, 1), 1);
    return p.error;
}

static struct qos_packet receive_one(struct end *e)
{
    struct qos_packet p = {.data = room[0], .length = ROOM};
    CHECK_EQ(e->dp->ops->rx_wait(e->dp, &p, LONG_NS), 1);
    return p;
}

/* The other tests would wait for datagrams that never come. */
static int loopback_is_up;

static void test_loopback_is_up(void)
{
    struct link l = open_link();
    loopback_is_up = CHECK_EQ(send_one(&l.a, &l.b, NULL, 0), 0);
    close_link(&l);
}

static void test_only_udp_sockets_are_taken(void)
{
    struct qos_datapath *dp = NULL;
    int fd = socket(AF_UNIX, SOCK_DGRAM, 0);
    CHECK_EQ(qos_udp_open(&dp, fd), -EAFNOSUPPORT);
    close(fd);
    CHECK_EQ(qos_udp_open(&dp, fd), -EBADF);
    CHECK(dp == NULL);
}

static void test_addresses_are_compared_wherever_they_lie(void)
{
    /* four bytes are all the alignment that an address needs */
    struct {
        uint32_t before;
        struct qos_address a[3];
    } at = {0, {{LOOPBACK_6, 7, 0}, {LOOPBACK_6, 7, 0}, {LOOPBACK_6, 7, 0}}};
    CHECK(qos_address_equal(&at.a[0], &at.a[1]));
    CHECK(qos_address_equal(&at.a[1], &at.a[2]));
    at.a[1].port = 8;
    CHECK(!qos_address_equal(&at.a[0], &at.a[1]));
    for (int i = 0; i < 16; i++) {
        at.a[2] = at.a[0];
        at.a[2].ip.s6_addr[i] ^= 0x10;
        CHECK(!qos_address_equal(&at.a[0], &at.a[2]));
    }
}

static void test_a_datagram_arrives_with_its_source(void)
{
    struct link l = open_link();
    char text[] = "hello";
    CHECK_EQ(send_one(&l.a, &l.b, text, 5), 0);
    struct qos_packet p = receive_one(&l.b);
    CHECK_EQ(p.length, 5);
    CHECK_EQ(memcmp(p.data, "hello", 5), 0);
    CHECK_EQ(p.segment, 0);
    CHECK_EQ(p.error, 0);
    CHECK(qos_address_equal(&p.address, &l.a.address));
    CHECK_EQ(l.a.dp->stats.tx_packets, 1);
    CHECK_EQ(l.a.dp->stats.tx_bytes, 5);
    CHECK_EQ(l.a.dp->stats.tx_calls, 1);
    CHECK_EQ(l.b.dp->stats.rx_packets, 1);
    CHECK_EQ(l.b.dp->stats.rx_bytes, 5);
    CHECK(l.a.dp->capabilities & QOS_CAP_ADDRESSED);
    CHECK(!(l.a.dp->capabilities & QOS_CAP_OWN_MEMORY));
    CHECK_EQ(l.a.dp->ops->wait_fd(l.a.dp), l.a.fd);
    CHECK_EQ(strcmp(l.a.dp->ops->name, "udp"), 0);
    close_link(&l);
}

static void test_an_empty_datagram_is_one(void)
{
    struct link l = open_link();
    CHECK_EQ(send_one(&l.a, &l.b, NULL, 0), 0);
    CHECK_EQ(receive_one(&l.b).length, 0);
    CHECK_EQ(l.b.dp->stats.rx_packets, 1);
    close_link(&l);
}

static void test_nothing_there_is_no_packet(void)
{
    struct link l = open_link();
    struct qos_packet p[2] = {{.data = room[0], .length = ROOM}, {.data = room[1], .length = ROOM}};
    CHECK_EQ(l.b.dp->ops->rx(l.b.dp, p, 1), 0);
    CHECK_EQ(l.b.dp->ops->rx(l.b.dp, p, 2), 0);
    CHECK_EQ(l.b.dp->stats.rx_packets, 0);
    close_link(&l);
}

static void test_a_burst_arrives(void)
{
    enum { BURST = 150 }; /* more than one system call takes */
    static uint8_t data[BURST][8], in[BURST][64];
    struct qos_packet out[BURST], got[BURST];
    struct link l = open_link();
    uint8_t arrived[BURST] = {0};
    for (int i = 0; i < BURST; i++) {
        memset(data[i], i, sizeof data[i]);
        out[i] = (struct qos_packet){.data = data[i], .length = 1 + (uint32_t)i % 8, .address = l.b.address};
    }
    CHECK_EQ(l.a.dp->ops->tx(l.a.dp, out, BURST), BURST);
    CHECK_EQ(l.a.dp->ops->tx(l.a.dp, out, 0), 0);
    int received = 0;
    while (received < BURST) {
        for (int i = 0; i < BURST - received; i++)
            got[i] = (struct qos_packet){.data = in[i], .length = sizeof in[i]};
        int n = l.b.dp->ops->rx(l.b.dp, got, (unsigned)(BURST - received));
        for (int i = 0; i < n; i++, received++) {
            uint32_t which = got[i].data[0];
            if (!CHECK(which < BURST && !arrived[which]))
                return;
            arrived[which] = 1;
            CHECK_EQ(got[i].length, 1 + which % 8);
            CHECK_EQ(memcmp(got[i].data, data[which], got[i].length), 0);
            CHECK(qos_address_equal(&got[i].address, &l.a.address));
        }
    }
    CHECK_EQ(l.a.dp->stats.tx_packets, BURST);
    CHECK_EQ(l.b.dp->stats.rx_packets, BURST);
    CHECK_EQ(l.a.dp->stats.tx_bytes, l.b.dp->stats.rx_bytes);
    CHECK(l.a.dp->stats.tx_calls < 10);
    close_link(&l);
}

/* ---- Offloads ---- */

enum { SEGMENT = 1000, SEGMENTS = 10, TAIL = 300, TRAIN = (SEGMENTS - 1) * SEGMENT + TAIL };

/* Ten datagrams in one packet; byte i of them is i / SEGMENT. */
static int send_train(struct link *l, unsigned copies)
{
    static uint8_t data[TRAIN];
    struct qos_packet out[2];
    struct qos_datapath_stats before = l->a.dp->stats;
    for (uint32_t i = 0; i < TRAIN; i++)
        data[i] = (uint8_t)(i / SEGMENT);
    for (unsigned i = 0; i < copies; i++)
        out[i] = (struct qos_packet){.data = data, .length = TRAIN, .segment = SEGMENT, .address = l->b.address};
    if (!(l->a.dp->capabilities & QOS_CAP_SEGMENTATION)) {
        CHECK_SKIP("gso", "the kernel has no UDP_SEGMENT (before 4.18)");
        return 0;
    }
    CHECK_EQ(l->a.dp->ops->tx(l->a.dp, out, copies), copies);
    for (unsigned i = 0; i < copies; i++)
        CHECK_EQ(out[i].error, 0);
    CHECK_EQ(l->a.dp->stats.tx_packets - before.tx_packets, copies * SEGMENTS);
    CHECK_EQ(l->a.dp->stats.tx_bytes - before.tx_bytes, copies * TRAIN);
    return 1;
}

static void check_train(const struct qos_packet *p)
{
    CHECK_EQ(p->length, TRAIN);
    CHECK_EQ(p->segment, SEGMENT);
    uint32_t i = 0;
    while (i < p->length && p->data[i] == i / SEGMENT)
        i++;
    CHECK_EQ(i, TRAIN);
}

static void test_segments_are_sent_and_received_as_one_packet(void)
{
    struct link l = open_link();
    if (!(l.b.dp->capabilities & QOS_CAP_COALESCED_RX)) {
        CHECK_SKIP("gro", "the kernel has no UDP_GRO (before 5.0)");
    } else if (send_train(&l, 1)) {
        struct qos_packet p = receive_one(&l.b);
        check_train(&p);
        CHECK_EQ(l.a.dp->stats.tx_calls, 1);
        CHECK_EQ(l.b.dp->stats.rx_packets, SEGMENTS);
        CHECK_EQ(l.b.dp->stats.rx_bytes, TRAIN);
    }
    close_link(&l);
}

static void test_trains_of_segments_go_in_bursts(void)
{
    struct link l = open_link();
    if (!(l.b.dp->capabilities & QOS_CAP_COALESCED_RX)) {
        CHECK_SKIP("gro", "the kernel has no UDP_GRO (before 5.0)");
    } else if (send_train(&l, 2)) {
        for (int received = 0; received < 2;) {
            struct qos_packet p[4];
            for (int i = 0; i < 4; i++)
                p[i] = (struct qos_packet){.data = room[i], .length = ROOM};
            int n = l.b.dp->ops->rx(l.b.dp, p, 4);
            for (int i = 0; i < n; i++, received++)
                check_train(&p[i]);
        }
        CHECK_EQ(l.b.dp->stats.rx_packets, 2 * SEGMENTS);
    }
    close_link(&l);
}

static void test_segments_are_datagrams_of_their_own(void)
{
    struct link l = open_link();
    int off = 0;
    CHECK_EQ(setsockopt(l.b.fd, SOL_UDP, UDP_GRO, &off, sizeof off), 0);
    if (send_train(&l, 1)) {
        for (int i = 0; i < SEGMENTS; i++) {
            struct qos_packet p = receive_one(&l.b);
            CHECK_EQ(p.length, i < SEGMENTS - 1 ? SEGMENT : TAIL);
            CHECK_EQ(p.segment, 0);
            CHECK_EQ(p.data[0], i);
        }
    }
    close_link(&l);
}

/* What the kernel has put together before must not be received without the size of its parts. */
static void test_coalescing_is_not_switched_off_before_what_waits(void)
{
    struct link l = open_link();
    if (!(l.b.dp->capabilities & QOS_CAP_COALESCED_RX)) {
        CHECK_SKIP("gro", "the kernel has no UDP_GRO (before 5.0)");
    } else if (send_train(&l, 2)) {
        struct qos_packet p = receive_one(&l.b);
        CHECK_EQ(qos_udp_coalesce(l.b.dp, 0), -EAGAIN);
        p = receive_one(&l.b);
        check_train(&p);
        CHECK_EQ(qos_udp_coalesce(l.b.dp, 0), 0);
        CHECK_EQ(send_train(&l, 1), 1);
        p = receive_one(&l.b);
        CHECK_EQ(p.length, SEGMENT);
    }
    close_link(&l);
}

static void test_one_segment_is_a_plain_datagram(void)
{
    struct link l = open_link();
    uint8_t data[100] = {1};
    struct qos_packet p = {.data = data, .length = sizeof data, .segment = 100, .address = l.b.address};
    CHECK_EQ(l.a.dp->ops->tx(l.a.dp, &p, 1), 1);
    CHECK_EQ(p.error, 0);
    p = receive_one(&l.b);
    CHECK_EQ(p.length, 100);
    CHECK_EQ(p.segment, 0);
    CHECK_EQ(l.a.dp->stats.tx_packets, 1);
    close_link(&l);
}

/* ---- What goes wrong ---- */

static void test_a_datagram_too_long_is_an_error_of_its_own(void)
{
    static uint8_t large[65508]; /* one more than UDP over IPv4 carries */
    struct link l = open_link();
    CHECK_EQ(send_one(&l.a, &l.b, large, sizeof large), EMSGSIZE);
    CHECK_EQ(l.a.dp->stats.tx_errors, 1);
    CHECK_EQ(l.a.dp->stats.tx_packets, 0);
    CHECK_EQ(send_one(&l.a, &l.b, large, sizeof large - 1), 0);
    CHECK_EQ(receive_one(&l.b).length, sizeof large - 1);
    close_link(&l);
}

static void test_an_error_in_a_burst_stops_nothing(void)
{
    static uint8_t large[65508];
    struct link l = open_link();
    uint8_t text[] = {0, 1, 2, 3, 4, 5};
    struct qos_packet out[6];
    for (uint32_t i = 0; i < 6; i++) {
        int good = i != 0 && i != 3 && i != 5;
        out[i] = (struct qos_packet){
            .data = good ? &text[i] : large, .length = good ? 1 : sizeof large, .error = -1, .address = l.b.address};
    }
    CHECK_EQ(l.a.dp->ops->tx(l.a.dp, out, 6), 6);
    for (int i = 0; i < 6; i++)
        CHECK_EQ(out[i].error, i != 0 && i != 3 && i != 5 ? 0 : EMSGSIZE);
    uint32_t arrived = 0;
    for (int i = 0; i < 3; i++)
        arrived |= 1u << receive_one(&l.b).data[0];
    CHECK_EQ(arrived, 1u << 1 | 1u << 2 | 1u << 4);
    CHECK_EQ(l.a.dp->stats.tx_errors, 3);
    CHECK_EQ(l.a.dp->stats.tx_packets, 3);
    close_link(&l);
}

static void test_what_the_kernel_dropped_is_counted(void)
{
    struct link l = open_link();
    static uint8_t data[1000];
    int small = 4096;
    uint64_t sent = 0, received = 0;
    CHECK_EQ(setsockopt(l.b.fd, SOL_SOCKET, SO_RCVBUF, &small, sizeof small), 0);
    for (; sent < 100; sent++)
        CHECK_EQ(send_one(&l.a, &l.b, data, sizeof data), 0);
    /* The count comes with a datagram that was queued after the loss; until all are accounted for, another is sent. */
    while (received + l.b.dp->stats.rx_overflow < sent) {
        struct qos_packet p = {.data = room[0], .length = ROOM};
        if (l.b.dp->ops->rx(l.b.dp, &p, 1) == 1) {
            received++;
        } else {
            CHECK_EQ(send_one(&l.a, &l.b, data, sizeof data), 0);
            sent++;
        }
    }
    CHECK_EQ(received + l.b.dp->stats.rx_overflow, sent);
    CHECK(l.b.dp->stats.rx_overflow > 0);
    CHECK_EQ(l.b.dp->stats.rx_packets, received);
    close_link(&l);
}

/* ---- Waiting ---- */

static void test_a_wait_ends_at_its_time_out(void)
{
    struct link l = open_link();
    struct qos_packet p = {.data = room[0], .length = ROOM};
    CHECK_EQ(l.b.dp->ops->rx_wait(l.b.dp, &p, 1000000), 0);
    CHECK_EQ(l.b.dp->ops->rx_wait(l.b.dp, &p, 0), 0);
    CHECK_EQ(l.b.dp->ops->rx_wait(l.b.dp, &p, 1), 0);
    close_link(&l);
}

static void *send_soon(void *argument)
{
    struct link *l = argument;
    struct qos_packet p = {.data = (uint8_t[]){9}, .length = 1, .address = l->b.address};
    return l->a.dp->ops->tx(l->a.dp, &p, 1) == 1 && p.error == 0 ? NULL : l;
}

static void test_a_datagram_ends_a_wait(void)
{
    struct link l = open_link();
    pthread_t thread;
    void *failed = &l;
    if (!CHECK_EQ(pthread_create(&thread, NULL, send_soon, &l), 0))
        return;
    CHECK_EQ(receive_one(&l.b).data[0], 9);
    pthread_join(thread, &failed);
    CHECK(failed == NULL);
    close_link(&l);
}

static void on_signal(int number)
{
    (void)number;
}

static void test_a_signal_ends_a_wait(void)
{
    /* It fires again and again, so one comes after the wait has begun. */
    struct sigaction action = {.sa_handler = on_signal}, old;
    struct sigevent event = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGUSR1};
    struct itimerspec every = {{0, 1000000}, {0, 1000000}};
    struct link l = open_link();
    struct qos_packet p = {.data = room[0], .length = ROOM};
    timer_t timer;
    CHECK_EQ(sigaction(SIGUSR1, &action, &old), 0);
    if (CHECK_EQ(timer_create(CLOCK_MONOTONIC, &event, &timer), 0)) {
        CHECK_EQ(timer_settime(timer, 0, &every, NULL), 0);
        CHECK_EQ(l.b.dp->ops->rx_wait(l.b.dp, &p, LONG_NS), 0);
        timer_delete(timer);
    }
    CHECK_EQ(sigaction(SIGUSR1, &old, NULL), 0);
    close_link(&l);
}

/* ---- IPv6, and paths ---- */

static void test_ipv6(void)
{
    struct link l = {open_end(AF_INET6, 0), open_end(AF_INET6, 0)};
    if (!l.a.dp || !l.b.dp) {
        CHECK_SKIP("ipv6", "no IPv6 loopback address");
        return;
    }
    char text[] = "six";
    CHECK_EQ(send_one(&l.a, &l.b, text, 3), 0);
    struct qos_packet p = receive_one(&l.b);
    CHECK_EQ(p.length, 3);
    CHECK(qos_address_equal(&p.address, &l.a.address));
    if (send_train(&l, 1) && l.b.dp->capabilities & QOS_CAP_COALESCED_RX) {
        p = receive_one(&l.b);
        check_train(&p);
    }
    close_link(&l);
}

static void test_a_dual_stack_socket_reaches_ipv4(void)
{
    struct link l = open_link();
    struct sockaddr_in6 any = {.sin6_family = AF_INET6};
    struct end dual = {.fd = socket(AF_INET6, SOCK_DGRAM | SOCK_CLOEXEC, 0)};
    int off = 0;
    if (dual.fd < 0 || setsockopt(dual.fd, IPPROTO_IPV6, IPV6_V6ONLY, &off, sizeof off) < 0 ||
        bind(dual.fd, (struct sockaddr *)&any, sizeof any) < 0) {
        CHECK_SKIP("ipv6", "no dual-stack socket");
    } else {
        char text[] = "dual";
        CHECK_EQ(qos_udp_open(&dual.dp, dual.fd), 0);
        CHECK_EQ(send_one(&dual, &l.b, text, 4), 0);
        struct qos_packet p = receive_one(&l.b);
        CHECK_EQ(p.length, 4);
        /* and its answer comes from the same form of the address */
        struct end answer = {.address = p.address};
        CHECK_EQ(send_one(&l.b, &answer, text, 4), 0);
        p = receive_one(&dual);
        CHECK(qos_address_equal(&p.address, &l.b.address));
        dual.dp->ops->close(dual.dp);
    }
    close_link(&l);
}

static void test_the_path_payload_is_what_leaves_in_one_piece(void)
{
    static uint8_t large[ROOM];
    struct link l = open_link();
    int payload = qos_udp_path_payload(&l.b.address);
    CHECK(payload > 500 && payload <= 65507);
    CHECK_EQ(send_one(&l.a, &l.b, large, (uint32_t)payload), 0);
    CHECK_EQ(receive_one(&l.b).length, payload);
    close_link(&l);
    /* an address that nothing leads to: every kernel refuses a scope that does not exist */
    struct qos_address nowhere = {.port = 9, .scope = 0x7fffffff};
    nowhere.ip.s6_addr[0] = 0xfe;
    nowhere.ip.s6_addr[1] = 0x80;
    nowhere.ip.s6_addr[15] = 1;
    CHECK(qos_udp_path_payload(&nowhere) < 0);
}

int main(void)
{
    CHECK_RUN(test_loopback_is_up);
    if (!loopback_is_up)
        return check_done();
    CHECK_RUN(test_only_udp_sockets_are_taken);
    CHECK_RUN(test_addresses_are_compared_wherever_they_lie);
    CHECK_RUN(test_a_datagram_arrives_with_its_source);
    CHECK_RUN(test_an_empty_datagram_is_one);
    CHECK_RUN(test_nothing_there_is_no_packet);
    CHECK_RUN(test_a_burst_arrives);
    CHECK_RUN(test_segments_are_sent_and_received_as_one_packet);
    CHECK_RUN(test_trains_of_segments_go_in_bursts);
    CHECK_RUN(test_segments_are_datagrams_of_their_own);
    CHECK_RUN(test_coalescing_is_not_switched_off_before_what_waits);
    CHECK_RUN(test_one_segment_is_a_plain_datagram);
    CHECK_RUN(test_a_datagram_too_long_is_an_error_of_its_own);
    CHECK_RUN(test_an_error_in_a_burst_stops_nothing);
    CHECK_RUN(test_what_the_kernel_dropped_is_counted);
    CHECK_RUN(test_a_wait_ends_at_its_time_out);
    CHECK_RUN(test_a_datagram_ends_a_wait);
    CHECK_RUN(test_a_signal_ends_a_wait);
    CHECK_RUN(test_ipv6);
    CHECK_RUN(test_a_dual_stack_socket_reaches_ipv4);
    CHECK_RUN(test_the_path_payload_is_what_leaves_in_one_piece);
    return check_done();
}
