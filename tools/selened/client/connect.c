/* SPDX-License-Identifier: Apache-2.0
 *
 * The control socket: connecting, packets with descriptors, the greeting.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "internal.h"

#define GREETING_MS 5000

int selene_send_packet(int fd, void *packet, uint32_t length, int type, uint32_t request, const int *fds, int fd_count)
{
    struct selene_msg *m = packet;
    *m = (struct selene_msg){SELENE_PROTO_MAGIC, SELENE_PROTO_VERSION, (uint16_t)type, length, request};
    struct iovec iov = {packet, length};
    union {
        char bytes[CMSG_SPACE(SELENE_MAX_FDS * sizeof(int))];
        size_t align;
    } control;
    struct msghdr h = {.msg_iov = &iov, .msg_iovlen = 1};
    if (fd_count > 0) {
        h.msg_control = control.bytes;
        h.msg_controllen = CMSG_SPACE((size_t)fd_count * sizeof(int));
        struct cmsghdr *c = CMSG_FIRSTHDR(&h);
        c->cmsg_level = SOL_SOCKET;
        c->cmsg_type = SCM_RIGHTS;
        c->cmsg_len = CMSG_LEN((size_t)fd_count * sizeof(int));
        memcpy(CMSG_DATA(c), fds, (size_t)fd_count * sizeof(int));
    }
    ssize_t n;
    do
        n = sendmsg(fd, &h, MSG_NOSIGNAL);
    while (n < 0 && errno == EINTR);
    return n < 0 ? -errno : 0;
}

/* One packet: its length, 0 at the end of the connection, -EAGAIN, -EPROTO (not ours), or another errno. Descriptors come with a packet
 * that is ours only; others are closed. */
ssize_t selene_receive_packet(int fd, void *packet, size_t room, int *fds, int *fd_count, int flags)
{
    union {
        char bytes[CMSG_SPACE(SELENE_MAX_FDS * sizeof(int))];
        size_t align;
    } control;
    struct iovec iov = {packet, room};
    struct msghdr h = {
        .msg_iov = &iov, .msg_iovlen = 1, .msg_control = control.bytes, .msg_controllen = sizeof control.bytes};
    *fd_count = 0;
    ssize_t n;
    do
        n = recvmsg(fd, &h, flags | MSG_CMSG_CLOEXEC);
    while (n < 0 && errno == EINTR);
    if (n < 0)
        return -errno;
    for (struct cmsghdr *c = CMSG_FIRSTHDR(&h); c; c = CMSG_NXTHDR(&h, c)) {
        if (c->cmsg_level == SOL_SOCKET && c->cmsg_type == SCM_RIGHTS) {
            *fd_count = (int)((c->cmsg_len - CMSG_LEN(0)) / sizeof(int));
            memcpy(fds, CMSG_DATA(c), (size_t)*fd_count * sizeof(int));
        }
    }
    const struct selene_msg *m = packet;
    if ((size_t)n >= sizeof *m && m->magic == SELENE_PROTO_MAGIC && m->length == (size_t)n &&
        !(h.msg_flags & (MSG_TRUNC | MSG_CTRUNC)))
        return n;
    for (int i = 0; i < *fd_count; i++)
        close(fds[i]);
    *fd_count = 0;
    return n == 0 ? 0 : -EPROTO;
}

static int dial(const char *path)
{
    struct sockaddr_un a = {.sun_family = AF_UNIX};
    if (strlen(path) >= sizeof a.sun_path)
        return selene_fail(-ENAMETOOLONG, "%s: a socket path has at most %zu bytes", path, sizeof a.sun_path - 1);
    strcpy(a.sun_path, path);
    int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return selene_fail(-errno, "socket: %s", strerror(errno));
    if (connect(fd, (struct sockaddr *)&a, sizeof a) < 0) {
        int error = errno;
        close(fd);
        if (error == EACCES)
            return selene_fail(
                -error, "%s: permission denied: become a member of the group it belongs to (ls -l shows it)", path);
        return selene_fail(-error,
                           "cannot reach selened at %s: %s. Start it with: selened --socket %s (or set SELENE_SOCKET)",
                           path, strerror(error), path);
    }
    return fd;
}

static int wait_readable(int fd)
{
    struct pollfd p = {fd, POLLIN, 0};
    int n;
    do
        n = poll(&p, 1, GREETING_MS);
    while (n < 0 && errno == EINTR);
    return n == 1 ? 0 : -ETIMEDOUT;
}

