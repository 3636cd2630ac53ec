/* SPDX-License-Identifier: Apache-2.0
 *
 * Kernel UDP: sendmmsg and recvmmsg, segmentation offload (UDP_SEGMENT) and coalesced receive (UDP_GRO) where the kernel has them.
 */
#include <errno.h>
#include <netinet/in.h>
#include <netinet/udp.h>
#include <poll.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <unistd.h>

#include "../compiler.h"
#include "datapath.h"

#ifndef UDP_SEGMENT
#define UDP_SEGMENT 103
#endif
#ifndef UDP_GRO
#define UDP_GRO 104
#endif
#ifndef SO_RXQ_OVFL
#define SO_RXQ_OVFL 40
#endif
#define BURST 64
#define DEFAULT_MTU 1500
#define PLAIN_RUN 64u /* receptions without a look at what the kernel has lost */

struct udp {
    struct qos_datapath dp;
    int fd;
    int family;
    uint64_t timeout_ns; /* what SO_RCVTIMEO is set to */
    uint32_t overflow;   /* last SO_RXQ_OVFL seen */
    uint32_t plain;      /* receptions since */
    _Atomic bool paired;
    bool coalescing;
    struct qos_address peer; /* when paired */
};

union sockaddr_any {
    struct sockaddr any;
    struct sockaddr_in v4;
    struct sockaddr_in6 v6;
};

union control {
    char bytes[CMSG_SPACE(sizeof(int)) + CMSG_SPACE(sizeof(uint32_t)) + CMSG_SPACE(sizeof(uint16_t))];
    size_t align; /* of a struct cmsghdr */
};

/* Several threads may send on one socket; a counter may then miss one, but never tears. */
static void add(uint64_t *counter, uint64_t n)
{
    __atomic_store_n(counter, __atomic_load_n(counter, __ATOMIC_RELAXED) + n, __ATOMIC_RELAXED);
}

/* Without glibc's cancellation points, which cost two atomic operations a call. */
static ssize_t plain_send(int fd, const struct qos_packet *p, const struct sockaddr *to, socklen_t length)
{
    return syscall(SYS_sendto, fd, p->data, (size_t)p->length, MSG_DONTWAIT | MSG_NOSIGNAL, to, length);
}

static socklen_t to_sockaddr(int family, const struct qos_address *a, union sockaddr_any *s)
{
    if (family == AF_INET) {
        s->v4 = (struct sockaddr_in){.sin_family = AF_INET, .sin_port = htons(a->port)};
        memcpy(&s->v4.sin_addr, &a->ip.s6_addr[12], 4);
        return sizeof s->v4;
    }
    s->v6 = (struct sockaddr_in6){
        .sin6_family = AF_INET6, .sin6_port = htons(a->port), .sin6_addr = a->ip, .sin6_scope_id = a->scope};
    return sizeof s->v6;
}

static void from_sockaddr(const union sockaddr_any *s, struct qos_address *a)
{
    if (s->any.sa_family == AF_INET) {
        *a = (struct qos_address){.port = ntohs(s->v4.sin_port)};
        a->ip.s6_addr[10] = a->ip.s6_addr[11] = 0xff;
        memcpy(&a->ip.s6_addr[12], &s->v4.sin_addr, 4);
    } else {
        *a = (struct qos_address){s->v6.sin6_addr, ntohs(s->v6.sin6_port), s->v6.sin6_scope_id};
    }
}

static void prepare_tx(struct udp *udp, struct qos_packet *p, struct msghdr *m, struct iovec *iov,
                       union sockaddr_any *to, union control *c)
{
    *iov = (struct iovec){p->data, p->length};
    *m = (struct msghdr){
        .msg_name = to, .msg_namelen = to_sockaddr(udp->family, &p->address, to), .msg_iov = iov, .msg_iovlen = 1};
    if (p->segment && p->length > p->segment) {
        m->msg_control = c->bytes;
        m->msg_controllen = CMSG_SPACE(sizeof(uint16_t));
        struct cmsghdr *h = CMSG_FIRSTHDR(m);
        h->cmsg_level = SOL_UDP;
        h->cmsg_type = UDP_SEGMENT;
        h->cmsg_len = CMSG_LEN(sizeof(uint16_t));
        memcpy(CMSG_DATA(h), &p->segment, sizeof p->segment);
    }
}

