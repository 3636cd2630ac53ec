/* SPDX-License-Identifier: Apache-2.0 */
#include "talker.h"

#include <errno.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>

#include "clock.h"
#include "compiler.h"
#include "errorqueue.h"
#include "hist.h"
#include "wait.h"

#define DRAIN_MAX 64       /* entries of an error queue at a time: they must not keep others from being sent */
#define LINGER_NS 20000000 /* after the last launch time: what was missed comes back at once */

struct stream {
    struct qos_talk talk;
    struct qos_talk_counters counters;
    struct qos_hist *lateness;
    uint8_t *packet; /* prefix and payload */
    uint64_t period; /* number of the next one since base_ns */
    uint64_t sequence;
    bool sends;
};

struct qos_talker {
    struct qos_events *events;
    uint64_t spin_ns;
    uint64_t last_ns; /* latest instant that was used */
    pthread_mutex_t lock;
    _Atomic uint32_t stop;
    _Atomic uint32_t orders; /* how many have come: the word that a loop far from the next packet sleeps on */
    uint32_t streams;
    struct stream stream[QOS_TALKER_STREAMS_MAX];
    uint8_t room[QOS_ERRORQUEUE_ROOM];
};

struct qos_talker *qos_talker_new(struct qos_events *events, uint64_t spin_ns)
{
    struct qos_talker *talker = calloc(1, sizeof *talker);
    if (talker == NULL)
        return NULL;
    talker->events = events;
    talker->spin_ns = spin_ns;
    /* A real-time loop that waits for Python's thread lends it its priority. */
    pthread_mutexattr_t inherit;
    pthread_mutexattr_init(&inherit);
    pthread_mutexattr_setprotocol(&inherit, PTHREAD_PRIO_INHERIT);
    pthread_mutex_init(&talker->lock, &inherit);
    pthread_mutexattr_destroy(&inherit);
    return talker;
}

void qos_talker_free(struct qos_talker *talker)
{
    for (uint32_t i = 0; i < talker->streams; i++)
        free(talker->stream[i].packet);
    pthread_mutex_destroy(&talker->lock);
    free(talker);
}

int qos_talker_add(struct qos_talker *talker, void *lateness)
{
    if (talker->streams == QOS_TALKER_STREAMS_MAX)
        return -ENOSPC;
    struct stream *s = &talker->stream[talker->streams];
    s->packet = calloc(1, QOS_TALKER_PREFIX_MAX + QOS_TALKER_PAYLOAD_MAX);
    if (s->packet == NULL)
        return -ENOMEM;
    s->lateness = lateness;
    return (int)talker->streams++;
}

/* Wake the loop, which sleeps for longer than an order may wait. */
static void order(struct qos_talker *talker)
{
    qos_add_relaxed(&talker->orders, 1);
    qos_futex_wake(&talker->orders, 1);
}

int qos_talker_start(struct qos_talker *talker, uint32_t index, const struct qos_talk *talk)
{
    if (talk->period_ns == 0 || talk->payload_bytes < QOS_PACKET_SIZE || talk->payload_bytes > QOS_TALKER_PAYLOAD_MAX ||
        talk->prefix_bytes > QOS_TALKER_PREFIX_MAX || talk->address_bytes > QOS_TALKER_ADDRESS_MAX)
        return -EINVAL;
    struct stream *s = &talker->stream[index];
    pthread_mutex_lock(&talker->lock);
    s->talk = *talk;
    memset(s->packet, 0, QOS_TALKER_PREFIX_MAX + QOS_TALKER_PAYLOAD_MAX);
    memcpy(s->packet, talk->prefix, talk->prefix_bytes);
    s->period = 0;
    s->sends = true;
    order(talker);
    pthread_mutex_unlock(&talker->lock);
    return 0;
}

void qos_talker_pause(struct qos_talker *talker, uint32_t index)
{
    pthread_mutex_lock(&talker->lock);
    talker->stream[index].sends = false;
    pthread_mutex_unlock(&talker->lock);
}

void qos_talker_counters(struct qos_talker *talker, uint32_t index, struct qos_talk_counters *counters)
{
    pthread_mutex_lock(&talker->lock);
    *counters = talker->stream[index].counters;
    pthread_mutex_unlock(&talker->lock);
}

