/* SPDX-License-Identifier: Apache-2.0
 *
 * The library's own thread, one per session: reads the daemons' sockets, comes back after a restart, sends batches that nobody else
 * closed in time, and finishes closed sources.
 */
#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "internal.h"

#define BACKOFF_MIN_NS 20000000u
#define BACKOFF_MAX_NS 1000000000u
#define CLOSING_NS 20000000u /* how often closed sources are looked at */
#define CALIBRATE_NS 100000000u
#define IDLE_NS 1000000000u
#define NAPS_PER_LOOK 32

void selene_kick(struct selene_session *s)
{
    uint64_t one = 1;
    ssize_t ignored = write(s->kick_fd, &one, sizeof one);
    (void)ignored; /* full: it is awake anyway */
}

/* Read one socket dry. session->lock is held, so that announcements are applied in the order they were sent. 0, or a negative errno when
 * the connection is over. */
static int drain(struct selene_session *s, int fd, bool control)
{
    static _Thread_local union {
        struct selene_msg msg;
        _Alignas(8) uint8_t bytes[SELENE_MAX_PACKET]; /* other packets have fields of 64 bits */
    } packet;
    for (;;) {
        int fds[SELENE_MAX_FDS], fd_count;
        ssize_t n = selene_receive_packet(fd, &packet, sizeof packet, fds, &fd_count, MSG_DONTWAIT);
        if (n == -EAGAIN)
            return 0;
        if (n <= 0)
            return n == 0 ? -ECONNRESET : (int)n;
        int rc;
        if (control) {
            for (int i = 0; i < fd_count; i++)
                close(fds[i]);
            rc = selene_handle_control(s, &packet, (size_t)n);
        } else {
            rc = selene_handle_session(s, &packet, (size_t)n, fds, fd_count);
        }
        if (rc == -EPROTO)
            return rc;
    }
}

/* selened is gone: traffic goes on, requests fail until it is back. */
static void lose_control(struct selene_session *s)
{
    close(s->control_fd);
    s->control_fd = -1;
    qos_store_release(&s->connected, false);
    s->backoff_ns = BACKOFF_MIN_NS;
    s->retry_ns = qos_clock_monotonic_ns() + s->backoff_ns;
    pthread_cond_broadcast(&s->cond);
}

/* selened-dp is gone, and with it every ring and buffer. */
static void lose_datapath(struct selene_session *s)
{
    if (s->control_fd >= 0)
        lose_control(s);
    close(s->session_fd);
    s->session_fd = -1;
    s->id = s->token = 0;
    selene_edges_gone(s);
}

void selene_sync_control(struct selene_session *s)
{
    pthread_mutex_lock(&s->lock);
    if (s->session_fd >= 0 && drain(s, s->session_fd, false) < 0)
        lose_datapath(s);
    if (s->control_fd >= 0 && drain(s, s->control_fd, true) < 0)
        lose_control(s);
    pthread_mutex_unlock(&s->lock);
}

/* Ask for the id it had; the daemon may give another. */
static void renew(struct endpoint *e, bool fresh)
{
    if (fresh) {
        qos_store_relaxed(&e->named, false);
        e->edges_seen = 0;
    }
}

/* After a reconnection: say again what this session has, sinks first: for them sources wait. A refusal is reported on the next use of the endpoint, not here. */
static void redeclare(struct selene_session *s, bool fresh)
{
    for (struct selene_stream *x = s->streams; x; x = x->next)
        (void)selene_declare_stream(x);
    for (struct selene_sink *x = s->sinks; x; x = x->next) {
        renew(&x->endpoint, fresh); /* what it knows of remote sources stays: gaps in their sequences are losses */
        (void)selene_declare_endpoint(x->stream, &x->endpoint, SELENE_C_SINK, x->event_fd);
    }
    for (struct selene_source *x = s->sources; x; x = x->next) {
        renew(&x->endpoint, fresh);
        (void)selene_declare_endpoint(x->stream, &x->endpoint, SELENE_C_SOURCE, -1);
    }
    struct selene_msg done;
    if (!fresh && s->control_fd >= 0)
        (void)selene_send_packet(s->control_fd, &done, sizeof done, SELENE_C_RESTORED, 0, NULL, 0);
}

static void reconnect(struct selene_session *s)
{
    uint64_t before = s->id;
    if (selene_connect(s) < 0) {
        s->backoff_ns = s->backoff_ns * 2 < BACKOFF_MAX_NS ? s->backoff_ns * 2 : BACKOFF_MAX_NS;
        s->retry_ns = qos_clock_monotonic_ns() + s->backoff_ns;
        return;
    }
    bool fresh = s->id != before;
    if (fresh) {
        pthread_mutex_lock(&s->lock);
        selene_edges_gone(s); /* of a session that could not go on */
        for (struct selene_source *x = s->sources; x; x = x->next) {
            x->new_memory = true;
            qos_store_release(&x->changed, true);
        }
        for (struct selene_sink *x = s->sinks; x; x = x->next)
            qos_store_release(&x->changed, true);
        pthread_mutex_unlock(&s->lock);
    }
    redeclare(s, fresh);
    qos_store_release(&s->connected, s->control_fd >= 0);
}