/* Say hello; take the welcome and its descriptors. */
static int greet(struct selene_session *s, int fd, struct selene_welcome *welcome, int fds[SELENE_MAX_FDS],
                 int *fd_count)
{
    struct selene_hello hello = {.pid = (uint32_t)getpid(), .session = s->id, .token = s->token};
    hello.flags = (s->options.relayed ? SELENE_RELAYED : 0u) | (s->id ? SELENE_RESUME : 0u);
    snprintf(hello.program, sizeof hello.program, "%s", s->program);
    int netns = open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC);
    /* a session that goes on shows its socket: the daemon has forgotten where it is bound */
    int shown[2] = {netns, netns >= 0 && s->id && s->memory->udp ? s->memory->udp->ops->wait_fd(s->memory->udp) : -1};
    int rc = selene_send_packet(fd, &hello, sizeof hello, SELENE_C_HELLO, 1, shown, (shown[0] >= 0) + (shown[1] >= 0));
    if (netns >= 0)
        close(netns);
    if (rc == 0 || rc == -EPIPE) /* who refuses before it has read has said why */
        rc = wait_readable(fd);
    if (rc < 0)
        return selene_fail(rc, "selened at %s does not answer: %s", s->socket_path, strerror(-rc));
    union {
        struct selene_msg msg;
        struct selene_welcome welcome;
        struct selene_error error;
    } answer;
    ssize_t n = selene_receive_packet(fd, &answer, sizeof answer, fds, fd_count, 0);
    if (n == -ECONNRESET) /* that it has closed without reading comes first, and once; then what it sent before */
        n = selene_receive_packet(fd, &answer, sizeof answer, fds, fd_count, 0);
    if (n <= 0)
        return selene_fail(n == 0 ? -ECONNRESET : (int)n, "selened at %s closed the connection: %s", s->socket_path,
                           n == 0 ? "no reason given" : strerror((int)-n));
    if (answer.msg.type == SELENE_S_ERROR && (size_t)n >= sizeof answer.error) {
        answer.error.text[SELENE_MAX_TEXT - 1] = 0;
        return selene_fail(answer.error.error > 0 ? -answer.error.error : -EPROTO, "%s", answer.error.text);
    }
    if (answer.msg.version != SELENE_PROTO_VERSION)
        return selene_fail(-EPROTONOSUPPORT,
                           "selened at %s speaks protocol version %u, this library %d: install the same version",
                           s->socket_path, answer.msg.version, SELENE_PROTO_VERSION);
    if (answer.msg.type != SELENE_S_WELCOME || (size_t)n < sizeof answer.welcome ||
        (*fd_count < 1 && !(answer.welcome.flags & SELENE_RESUME)))
        return selene_fail(-EPROTO, "selened at %s sent no welcome", s->socket_path);
    *welcome = answer.welcome;
    return 0;
}

/* Take the datapath process' part: the memory of this session. */
static struct memory *take_memory(int fd)
{
    struct selene_dp_session d;
    int fds[SELENE_MAX_FDS], fd_count;
    if (wait_readable(fd) < 0)
        return NULL;
    ssize_t n = selene_receive_packet(fd, &d, sizeof d, fds, &fd_count, 0);
    struct memory *m = NULL;
    if (n == (ssize_t)sizeof d && d.msg.type == SELENE_D_SESSION && fd_count == 5)
        m = selene_memory_map(&d, fds);
    if (!m && n > 0) {
        for (int i = 0; i < fd_count; i++)
            close(fds[i]);
    }
    return m;
}

_Static_assert(sizeof(struct selene_fault_counters) == sizeof(struct qos_fault_counters), "the same counters");

/* The network is a bad one on purpose, if the daemon's configuration says so. */
static int take_faults(struct memory *m, char text[SELENE_MAX_FAULT])
{
    struct qos_fault fault;
    char problem[SELENE_MAX_TEXT];
    m->net = m->udp;
    text[SELENE_MAX_FAULT - 1] = 0;
    if (text[0] == 0)
        return 0;
    int rc = qos_fault_parse(&fault, text, problem, sizeof problem);
    return rc < 0 ? rc : qos_fault_open(&m->net, m->udp, &fault, (struct qos_fault_counters *)&m->page->fault);
}

/* Connect, or come back. After a restart of selened alone the session socket and the memory stay as they are. session->lock is not
 * held; only the service thread, or the thread that makes the session, calls this. */
int selene_connect(struct selene_session *s)
{
    int fds[SELENE_MAX_FDS], fd_count = 0;
    int fd = dial(s->socket_path);
    if (fd < 0)
        return fd;
    struct selene_welcome w = {0};
    int rc = greet(s, fd, &w, fds, &fd_count);
    if (rc < 0) {
        for (int i = 0; i < fd_count; i++)
            close(fds[i]);
        close(fd);
        return rc;
    }
    if (s->session_fd >= 0 && w.session == s->id) {
        /* resumed: the descriptors that came are not needed */
        for (int i = 0; i < fd_count; i++)
            close(fds[i]);
        s->control_fd = fd;
        return 0;
    }
    struct memory *m = fd_count > 0 ? take_memory(fds[0]) : NULL;
    if (m && fd_count >= 2 && (w.flags & SELENE_DIRECT))
        rc = qos_udp_open(&m->udp, fds[1]);
    if (m && m->udp) {
        fds[1] = -1; /* it is the memory's now */
        rc = take_faults(m, w.fault);
    }
    if (m && m->udp && (m->udp->capabilities & QOS_CAP_COALESCED_RX))
        (void)qos_udp_coalesce(m->udp, 0); /* until there is a flood */
    if (!m || rc < 0) {
        for (int i = 0; i < fd_count; i++)
            if (fds[i] >= 0)
                close(fds[i]);
        close(fd);
        selene_memory_drop(m);
        return selene_fail(rc < 0 ? rc : -EIO, "selened-dp gave this session no memory: see the log of selened");
    }
    for (int i = 1; i < fd_count; i++)
        if (fds[i] >= 0)
            close(fds[i]); /* what this session has no use for */
    if (s->session_fd >= 0)
        close(s->session_fd);
    selene_receiver_take(s);
    pthread_mutex_lock(&s->lock);
    pthread_mutex_lock(&s->remote_lock);
    s->control_fd = fd;
    s->session_fd = fds[0];
    s->id = w.session;
    s->token = w.token;
    s->host = w.host;
    s->direct = m->udp != NULL;
    s->paired = s->coalescing = false;
    struct selene_counters *counters = (struct selene_counters *)((uint8_t *)m->page + SELENE_PAGE_COUNTERS);
    if (s->counters)
        *counters = *s->counters;
    s->counters = counters;
    struct memory *old = s->memory;
    s->memory = m;
    pthread_mutex_unlock(&s->remote_lock);
    pthread_mutex_unlock(&s->lock);
    selene_receiver_leave(s);
    selene_memory_drop(s->retired);
    s->retired = old;
    return 0;
}