static void count_tx(struct udp *udp, struct qos_packet *p, int error)
{
    p->error = (int16_t)error;
    if (error) {
        add(&udp->dp.stats.tx_errors, 1);
        return;
    }
    add(&udp->dp.stats.tx_packets, p->segment ? (p->length + p->segment - 1) / p->segment : 1);
    add(&udp->dp.stats.tx_bytes, p->length);
}

/* One call for one packet: the common case of a message that leaves at once. */
static int tx_one(struct udp *udp, struct qos_packet *p)
{
    union sockaddr_any to;
    union control c;
    struct msghdr m;
    struct iovec iov;
    ssize_t n;
    add(&udp->dp.stats.tx_calls, 1);
    bool paired = qos_load_relaxed(&udp->paired);
    for (int tries = 0;; tries++) {
        if (p->segment && p->length > p->segment) {
            prepare_tx(udp, p, &m, &iov, &to, &c);
            n = sendmsg(udp->fd, &m, MSG_DONTWAIT | MSG_NOSIGNAL);
        } else if (paired) {
            n = plain_send(udp->fd, p, NULL, 0);
        } else {
            socklen_t length = to_sockaddr(udp->family, &p->address, &to);
            n = plain_send(udp->fd, p, &to.any, length);
        }
        /* of a paired socket: what became of an earlier datagram; or the peer was let go a moment ago */
        if (n >= 0 || tries == 2 || (errno != ECONNREFUSED && errno != EDESTADDRREQ))
            break;
        paired = paired && errno == ECONNREFUSED;
    }
    if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK))
        return -EAGAIN;
    count_tx(udp, p, n < 0 ? errno : 0);
    return 1;
}

static int udp_tx(struct qos_datapath *dp, struct qos_packet *packets, unsigned n)
{
    struct udp *udp = (struct udp *)dp;
    if (n == 1)
        return tx_one(udp, packets);
    struct mmsghdr mm[BURST];
    struct iovec iov[BURST];
    union sockaddr_any to[BURST];
    union control c[BURST];
    unsigned done = 0;
    while (done < n) {
        unsigned burst = n - done < BURST ? n - done : BURST;
        for (unsigned i = 0; i < burst; i++)
            prepare_tx(udp, &packets[done + i], &mm[i].msg_hdr, &iov[i], &to[i], &c[i]);
        int sent = sendmmsg(udp->fd, mm, burst, MSG_DONTWAIT | MSG_NOSIGNAL);
        add(&udp->dp.stats.tx_calls, 1);
        if (sent < 0) {
            if (errno == EAGAIN || errno == EWOULDBLOCK)
                return done ? (int)done : -EAGAIN;
            /* the first one failed for good; the rest are tried again */
            count_tx(udp, &packets[done++], errno);
            continue;
        }
        for (int i = 0; i < sent; i++)
            count_tx(udp, &packets[done + (unsigned)i], 0);
        done += (unsigned)sent;
    }
    return (int)done;
}

