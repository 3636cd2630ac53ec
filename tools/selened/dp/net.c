/* SPDX-License-Identifier: Apache-2.0 */
#include "net.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "clock.h"
#include "datapath/datapath.h"

#ifndef UDP_GRO
#define UDP_GRO 104
#endif

#define ADAPT_EVERY 64u
#define TX_WAIT_MS 10 /* a full socket buffer drains in less, or the device is stuck */

#define STAGING_BYTES ((size_t)(DP_NET_RX + 1) * DP_NET_RX_BYTES)

int dp_net_init(struct dp_net *net, const struct qos_fault *fault)
{
    net->fd = -1;
    net->fault = fault;
    net->staging = mmap(NULL, STAGING_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    if (net->staging == MAP_FAILED)
        return -ENOMEM;
    for (unsigned i = 0; i < DP_NET_RX; i++) {
        net->rx_iov[i] = (struct iovec){net->staging + (size_t)i * DP_NET_RX_BYTES, DP_NET_RX_BYTES};
        net->rx[i].msg_hdr = (struct msghdr){
            .msg_name = &net->rx_name[i],
            .msg_iov = &net->rx_iov[i],
            .msg_iovlen = 1,
            .msg_control = net->rx_control[i],
        };
    }
    net->rx_used = DP_NET_RX;
    return 0;
}

void dp_net_free(struct dp_net *net)
{
    if (net->faulty != NULL)
        net->faulty->ops->close(net->faulty);
    munmap(net->staging, STAGING_BYTES);
    if (net->fd >= 0)
        close(net->fd);
}

int dp_net_check(int fd, int *family)
{
    int type = 0, protocol = 0, on = 1;
    socklen_t size = sizeof(int);
    if (getsockopt(fd, SOL_SOCKET, SO_DOMAIN, family, &size) < 0 ||
        getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &size) < 0 ||
        getsockopt(fd, SOL_SOCKET, SO_PROTOCOL, &protocol, &size) < 0)
        return -EINVAL;
    if ((*family != AF_INET && *family != AF_INET6) || type != SOCK_DGRAM || protocol != IPPROTO_UDP)
        return -EINVAL;
    /* Optional: without it losses in the socket buffer show in the sequences only. */
    setsockopt(fd, SOL_SOCKET, SO_RXQ_OVFL, &on, sizeof on);
    return 0;
}

/* Faults around another descriptor of the socket. */
static int open_faulty(const struct dp_net *net, int fd, struct qos_datapath **faulty, struct qos_fault_counters *done)
{
    struct qos_datapath *udp;
    int own = fcntl(fd, F_DUPFD_CLOEXEC, 0), rc = own < 0 ? -errno : qos_udp_open(&udp, own);
    if (rc < 0) {
        if (own >= 0)
            close(own);
        return rc;
    }
    rc = qos_fault_open(faulty, udp, net->fault, done);
    if (rc < 0)
        udp->ops->close(udp);
    return rc;
}

int dp_net_use(struct dp_net *net, int fd, int family)
{
    struct qos_datapath *faulty = NULL;
    int rc = net->fault != NULL ? open_faulty(net, fd, &faulty, &net->faults) : 0;
    if (rc < 0)
        return rc;
    if (net->faulty != NULL)
        net->faulty->ops->close(net->faulty);
    net->faulty = faulty;
    net->fd = fd;
    net->family = family;
    net->rx_overflow = 0;
    net->rx_run = 0;
    net->coalescing = false;
    return 0;
}

int dp_net_wait_fd(const struct dp_net *net)
{
    return net->faulty != NULL ? net->faulty->ops->wait_fd(net->faulty) : net->fd;
}

