/* SPDX-License-Identifier: Apache-2.0 */
#include "listener.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>

#include "clock.h"
#include "compiler.h"
#include "packet.h"
#include "sequence.h"
#include "stamps.h"

#define BURST 32
#define CONTROL_BYTES 256
#define NS_PER_S 1000000000ull

struct stream {
    struct qos_listen listen;
    struct qos_listen_counters counters;
    struct qos_sequence sequence;
    uint64_t arrived_ns; /* of the packet before: TAI, as stamped */
    uint64_t arrived;    /* its number */
    uint64_t heard_ns;   /* monotonic, when we took it; 0: none has come */
    bool silent;
};

struct qos_listener {
    struct qos_events *events;
    pthread_mutex_t lock;
    _Atomic uint32_t stop;
    uint32_t streams, sockets;
    struct stream stream[QOS_LISTENER_STREAMS_MAX];
    struct pollfd socket[QOS_LISTENER_SOCKETS_MAX];
    struct qos_listen_strangers strangers;
    uint64_t now_ns;    /* monotonic, of this round */
    uint64_t heard_ns;  /* of any stream; at first the beginning */
    uint64_t offset_ns; /* TAI minus Unix time */
    uint64_t offset_at_ns;
    uint8_t data[BURST][QOS_PACKET_SIZE];
    _Alignas(struct cmsghdr) char control[BURST][CONTROL_BYTES];
};

struct qos_listener *qos_listener_new(struct qos_events *events)
{
    struct qos_listener *listener = calloc(1, sizeof *listener);
    if (listener == NULL)
        return NULL;
    listener->events = events;
    /* as in talker.c */
    pthread_mutexattr_t inherit;
    pthread_mutexattr_init(&inherit);
    pthread_mutexattr_setprotocol(&inherit, PTHREAD_PRIO_INHERIT);
    pthread_mutex_init(&listener->lock, &inherit);
    pthread_mutexattr_destroy(&inherit);
    return listener;
}

void qos_listener_free(struct qos_listener *listener)
{
    pthread_mutex_destroy(&listener->lock);
    free(listener);
}

int qos_listener_add_stream(struct qos_listener *listener, const struct qos_listen *listen)
{
    if (listener->streams == QOS_LISTENER_STREAMS_MAX)
        return -ENOSPC;
    if (listen->period_ns == 0)
        return -EINVAL;
    listener->stream[listener->streams].listen = *listen;
    return (int)listener->streams++;
}

int qos_listener_add_socket(struct qos_listener *listener, int fd)
{
    if (listener->sockets == QOS_LISTENER_SOCKETS_MAX)
        return -ENOSPC;
    listener->socket[listener->sockets++] = (struct pollfd){.fd = fd, .events = POLLIN};
    return 0;
}

void qos_listener_counters(struct qos_listener *listener, uint32_t index, struct qos_listen_counters *counters)
{
    const struct stream *s = &listener->stream[index];
    pthread_mutex_lock(&listener->lock);
    *counters = s->counters;
    counters->lost = s->sequence.lost;
    counters->first = s->sequence.first;
    counters->newest = s->sequence.newest;
    if (s->sequence.started)
        counters->accounted = s->sequence.before + s->sequence.newest - s->sequence.first + 1;
    pthread_mutex_unlock(&listener->lock);
}

void qos_listener_strangers(struct qos_listener *listener, struct qos_listen_strangers *strangers)
{
    pthread_mutex_lock(&listener->lock);
    *strangers = listener->strangers;
    pthread_mutex_unlock(&listener->lock);
}

void qos_listener_stop(struct qos_listener *listener)
{
    qos_store_relaxed(&listener->stop, 1);
}

/* ---- One packet ------------------------------------------------------------------------------------------------- */

static struct stream *find(struct qos_listener *listener, uint32_t number)
{
    for (uint32_t i = 0; i < listener->streams; i++)
        if (listener->stream[i].listen.stream == number)
            return &listener->stream[i];
    return NULL;
}

static void put(struct qos_listener *listener, const struct stream *s, enum qos_event_kind kind, uint64_t count,
                struct qos_event event)
{
    event.kind = (uint8_t)kind;
    event.stream = (uint16_t)(s - listener->stream);
    event.count = count;
    qos_events_put(listener->events, &event, kind != QOS_EVENT_SAMPLE);
}

