/* SPDX-License-Identifier: Apache-2.0 */
#include "control.h"

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/random.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "clock.h"
#include "log.h"

int dp_control_watch(const struct dp_control *c, int fd, enum dp_tag tag, uint32_t slot)
{
    /* nothing can come from a client (dp_session_create), so of its socket only the end is of interest */
    struct epoll_event event = {.events = tag == DP_TAG_SESSION ? 0 : EPOLLIN | EPOLLRDHUP,
                                .data = {.u64 = (uint64_t)tag << 32 | slot}};
    return epoll_ctl(c->epoll_fd, EPOLL_CTL_ADD, fd, &event) < 0 ? -errno : 0;
}

/* ---- The order socket ---- */

static int make_address(const char *path, struct sockaddr_un *address)
{
    *address = (struct sockaddr_un){.sun_family = AF_UNIX};
    if (strlen(path) >= sizeof address->sun_path)
        return -ENAMETOOLONG;
    strcpy(address->sun_path, path);
    return 0;
}

/* Does somebody answer there? */
static bool answers(const struct sockaddr_un *address)
{
    int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0)
        return true;
    bool alive = connect(fd, (const void *)address, sizeof *address) == 0 || errno != ECONNREFUSED;
    close(fd);
    return alive;
}

static int bind_socket(const char *path)
{
    struct sockaddr_un address;
    int rc = make_address(path, &address);
    if (rc < 0)
        return rc;
    int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0)
        return -errno;
    mode_t mask = umask(0177);
    rc = bind(fd, (const void *)&address, sizeof address);
    if (rc < 0 && errno == EADDRINUSE && !answers(&address)) {
        /* left by one that was killed */
        unlink(path);
        rc = bind(fd, (const void *)&address, sizeof address);
    }
    int error = errno;
    umask(mask);
    if (rc < 0 || listen(fd, 8) < 0) {
        error = rc < 0 ? error : errno;
        close(fd);
        return -error;
    }
    return fd;
}

/* Remove our own file, not that of a successor. */
static void unlink_socket(const struct dp_control *c)
{
    struct sockaddr_un mine;
    socklen_t size = sizeof mine;
    if (getsockname(c->listen_fd, (void *)&mine, &size) < 0)
        return;
    close(c->listen_fd);
    if (!answers(&mine))
        unlink(c->path);
}

/* ---- The controller ---- */

static void drop_controller(struct dp_control *c)
{
    if (c->controller < 0)
        return;
    epoll_ctl(c->epoll_fd, EPOLL_CTL_DEL, c->controller, NULL);
    close(c->controller);
    c->controller = -1;
    c->greeted = false;
    c->idle_since_ns = qos_clock_monotonic_ns();
    dp_log("info", "controller gone; %u sessions go on", c->session_count);
}

static bool controller_dead(const struct dp_control *c)
{
    struct pollfd p = {c->controller, POLLIN | POLLRDHUP, 0};
    return poll(&p, 1, 0) == 1 && (p.revents & (POLLHUP | POLLRDHUP | POLLERR)) != 0;
}

static void accept_controller(struct dp_control *c)
{
    int fd = accept4(c->listen_fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (fd < 0)
        return;
    struct ucred peer = {0};
    socklen_t size = sizeof peer;
    if (c->controller >= 0 && controller_dead(c))
        drop_controller(c);
    int error = 0;
    const char *why = "";
    if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &size) < 0 || (peer.uid != geteuid() && peer.uid != 0)) {
        error = EACCES;
        why = "only the user of this process, and root";
    } else if (c->controller >= 0) {
        error = EBUSY;
        why = "another controller is connected";
    } else if (dp_control_watch(c, fd, DP_TAG_CONTROLLER, 0) < 0) {
        error = ENOMEM;
        why = "no memory";
    }
    if (error != 0) {
        dp_packet_send_error(fd, 0, error, "%s", why);
        dp_log("warning", "refused a controller of user %u, process %d: %s", peer.uid, peer.pid, why);
        close(fd);
        return;
    }
    c->controller = fd;
    c->greeted = false;
}