void dp_target_set(struct dp_target *target, const struct selene_addr *address)
{
    *target = (struct dp_target){.v6 = {.sin6_family = AF_INET6, .sin6_port = htons(address->port)}};
    target->v6.sin6_scope_id = address->scope;
    memcpy(&target->v6.sin6_addr, address->ip, 16);
    target->mapped = IN6_IS_ADDR_V4MAPPED(&target->v6.sin6_addr);
    if (target->mapped) {
        target->v4 = (struct sockaddr_in){.sin_family = AF_INET, .sin_port = htons(address->port)};
        memcpy(&target->v4.sin_addr, address->ip + 12, 4);
    }
}

bool dp_target_is(const struct dp_target *target, const struct dp_reception *from)
{
    return memcmp(&target->v6.sin6_addr, &from->ip, 16) == 0 && ntohs(target->v6.sin6_port) == from->port;
}

static void fail(struct dp_counters *totals, struct dp_counters *counters, uint16_t *outcome, int error)
{
    *outcome = (uint16_t)error;
    dp_count(totals, DP_TX_ERRORS, 1);
    dp_count(counters, DP_TX_ERRORS, 1);
}

static void count_sent(struct dp_counters *totals, struct dp_counters *counters, uint64_t bytes)
{
    dp_count(totals, DP_TX_DATAGRAMS, 1);
    dp_count(totals, DP_TX_BYTES, bytes);
    dp_count(counters, DP_TX_DATAGRAMS, 1);
    dp_count(counters, DP_TX_BYTES, bytes);
}

static void send_faulty(struct dp_net *net, struct dp_counters *totals, const struct dp_target *to,
                        const uint8_t *header, const uint8_t *records, uint32_t length, uint16_t *outcome,
                        struct dp_counters *counters)
{
    struct qos_packet p = {
        .data = net->staging + (size_t)DP_NET_RX * DP_NET_RX_BYTES,
        .length = QOS_WIRE_HEADER + length,
        .address = {to->v6.sin6_addr, ntohs(to->v6.sin6_port), to->v6.sin6_scope_id},
    };
    memcpy(p.data, header, QOS_WIRE_HEADER);
    memcpy(p.data + QOS_WIRE_HEADER, records, length);
    int error = net->faulty->ops->tx(net->faulty, &p, 1) == 1 ? p.error : EAGAIN;
    if (error != 0)
        fail(totals, counters, outcome, error);
    else
        count_sent(totals, counters, p.length);
}

void dp_net_send(struct dp_net *net, struct dp_counters *totals, const struct dp_target *to, const uint8_t *header,
                 const uint8_t *records, uint32_t length, uint16_t *outcome, struct dp_counters *counters)
{
    if (net->fd < 0 || (net->family == AF_INET && !to->mapped)) {
        fail(totals, counters, outcome, net->fd < 0 ? ENETDOWN : EAFNOSUPPORT);
        return;
    }
    if (net->faulty != NULL) {
        send_faulty(net, totals, to, header, records, length, outcome, counters);
        return;
    }
    if (net->tx_count == DP_NET_BURST)
        dp_net_flush(net, totals);
    unsigned i = net->tx_count++;
    const void *name = net->family == AF_INET ? (const void *)&to->v4 : (const void *)&to->v6;
    net->tx_iov[i][0] = (struct iovec){(void *)(uintptr_t)header, QOS_WIRE_HEADER};
    net->tx_iov[i][1] = (struct iovec){(void *)(uintptr_t)records, length};
    net->tx[i].msg_hdr = (struct msghdr){
        .msg_name = (void *)(uintptr_t)name,
        .msg_namelen = net->family == AF_INET ? sizeof to->v4 : sizeof to->v6,
        .msg_iov = net->tx_iov[i],
        .msg_iovlen = length > 0 ? 2 : 1,
    };
    net->tx_outcome[i] = outcome;
    net->tx_counters[i] = counters;
}

static void sent(struct dp_net *net, struct dp_counters *totals, unsigned from, unsigned n)
{
    for (unsigned i = from; i < from + n; i++)
        count_sent(totals, net->tx_counters[i], net->tx_iov[i][0].iov_len + net->tx_iov[i][1].iov_len);
}

