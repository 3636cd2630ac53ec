/* SPDX-License-Identifier: Apache-2.0 */
#include "packet.h"

#include <errno.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

int dp_packet_send(int socket, void *packet, size_t length, uint16_t type, uint32_t request, const int *fds,
                   int fd_count, int wait_ms)
{
    struct selene_msg *msg = packet;
    *msg = (struct selene_msg){SELENE_PROTO_MAGIC, SELENE_PROTO_VERSION, type, (uint32_t)length, request};
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(SELENE_MAX_FDS * sizeof(int))];
    } control;
    struct iovec iov = {packet, length};
    struct msghdr header = {.msg_iov = &iov, .msg_iovlen = 1};
    if (fd_count > 0) {
        memset(&control, 0, sizeof control);
        header.msg_control = &control;
        header.msg_controllen = CMSG_SPACE((size_t)fd_count * sizeof(int));
        struct cmsghdr *c = CMSG_FIRSTHDR(&header);
        c->cmsg_level = SOL_SOCKET;
        c->cmsg_type = SCM_RIGHTS;
        c->cmsg_len = CMSG_LEN((size_t)fd_count * sizeof(int));
        memcpy(CMSG_DATA(c), fds, (size_t)fd_count * sizeof(int));
    }
    for (;;) {
        if (sendmsg(socket, &header, MSG_DONTWAIT | MSG_NOSIGNAL) >= 0)
            return 0;
        if (errno == EINTR)
            continue;
        if (errno != EAGAIN || wait_ms == 0)
            return -errno;
        struct pollfd p = {socket, POLLOUT, 0};
        if (poll(&p, 1, wait_ms) <= 0)
            return -EAGAIN;
        wait_ms = 0;
    }
}

int dp_packet_send_error(int socket, uint32_t request, int error, const char *format, ...)
{
    struct selene_error packet = {.error = error < 0 ? -error : error};
    va_list args;
    va_start(args, format);
    vsnprintf(packet.text, sizeof packet.text, format, args);
    va_end(args);
    return dp_packet_send(socket, &packet, sizeof packet, SELENE_S_ERROR, request, NULL, 0, 0);
}

static void take_fds(struct msghdr *header, struct dp_packet *packet)
{
    for (struct cmsghdr *c = CMSG_FIRSTHDR(header); c != NULL; c = CMSG_NXTHDR(header, c)) {
        if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
            continue;
        int n = (int)((c->cmsg_len - CMSG_LEN(0)) / sizeof(int));
        for (int i = 0; i < n; i++) {
            int fd;
            memcpy(&fd, CMSG_DATA(c) + (size_t)i * sizeof fd, sizeof fd);
            if (packet->fd_count < SELENE_MAX_FDS)
                packet->fds[packet->fd_count++] = fd;
            else
                close(fd);
        }
    }
}

int dp_packet_receive(int socket, struct dp_packet *packet)
{
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(SELENE_MAX_FDS * sizeof(int))];
    } control;
    struct iovec iov = {packet->data, sizeof packet->data};
    struct msghdr header = {
        .msg_iov = &iov, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
    packet->fd_count = 0;
    packet->length = 0;
    ssize_t n;
    do
        n = recvmsg(socket, &header, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    while (n < 0 && errno == EINTR);
    if (n < 0)
        return -errno;
    take_fds(&header, packet);
    if (header.msg_flags & (MSG_TRUNC | MSG_CTRUNC)) {
        dp_packet_close_fds(packet);
        return -EMSGSIZE;
    }
    packet->length = (uint32_t)n;
    return 0;
}

int dp_packet_check(const struct dp_packet *packet)
{
    struct selene_msg msg;
    if (packet->length < sizeof msg)
        return -EPROTO;
    memcpy(&msg, packet->data, sizeof msg);
    if (msg.magic != SELENE_PROTO_MAGIC)
        return -EPROTO;
    if (msg.version != SELENE_PROTO_VERSION)
        return -EPROTONOSUPPORT;
    return msg.length == packet->length ? 0 : -EPROTO;
}

void dp_packet_close_fds(struct dp_packet *packet)
{
    for (int i = 0; i < packet->fd_count; i++)
        if (packet->fds[i] >= 0)
            close(packet->fds[i]);
    packet->fd_count = 0;
}
