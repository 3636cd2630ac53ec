/* SPDX-License-Identifier: Apache-2.0 */
#include "udpip.h"

#include <endian.h>
#include <errno.h>
#include <stddef.h>
#include <string.h>

#define TYPE_IPV4 0x0800
#define TYPE_IPV6 0x86dd
#define TYPE_VLAN 0x8100
#define PROTOCOL_UDP 17
#define DO_NOT_FRAGMENT 0x4000
#define FRAGMENT 0x3fff /* more fragments, or an offset */

/* As they lie on the wire; everything in network byte order. */
struct ethernet {
    uint8_t to[QOS_UDPIP_MAC], from[QOS_UDPIP_MAC];
    uint16_t type;
};

struct vlan {
    uint16_t tag, type;
};

struct ipv4 {
    uint8_t version_ihl, traffic_class;
    uint16_t total, identification, fragment;
    uint8_t ttl, protocol;
    uint16_t checksum;
    uint8_t from[4], to[4];
};

struct ipv6 {
    uint32_t version_class_flow;
    uint16_t payload;
    uint8_t next, hop_limit;
    uint8_t from[16], to[16];
};

struct udp {
    uint16_t from, to, length, checksum;
};

_Static_assert(sizeof(struct ethernet) == 14 && sizeof(struct vlan) == 4 && sizeof(struct ipv4) == 20 &&
                   sizeof(struct ipv6) == 40 && sizeof(struct udp) == 8,
               "headers have no padding");

/* ---- Checksums: one's complement sums of 16-bit words, in whatever byte order they are in memory (RFC 1071, 2 (B)) ---- */

uint64_t qos_udpip_add(uint64_t sum, const uint8_t *data, uint32_t length)
{
    /* Four sums, so that no addition waits for the one before it; none overflows before 2^34 bytes. */
    uint64_t a = 0, b = 0, c = 0, d = 0;
    for (; length >= 32; data += 32, length -= 32) {
        uint64_t w[4];
        memcpy(w, data, sizeof w);
        a += (uint32_t)w[0] + (w[0] >> 32);
        b += (uint32_t)w[1] + (w[1] >> 32);
        c += (uint32_t)w[2] + (w[2] >> 32);
        d += (uint32_t)w[3] + (w[3] >> 32);
    }
    sum += a + b + c + d;
    for (; length >= 2; data += 2, length -= 2) {
        uint16_t word;
        memcpy(&word, data, sizeof word);
        sum += word;
    }
    if (length == 1) {
        uint8_t last[2] = {*data, 0};
        uint16_t word;
        memcpy(&word, last, sizeof word);
        sum += word;
    }
    return sum;
}

static uint16_t fold(uint64_t sum)
{
    sum = (sum & 0xffffffff) + (sum >> 32);
    sum = (sum & 0xffffffff) + (sum >> 32);
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    return (uint16_t)sum;
}

/* ---- Sending ---- */

static bool is_ipv4(const struct qos_address *address)
{
    return IN6_IS_ADDR_V4MAPPED(&address->ip);
}

static uint32_t put_ethernet(uint8_t *out, const struct qos_udpip_ends *ends, uint16_t type)
{
    struct ethernet e = {.type = htobe16(ends->tagged ? TYPE_VLAN : type)};
    memcpy(e.to, ends->to_mac, sizeof e.to);
    memcpy(e.from, ends->from_mac, sizeof e.from);
    memcpy(out, &e, sizeof e);
    if (!ends->tagged)
        return sizeof e;
    struct vlan v = {htobe16(ends->tag), htobe16(type)};
    memcpy(out + sizeof e, &v, sizeof v);
    return sizeof e + sizeof v;
}

static uint32_t put_ipv4(uint8_t *out, const struct qos_udpip_ends *ends)
{
    struct ipv4 ip = {.version_ihl = 0x45,
                      .traffic_class = ends->traffic_class,
                      .fragment = htobe16(DO_NOT_FRAGMENT),
                      .ttl = QOS_UDPIP_HOP_LIMIT,
                      .protocol = PROTOCOL_UDP};
    memcpy(ip.from, ends->from.ip.s6_addr + 12, sizeof ip.from);
    memcpy(ip.to, ends->to.ip.s6_addr + 12, sizeof ip.to);
    memcpy(out, &ip, sizeof ip);
    return sizeof ip;
}