/* The only datagram there is: less to copy and to check for the kernel than a list of one, and no cancellation point. */
static bool send_alone(struct dp_net *net)
{
    const struct msghdr *m = &net->tx[0].msg_hdr;
    size_t records = m->msg_iovlen > 1 ? net->tx_iov[0][1].iov_len : 0;
    if (QOS_WIRE_HEADER + records > sizeof net->tx_copy)
        return false;
    memcpy(net->tx_copy, net->tx_iov[0][0].iov_base, QOS_WIRE_HEADER);
    if (records > 0)
        memcpy(net->tx_copy + QOS_WIRE_HEADER, net->tx_iov[0][1].iov_base, records);
    return syscall(SYS_sendto, net->fd, net->tx_copy, QOS_WIRE_HEADER + records, MSG_DONTWAIT | MSG_NOSIGNAL,
                   m->msg_name, m->msg_namelen) >= 0;
}

void dp_net_flush(struct dp_net *net, struct dp_counters *totals)
{
    bool waited = false;
    unsigned done = 0;
    if (net->tx_count == 1 && send_alone(net)) {
        sent(net, totals, 0, 1);
        done = 1;
    }
    while (done < net->tx_count) {
        int n = sendmmsg(net->fd, net->tx + done, net->tx_count - done, MSG_DONTWAIT);
        if (n > 0) {
            sent(net, totals, done, (unsigned)n);
            done += (unsigned)n;
            continue;
        }
        if (errno == EINTR)
            continue;
        /* All share one device queue: to wait for it blocks nobody who could go on. Only once per burst. */
        if (errno == EAGAIN && !waited) {
            struct pollfd p = {net->fd, POLLOUT, 0};
            waited = true;
            if (poll(&p, 1, TX_WAIT_MS) > 0)
                continue;
            errno = EAGAIN;
        }
        fail(totals, net->tx_counters[done], net->tx_outcome[done], errno);
        done++;
    }
    net->tx_count = 0;
}

/* The kernel writes these fields of the messages that it fills. */
static void prepare(struct dp_net *net, unsigned i)
{
    net->rx[i].msg_hdr.msg_namelen = sizeof net->rx_name[i];
    net->rx[i].msg_hdr.msg_controllen = sizeof net->rx_control[i];
}

/* Let the kernel put datagrams together in a flood, and not for single ones, whose size must then be asked for: 64
 * receptions of single ones in a row, at more than 250,000 a second, switch it on, at fewer than 20,000 off. */
static void adapt(struct dp_net *net, unsigned n)
{
    net->receptions += n;
    if (net->receptions < ADAPT_EVERY)
        return;
    uint64_t now = qos_clock_monotonic_ns(), each = (now - net->receptions_ns) / net->receptions;
    net->receptions = 0;
    net->receptions_ns = now;
    int want = net->coalescing ? each < 50000 : each < 4000;
    if (want != net->coalescing && qos_udp_gro(net->fd, want) == 0)
        net->coalescing = want;
}

/* One datagram that was not coalesced, into the first place. */
static ssize_t receive_alone(struct dp_net *net)
{
    struct msghdr *m = &net->rx[0].msg_hdr;
    m->msg_namelen = sizeof net->rx_name[0];
    ssize_t n = syscall(SYS_recvfrom, net->fd, net->rx_iov[0].iov_base, (size_t)DP_NET_RX_BYTES, MSG_DONTWAIT,
                        m->msg_name, &m->msg_namelen);
    m->msg_controllen = 0;
    if (n >= 0)
        net->rx[0].msg_len = (unsigned)n;
    return n;
}

static int receive_faulty(struct dp_net *net, struct dp_counters *totals, bool *more)
{
    for (unsigned i = 0; i < DP_NET_RX; i++)
        net->packets[i] =
            (struct qos_packet){.data = net->staging + (size_t)i * DP_NET_RX_BYTES, .length = DP_NET_RX_BYTES};
    int n = net->faulty->ops->rx(net->faulty, net->packets, DP_NET_RX);
    uint32_t lost = (uint32_t)net->faulty->stats.rx_overflow;
    dp_count(totals, DP_RX_OVERFLOW, lost - net->rx_overflow);
    net->rx_overflow = lost;
    *more = n == DP_NET_RX;
    return n < 0 ? 0 : n;
}

