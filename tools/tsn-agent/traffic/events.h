/* SPDX-License-Identifier: Apache-2.0
 *
 * What the loops of talker and listener tell Python: records in a bounded ring, and a descriptor that becomes readable when
 * something urgent is in it or it is half full. What does not fit is counted and dropped: no loop ever waits for its reader.
 */
#ifndef QOS_TRAFFIC_EVENTS_H
#define QOS_TRAFFIC_EVENTS_H

#ifndef QOS_CDEF
#include <stdbool.h>
#include <stdint.h>
#endif

#define QOS_EVENTS_CAPACITY 65536

enum qos_event_kind {
    /* talker */
    QOS_EVENT_MISSED = 1, /* error queue: the launch time had passed */
    QOS_EVENT_INVALID,    /* error queue: the queueing discipline took no such launch time */
    QOS_EVENT_FAILED,     /* the send call: `error` */
    QOS_EVENT_SKIPPED,    /* woke so late that `count` periods were over */
    QOS_EVENT_TRANSMIT,   /* left at at_ns */
    /* listener */
    QOS_EVENT_SAMPLE,
    QOS_EVENT_LATE,       /* arrived `count` windows after its own */
    QOS_EVENT_LOST,       /* `count` numbers from `sequence` on are missing */
    QOS_EVENT_REORDERED,  /* one of those has come */
    QOS_EVENT_DUPLICATED, /* has come before */
    QOS_EVENT_RESTARTED,  /* the talker counts from `sequence` again */
    QOS_EVENT_SILENT,     /* nothing for `count` cycles */
    QOS_EVENT_RESUMED,    /* after `count` ns */
};

enum qos_event_stamp { QOS_STAMP_USER, QOS_STAMP_SOFTWARE, QOS_STAMP_HARDWARE };

struct qos_event {
    uint8_t kind;
    uint8_t stamp;   /* what at_ns was read from */
    uint16_t stream; /* index */
    int32_t error;   /* errno */
    uint64_t sequence;
    uint64_t at_ns; /* TAI */
    uint64_t launch_ns;
    uint64_t send_ns;
    uint64_t count;
    int64_t latency_ns;
    int64_t jitter_ns; /* INT64_MIN: none */
};

struct qos_events;

/* NULL with errno ENOMEM, EMFILE. One producer, one consumer. */
struct qos_events *qos_events_new(void);
void qos_events_free(struct qos_events *events);
int qos_events_fd(const struct qos_events *events);

/* Take up to `max` events; the descriptor is silent then until there is news. */
uint32_t qos_events_take(struct qos_events *events, struct qos_event *out, uint32_t max);
/* Events that found no room. */
uint64_t qos_events_overflow(const struct qos_events *events);

#ifndef QOS_CDEF
void qos_events_put(struct qos_events *events, const struct qos_event *event, bool urgent);
#endif

#endif