void qos_talker_stop(struct qos_talker *talker)
{
    qos_store_relaxed(&talker->stop, 1);
    order(talker);
}

static bool is_done(const struct stream *s)
{
    return s->talk.count != 0 && s->sequence >= s->talk.count;
}

/* The instant at which the next packet of a stream is sent. */
static uint64_t due(const struct stream *s)
{
    uint64_t instant = s->talk.base_ns + s->period * s->talk.period_ns;
    return instant > s->talk.lead_ns ? instant - s->talk.lead_ns : 0;
}

/* The stream that is next; NULL if none sends now. *more: one still may. */
static struct stream *earliest(struct qos_talker *talker, bool *more)
{
    struct stream *first = NULL;
    *more = false;
    for (uint32_t i = 0; i < talker->streams; i++) {
        struct stream *s = &talker->stream[i];
        if (is_done(s))
            continue;
        *more = true;
        if (s->sends && (first == NULL || due(s) < due(first)))
            first = s;
    }
    return first;
}

static uint16_t index_of(const struct qos_talker *talker, const struct stream *s)
{
    return (uint16_t)(s - talker->stream);
}

static void drain(struct qos_talker *talker, struct stream *s)
{
    struct qos_event event;
    for (int i = 0; i < DRAIN_MAX; i++) {
        int what = qos_errorqueue_take(s->talk.fd, s->talk.payload_bytes, talker->room, &event);
        if (what == QOS_ERRORQUEUE_NOTHING)
            return;
        s->counters.unreachable += what == QOS_ERRORQUEUE_UNREACHABLE;
        if (what != QOS_ERRORQUEUE_EVENT)
            continue;
        s->counters.missed += event.kind == QOS_EVENT_MISSED;
        s->counters.invalid += event.kind == QOS_EVENT_INVALID;
        event.stream = index_of(talker, s);
        qos_events_put(talker->events, &event, event.kind != QOS_EVENT_TRANSMIT);
    }
}

/* Whether there is a queue to look into. */
static bool drain_all(struct qos_talker *talker)
{
    bool any = false;
    for (uint32_t i = 0; i < talker->streams; i++) {
        struct stream *s = &talker->stream[i];
        if (s->sends && s->talk.queue) {
            drain(talker, s);
            any = true;
        }
    }
    return any;
}

/* 0 or an errno. */
static int send_packet(struct stream *s, uint64_t launch_ns)
{
    union {
        struct cmsghdr header;
        char bytes[CMSG_SPACE(sizeof launch_ns)];
    } control = {0};
    struct iovec part = {s->packet, s->talk.prefix_bytes + s->talk.payload_bytes};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};
    if (s->talk.address_bytes != 0) {
        message.msg_name = s->talk.address;
        message.msg_namelen = s->talk.address_bytes;
    }
    if (s->talk.launch) {
        message.msg_control = &control;
        message.msg_controllen = sizeof control;
        control.header =
            (struct cmsghdr){.cmsg_len = CMSG_LEN(sizeof launch_ns), .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_TXTIME};
        memcpy(CMSG_DATA(&control.header), &launch_ns, sizeof launch_ns);
    }
    return sendmsg(s->talk.fd, &message, MSG_DONTWAIT) < 0 ? errno : 0;
}

/* Periods that were over when we woke at `now_ns`, at most to the end of the count. */
static void skip(struct qos_talker *talker, struct stream *s, uint64_t now_ns)
{
    uint64_t behind = (now_ns - due(s)) / s->talk.period_ns;
    if (s->talk.count != 0 && behind > s->talk.count - s->sequence)
        behind = s->talk.count - s->sequence;
    if (behind == 0)
        return;
    struct qos_event event = {.kind = QOS_EVENT_SKIPPED,
                              .stream = index_of(talker, s),
                              .sequence = s->sequence,
                              .at_ns = now_ns,
                              .count = behind};
    qos_events_put(talker->events, &event, true);
    s->counters.skipped += behind;
    s->sequence += behind;
    s->period += behind;
}