static void controller_event(struct dp_control *c)
{
    int rc = dp_packet_receive(c->controller, &c->packet);
    if (rc == -EAGAIN)
        return;
    if (rc == -EMSGSIZE)
        dp_packet_send_error(c->controller, 0, EMSGSIZE, "a packet or its descriptors are too many");
    bool packet = rc == 0 && c->packet.length > 0;
    if (packet)
        rc = dp_control_order(c);
    dp_packet_close_fds(&c->packet); /* also those of an empty packet */
    if (packet && rc == 0)
        return;
    if (packet)
        dp_log("warning", "controller dropped: %s", rc == -EPROTO ? "it sent what is no order" : strerror(-rc));
    drop_controller(c);
}

/* ---- The loop ---- */

static void take_notices(struct dp_control *c)
{
    for (uint64_t id; (id = dp_data_notice(c->data)) != 0;) {
        struct dp_session *s = dp_control_find(c, id);
        if (s != NULL)
            dp_session_end(s, s->cut_error, s->cut_text);
    }
}

static void take_signal(struct dp_control *c)
{
    struct signalfd_siginfo info;
    if (read(c->signal_fd, &info, sizeof info) == (ssize_t)sizeof info)
        c->stop = true;
}

/* Milliseconds epoll may sleep. Notices that nobody needs this process any more. */
static int next_timeout(struct dp_control *c)
{
    int timeout = dp_control_forget_due(c);
    if (c->controller >= 0 || c->session_count > 0)
        return timeout;
    uint64_t end = c->idle_since_ns + c->idle_exit_s * (uint64_t)1000000000, now = qos_clock_monotonic_ns();
    if (now >= end) {
        dp_log("info", "no controller and no sessions for %u s", c->idle_exit_s);
        c->stop = true;
        return 0;
    }
    int idle = (int)((end - now) / 1000000 + 1);
    return timeout >= 0 && timeout < idle ? timeout : idle;
}

void dp_control_step(struct dp_control *c)
{
    /* one event at a time: what it does may close the descriptor of the next */
    struct epoll_event event;
    int n = epoll_wait(c->epoll_fd, &event, 1, next_timeout(c));
    if (n <= 0 || c->stop)
        return;
    c->edges.patience_ms = DP_EDGE_PATIENCE_MS;
    switch ((enum dp_tag)(event.data.u64 >> 32)) {
    case DP_TAG_LISTEN:
        accept_controller(c);
        break;
    case DP_TAG_SIGNAL:
        take_signal(c);
        break;
    case DP_TAG_NOTICE:
        take_notices(c);
        break;
    case DP_TAG_CONTROLLER:
        controller_event(c);
        break;
    case DP_TAG_SESSION:
        dp_control_session_event(c, (uint32_t)event.data.u64);
        break;
    }
    dp_control_end_due(c);
}

void dp_control_run(struct dp_control *c)
{
    c->idle_since_ns = qos_clock_monotonic_ns();
    while (!c->stop)
        dp_control_step(c);
}

int dp_control_open(struct dp_control *c, int signal_fd)
{
    c->controller = -1;
    c->signal_fd = signal_fd;
    while (c->host == 0)
        if (getrandom(&c->host, sizeof c->host, 0) != (ssize_t)sizeof c->host)
            c->host = 0;
    int rc = c->listen_fd = bind_socket(c->path);
    if (rc < 0) {
        dp_log("error", "%s: %s", c->path, rc == -EADDRINUSE ? "another datapath process serves it" : strerror(-rc));
        return rc;
    }
    c->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    rc = c->epoll_fd < 0 ? -errno : dp_memory_reserve(&c->memory);
    if (rc == 0)
        rc = dp_control_watch(c, c->listen_fd, DP_TAG_LISTEN, 0);
    if (rc == 0)
        rc = dp_control_watch(c, c->signal_fd, DP_TAG_SIGNAL, 0);
    if (rc == 0)
        rc = dp_control_watch(c, c->data->notice_fd, DP_TAG_NOTICE, 0);
    if (rc < 0)
        dp_log("error", "start: %s", strerror(-rc));
    return rc;
}

void dp_control_close(struct dp_control *c)
{
    for (unsigned i = 0; i < SELENE_MAX_SESSIONS; i++)
        if (c->sessions[i] != NULL)
            dp_session_end(c->sessions[i], 0, NULL);
    dp_control_end_due(c);
    drop_controller(c);
    unlink_socket(c);
    close(c->epoll_fd);
    dp_memory_release(&c->memory);
}
