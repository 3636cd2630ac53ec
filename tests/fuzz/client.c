/* SPDX-License-Identifier: Apache-2.0 */
#include "client.h"

#include <arpa/inet.h>
#include <netinet/udp.h>
#include <stdio.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

struct daemons daemons = {.control = -1, .session = -1};
uint64_t clock_ns = 1000000000;
char socket_path[64];
static int listener;

/* ---- One thread, and our clock (linked with --wrap) ---- */

int __wrap_pthread_create(pthread_t *, const pthread_attr_t *, void *(*)(void *), void *);
int __wrap_pthread_join(pthread_t, void **);
int __wrap_nanosleep(const struct timespec *, struct timespec *);
uint64_t __wrap_qos_clock_monotonic_ns(void);
int __real_close(int);
int __wrap_close(int);
int __real_selene_receive_init(struct selene_session *);
int __wrap_selene_receive_init(struct selene_session *);
void __real_selene_receive_free(struct selene_session *);
void __wrap_selene_receive_free(struct selene_session *);
ssize_t __real_sendmsg(int, const struct msghdr *, int);
ssize_t __wrap_sendmsg(int, const struct msghdr *, int);

/* Who makes a request reads the sockets until the answer is there, as the service thread would. */
int __wrap_pthread_create(pthread_t *thread, const pthread_attr_t *attr, void *(*run)(void *), void *arg)
{
    (void)attr, (void)run, (void)arg;
    *thread = pthread_self();
    return 0;
}

int __wrap_pthread_join(pthread_t thread, void **result)
{
    (void)thread, (void)result;
    return 0;
}

int __wrap_nanosleep(const struct timespec *time, struct timespec *rest)
{
    (void)time, (void)rest;
    return 0;
}

uint64_t __wrap_qos_clock_monotonic_ns(void)
{
    return clock_ns += 50000000;
}

ssize_t __wrap_sendmsg(int fd, const struct msghdr *message, int flags)
{
    ssize_t n = __real_sendmsg(fd, message, flags);
    const struct selene_msg *packet = message->msg_iov[0].iov_base;
    if (n >= (ssize_t)sizeof *packet && packet->magic == SELENE_PROTO_MAGIC) /* and no datagram */
        daemons_asked(fd, packet);
    return n;
}

/* To make the receiver's buffers anew takes longer than everything else: the same serve every session, and are all free in between. */
static struct item *items;
static uint8_t *slabs;

int __wrap_selene_receive_init(struct selene_session *s)
{
    if (!items) {
        HOLDS(__real_selene_receive_init(s) == 0);
        items = s->items;
        slabs = s->slabs;
    }
    s->items = items;
    s->slabs = slabs;
    return 0;
}

void __wrap_selene_receive_free(struct selene_session *s)
{
    for (unsigned i = 0; i < RX_SLABS; i++)
        HOLDS(s->slab_references[i] == 0);
    for (unsigned i = 0; i < 64; i++) /* the first are used first */
        HOLDS(!items[i].busy);
    s->items = NULL;
    s->slabs = NULL;
    __real_selene_receive_free(s);
}

/* What is closed twice may be somebody else's by then. */
int __wrap_close(int fd)
{
    int rc = __real_close(fd);
    HOLDS(rc == 0);
    return rc;
}

/* ---- ---- */

static int udp(struct sockaddr_in *address)
{
    socklen_t size = sizeof *address;
    *address = (struct sockaddr_in){.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    HOLDS(fd >= 0 && bind(fd, (void *)address, size) == 0 && getsockname(fd, (void *)address, &size) == 0);
    return fd;
}

static int memory(const char *name, size_t size, uint8_t **base)
{
    int fd = memfd_create(name, MFD_CLOEXEC);
    HOLDS(fd >= 0 && ftruncate(fd, (off_t)size) == 0);
    if (base) {
        *base = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        HOLDS(*base != MAP_FAILED);
    }
    return fd;
}

static void stop(void)
{
    unlink(socket_path);
}

void daemons_start(void)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    snprintf(socket_path, sizeof socket_path, "/tmp/fuzz-client-%d.sock", (int)getpid());
    snprintf(address.sun_path, sizeof address.sun_path, "%s", socket_path);
    listener = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    HOLDS(listener >= 0 && bind(listener, (void *)&address, sizeof address) == 0 && listen(listener, 8) == 0);
    atexit(stop);
    daemons.peer = udp(&daemons.peer_address);
    /* The kernel changes its code when the first socket that takes bursts comes and when the last goes: so one stays. */
    HOLDS(setsockopt(daemons.peer, IPPROTO_UDP, UDP_GRO, &(int){1}, sizeof(int)) == 0);
    daemons.tx = memory("tx", SELENE_BELL_BYTES + qos_region_size(TX_BUFFERS), NULL);
    daemons.page_fd = memory("page", SELENE_PAGE_SIZE, &daemons.page);
    daemons.rx = memory("rx", qos_region_size(RX_BUFFERS), &daemons.rx_base);
    daemons.pool = memory("pool", SELENE_BELL_BYTES + qos_region_size(4), &daemons.pool_base);
}

