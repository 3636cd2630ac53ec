/* SPDX-License-Identifier: Apache-2.0
 *
 * UDP over IP in user space: against a checksum that is computed the simple way, against the kernel through a tap device, and, as
 * `test_udpip FILE`, for whoever reads captures (tests/libqos/test_udpip.py).
 */
#include "udpip.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <poll.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>

#include "check.h"
#include "random.h"

#define ROOM 65600u
#define PORT 4000

static uint8_t room[QOS_UDPIP_HEADERS_MAX + ROOM];

static struct qos_address address(const char *text, uint16_t port)
{
    struct qos_address a = {.port = port};
    char mapped[64];
    snprintf(mapped, sizeof mapped, strchr(text, ':') ? "%s" : "::ffff:%s", text);
    CHECK_EQ(inet_pton(AF_INET6, mapped, &a.ip), 1);
    return a;
}

static struct qos_udpip_ends ends(int six, int tagged)
{
    return (struct qos_udpip_ends){
        .from = address(six ? "fd00::1" : "192.0.2.1", 40000),
        .to = address(six ? "fd00::2" : "192.0.2.2", PORT),
        .from_mac = {2, 0, 0, 0, 0, 1},
        .to_mac = {2, 0, 0, 0, 0, 2},
        .tag = tagged ? 5 << 13 | 10 : 0,
        .tagged = tagged,
        .traffic_class = 46 << 2,
    };
}

static uint8_t *filled(struct random *r, uint32_t length)
{
    uint8_t *payload = room + QOS_UDPIP_HEADERS_MAX;
    for (uint32_t i = 0; i < length; i++)
        payload[i] = (uint8_t)random_u64(r);
    return payload;
}

/* RFC 1071 as it is written. */
static uint16_t simple_sum(const uint8_t *data, uint32_t length, uint32_t sum)
{
    for (uint32_t i = 0; i < length; i++)
        sum += i % 2 == 0 ? (uint32_t)data[i] << 8 : data[i];
    while (sum >> 16)
        sum = (sum & 0xffff) + (sum >> 16);
    return (uint16_t)sum;
}

/* Whether all checksums of a frame of ours are right; `udp`: also that of the datagram. */
static int sums_are_right(const uint8_t *frame, uint32_t size, const struct qos_udpip_way *way, int udp)
{
    const uint8_t *ip = frame + way->ip, *datagram = frame + way->length - 8;
    uint32_t length = size - way->length + 8;
    if (!way->six && simple_sum(ip, 20, 0) != 0xffff)
        return 0;
    uint32_t pseudo = simple_sum(way->six ? ip + 8 : ip + 12, way->six ? 32 : 8, 17 + length);
    return !udp || simple_sum(datagram, length, pseudo) == 0xffff;
}

static int same_ends(const struct qos_udpip_datagram *d, const struct qos_udpip_ends *e)
{
    return qos_address_equal(&d->from, &e->from) && qos_address_equal(&d->to, &e->to) &&
           memcmp(d->from_mac, e->from_mac, sizeof d->from_mac) == 0 &&
           memcmp(d->to_mac, e->to_mac, sizeof d->to_mac) == 0 && d->tagged == e->tagged && d->tag == e->tag &&
           d->traffic_class == e->traffic_class;
}

static void test_what_was_put_is_parsed(void)
{
    struct random r = {1};
    for (int kind = 0; kind < 4; kind++) {
        struct qos_udpip_ends e = ends(kind & 1, kind & 2);
        struct qos_udpip_way way;
        CHECK_EQ(qos_udpip_prepare(&way, &e), 0);
        for (uint32_t i = 0; i < 3000; i++) {
            uint32_t length = i < 1500 ? i : random_below(&r, 65507 + 1);
            uint8_t *payload = filled(&r, length);
            uint8_t *frame = qos_udpip_put(&way, payload, length, QOS_UDPIP_SUM);
            struct qos_udpip_datagram d;
            if (!CHECK_EQ(frame + way.length - payload, 0) ||
                !CHECK(sums_are_right(frame, way.length + length, &way, 1)) ||
                !CHECK_EQ(qos_udpip_parse(frame, way.length + length, false, &d), 0) || !CHECK(same_ends(&d, &e)) ||
                !CHECK_EQ(d.payload - payload, 0) || !CHECK_EQ(d.length, length))
                return;
        }
    }
}

