/* SPDX-License-Identifier: Apache-2.0
 *
 * Takes what tsn-talker sends, for any number of streams on any number of sockets, in one thread: which numbers have come, which of them
 * in their window, with which latency and jitter.
 *
 * The window of a packet begins at its launch instant or, if the stream's base time is known, at the beginning of the cycle that the
 * launch instant lies in, and lasts deadline_ns. Who comes later is late by so many windows as have ended since (thesis 4.2.2).
 */
#ifndef QOS_TRAFFIC_LISTENER_H
#define QOS_TRAFFIC_LISTENER_H

#ifndef QOS_CDEF
#include <stdint.h>

#include "events.h"
#endif

#define QOS_LISTENER_STREAMS_MAX 64
#define QOS_LISTENER_SOCKETS_MAX 64
#define QOS_LISTENER_LATE_MAX 16 /* windows; the last place counts all that are later */
#define QOS_LISTENER_NO_BASE (~0ull)
#define QOS_LISTENER_SLICE_NS 20000000

struct qos_listen {
    uint32_t stream;
    uint32_t silence; /* cycles without a packet that are reported; 0: none are */
    uint64_t period_ns;
    uint64_t deadline_ns;
    uint64_t base_ns; /* TAI; QOS_LISTENER_NO_BASE: each packet says when its window begins */
    uint64_t last;    /* the number that ends the stream; UINT64_MAX: none does */
};

/* received + lost = accounted, the numbers from the first one that came to the newest. */
struct qos_listen_counters {
    uint64_t received;
    uint64_t lost;
    uint64_t accounted;
    uint64_t duplicated;
    uint64_t reordered;
    uint64_t refused; /* numbers that cannot be believed */
    uint64_t restarted;
    uint64_t silent;
    uint64_t on_time;
    uint64_t early; /* before the window */
    uint64_t late;
    uint64_t late_by[QOS_LISTENER_LATE_MAX]; /* [k - 1]: by k windows */
    uint64_t stamped[3];                     /* by enum qos_event_stamp */
    uint64_t first;
    uint64_t newest;
};

/* Datagrams of no stream. */
struct qos_listen_strangers {
    uint64_t too_short;
    uint64_t foreign; /* other magic, or nonsense */
    uint64_t version;
    uint64_t stream; /* one that nobody listens to */
};

struct qos_listener;

/* `events` outlives it. NULL with errno ENOMEM. */
struct qos_listener *qos_listener_new(struct qos_events *events);
void qos_listener_free(struct qos_listener *listener);
/* Index, or -ENOSPC, -EINVAL (period 0). Before qos_listener_run. */
int qos_listener_add_stream(struct qos_listener *listener, const struct qos_listen *listen);
/* 0, or -ENOSPC. The socket gives payloads alone, and stays the caller's. */
int qos_listener_add_socket(struct qos_listener *listener, int fd);
void qos_listener_counters(struct qos_listener *listener, uint32_t index, struct qos_listen_counters *counters);
void qos_listener_strangers(struct qos_listener *listener, struct qos_listen_strangers *strangers);

/* Receive until all streams have come to their last number (0), qos_listener_stop (0), or nothing has come for timeout_ns after the first
 * packet, and as long before it (-ETIME; 0: for ever). Calls no Python. */
int qos_listener_run(struct qos_listener *listener, uint64_t timeout_ns);
/* From any thread; the loop ends within QOS_LISTENER_SLICE_NS. */
void qos_listener_stop(struct qos_listener *listener);

#endif