/* Sources that the application closed stay until their sinks have given everything back. */
static void finish_closing(struct selene_session *s)
{
    for (;;) {
        pthread_mutex_lock(&s->lock);
        struct selene_source **at = &s->closing;
        while (*at && !selene_source_finish(*at))
            at = &(*at)->next;
        struct selene_source *done = *at;
        if (done)
            *at = done->next;
        pthread_mutex_unlock(&s->lock);
        if (!done)
            return;
        (void)selene_withdraw(s, done->endpoint.id, 1);
        selene_source_free(done);
    }
}

/* Whether there is a source in one of the session's lists. */
static bool any(struct selene_session *s, struct selene_source *const *list)
{
    pthread_mutex_lock(&s->lock);
    bool found = *list != NULL;
    pthread_mutex_unlock(&s->lock);
    return found;
}

/* When to look at batches again. To wake every 20 us can take a third of a processor, for nothing while sources close their batches by
 * themselves; the last batch of a flood may be late by a 16th of the time the flood has lasted. */
static uint64_t next_look(struct selene_session *s, uint64_t due)
{
    uint64_t now = qos_clock_stamp_ns();
    if (due == UINT64_MAX && now - qos_load_relaxed(&s->last_batch_ns) > 2 * BATCH_TIMER_NS)
        qos_store_relaxed(&s->flood_since_ns, now); /* there is none any more */
    uint64_t late = (now - qos_load_relaxed(&s->flood_since_ns)) / 16;
    late = late < BATCH_LATE_NS ? late : BATCH_LATE_NS;
    due = due < BATCH_TIMER_NS ? due : BATCH_TIMER_NS;
    return due > late ? due : late;
}

/* How long to sleep: while batches come and go until the oldest is due, else until something else is. */
static uint64_t next_due(struct selene_session *s, uint64_t now)
{
    if (qos_load_relaxed(&s->timer_awake)) {
        uint64_t due = selene_flush_session(s, false);
        if (due != UINT64_MAX || qos_clock_stamp_ns() - qos_load_relaxed(&s->last_batch_ns) < BATCH_LINGER_NS)
            return next_look(s, due);
        qos_store_relaxed(&s->timer_awake, 0);
        /* pairs with the fence in transmit.c's batch_open: either it sees that we sleep, or we see its batch */
        qos_fence_seq_cst();
        if (qos_load_acquire(&s->open_batches)) {
            qos_store_relaxed(&s->timer_awake, 1);
            return BATCH_TIMER_NS;
        }
    }
    if (s->control_fd < 0)
        return s->retry_ns > now ? s->retry_ns - now : 0;
    if (any(s, &s->closing))
        return CLOSING_NS;
    return any(s, &s->sources) ? CALIBRATE_NS : IDLE_NS;
}

/* What edges have dropped for their sinks stands in the edges, where no report finds it. */
static void count_edges(struct selene_session *s)
{
    pthread_mutex_lock(&s->lock);
    for (struct selene_sink *x = s->sinks; x; x = x->next)
        selene_sink_count_edges(x);
    pthread_mutex_unlock(&s->lock);
}

void *selene_service(void *arg)
{
    struct selene_session *s = arg;
    uint64_t closing_due = 0, calibrate_due = 0, count_due = 0, naps = 0;
    (void)prctl(PR_SET_NAME, "selene-service");
    (void)prctl(PR_SET_TIMERSLACK, 1);
    while (!qos_load_acquire(&s->stop)) {
        uint64_t now = qos_clock_monotonic_ns(), sleep = next_due(s, now);
        struct timespec ts = {(time_t)(sleep / 1000000000u), (long)(sleep % 1000000000u)};
        if (sleep <= BATCH_TIMER_NS && ++naps % NAPS_PER_LOOK) {
            /* between batches only the clock matters; the sockets are looked at once a millisecond or so */
            (void)nanosleep(&ts, NULL);
            continue;
        }
        struct pollfd p[3] = {{s->kick_fd, POLLIN, 0}, {s->control_fd, POLLIN, 0}, {s->session_fd, POLLIN, 0}};
        int n = ppoll(p, 3, &ts, NULL);
        if (n > 0 && p[0].revents) {
            uint64_t drop;
            ssize_t ignored = read(s->kick_fd, &drop, sizeof drop);
            (void)ignored;
        }
        if (n > 0 && (p[1].revents || p[2].revents))
            selene_sync_control(s);
        now = qos_clock_monotonic_ns();
        if (now >= calibrate_due && any(s, &s->sources)) {
            calibrate_due = now + CALIBRATE_NS * 9 / 10;
            qos_clock_stamp_calibrate();
        }
        if (now >= count_due) {
            count_due = now + CALIBRATE_NS * 9 / 10;
            count_edges(s);
        }
        uint64_t pair_due = qos_load_relaxed(&s->pair_due_ns);
        if (pair_due && now >= pair_due) {
            pthread_mutex_lock(&s->remote_lock);
            selene_pair(s);
            pthread_mutex_unlock(&s->remote_lock);
        }
        if (s->control_fd < 0 && s->options.reconnect && now >= s->retry_ns)
            reconnect(s);
        else if (s->control_fd < 0 && now >= s->retry_ns)
            s->retry_ns = now + BACKOFF_MAX_NS;
        if (now >= closing_due && any(s, &s->closing)) {
            closing_due = now + CLOSING_NS;
            finish_closing(s);
        }
    }
    return NULL;
}