static void test_a_payload_in_pieces_has_the_same_headers(void)
{
    struct random r = {2};
    for (uint32_t length = 0; length < 300; length++) {
        struct qos_udpip_ends e = ends(length & 1, length & 2);
        struct qos_udpip_way way;
        uint8_t headers[QOS_UDPIP_HEADERS_MAX], *payload = filled(&r, length);
        uint32_t first = random_below(&r, length / 2 + 1) * 2;
        CHECK_EQ(qos_udpip_prepare(&way, &e), 0);
        qos_udpip_put_pieces(&way, headers, payload, first, payload + first, length - first, QOS_UDPIP_SUM);
        CHECK_EQ(memcmp(qos_udpip_put(&way, payload, length, QOS_UDPIP_SUM), headers, way.length), 0);
    }
}

static uint16_t udp_sum(const uint8_t *frame, const struct qos_udpip_way *way)
{
    return (uint16_t)(frame[way->length - 2] << 8 | frame[way->length - 1]);
}

static void test_checksums_that_others_fill_in(void)
{
    struct random r = {3};
    for (int six = 0; six < 2; six++) {
        struct qos_udpip_ends e = ends(six, 0);
        struct qos_udpip_way way;
        CHECK_EQ(qos_udpip_prepare(&way, &e), 0);
        uint8_t *payload = filled(&r, 101), *frame = qos_udpip_put(&way, payload, 101, QOS_UDPIP_PSEUDO);
        const uint8_t *ip = frame + way.ip;
        CHECK_EQ(udp_sum(frame, &way), simple_sum(six ? ip + 8 : ip + 12, six ? 32 : 8, 17 + 109));
        struct qos_udpip_datagram d;
        CHECK_EQ(qos_udpip_parse(frame, way.length + 101, false, &d), -EBADMSG);
        CHECK_EQ(qos_udpip_parse(frame, way.length + 101, true, &d), 0);
        frame = qos_udpip_put(&way, payload, 101, QOS_UDPIP_NO_SUM);
        CHECK_EQ(udp_sum(frame, &way) == 0, !six);
        CHECK_EQ(qos_udpip_parse(frame, way.length + 101, false, &d), 0);
    }
}

static void test_a_checksum_of_zero_is_sent_as_ones(void)
{
    struct qos_udpip_ends e = ends(0, 0);
    struct qos_udpip_way way;
    struct random r = {4};
    CHECK_EQ(qos_udpip_prepare(&way, &e), 0);
    /* a payload that is the checksum of the rest makes it 0 */
    uint8_t *payload = filled(&r, 2);
    memset(payload, 0, 2);
    uint8_t *frame = qos_udpip_put(&way, payload, 2, QOS_UDPIP_SUM);
    memcpy(payload, frame + way.length - 2, 2);
    frame = qos_udpip_put(&way, payload, 2, QOS_UDPIP_SUM);
    struct qos_udpip_datagram d;
    CHECK_EQ(udp_sum(frame, &way), 0xffff);
    CHECK_EQ(qos_udpip_parse(frame, way.length + 2, false, &d), 0);
}

static void test_ends_that_do_not_go_together(void)
{
    struct qos_udpip_way way;
    struct qos_udpip_ends e = ends(0, 0);
    e.to = address("fd00::2", PORT);
    CHECK_EQ(qos_udpip_prepare(&way, &e), -EINVAL);
    e = ends(1, 0);
    e.from.port = 0;
    CHECK_EQ(qos_udpip_prepare(&way, &e), -EINVAL);
    e = ends(1, 0);
    e.to.port = 0;
    CHECK_EQ(qos_udpip_prepare(&way, &e), -EINVAL);
}