static uint32_t put_ipv6(uint8_t *out, const struct qos_udpip_ends *ends)
{
    struct ipv6 ip = {.version_class_flow = htobe32(6u << 28 | (uint32_t)ends->traffic_class << 20),
                      .next = PROTOCOL_UDP,
                      .hop_limit = QOS_UDPIP_HOP_LIMIT};
    memcpy(ip.from, &ends->from.ip, sizeof ip.from);
    memcpy(ip.to, &ends->to.ip, sizeof ip.to);
    memcpy(out, &ip, sizeof ip);
    return sizeof ip;
}

/* Of both addresses and the protocol; the length comes with the datagram. */
static uint64_t sum_pseudo(const uint8_t *addresses, uint32_t length)
{
    return qos_udpip_add(htobe16(PROTOCOL_UDP), addresses, length);
}

int qos_udpip_prepare(struct qos_udpip_way *way, const struct qos_udpip_ends *ends)
{
    if (is_ipv4(&ends->from) != is_ipv4(&ends->to) || ends->from.port == 0 || ends->to.port == 0)
        return -EINVAL;
    *way = (struct qos_udpip_way){.six = !is_ipv4(&ends->from)};
    way->ip = (uint8_t)put_ethernet(way->header, ends, way->six ? TYPE_IPV6 : TYPE_IPV4);
    uint8_t *ip = way->header + way->ip;
    uint32_t ip_length = way->six ? put_ipv6(ip, ends) : put_ipv4(ip, ends);
    uint64_t pseudo =
        way->six ? sum_pseudo(ip + offsetof(struct ipv6, from), 32) : sum_pseudo(ip + offsetof(struct ipv4, from), 8);
    struct udp udp = {.from = htobe16(ends->from.port), .to = htobe16(ends->to.port)};
    memcpy(ip + ip_length, &udp, sizeof udp);
    way->length = (uint8_t)(way->ip + ip_length + sizeof udp);
    way->sum_ip = way->six ? 0 : fold(qos_udpip_add(0, ip, sizeof(struct ipv4)));
    way->sum_pseudo = fold(pseudo);
    return 0;
}

/* `sum`: of the payload; not looked at where nobody fills in the checksum, or the device does. */
static void put_headers(const struct qos_udpip_way *way, uint8_t *out, uint32_t length, uint64_t sum,
                        enum qos_udpip_checksum checksum)
{
    memcpy(out, way->header, way->length);
    uint8_t *ip = out + way->ip, *udp = out + way->length - sizeof(struct udp);
    uint16_t udp_length = htobe16((uint16_t)(sizeof(struct udp) + length)), total, found;
    if (way->six) {
        memcpy(ip + offsetof(struct ipv6, payload), &udp_length, sizeof udp_length);
    } else {
        total = htobe16((uint16_t)(sizeof(struct ipv4) + sizeof(struct udp) + length));
        found = (uint16_t)~fold((uint64_t)way->sum_ip + total);
        memcpy(ip + offsetof(struct ipv4, total), &total, sizeof total);
        memcpy(ip + offsetof(struct ipv4, checksum), &found, sizeof found);
    }
    memcpy(udp + offsetof(struct udp, length), &udp_length, sizeof udp_length);
    if (checksum == QOS_UDPIP_NO_SUM && !way->six)
        return;
    uint64_t pseudo = (uint64_t)way->sum_pseudo + udp_length;
    if (checksum == QOS_UDPIP_PSEUDO) {
        found = fold(pseudo);
    } else {
        /* the ports and, once more, the length are words of the datagram */
        found = (uint16_t)~fold(qos_udpip_add(pseudo + udp_length + sum, udp, 4));
        if (found == 0)
            found = 0xffff; /* 0 says that there is none */
    }
    memcpy(udp + offsetof(struct udp, checksum), &found, sizeof found);
}

static bool sums(const struct qos_udpip_way *way, enum qos_udpip_checksum checksum)
{
    return checksum == QOS_UDPIP_SUM || (checksum == QOS_UDPIP_NO_SUM && way->six);
}

uint8_t *qos_udpip_put(const struct qos_udpip_way *way, uint8_t *payload, uint32_t length,
                       enum qos_udpip_checksum checksum)
{
    uint64_t sum = sums(way, checksum) ? qos_udpip_add(0, payload, length) : 0;
    put_headers(way, payload - way->length, length, sum, checksum);
    return payload - way->length;
}

void qos_udpip_put_pieces(const struct qos_udpip_way *way, uint8_t *out, const uint8_t *first, uint32_t first_length,
                          const uint8_t *second, uint32_t second_length, enum qos_udpip_checksum checksum)
{
    uint64_t sum =
        sums(way, checksum) ? qos_udpip_add(qos_udpip_add(0, first, first_length), second, second_length) : 0;
    put_headers(way, out, first_length + second_length, sum, checksum);
}

