/* SPDX-License-Identifier: Apache-2.0 */
#include "errorqueue.h"

#include <time.h>

#include <linux/errqueue.h>
#include <stdbool.h>
#include <string.h>
#include <sys/socket.h>

#include "packet.h"
#include "stamps.h"

/* Whichever family it is of: IP_RECVERR, IPV6_RECVERR and PACKET_TX_TIMESTAMP carry the same struct. */
static bool extended(struct msghdr *message, struct sock_extended_err *error)
{
    for (struct cmsghdr *c = CMSG_FIRSTHDR(message); c != NULL; c = CMSG_NXTHDR(message, c)) {
        if (c->cmsg_level == SOL_SOCKET || c->cmsg_len < CMSG_LEN(sizeof *error))
            continue;
        memcpy(error, CMSG_DATA(c), sizeof *error);
        return true;
    }
    return false;
}

int qos_errorqueue_take(int fd, uint32_t payload_bytes, uint8_t *room, struct qos_event *event)
{
    _Alignas(struct cmsghdr) char control[512];
    struct iovec part = {room, QOS_ERRORQUEUE_ROOM};
    struct msghdr message = {
        .msg_iov = &part, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
    ssize_t size = recvmsg(fd, &message, MSG_ERRQUEUE | MSG_DONTWAIT);
    if (size < 0)
        return QOS_ERRORQUEUE_NOTHING;
    struct sock_extended_err error;
    if (!extended(&message, &error))
        return QOS_ERRORQUEUE_UNKNOWN;
    if (error.ee_origin == SO_EE_ORIGIN_ICMP || error.ee_origin == SO_EE_ORIGIN_ICMP6 ||
        error.ee_origin == SO_EE_ORIGIN_LOCAL)
        return QOS_ERRORQUEUE_UNREACHABLE;
    struct qos_packet packet;
    if (size < (ssize_t)payload_bytes || qos_packet_decode(room + size - payload_bytes, payload_bytes, &packet) != 0)
        return QOS_ERRORQUEUE_UNKNOWN;
    *event = (struct qos_event){.sequence = packet.sequence, .launch_ns = packet.launch_ns, .send_ns = packet.send_ns};
    if (error.ee_origin == SO_EE_ORIGIN_TXTIME) {
        event->kind = error.ee_code == SO_EE_CODE_TXTIME_MISSED ? QOS_EVENT_MISSED : QOS_EVENT_INVALID;
        event->error = (int32_t)error.ee_errno;
    } else if (error.ee_origin == SO_EE_ORIGIN_TIMESTAMPING) {
        event->kind = QOS_EVENT_TRANSMIT;
        event->stamp = qos_stamps_read(&message, qos_stamps_offset(), &event->at_ns);
    } else {
        return QOS_ERRORQUEUE_UNKNOWN;
    }
    return QOS_ERRORQUEUE_EVENT;
}