/* One byte of a good frame is another one: what comes of it. */
static int changed(int six, uint32_t at, uint8_t value)
{
    struct random r = {5};
    struct qos_udpip_ends e = ends(six, 0);
    struct qos_udpip_way way;
    struct qos_udpip_datagram d;
    CHECK_EQ(qos_udpip_prepare(&way, &e), 0);
    uint8_t *frame = qos_udpip_put(&way, filled(&r, 64), 64, QOS_UDPIP_SUM);
    frame[at] = value;
    return qos_udpip_parse(frame, way.length + 64, false, &d);
}

static void test_what_is_not_ours_is_left_to_the_kernel(void)
{
    enum { ETH_TYPE = 12, V4_PROTOCOL = 14 + 9, V4_FRAGMENT = 14 + 6, V6_NEXT = 14 + 6 };
    CHECK_EQ(changed(0, ETH_TYPE + 1, 6), -ENOPROTOOPT); /* ARP */
    CHECK_EQ(changed(0, ETH_TYPE, 0x88), -ENOPROTOOPT);
    CHECK_EQ(changed(0, V4_PROTOCOL, 1), -ENOPROTOOPT);
    CHECK_EQ(changed(0, V4_PROTOCOL, 6), -ENOPROTOOPT);
    CHECK_EQ(changed(0, V4_FRAGMENT, 0x20), -ENOPROTOOPT); /* the first of several */
    CHECK_EQ(changed(0, V4_FRAGMENT + 1, 1), -ENOPROTOOPT);
    CHECK_EQ(changed(1, V6_NEXT, 58), -ENOPROTOOPT);
    CHECK_EQ(changed(1, V6_NEXT, 44), -ENOPROTOOPT);
}

static void test_contradictions_are_refused(void)
{
    CHECK_EQ(changed(0, 14, 0x65), -EPROTO);  /* version */
    CHECK_EQ(changed(0, 14, 0x44), -EPROTO);  /* a header of 16 bytes */
    CHECK_EQ(changed(0, 14, 0x4f), -EBADMSG); /* one of 60: the datagram begins elsewhere */
    CHECK_EQ(changed(0, 16, 0xff), -EPROTO);  /* total length */
    CHECK_EQ(changed(0, 17, 19), -EPROTO);
    CHECK_EQ(changed(0, 14 + 26, 0), -EBADMSG);       /* an address or a byte of the payload is another one */
    CHECK_EQ(changed(0, 14 + 20 + 4, 0xff), -EPROTO); /* UDP length */
    CHECK_EQ(changed(0, 14 + 20 + 5, 7), -EPROTO);
    CHECK_EQ(changed(1, 14, 0x40), -EPROTO);
    CHECK_EQ(changed(1, 14 + 4, 0xff), -EPROTO);
    CHECK_EQ(changed(1, 14 + 8, 0xfe), -EBADMSG);
}

static void test_options_and_padding_are_passed_over(void)
{
    struct random r = {6};
    struct qos_udpip_ends e = ends(0, 0);
    struct qos_udpip_way way;
    struct qos_udpip_datagram d;
    CHECK_EQ(qos_udpip_prepare(&way, &e), 0);
    uint8_t *frame = qos_udpip_put(&way, filled(&r, 5), 5, QOS_UDPIP_SUM);
    CHECK_EQ(qos_udpip_parse(frame, 60, false, &d), 0); /* as short frames come from a wire */
    CHECK_EQ(d.length, 5);
    /* four bytes of options: no-operation, three times, and the end */
    uint8_t with[128];
    memcpy(with, frame, 34);
    memcpy(with + 34, (uint8_t[]){1, 1, 1, 0}, 4);
    memcpy(with + 38, frame + 34, 13);
    with[14] = 0x46;
    with[17] = 24 + 13;
    memset(with + 24, 0, 2);
    uint16_t sum = (uint16_t)~simple_sum(with + 14, 24, 0);
    with[24] = (uint8_t)(sum >> 8);
    with[25] = (uint8_t)sum;
    CHECK_EQ(qos_udpip_parse(with, 51, false, &d), 0);
    CHECK_EQ(d.length, 5);
    CHECK_EQ(d.payload - with, 46);
}