/* ---- Receiving ---- */

/* What comes at `at`: UDP and its payload, `size` bytes in all of which the datagram may be the first part. */
static int parse_udp(const uint8_t *at, uint32_t size, uint64_t pseudo, bool verified, bool six,
                     struct qos_udpip_datagram *d)
{
    struct udp udp;
    if (size < sizeof udp)
        return -EPROTO;
    memcpy(&udp, at, sizeof udp);
    uint32_t length = be16toh(udp.length);
    if (length < sizeof udp || length > size)
        return -EPROTO;
    if (udp.checksum == 0 && six)
        return -EBADMSG;
    if (udp.checksum != 0 && !verified && fold(qos_udpip_add(pseudo + udp.length, at, length)) != 0xffff)
        return -EBADMSG;
    d->from.port = be16toh(udp.from);
    d->to.port = be16toh(udp.to);
    d->payload = at + sizeof udp;
    d->length = length - (uint32_t)sizeof udp;
    return 0;
}

static void set_ipv4(struct in6_addr *ip, const uint8_t *from)
{
    static const uint8_t mapped[12] = {[10] = 0xff, [11] = 0xff};
    memcpy(ip->s6_addr, mapped, sizeof mapped);
    memcpy(ip->s6_addr + 12, from, 4);
}

static int parse_ipv4(const uint8_t *at, uint32_t size, bool verified, struct qos_udpip_datagram *d)
{
    struct ipv4 ip;
    if (size < sizeof ip)
        return -EPROTO;
    memcpy(&ip, at, sizeof ip);
    uint32_t header = (ip.version_ihl & 0xf) * 4u, total = be16toh(ip.total);
    if (ip.version_ihl >> 4 != 4 || header < sizeof ip || total < header || total > size)
        return -EPROTO;
    if (ip.protocol != PROTOCOL_UDP || (be16toh(ip.fragment) & FRAGMENT) != 0)
        return -ENOPROTOOPT;
    if (!verified && fold(qos_udpip_add(0, at, header)) != 0xffff)
        return -EBADMSG;
    d->traffic_class = ip.traffic_class;
    set_ipv4(&d->from.ip, ip.from);
    set_ipv4(&d->to.ip, ip.to);
    return parse_udp(at + header, total - header, sum_pseudo(at + offsetof(struct ipv4, from), 8), verified, false, d);
}

static int parse_ipv6(const uint8_t *at, uint32_t size, bool verified, struct qos_udpip_datagram *d)
{
    struct ipv6 ip;
    if (size < sizeof ip)
        return -EPROTO;
    memcpy(&ip, at, sizeof ip);
    uint32_t first = be32toh(ip.version_class_flow), payload = be16toh(ip.payload);
    if (first >> 28 != 6 || payload > size - sizeof ip)
        return -EPROTO;
    if (ip.next != PROTOCOL_UDP)
        return -ENOPROTOOPT;
    d->traffic_class = (uint8_t)(first >> 20);
    memcpy(&d->from.ip, ip.from, sizeof ip.from);
    memcpy(&d->to.ip, ip.to, sizeof ip.to);
    /* nobody on a wire has such an address, and here it would be taken for IPv4 */
    if (is_ipv4(&d->from) || is_ipv4(&d->to))
        return -EPROTO;
    return parse_udp(at + sizeof ip, payload, sum_pseudo(at + offsetof(struct ipv6, from), 32), verified, true, d);
}

int qos_udpip_parse(const uint8_t *frame, uint32_t size, bool verified, struct qos_udpip_datagram *d)
{
    struct ethernet e;
    if (size < sizeof e)
        return -EPROTO;
    memcpy(&e, frame, sizeof e);
    *d = (struct qos_udpip_datagram){0};
    memcpy(d->to_mac, e.to, sizeof e.to);
    memcpy(d->from_mac, e.from, sizeof e.from);
    uint32_t at = sizeof e;
    uint16_t type = be16toh(e.type);
    if (type == TYPE_VLAN) {
        struct vlan v;
        if (size < at + sizeof v)
            return -EPROTO;
        memcpy(&v, frame + at, sizeof v);
        at += (uint32_t)sizeof v;
        d->tagged = true;
        d->tag = be16toh(v.tag);
        type = be16toh(v.type);
    }
    switch (type) {
    case TYPE_IPV4:
        return parse_ipv4(frame + at, size - at, verified, d);
    case TYPE_IPV6:
        return parse_ipv6(frame + at, size - at, verified, d);
    default:
        return -ENOPROTOOPT;
    }
}