void daemons_send(int socket, void *packet, size_t size, uint16_t type, uint32_t request, const int *fds, int fd_count)
{
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(8 * sizeof(int))];
    } control = {0};
    struct iovec iov = {packet, size};
    struct msghdr header = {.msg_iov = &iov, .msg_iovlen = 1};
    struct selene_msg msg = {SELENE_PROTO_MAGIC, SELENE_PROTO_VERSION, type, (uint32_t)size, request};
    memcpy(packet, &msg, size < sizeof msg ? size : sizeof msg);
    if (fd_count > 0) {
        header.msg_control = &control;
        header.msg_controllen = CMSG_SPACE((size_t)fd_count * sizeof(int));
        struct cmsghdr *c = CMSG_FIRSTHDR(&header);
        c->cmsg_level = SOL_SOCKET;
        c->cmsg_type = SCM_RIGHTS;
        c->cmsg_len = CMSG_LEN((size_t)fd_count * sizeof(int));
        memcpy(CMSG_DATA(c), fds, (size_t)fd_count * sizeof(int));
    }
    (void)__real_sendmsg(socket, &header, MSG_NOSIGNAL | MSG_DONTWAIT);
}

struct selene_welcome daemons_honest_welcome(void)
{
    return (struct selene_welcome){.flags = SELENE_DIRECT, .host = HOST >> 32, .session = 1, .token = 2};
}

struct selene_dp_session daemons_honest_memory(void)
{
    return (struct selene_dp_session){.session = 1,
                                      .tx_buffers = TX_BUFFERS,
                                      .rx_buffers = RX_BUFFERS,
                                      .ring_capacity = SELENE_RING_CAPACITY,
                                      .edge_depth = SELENE_EDGE_DEPTH};
}

static void format(void)
{
    static const uint32_t rings[] = {SELENE_PAGE_TX, SELENE_PAGE_DONE, SELENE_PAGE_RX, SELENE_PAGE_RELEASE};
    for (unsigned i = 0; i < 4; i++)
        HOLDS(qos_ring_init(daemons.page + rings[i], SELENE_RING_CAPACITY) == 0);
}

void daemons_welcome(struct selene_welcome *welcome, size_t welcome_size, struct selene_dp_session *memory,
                     size_t memory_size, unsigned fds_left_out)
{
    int pair[2], bell[2];
    daemons_hang_up();
    daemons.control = accept4(listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    HOLDS(daemons.control >= 0);
    HOLDS(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) == 0);
    HOLDS(socketpair(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0, bell) == 0);
    daemons.session = pair[0];
    daemons.udp = udp(&daemons.udp_address);
    format();
    int wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    int session_fds[] = {daemons.tx, daemons.page_fd, daemons.rx, wake, bell[1], wake};
    int welcome_fds[] = {pair[1], daemons.udp, wake};
    unsigned session_count = fds_left_out >> 2 & 7, welcome_count = fds_left_out & 3;
    daemons_send(daemons.session, memory, memory_size, SELENE_D_SESSION, 0, session_fds,
                 session_count ? (int)session_count - 1 : 5);
    daemons_send(daemons.control, welcome, welcome_size, SELENE_S_WELCOME, 1, welcome_fds,
                 welcome_count ? (int)welcome_count : 2);
    close(pair[1]);
    close(bell[0]);
    close(bell[1]);
    close(wake);
    close(daemons.udp);
}

void daemons_hang_up(void)
{
    if (daemons.control >= 0)
        close(daemons.control);
    if (daemons.session >= 0)
        close(daemons.session);
    daemons.control = daemons.session = -1;
}