static void finish_rx(struct udp *udp, struct qos_packet *p, struct msghdr *m, uint32_t length)
{
    p->length = length;
    p->segment = 0;
    p->error = 0;
    udp->plain = 0;
    from_sockaddr(m->msg_name, &p->address);
    for (struct cmsghdr *h = m->msg_controllen ? CMSG_FIRSTHDR(m) : NULL; h; h = CMSG_NXTHDR(m, h)) {
        if (h->cmsg_level == SOL_UDP && h->cmsg_type == UDP_GRO) {
            int segment;
            memcpy(&segment, CMSG_DATA(h), sizeof segment);
            p->segment = (uint16_t)segment;
        } else if (h->cmsg_level == SOL_SOCKET && h->cmsg_type == SO_RXQ_OVFL) {
            uint32_t overflow;
            memcpy(&overflow, CMSG_DATA(h), sizeof overflow);
            add(&udp->dp.stats.rx_overflow, overflow - udp->overflow);
            udp->overflow = overflow;
        }
    }
    add(&udp->dp.stats.rx_packets, p->segment ? (length + p->segment - 1) / p->segment : 1);
    add(&udp->dp.stats.rx_bytes, length);
}

/* Of a paired socket that does not coalesce all there is to know is the length. */
static int rx_plain(struct udp *udp, struct qos_packet *p, int flags)
{
    ssize_t n = syscall(SYS_recvfrom, udp->fd, p->data, (size_t)p->length, flags, NULL, NULL);
    add(&udp->dp.stats.rx_calls, 1);
    if (n < 0)
        return 0;
    p->length = (uint32_t)n;
    p->segment = 0;
    p->error = 0;
    p->address = udp->peer;
    udp->plain++;
    add(&udp->dp.stats.rx_packets, 1);
    add(&udp->dp.stats.rx_bytes, (uint64_t)n);
    return 1;
}

static int rx_one(struct udp *udp, struct qos_packet *p, int flags)
{
    if (!udp->coalescing && qos_load_acquire(&udp->paired) && udp->plain < PLAIN_RUN)
        return rx_plain(udp, p, flags);
    union sockaddr_any from;
    union control c;
    struct iovec iov = {p->data, p->length};
    struct msghdr m = {&from, sizeof from, &iov, 1, c.bytes, sizeof c.bytes, 0};
    ssize_t n = syscall(SYS_recvmsg, udp->fd, &m, flags);
    add(&udp->dp.stats.rx_calls, 1);
    if (n < 0)
        return 0;
    finish_rx(udp, p, &m, (uint32_t)n);
    return 1;
}

static int udp_rx(struct qos_datapath *dp, struct qos_packet *packets, unsigned n)
{
    struct udp *udp = (struct udp *)dp;
    if (n == 1)
        return rx_one(udp, packets, MSG_DONTWAIT);
    struct mmsghdr mm[BURST];
    struct iovec iov[BURST];
    union sockaddr_any from[BURST];
    union control c[BURST];
    unsigned burst = n < BURST ? n : BURST;
    for (unsigned i = 0; i < burst; i++) {
        iov[i] = (struct iovec){packets[i].data, packets[i].length};
        mm[i].msg_hdr = (struct msghdr){&from[i], sizeof from[i], &iov[i], 1, c[i].bytes, sizeof c[i].bytes, 0};
    }
    int got = recvmmsg(udp->fd, mm, burst, MSG_DONTWAIT, NULL);
    add(&udp->dp.stats.rx_calls, 1);
    for (int i = 0; i < got; i++)
        finish_rx(udp, &packets[i], &mm[i].msg_hdr, mm[i].msg_len);
    return got < 0 ? 0 : got;
}

/* A blocking recvmsg is one system call where poll and recvmsg are two. */
static int udp_rx_wait(struct qos_datapath *dp, struct qos_packet *packet, uint64_t timeout_ns)
{
    struct udp *udp = (struct udp *)dp;
    uint64_t us = (timeout_ns + 999) / 1000;
    if (us == 0)
        us = 1; /* zero would wait for ever */
    if (us * 1000 != udp->timeout_ns) {
        struct timeval tv = {(time_t)(us / 1000000), (suseconds_t)(us % 1000000)};
        if (setsockopt(udp->fd, SOL_SOCKET, SO_RCVTIMEO, &tv, sizeof tv) < 0)
            return 0;
        udp->timeout_ns = us * 1000;
    }
    return rx_one(udp, packet, 0);
}