int dp_net_receive(struct dp_net *net, struct dp_counters *totals, bool *more)
{
    if (net->faulty != NULL)
        return receive_faulty(net, totals, more);
    if (!net->coalescing && net->rx_run < DP_NET_RX_RUN) {
        if (receive_alone(net) >= 0) {
            net->rx_run++;
            net->rx_used = net->rx_used > 1 ? net->rx_used : 1;
            adapt(net, 1);
            *more = false;
            return 1;
        }
        if (errno == EAGAIN) {
            net->rx_run = 0;
            *more = false;
            return 0;
        }
    }
    /* what the last call has changed */
    for (unsigned i = 0; i < net->rx_used; i++)
        prepare(net, i);
    net->rx_used = 0;
    int n = -1;
    /* an error that the socket had pending (an ICMP message) is reported once, in front of the datagrams */
    for (int tries = 0; n < 0 && tries < 4; tries++) {
        n = recvmmsg(net->fd, net->rx, DP_NET_RX, MSG_DONTWAIT, NULL);
        if (n < 0 && errno == EAGAIN)
            break;
    }
    *more = n == DP_NET_RX;
    net->rx_run = n > 1 ? DP_NET_RX_RUN : 0;
    if (n <= 0)
        return 0;
    net->rx_used = (unsigned)n;
    adapt(net, (unsigned)n);
    /* cumulative, so the last one says it all */
    struct msghdr *last = &net->rx[n - 1].msg_hdr;
    for (struct cmsghdr *c = CMSG_FIRSTHDR(last); c != NULL; c = CMSG_NXTHDR(last, c))
        if (c->cmsg_level == SOL_SOCKET && c->cmsg_type == SO_RXQ_OVFL) {
            uint32_t lost;
            memcpy(&lost, CMSG_DATA(c), sizeof lost);
            dp_count(totals, DP_RX_OVERFLOW, (uint32_t)(lost - net->rx_overflow));
            net->rx_overflow = lost;
        }
    return n;
}

void dp_net_reception(struct dp_net *net, int index, struct dp_reception *r)
{
    if (net->faulty != NULL) {
        const struct qos_packet *p = &net->packets[index];
        *r = (struct dp_reception){p->data, p->length, p->segment ? p->segment : p->length, p->address.ip,
                                   p->address.port};
        return;
    }
    const struct mmsghdr *m = &net->rx[index];
    *r = (struct dp_reception){.data = net->rx_iov[index].iov_base, .length = m->msg_len, .segment = m->msg_len};
    struct msghdr header = m->msg_hdr;
    for (struct cmsghdr *c = CMSG_FIRSTHDR(&header); c != NULL; c = CMSG_NXTHDR(&header, c))
        if (c->cmsg_level == IPPROTO_UDP && c->cmsg_type == UDP_GRO) {
            int segment;
            memcpy(&segment, CMSG_DATA(c), sizeof segment);
            if (segment > 0 && (uint32_t)segment < m->msg_len) {
                r->segment = (uint32_t)segment;
                net->receptions = 0; /* it pays */
            }
        }
    const struct sockaddr_in6 *name = &net->rx_name[index];
    if (name->sin6_family == AF_INET6) {
        r->ip = name->sin6_addr;
        r->port = ntohs(name->sin6_port);
    } else {
        struct sockaddr_in v4;
        memcpy(&v4, name, sizeof v4);
        r->ip.s6_addr[10] = r->ip.s6_addr[11] = 0xff;
        memcpy(&r->ip.s6_addr[12], &v4.sin_addr, 4);
        r->port = ntohs(v4.sin_port);
    }
}
