/* SPDX-License-Identifier: Apache-2.0 */
#include "dp.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <unistd.h>

struct dp dp;
static int before; /* descriptors when the input began */

/* ---- One thread, and our clock (linked with --wrap) ---- */

int __wrap_pthread_create(pthread_t *, const pthread_attr_t *, void *(*)(void *), void *);
int __wrap_sem_wait(sem_t *);
uint64_t __wrap_qos_clock_monotonic_ns(void);
int __real_close(int);
int __wrap_close(int);
int __real_timerfd_settime(int, int, const struct itimerspec *, struct itimerspec *);
int __wrap_timerfd_settime(int, int, const struct itimerspec *, struct itimerspec *);
void __wrap_dp_log(const char *, const char *, ...);
void __wrap_dp_memory_prefault(const struct dp_memory *, void *, size_t, bool);

/* The data thread's rounds are run by whoever waits for it. */
int __wrap_pthread_create(pthread_t *thread, const pthread_attr_t *attr, void *(*run)(void *), void *arg)
{
    (void)attr, (void)run, (void)arg;
    *thread = pthread_self();
    return 0;
}

int __wrap_sem_wait(sem_t *sem)
{
    while (sem_trywait(sem) < 0)
        dp_data_round(&dp.data);
    return 0;
}

uint64_t __wrap_qos_clock_monotonic_ns(void)
{
    return dp.now_ns += 1000;
}

/* What is due is due at once. */
int __wrap_timerfd_settime(int fd, int flags, const struct itimerspec *value, struct itimerspec *old)
{
    struct itimerspec now = *value;
    now.it_value.tv_nsec = 1;
    return __real_timerfd_settime(fd, flags, &now, old);
}

void __wrap_dp_log(const char *level, const char *format, ...)
{
    char line[1024];
    va_list args;
    (void)level;
    va_start(args, format);
    vsnprintf(line, sizeof line, format, args);
    va_end(args);
}

/* Saves time and changes nothing. */
void __wrap_dp_memory_prefault(const struct dp_memory *memory, void *address, size_t size, bool writable)
{
    (void)memory, (void)address, (void)size, (void)writable;
}

/* What is closed twice may be somebody else's by then. */
int __wrap_close(int fd)
{
    int rc = __real_close(fd);
    HOLDS(rc == 0);
    return rc;
}

/* ---- ---- */

int dp_udp(void)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    HOLDS(fd >= 0 && bind(fd, (const void *)&address, sizeof address) == 0);
    return fd;
}

void dp_start(void)
{
    static char path[64];
    int signals[2];
    struct dp_settings settings = {.cpu = -1, .spin_us = 50};
    snprintf(path, sizeof path, "/tmp/fuzz-dp-%d.sock", (int)getpid());
    dp.now_ns = 1000000000;
    dp.controller = -1;
    dp.control.data = &dp.data;
    dp.control.path = path;
    dp.control.idle_exit_s = UINT32_MAX;
    HOLDS(pipe2(signals, O_CLOEXEC | O_NONBLOCK) == 0);
    HOLDS(dp_data_start(&dp.data, &settings) == 0 && dp_control_open(&dp.control, signals[0]) == 0);
    unlink(path);
}

void dp_begin(void)
{
    dp_greet();
    before = descriptors();
}

void dp_greet(void)
{
    struct selene_order hello = {0};
    if (dp.controller >= 0 && dp.control.controller < 0) { /* it has dropped us */
        close(dp.controller);
        dp.controller = -1;
    }
    if (dp.controller < 0) {
        int pair[2];
        HOLDS(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, pair) == 0);
        dp.controller = pair[0];
        dp.control.controller = pair[1];
        dp.control.greeted = false;
        HOLDS(dp_control_watch(&dp.control, pair[1], DP_TAG_CONTROLLER, 0) == 0);
    }
    dp_order(&hello, sizeof hello, SELENE_O_HELLO, NULL, 0, false);
}

static bool ready(int fd)
{
    struct pollfd p = {fd, POLLIN, 0};
    return poll(&p, 1, 0) > 0;
}

