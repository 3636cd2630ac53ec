/* SPDX-License-Identifier: Apache-2.0
 *
 * One interface for every network technology. A datapath moves bursts of packets; it knows nothing of streams, policies or
 * sessions. Its user polls rx, or sleeps on wait_fd until rx may find something.
 */
#ifndef QOS_DATAPATH_H
#define QOS_DATAPATH_H

#include <netinet/in.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

struct qos_address {
    struct in6_addr ip; /* IPv4 as v4-mapped */
    uint16_t port;      /* host byte order */
    uint32_t scope;
};

static inline int qos_address_equal(const struct qos_address *a, const struct qos_address *b)
{
    return memcmp(&a->ip, &b->ip, sizeof a->ip) == 0 && a->port == b->port;
}

struct qos_packet {
    uint8_t
        *data; /* tx: what to send. rx: set by the caller to where to receive, or by the datapath to its own memory */
    uint32_t length;            /* tx: bytes. rx: in: room, out: bytes */
    uint16_t segment;           /* size of the equal datagrams in it (the last may be shorter); 0: it is one datagram */
    int16_t error;              /* tx: positive errno of a packet that failed */
    bool fast;                  /* tx: of a datapath with two ways, by the fast one; rx: it came by that */
    struct qos_address address; /* tx: destination; rx: source */
    uint64_t token;             /* the datapath's name for its own memory (shm: the slice) */
};

enum qos_datapath_capability {
    QOS_CAP_SEGMENTATION = 1, /* tx takes packets with segment != 0 in one call */
    QOS_CAP_COALESCED_RX = 2, /* rx may return packets with segment != 0 */
    QOS_CAP_OWN_MEMORY = 4,   /* rx hands out its own memory, to be given back with release */
    QOS_CAP_ADDRESSED = 8,    /* packets carry addresses */
};

struct qos_datapath_stats {
    uint64_t tx_packets, tx_bytes, tx_errors, tx_calls;
    uint64_t rx_packets, rx_bytes, rx_overflow, rx_calls;
    uint64_t rx_refused; /* frames that are no datagrams for us */
};

struct qos_datapath;

struct qos_datapath_ops {
    const char *name;
    /* Send up to n packets: how many were taken (a failed one counts, with its error set), or -EAGAIN if none could be. */
    int (*tx)(struct qos_datapath *dp, struct qos_packet *packets, unsigned n);
    /* Receive up to n packets without waiting: how many, 0 if none. */
    int (*rx)(struct qos_datapath *dp, struct qos_packet *packets, unsigned n);
    /* As rx for one packet, but sleep up to timeout_ns for it: 1, 0 on time-out or interruption. */
    int (*rx_wait)(struct qos_datapath *dp, struct qos_packet *packet, uint64_t timeout_ns);
    void (*release)(struct qos_datapath *dp, uint64_t token);
    int (*wait_fd)(const struct qos_datapath *dp);
    void (*close)(struct qos_datapath *dp);
};

struct qos_datapath {
    const struct qos_datapath_ops *ops;
    uint32_t capabilities;
    uint32_t mtu; /* largest datagram without fragmentation, 0: unlimited */
    struct qos_datapath_stats stats;
};

/* UDP on a bound socket that becomes the datapath's own. Switches GRO on where the kernel has it, probes GSO. */
int qos_udp_open(struct qos_datapath **dp, int fd);
/* Send to one peer and receive from it alone (NULL: again from anybody): the kernel then need not look up the route of each datagram.
 * 0 or a negative errno. */
int qos_udp_pair(struct qos_datapath *dp, const struct qos_address *peer);
/* Whether the kernel may put datagrams of a UDP socket together. Off only while none waits, else -EAGAIN and it stays on: what has been put
 * together would be received without the size of its parts, and all but the first be lost. */
int qos_udp_gro(int fd, int on);
/* Whether rx may return several datagrams of one sender as one packet (on after open). Good in a flood; a single datagram costs more,
 * since its size must be asked for. 0 or a negative errno: that of qos_udp_gro. */
int qos_udp_coalesce(struct qos_datapath *dp, int on);
/* Largest UDP payload towards an address that leaves in one piece (path MTU as the kernel knows it), or a negative errno. */
int qos_udp_path_payload(const struct qos_address *to);

#endif
