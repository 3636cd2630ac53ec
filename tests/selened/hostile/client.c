/* SPDX-License-Identifier: Apache-2.0 */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

#include "client.h"
#include "clock.h"
#include "frame.h"

const char *path;
uint32_t opened, cut_off, refused;

void close_all(const int *fds, int n)
{
    for (int i = 0; i < n; i++)
        if (fds[i] >= 0)
            close(fds[i]);
}

int put(int fd, const void *data, size_t length, const int *fds, int count)
{
    struct iovec part = {(void *)(uintptr_t)data, length};
    _Alignas(struct cmsghdr) uint8_t rights[CMSG_SPACE(sizeof(int) * 253)] = {0};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};
    if (count > 0) {
        message.msg_control = rights;
        message.msg_controllen = CMSG_SPACE(sizeof(int) * (size_t)count);
        struct cmsghdr *head = CMSG_FIRSTHDR(&message);
        *head = (struct cmsghdr){CMSG_LEN(sizeof(int) * (size_t)count), SOL_SOCKET, SCM_RIGHTS};
        memcpy(CMSG_DATA(head), fds, sizeof(int) * (size_t)count);
    }
    return sendmsg(fd, &message, MSG_NOSIGNAL | MSG_DONTWAIT) < 0 ? -errno : 0;
}

int say(int fd, void *packet, size_t length, uint16_t type, uint32_t request, const int *fds, int count)
{
    *(struct selene_msg *)packet =
        (struct selene_msg){SELENE_PROTO_MAGIC, SELENE_PROTO_VERSION, type, (uint32_t)length, request};
    return put(fd, packet, length, fds, count);
}

/* One packet and its descriptors. Its length, 0 at the end, or a negative errno. */
ssize_t get(int fd, void *data, int *fds, int *count, int flags)
{
    struct iovec part = {data, SELENE_MAX_PACKET};
    _Alignas(struct cmsghdr) uint8_t rights[CMSG_SPACE(sizeof(int) * SELENE_MAX_FDS)];
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = rights, .msg_controllen = sizeof rights};
    *count = 0;
    ssize_t n = recvmsg(fd, &message, flags | MSG_CMSG_CLOEXEC);
    if (n < 0)
        return -errno;
    struct cmsghdr *head = CMSG_FIRSTHDR(&message);
    if (head != NULL && head->cmsg_type == SCM_RIGHTS) {
        *count = (int)((head->cmsg_len - CMSG_LEN(0)) / sizeof(int));
        memcpy(fds, CMSG_DATA(head), sizeof(int) * (size_t)*count);
    }
    return n;
}

int dial(const char *suffix)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    struct timeval patience = {PATIENCE_S, 0};
    int length = snprintf(address.sun_path, sizeof address.sun_path, "%s%s", path, suffix);
    int fd = socket(AF_UNIX, (*suffix ? SOCK_STREAM : SOCK_SEQPACKET) | SOCK_CLOEXEC, 0);
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience);
    if (length >= (int)sizeof address.sun_path || connect(fd, (const void *)&address, sizeof address) < 0) {
        if (errno == EAGAIN)
            breach("nobody accepts connections");
        close(fd);
        return -1;
    }
    return fd;
}

uint8_t answer[SELENE_MAX_PACKET] __attribute__((aligned(8)));

/* Send a request and wait for its answer: the type, 0 when we were cut off. Descriptors of the answer go to `fds`. */
uint16_t ask(struct session *s, void *packet, size_t length, uint16_t type, const int *given, int given_count, int *fds,
             int *count)
{
    uint32_t number = ++s->number;
    if (say(s->control, packet, length, type, number, given, given_count) < 0)
        s->cut = true;
    const struct selene_msg *head = (const void *)answer;
    int others[SELENE_MAX_FDS], n;
    while (!s->cut) {
        ssize_t got = get(s->control, answer, others, &n, 0);
        if (got == -EAGAIN)
            breach("no answer within %d s to a request of type %u", PATIENCE_S, type);
        if (got <= 0)
            break;
        if (head->request == number || head->type == SELENE_S_ERROR) {
            if (fds != NULL) {
                memcpy(fds, others, sizeof(int) * (size_t)n);
                *count = n;
            } else {
                close_all(others, n);
            }
            return head->type;
        }
        close_all(others, n);
    }
    s->cut = true;
    return 0;
}