/* Windows that have ended since the packet's own began: 0 is in time. */
static uint64_t windows_late(struct stream *s, uint64_t launch_ns, uint64_t at_ns)
{
    const struct qos_listen *listen = &s->listen;
    uint64_t begin = launch_ns;
    if (launch_ns >= listen->base_ns) /* never, if there is none */
        begin -= (launch_ns - listen->base_ns) % listen->period_ns;
    if (at_ns < begin) {
        s->counters.early++;
        return 0;
    }
    uint64_t since = at_ns - begin;
    if (since <= listen->deadline_ns) {
        s->counters.on_time++;
        return 0;
    }
    uint64_t late = (since - listen->deadline_ns - 1) / listen->period_ns + 1;
    s->counters.late++;
    s->counters.late_by[late < QOS_LISTENER_LATE_MAX ? late - 1 : QOS_LISTENER_LATE_MAX - 1]++;
    return late;
}

/* A packet that counts. `event` has number and instants. */
static void received(struct qos_listener *listener, struct stream *s, struct qos_event event, bool launched)
{
    s->counters.received++;
    s->counters.stamped[event.stamp]++;
    /* From the launch time where the kernel was given it, else from the call that sent it. */
    event.latency_ns = (int64_t)event.at_ns - (int64_t)(launched ? event.launch_ns : event.send_ns);
    event.jitter_ns = INT64_MIN;
    if (s->counters.received > 1 && event.sequence == s->arrived + 1)
        event.jitter_ns = (int64_t)event.at_ns - (int64_t)s->arrived_ns - (int64_t)s->listen.period_ns;
    s->arrived_ns = event.at_ns;
    s->arrived = event.sequence;
    uint64_t late = windows_late(s, event.launch_ns, event.at_ns);
    put(listener, s, QOS_EVENT_SAMPLE, late, event);
    if (late != 0)
        put(listener, s, QOS_EVENT_LATE, late, event);
}

static void heard(struct qos_listener *listener, struct stream *s, struct qos_event event)
{
    if (s->silent)
        put(listener, s, QOS_EVENT_RESUMED, listener->now_ns - s->heard_ns, event);
    s->silent = false;
    s->heard_ns = listener->heard_ns = listener->now_ns;
}

static void take(struct qos_listener *listener, const uint8_t *data, uint64_t size, struct qos_event event)
{
    struct qos_packet packet;
    int rc = qos_packet_decode(data, size, &packet);
    struct stream *s = rc == 0 ? find(listener, packet.stream) : NULL;
    if (s == NULL) {
        listener->strangers.too_short += rc == -EMSGSIZE;
        listener->strangers.foreign += rc == -EPROTO;
        listener->strangers.version += rc == -EPROTONOSUPPORT;
        listener->strangers.stream += rc == 0;
        return;
    }
    event.sequence = packet.sequence;
    event.launch_ns = packet.launch_ns;
    event.send_ns = packet.send_ns;
    struct qos_event missing = event;
    uint64_t gap;
    switch (qos_sequence_take(&s->sequence, packet.sequence, packet.launch_ns, s->listen.period_ns, &gap)) {
    case QOS_SEQUENCE_REFUSED:
        s->counters.refused++;
        return;
    case QOS_SEQUENCE_DUPLICATED:
        s->counters.duplicated++;
        put(listener, s, QOS_EVENT_DUPLICATED, 1, event);
        return;
    case QOS_SEQUENCE_REORDERED:
        s->counters.reordered++;
        put(listener, s, QOS_EVENT_REORDERED, 1, event);
        break;
    case QOS_SEQUENCE_RESTARTED:
        s->counters.restarted++;
        put(listener, s, QOS_EVENT_RESTARTED, 1, event);
        break;
    case QOS_SEQUENCE_AHEAD:
        missing.sequence -= gap;
        if (gap != 0)
            put(listener, s, QOS_EVENT_LOST, gap, missing);
        break;
    }
    heard(listener, s, event);
    received(listener, s, event, packet.flags & QOS_PACKET_LAUNCH);
}

