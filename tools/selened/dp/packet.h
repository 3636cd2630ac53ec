/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Packets of proto.h with descriptors, on SOCK_SEQPACKET sockets.
 */
#ifndef DP_PACKET_H
#define DP_PACKET_H

#include <stddef.h>
#include <stdint.h>

#include "proto.h"

struct dp_packet {
    _Alignas(8) uint8_t data[SELENE_MAX_PACKET];
    uint32_t length; /* 0: the connection is closed */
    int fds[SELENE_MAX_FDS];
    int fd_count;
};

/* Fill the header of a packet and send it. The socket is waited for at most `wait_ms`. 0, or a negative errno: -EAGAIN, -EPIPE. */
int dp_packet_send(int socket, void *packet, size_t length, uint16_t type, uint32_t request, const int *fds,
                   int fd_count, int wait_ms);
int dp_packet_send_error(int socket, uint32_t request, int error, const char *format, ...)
    __attribute__((format(printf, 4, 5)));
/* Receive without waiting. 0, -EAGAIN, -EMSGSIZE (too long, or too many descriptors; none are kept), or another negative errno. */
int dp_packet_receive(int socket, struct dp_packet *packet);
/* Is it a packet of this protocol, all of it? 0, -EPROTO, -EPROTONOSUPPORT. */
int dp_packet_check(const struct dp_packet *packet);
/* Close the descriptors that nobody took (taken ones are -1). */
void dp_packet_close_fds(struct dp_packet *packet);

#endif