void close_session(struct session *s)
{
    cut_off += s->cut;
    if (s->tx != NULL)
        munmap(s->tx, TX_BYTES);
    if (s->page != NULL)
        munmap(s->page, SELENE_PAGE_SIZE);
    close_all(s->fds, MEMORIES);
    close_all((int[]){s->control, s->link, s->udp}, 3);
}

bool open_session(struct session *s, uint32_t flags)
{
    *s = (struct session){.control = dial(""), .link = -1, .udp = -1, .fds = {-1, -1, -1, -1, -1}};
    if (s->control < 0)
        return false;
    struct selene_hello hello = {.flags = flags, .program = "hostile"};
    int netns = open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC), fds[SELENE_MAX_FDS], n = 0;
    uint16_t type = ask(s, &hello, sizeof hello, SELENE_C_HELLO, &netns, netns >= 0, fds, &n);
    close(netns);
    s->host = ((const struct selene_welcome *)(const void *)answer)->host;
    if (type == SELENE_S_WELCOME && n > 0) {
        s->link = fds[0];
        s->udp = n > 1 ? fds[1] : -1;
        ssize_t got = get(s->link, answer, fds, &n, 0);
        if (got > 0 && n == MEMORIES) {
            memcpy(s->fds, fds, sizeof s->fds);
            s->tx = mmap(NULL, TX_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, s->fds[TX_POOL], 0);
            s->page = mmap(NULL, SELENE_PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, s->fds[PAGE], 0);
            opened++;
            return true;
        }
    }
    refused++;
    s->cut = false;
    close_session(s);
    return false;
}

uint16_t open_stream(struct session *s, uint32_t handle)
{
    struct selene_stream_open packet = {.handle = handle, .stream = STREAM};
    return ask(s, &packet, sizeof packet, SELENE_C_STREAM, NULL, 0, NULL, NULL);
}

/* A source or a sink: its id, or 0. */
uint64_t open_end(struct session *s, uint16_t type, uint64_t channel, uint64_t id)
{
    struct selene_endpoint_open packet = {.handle = 1,
                                          .index = s->number % SELENE_MAX_ENDPOINTS,
                                          .channel = channel,
                                          .id = id,
                                          .epoch = (uint32_t)word()};
    int event = type == SELENE_C_SINK ? eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC) : -1;
    uint16_t got = ask(s, &packet, sizeof packet, type, &event, event >= 0, NULL, NULL);
    if (event >= 0)
        close(event);
    refused += got == SELENE_S_ERROR;
    return got == SELENE_S_ENDPOINT ? ((const struct selene_endpoint_ok *)(const void *)answer)->id : 0;
}

/* Whether it was cut off; takes what was pushed. */
bool gone(struct session *s)
{
    int sockets[] = {s->control, s->link}, fds[SELENE_MAX_FDS], n;
    for (unsigned i = 0; i < 2; i++)
        for (ssize_t got = 1; got > 0;) {
            got = get(sockets[i], answer, fds, &n, MSG_DONTWAIT);
            close_all(fds, n);
            s->cut |= got <= 0 && got != -EAGAIN;
        }
    return s->cut;
}

void wake(const struct session *s)
{
    eventfd_write(s->fds[WAKE], 1);
}

struct qos_ring *ring(const struct session *s)
{
    static const uint32_t rings[] = {SELENE_PAGE_TX, SELENE_PAGE_DONE, SELENE_PAGE_RX, SELENE_PAGE_RELEASE};
    return (void *)(s->page + rings[draw(4)]);
}