void dp_round(void)
{
    uint64_t one = 1;
    HOLDS(write(dp.data.command_fd, &one, sizeof one) == sizeof one); /* or it would sleep */
    dp_data_round(&dp.data);
}

void dp_settle(uint64_t ns)
{
    dp.now_ns += ns;
    (void)dp_control_forget_due(&dp.control);
    /* two rounds at least: what is left out while it spins is looked at when it has stopped */
    for (int quiet = 0, rounds = 0; quiet < 2; quiet++) {
        HOLDS(++rounds < 10000);
        dp.data.rounds = UINT32_MAX - 1;
        dp_round();
        if (ready(dp.data.epoll_fd))
            quiet = -1;
        while (ready(dp.control.epoll_fd) && !dp.control.stop) {
            dp_control_step(&dp.control);
            quiet = -1;
        }
        dp.control.stop = false;
    }
}

int dp_read(int socket, int fds[SELENE_MAX_FDS], bool keep)
{
    static struct dp_packet packet;
    if (dp_packet_receive(socket, &packet) < 0 || packet.length == 0)
        return -1;
    HOLDS(dp_packet_check(&packet) == 0);
    int n = packet.fd_count;
    if (keep)
        memcpy(fds, packet.fds, sizeof packet.fds);
    else
        dp_packet_close_fds(&packet);
    return n;
}

void dp_order(void *packet, size_t size, uint16_t type, const int *fds, int fd_count, bool raw)
{
    struct selene_msg msg = {SELENE_PROTO_MAGIC, SELENE_PROTO_VERSION, type, (uint32_t)size, 1};
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(16 * sizeof(int))];
    } control = {0};
    struct iovec iov = {packet, size};
    struct msghdr header = {.msg_iov = &iov, .msg_iovlen = 1};
    if (!raw)
        memcpy(packet, &msg, sizeof msg);
    if (fd_count > 0) {
        header.msg_control = &control;
        header.msg_controllen = CMSG_SPACE((size_t)fd_count * sizeof(int));
        struct cmsghdr *c = CMSG_FIRSTHDR(&header);
        c->cmsg_level = SOL_SOCKET;
        c->cmsg_type = SCM_RIGHTS;
        c->cmsg_len = CMSG_LEN((size_t)fd_count * sizeof(int));
        memcpy(CMSG_DATA(c), fds, (size_t)fd_count * sizeof(int));
    }
    (void)sendmsg(dp.controller, &header, MSG_NOSIGNAL | MSG_DONTWAIT);
    while (ready(dp.control.epoll_fd) && !dp.control.stop)
        dp_control_step(&dp.control);
    dp.control.stop = false;
    while (dp_read(dp.controller, NULL, false) >= 0)
        ;
}

void dp_end(void)
{
    for (unsigned i = 0; i < SELENE_MAX_SESSIONS; i++)
        if (dp.control.sessions[i] != NULL)
            dp_session_end(dp.control.sessions[i], 0, NULL);
    dp_control_end_due(&dp.control);
    dp_settle(10000000000);
    if (dp.data.net.fd >= 0) {
        epoll_ctl(dp.data.epoll_fd, EPOLL_CTL_DEL, dp.data.net.fd, NULL);
        close(dp.data.net.fd);
        dp.data.net.fd = -1;
        dp.data.readable = dp.control.listening = false;
    }
    dp_greet();
    HOLDS(dp.control.session_count == 0 && dp.control.pools == NULL && dp.control.edges.count == 0);
    HOLDS(dp.control.forgets == NULL && dp.control.forget_count == 0);
    HOLDS(dp.data.table.route_count == 0 && dp.data.table.accept_count == 0);
    HOLDS(dp.data.active_count == 0 && dp.data.wake_count == 0 && dp.data.deferred_count == 0);
    for (unsigned i = 0; i < DP_POOL_SLOTS; i++)
        HOLDS(!dp.control.memory.used[i]);
    HOLDS(descriptors() == before);
}