/* ---- The loop ---------------------------------------------------------------------------------------------------- */

/* What waits at a socket, at most a burst. */
static void receive(struct qos_listener *listener, int fd)
{
    struct mmsghdr messages[BURST];
    struct iovec parts[BURST];
    for (int i = 0; i < BURST; i++) {
        parts[i] = (struct iovec){listener->data[i], sizeof listener->data[i]};
        messages[i].msg_hdr = (struct msghdr){.msg_iov = &parts[i],
                                              .msg_iovlen = 1,
                                              .msg_control = listener->control[i],
                                              .msg_controllen = sizeof listener->control[i]};
    }
    /* MSG_TRUNC: the length that it really has */
    int count = recvmmsg(fd, messages, BURST, MSG_DONTWAIT | MSG_TRUNC, NULL);
    for (int i = 0; i < count; i++) {
        struct qos_event event = {0};
        event.stamp = qos_stamps_read(&messages[i].msg_hdr, listener->offset_ns, &event.at_ns);
        if (event.stamp == QOS_STAMP_USER)
            event.at_ns = qos_clock_tai_ns();
        take(listener, listener->data[i], messages[i].msg_len, event);
    }
}

/* Whether its silence would be news. */
static bool is_watched(const struct stream *s)
{
    return !s->silent && s->heard_ns != 0 && s->listen.silence != 0 && s->sequence.newest < s->listen.last;
}

/* Says which streams have been silent for too long. */
static void watch(struct qos_listener *listener)
{
    for (uint32_t i = 0; i < listener->streams; i++) {
        struct stream *s = &listener->stream[i];
        if (!is_watched(s) || listener->now_ns - s->heard_ns < s->listen.silence * s->listen.period_ns)
            continue;
        s->silent = true;
        s->counters.silent++;
        struct qos_event event = {.sequence = s->sequence.newest + 1, .at_ns = qos_clock_tai_ns()};
        put(listener, s, QOS_EVENT_SILENT, s->listen.silence, event);
    }
}

/* How long the loop may sleep: until a stream has been silent for too long, and never longer than a slice. */
static struct timespec patience(const struct qos_listener *listener)
{
    uint64_t most = QOS_LISTENER_SLICE_NS;
    for (uint32_t i = 0; i < listener->streams; i++) {
        const struct stream *s = &listener->stream[i];
        if (!is_watched(s))
            continue;
        uint64_t since = listener->now_ns - s->heard_ns, limit = s->listen.silence * s->listen.period_ns;
        uint64_t left = limit > since ? limit - since : 0;
        most = left < most ? left : most;
    }
    return (struct timespec){.tv_nsec = (long)most};
}

static bool is_done(const struct qos_listener *listener)
{
    for (uint32_t i = 0; i < listener->streams; i++)
        if (!listener->stream[i].sequence.started ||
            listener->stream[i].sequence.newest < listener->stream[i].listen.last)
            return false;
    return true;
}

static void tick(struct qos_listener *listener)
{
    listener->now_ns = qos_clock_monotonic_ns();
    if (listener->now_ns - listener->offset_at_ns >= NS_PER_S) {
        listener->offset_ns = qos_stamps_offset();
        listener->offset_at_ns = listener->now_ns;
    }
}

int qos_listener_run(struct qos_listener *listener, uint64_t timeout_ns)
{
    tick(listener);
    listener->heard_ns = listener->now_ns;
    while (!qos_load_relaxed(&listener->stop)) {
        struct timespec most = patience(listener);
        int ready = ppoll(listener->socket, listener->sockets, &most, NULL);
        if (ready < 0 && errno != EINTR)
            return -errno;
        pthread_mutex_lock(&listener->lock);
        tick(listener);
        for (uint32_t i = 0; ready > 0 && i < listener->sockets; i++)
            if (listener->socket[i].revents != 0)
                receive(listener, listener->socket[i].fd);
        watch(listener);
        bool done = is_done(listener);
        pthread_mutex_unlock(&listener->lock);
        if (done)
            return 0;
        if (timeout_ns != 0 && listener->now_ns - listener->heard_ns >= timeout_ns)
            return -ETIME;
    }
    return 0;
}