/* The next packet of `s`, which was due before `now_ns`. */
static void send_next(struct qos_talker *talker, struct stream *s, uint64_t now_ns)
{
    skip(talker, s, now_ns);
    if (is_done(s))
        return;
    struct qos_packet packet = {
        .flags = s->talk.launch ? QOS_PACKET_LAUNCH : 0,
        .stream = s->talk.stream,
        .sequence = s->sequence,
        .launch_ns = s->talk.base_ns + s->period * s->talk.period_ns,
        .send_ns = now_ns,
    };
    uint64_t invalid = s->counters.invalid;
    qos_hist_record(s->lateness, now_ns - due(s));
    qos_packet_encode(s->packet + s->talk.prefix_bytes, &packet);
    int error = send_packet(s, packet.launch_ns);
    if (error != 0) {
        /* It may be that of an ICMP error about an earlier packet; taken from the queue, it is gone. */
        uint64_t unreachable = s->counters.unreachable;
        drain(talker, s);
        if (s->counters.unreachable != unreachable)
            error = send_packet(s, packet.launch_ns);
    }
    if (error != 0 && s->counters.invalid == invalid) { /* else the queue has said it, and better */
        struct qos_event event = {.kind = QOS_EVENT_FAILED,
                                  .stream = index_of(talker, s),
                                  .error = error,
                                  .sequence = packet.sequence,
                                  .at_ns = now_ns,
                                  .launch_ns = packet.launch_ns};
        qos_events_put(talker->events, &event, true);
    }
    s->counters.failed += error != 0;
    s->counters.sent += error == 0;
    s->sequence++;
    s->period++;
    if (packet.launch_ns > talker->last_ns)
        talker->last_ns = packet.launch_ns;
    if (s->talk.queue)
        drain(talker, s);
}

/* Sleep until `due_ns`; while it is far, at most a slice, and only until there are more orders than `seen`. The time then, or negative
 * errno. */
static int64_t sleep_towards(struct qos_talker *talker, uint64_t due_ns, uint32_t seen)
{
    uint64_t now_ns = qos_clock_tai_ns();
    uint64_t away_ns = due_ns > now_ns ? due_ns - now_ns : 0;
    if (away_ns > QOS_TALKER_NEAR_NS) {
        uint64_t sleep_ns = away_ns - QOS_TALKER_NEAR_NS;
        qos_futex_wait(&talker->orders, seen, sleep_ns < QOS_TALKER_SLICE_NS ? sleep_ns : QOS_TALKER_SLICE_NS);
        return (int64_t)qos_clock_tai_ns();
    }
    int64_t late = qos_clock_sleep_until(CLOCK_TAI, due_ns, talker->spin_ns);
    return late < 0 ? late : (int64_t)due_ns + late;
}

/* What is still in the queueing disciplines may be missed; then it comes back to us. */
static void linger(struct qos_talker *talker)
{
    uint64_t until = talker->last_ns + LINGER_NS;
    bool more = true;
    while (more && !qos_load_relaxed(&talker->stop)) {
        uint64_t now_ns = qos_clock_tai_ns();
        pthread_mutex_lock(&talker->lock);
        more = drain_all(talker) && now_ns < until;
        pthread_mutex_unlock(&talker->lock);
        if (more)
            qos_clock_sleep_until(CLOCK_TAI, until - now_ns > LINGER_NS ? now_ns + LINGER_NS : until, 0);
    }
}

int qos_talker_run(struct qos_talker *talker)
{
    uint64_t now_ns = 0;
    while (!qos_load_relaxed(&talker->stop)) {
        bool more;
        pthread_mutex_lock(&talker->lock);
        uint32_t seen = qos_load_relaxed(&talker->orders); /* they change it under the lock */
        struct stream *next = earliest(talker, &more);
        if (next != NULL && due(next) <= now_ns) {
            send_next(talker, next, now_ns);
            next = earliest(talker, &more);
        } else {
            drain_all(talker);
        }
        uint64_t due_ns = next != NULL ? due(next) : UINT64_MAX;
        pthread_mutex_unlock(&talker->lock);
        if (!more) {
            linger(talker);
            return 0;
        }
        int64_t woken = sleep_towards(talker, due_ns, seen);
        if (woken < 0 && woken != -EINTR)
            return (int)woken;
        now_ns = woken < 0 ? 0 : (uint64_t)woken;
    }
    return 0;
}
