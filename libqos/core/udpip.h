/* SPDX-License-Identifier: Apache-2.0
 *
 * UDP over IPv4 and IPv6 in user space, for datapaths that send and receive Ethernet frames themselves.
 *
 * Sending: what is the same in all datagrams from one port to another is put into bytes once (a way); a frame is then these bytes in
 * front of its payload, with lengths and checksums. Who the next hop is, and how much fits, is for the caller to know.
 *
 * Receiving: qos_udpip_parse takes a UDP datagram out of a frame. What is not one whole datagram (ARP, ICMP, TCP, fragments, IPv6
 * extension headers, a second VLAN tag) is the kernel's; what claims to be one and is not is refused.
 *
 * IPv4 datagrams are atomic (RFC 6864): never fragmented (DF), identification 0.
 */
#ifndef QOS_UDPIP_H
#define QOS_UDPIP_H

#include <netinet/in.h>
#include <stdbool.h>
#include <stdint.h>

#include "datapath/datapath.h"

#define QOS_UDPIP_MAC 6
#define QOS_UDPIP_HEADERS_MAX 66 /* Ethernet, VLAN tag, IPv6, UDP */
#define QOS_UDPIP_HOP_LIMIT 64
#define QOS_UDPIP_OVERHEAD4 28 /* of a datagram within the MTU */
#define QOS_UDPIP_OVERHEAD6 48

/* Who fills in the UDP checksum. The IPv4 header's is always there. */
enum qos_udpip_checksum {
    QOS_UDPIP_SUM = 0,    /* we do */
    QOS_UDPIP_PSEUDO = 1, /* the device, which wants to find that of the pseudo header there */
    QOS_UDPIP_NO_SUM = 2, /* nobody: IPv4 only (RFC 768); over IPv6 it is filled in all the same (RFC 8200, 8.1) */
};

/* From where to where. */
struct qos_udpip_ends {
    struct qos_address from, to;     /* both IPv4 (v4-mapped) or both IPv6 */
    uint8_t from_mac[QOS_UDPIP_MAC]; /* of the interface */
    uint8_t to_mac[QOS_UDPIP_MAC];   /* of the next hop */
    uint16_t tag;                    /* PCP << 13 | VLAN; only if `tagged` */
    bool tagged;
    uint8_t traffic_class; /* DSCP << 2 | ECN */
};

struct qos_udpip_way {
    uint8_t header[QOS_UDPIP_HEADERS_MAX];
    uint8_t length; /* of the headers */
    uint8_t ip;     /* where the IP header begins */
    bool six;
    uint32_t sum_ip;     /* of what does not change in the IPv4 header */
    uint32_t sum_pseudo; /* likewise of the pseudo header and the ports */
};

/* 0, or -EINVAL: one end is IPv4 and the other one IPv6, a port is 0. */
int qos_udpip_prepare(struct qos_udpip_way *way, const struct qos_udpip_ends *ends);

/* Write the headers of a datagram in front of its payload (length bytes, 65507 at most, over IPv6 65527; way->length bytes of room before
 * it): where the frame begins. It is way->length + length bytes long; shorter than 60 the device pads it. */
uint8_t *qos_udpip_put(const struct qos_udpip_way *way, uint8_t *payload, uint32_t length,
                       enum qos_udpip_checksum checksum);

/* Likewise for a payload in two pieces, which is not looked at as long as the device fills in the checksum. The headers are written to
 * `out`; the first piece has an even number of bytes. */
void qos_udpip_put_pieces(const struct qos_udpip_way *way, uint8_t *out, const uint8_t *first, uint32_t first_length,
                          const uint8_t *second, uint32_t second_length, enum qos_udpip_checksum checksum);

struct qos_udpip_datagram {
    struct qos_address from, to;
    uint8_t from_mac[QOS_UDPIP_MAC], to_mac[QOS_UDPIP_MAC];
    uint16_t tag;
    bool tagged;
    uint8_t traffic_class;
    const uint8_t *payload;
    uint32_t length;
};

/* Take the datagram out of a frame of `size` bytes. `verified`: the device has checked the checksums. 0; -ENOPROTOOPT: nothing of ours, let
 * the kernel have it; -EPROTO: lengths that contradict each other; -EBADMSG: a checksum is wrong. Nothing outside the frame is read. Whether the
 * MAC address is ours nobody asks. */
int qos_udpip_parse(const uint8_t *frame, uint32_t size, bool verified, struct qos_udpip_datagram *datagram);

/* The one's complement sum of `length` bytes added to `sum` (RFC 1071), not folded. Data in pieces: all but the last of even length. */
uint64_t qos_udpip_add(uint64_t sum, const uint8_t *data, uint32_t length);

#endif