static void udp_release(struct qos_datapath *dp, uint64_t token)
{
    (void)dp;
    (void)token; /* packets are received into the caller's memory */
}

static int udp_wait_fd(const struct qos_datapath *dp)
{
    return ((const struct udp *)dp)->fd;
}

static void udp_close(struct qos_datapath *dp)
{
    struct udp *udp = (struct udp *)dp;
    close(udp->fd);
    free(udp);
}

static const struct qos_datapath_ops UDP_OPS = {"udp",       udp_tx,      udp_rx,   udp_rx_wait,
                                                udp_release, udp_wait_fd, udp_close};

int qos_udp_open(struct qos_datapath **dp, int fd)
{
    union sockaddr_any own;
    socklen_t length = sizeof own;
    if (getsockname(fd, &own.any, &length) < 0)
        return -errno;
    if (own.any.sa_family != AF_INET && own.any.sa_family != AF_INET6)
        return -EAFNOSUPPORT;
    struct udp *udp = calloc(1, sizeof *udp);
    if (!udp)
        return -ENOMEM;
    int on = 1, none = 0;
    udp->dp.ops = &UDP_OPS;
    udp->dp.capabilities = QOS_CAP_ADDRESSED;
    udp->fd = fd;
    udp->family = own.any.sa_family;
    if (setsockopt(fd, SOL_UDP, UDP_SEGMENT, &none, sizeof none) == 0)
        udp->dp.capabilities |= QOS_CAP_SEGMENTATION;
    if (qos_udp_coalesce(&udp->dp, 1) == 0)
        udp->dp.capabilities |= QOS_CAP_COALESCED_RX;
    (void)setsockopt(fd, SOL_SOCKET, SO_RXQ_OVFL, &on, sizeof on);
    *dp = &udp->dp;
    return 0;
}

int qos_udp_pair(struct qos_datapath *dp, const struct qos_address *peer)
{
    struct udp *udp = (struct udp *)dp;
    union sockaddr_any to = {.any.sa_family = AF_UNSPEC};
    socklen_t length = peer ? to_sockaddr(udp->family, peer, &to) : (socklen_t)sizeof to;
    if (!peer)
        qos_store_relaxed(&udp->paired, false);
    if (connect(udp->fd, &to.any, length) < 0)
        return -errno;
    if (peer) {
        udp->peer = *peer;
        qos_store_release(&udp->paired, true); /* pairs with the acquire in rx_one */
    }
    return 0;
}

int qos_udp_gro(int fd, int on)
{
    if (setsockopt(fd, SOL_UDP, UDP_GRO, &on, sizeof on) < 0)
        return -errno;
    struct pollfd waiting = {fd, POLLIN, 0};
    if (on || poll(&waiting, 1, 0) == 0)
        return 0;
    on = 1;
    return setsockopt(fd, SOL_UDP, UDP_GRO, &on, sizeof on) < 0 ? -errno : -EAGAIN;
}

int qos_udp_coalesce(struct qos_datapath *dp, int on)
{
    struct udp *udp = (struct udp *)dp;
    int rc = qos_udp_gro(udp->fd, on);
    if (rc == 0)
        udp->coalescing = on;
    return rc;
}

int qos_udp_path_payload(const struct qos_address *to)
{
    int v4 = IN6_IS_ADDR_V4MAPPED(&to->ip), family = v4 ? AF_INET : AF_INET6;
    int fd = socket(family, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return -errno;
    union sockaddr_any s;
    socklen_t length = to_sockaddr(family, to, &s);
    int mtu = DEFAULT_MTU, rc = connect(fd, &s.any, length) < 0 ? -errno : 0;
    socklen_t size = sizeof mtu;
    if (rc == 0 && getsockopt(fd, v4 ? IPPROTO_IP : IPPROTO_IPV6, v4 ? IP_MTU : IPV6_MTU, &mtu, &size) < 0)
        rc = -errno;
    close(fd);
    return rc < 0 ? rc : mtu - (v4 ? 28 : 48);
}