static void test_every_short_frame_is_refused(void)
{
    /* the frame ends where memory that nobody may read begins */
    uint8_t *pages = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (!CHECK(pages != MAP_FAILED) || !CHECK_EQ(mprotect(pages + 4096, 4096, PROT_NONE), 0))
        return;
    struct random r = {7};
    for (int kind = 0; kind < 4; kind++) {
        struct qos_udpip_ends e = ends(kind & 1, kind & 2);
        struct qos_udpip_way way;
        CHECK_EQ(qos_udpip_prepare(&way, &e), 0);
        uint8_t *frame = qos_udpip_put(&way, filled(&r, 64), 64, QOS_UDPIP_SUM);
        for (uint32_t size = 0; size < way.length + 64u; size++) {
            struct qos_udpip_datagram d;
            CHECK_EQ(qos_udpip_parse(memcpy(pages + 4096 - size, frame, size), size, false, &d), -EPROTO);
        }
    }
    munmap(pages, 8192);
}

/* ---- The kernel ---- */

/* A tap device of a network namespace of our own, or -1. */
static int open_tap(void)
{
    struct ifreq request = {.ifr_flags = IFF_TAP | IFF_NO_PI};
    strcpy(request.ifr_name, "tap0");
    int tap = -1;
    if (unshare(CLONE_NEWNET) != 0 || (tap = open("/dev/net/tun", O_RDWR | O_CLOEXEC)) < 0 ||
        ioctl(tap, TUNSETIFF, &request) != 0) {
        CHECK_SKIP("netns", "no tap device in a network namespace");
        if (tap >= 0)
            close(tap);
        return -1;
    }
    /* 02::1 is us, 02::2 is the kernel, as in ends() */
    static const char set_up[] = "ip link set lo up && ip link set tap0 address 02:00:00:00:00:02 mtu 9000 && "
                                 "echo 0 >/proc/sys/net/ipv6/conf/tap0/accept_dad && ip addr add 192.0.2.2/24 dev tap0 "
                                 "&& ip link set tap0 up && "
                                 "ip addr add fd00::2/64 dev tap0 nodad && "
                                 "ip neigh replace 192.0.2.1 lladdr 02:00:00:00:00:01 dev tap0 && "
                                 "ip neigh replace fd00::1 lladdr 02:00:00:00:00:01 dev tap0";
    CHECK_EQ(system(set_up), 0);
    return tap;
}

static int udp_socket(const struct qos_address *bound)
{
    struct sockaddr_in6 at = {.sin6_family = AF_INET6, .sin6_port = htons(bound->port), .sin6_addr = bound->ip};
    int fd = socket(AF_INET6, SOCK_DGRAM | SOCK_CLOEXEC, 0), off = 0;
    CHECK_EQ(setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &off, sizeof off), 0);
    CHECK_EQ(bind(fd, (struct sockaddr *)&at, sizeof at), 0);
    return fd;
}

/* The next datagram of ours that the kernel sends; the watchdog ends the wait. */
static void next_from_kernel(int tap, uint8_t *frame, struct qos_udpip_datagram *d)
{
    for (;;) {
        ssize_t size = read(tap, frame, 9100);
        if (size > 0 && qos_udpip_parse(frame, (uint32_t)size, false, d) == 0 && d->from.port == PORT)
            return;
    }
}

