/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The datapath's UDP socket: bursts out of shared memory without a copy, bursts in with the kernel's coalescing.
 *
 * Not the datapath interface of libqos: here a datagram is gathered from a checked copy of its header and records that stay in
 * the client's pool, and one datagram may go to several destinations.
 */
#ifndef DP_NET_H
#define DP_NET_H

#include <netinet/in.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/socket.h>

#include "counters.h"
#include "datapath/fault.h"
#include "frame.h"
#include "proto.h"

#define DP_NET_BURST 64
#define DP_NET_RX 16           /* receptions of one call */
#define DP_NET_RX_BYTES 65536u /* the largest, coalesced, reception */
#define DP_NET_RX_RUN 2u       /* receptions one by one, then several are asked for at once */
#define DP_NET_TX_COPY 2048u   /* a datagram up to this size that is sent alone is put together first */

/* A destination, in the forms of both address families. */
struct dp_target {
    struct sockaddr_in6 v6;
    struct sockaddr_in v4;
    bool mapped; /* v4 is valid */
};

struct dp_net {
    int fd; /* -1: none yet */
    int family;
    unsigned tx_count;
    struct mmsghdr tx[DP_NET_BURST];
    struct iovec tx_iov[DP_NET_BURST][2];
    uint16_t *tx_outcome[DP_NET_BURST];
    struct dp_counters *tx_counters[DP_NET_BURST];
    uint8_t tx_copy[DP_NET_TX_COPY];
    unsigned rx_used; /* of rx, by the last call */
    unsigned rx_run;  /* receptions one by one in a row; DP_NET_RX_RUN: several at once */
    bool coalescing;
    unsigned receptions; /* since coalescing was last thought about */
    uint64_t receptions_ns;
    struct mmsghdr rx[DP_NET_RX];
    struct iovec rx_iov[DP_NET_RX];
    struct sockaddr_in6 rx_name[DP_NET_RX];
    _Alignas(struct cmsghdr) uint8_t rx_control[DP_NET_RX][CMSG_SPACE(sizeof(int)) + CMSG_SPACE(sizeof(uint32_t))];
    uint32_t rx_overflow; /* the kernel's count, last seen */
    uint8_t *staging;     /* DP_NET_RX * DP_NET_RX_BYTES, private; and one more to put faulty datagrams together */
    /* If the network shall be a bad one, everything goes through here instead. */
    const struct qos_fault *fault; /* NULL: no */
    struct qos_datapath *faulty;
    struct qos_packet packets[DP_NET_RX];
    struct qos_fault_counters faults;
};

struct dp_reception {
    const uint8_t *data;
    uint32_t length;
    uint32_t segment; /* size of the datagrams in it, the last may be shorter */
    struct in6_addr ip;
    uint16_t port; /* host byte order */
};

/* 0 or -ENOMEM. `fault`, NULL or settings that stay: what to do to datagrams. */
int dp_net_init(struct dp_net *net, const struct qos_fault *fault);
void dp_net_free(struct dp_net *net);
/* Can this descriptor be the socket? Switches on what it needs. 0 and the family, or -EINVAL. */
int dp_net_check(int fd, int *family);
/* 0 or a negative errno; then the socket is the one before. */
int dp_net_use(struct dp_net *net, int fd, int family);
/* Readable when receiving may find something; -1 without a socket. */
int dp_net_wait_fd(const struct dp_net *net);

void dp_target_set(struct dp_target *target, const struct selene_addr *address);
bool dp_target_is(const struct dp_target *target, const struct dp_reception *from);

/* Queue header (QOS_WIRE_HEADER bytes) and records for a destination; both must stay until the flush. A failure is written to
 * `*outcome` as a positive errno. The queue is flushed when it is full. */
void dp_net_send(struct dp_net *net, struct dp_counters *totals, const struct dp_target *to, const uint8_t *header,
                 const uint8_t *records, uint32_t length, uint16_t *outcome, struct dp_counters *counters);
void dp_net_flush(struct dp_net *net, struct dp_counters *totals);

/* Receive without waiting: how many receptions, 0 if none. `*more`: it filled all places, so ask again before sleeping. */
int dp_net_receive(struct dp_net *net, struct dp_counters *totals, bool *more);
void dp_net_reception(struct dp_net *net, int index, struct dp_reception *reception);

#endif