static void test_the_kernel_understands_us_and_we_the_kernel(void)
{
    int tap = open_tap();
    if (tap < 0)
        return;
    static const uint32_t lengths[] = {0, 1, 17, 18, 64, 1001, 1472, 8900};
    struct random r = {8};
    for (int six = 0; six < 2; six++) {
        struct qos_udpip_ends e = ends(six, 0);
        struct qos_udpip_way way;
        CHECK_EQ(qos_udpip_prepare(&way, &e), 0);
        int fd = udp_socket(&e.to);
        for (uint32_t i = 0; i < sizeof lengths / sizeof *lengths; i++) {
            uint8_t got[9100], *payload = filled(&r, lengths[i]);
            struct sockaddr_in6 from;
            socklen_t from_length = sizeof from;
            for (int none = 0; none < 2; none++) {
                uint8_t *frame = qos_udpip_put(&way, payload, lengths[i], none ? QOS_UDPIP_NO_SUM : QOS_UDPIP_SUM);
                CHECK_EQ(write(tap, frame, way.length + lengths[i]), way.length + lengths[i]);
                CHECK_EQ(recvfrom(fd, got, sizeof got, 0, (struct sockaddr *)&from, &from_length), lengths[i]);
                CHECK_EQ(memcmp(got, payload, lengths[i]), 0);
                CHECK_EQ(memcmp(&from.sin6_addr, &e.from.ip, sizeof from.sin6_addr), 0);
                CHECK_EQ(ntohs(from.sin6_port), e.from.port);
            }
            /* and back */
            CHECK_EQ(sendto(fd, payload, lengths[i], 0, (struct sockaddr *)&from, from_length), lengths[i]);
            struct qos_udpip_datagram d;
            next_from_kernel(tap, got, &d);
            CHECK_EQ(d.length, lengths[i]);
            CHECK_EQ(memcmp(d.payload, payload, lengths[i]), 0);
            CHECK(qos_address_equal(&d.from, &e.to) && qos_address_equal(&d.to, &e.from));
            CHECK_EQ(memcmp(d.from_mac, e.to_mac, sizeof d.from_mac), 0);
        }
        /* what has a wrong checksum the kernel does not take: it is the next one that arrives */
        uint8_t got[64], *frame = qos_udpip_put(&way, filled(&r, 8), 8, QOS_UDPIP_SUM);
        frame[way.length + 3] ^= 1;
        CHECK_EQ(write(tap, frame, way.length + 8u), way.length + 8);
        frame = qos_udpip_put(&way, filled(&r, 9), 9, QOS_UDPIP_SUM);
        CHECK_EQ(write(tap, frame, way.length + 9u), way.length + 9);
        CHECK_EQ(recv(fd, got, sizeof got, 0), 9);
        close(fd);
    }
    close(tap);
}

/* ---- A capture ---- */

/* pcap, as tcpdump writes it: link type Ethernet, frames one second apart. */
static int write_capture(const char *path)
{
    static const uint32_t lengths[] = {0, 1, 18, 64, 1001, 1472, 8900, 65507};
    struct random r = {9};
    FILE *out = fopen(path, "wb");
    if (out == NULL) {
        perror(path);
        return 1;
    }
    const uint32_t head[] = {0xa1b2c3d4, 4 << 16 | 2, 0, 0, 262144, 1};
    fwrite(head, sizeof head, 1, out);
    for (uint32_t i = 0; i < 4 * sizeof lengths / sizeof *lengths; i++) {
        struct qos_udpip_ends e = ends(i & 1, i & 2);
        struct qos_udpip_way way;
        CHECK_EQ(qos_udpip_prepare(&way, &e), 0);
        uint32_t size = way.length + lengths[i / 4];
        uint8_t *frame = qos_udpip_put(&way, filled(&r, lengths[i / 4]), lengths[i / 4], QOS_UDPIP_SUM);
        const uint32_t record[] = {i, 0, size, size};
        fwrite(record, sizeof record, 1, out);
        fwrite(frame, size, 1, out);
    }
    return fclose(out) != 0;
}

int main(int argc, char **argv)
{
    if (argc > 1)
        return write_capture(argv[1]);
    CHECK_RUN(test_what_was_put_is_parsed);
    CHECK_RUN(test_a_payload_in_pieces_has_the_same_headers);
    CHECK_RUN(test_checksums_that_others_fill_in);
    CHECK_RUN(test_a_checksum_of_zero_is_sent_as_ones);
    CHECK_RUN(test_ends_that_do_not_go_together);
    CHECK_RUN(test_what_is_not_ours_is_left_to_the_kernel);
    CHECK_RUN(test_contradictions_are_refused);
    CHECK_RUN(test_options_and_padding_are_passed_over);
    CHECK_RUN(test_every_short_frame_is_refused);
    CHECK_RUN(test_the_kernel_understands_us_and_we_the_kernel);
    return check_done();
}
