/* SPDX-License-Identifier: Apache-2.0 */
#include "events.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "compiler.h"
#include "ring.h"

#define WORDS (sizeof(struct qos_event) / sizeof(uint64_t))
#define CAPACITY ((uint32_t)(QOS_EVENTS_CAPACITY * WORDS))

_Static_assert(sizeof(struct qos_event) == 64, "whole words, and a power of two of them");
_Static_assert(CAPACITY <= QOS_RING_MAX_CAPACITY, "a ring takes that many");

struct qos_events {
    struct qos_ring_producer producer;
    struct qos_ring_consumer consumer;
    void *memory;
    uint32_t since; /* events since the reader was last woken for their number */
    int fd;
    _Atomic uint64_t overflow;
};

struct qos_events *qos_events_new(void)
{
    struct qos_events *events = calloc(1, sizeof *events);
    if (events == NULL)
        return NULL;
    events->memory = aligned_alloc(QOS_CACHE_LINE, qos_ring_size(CAPACITY));
    events->fd = events->memory == NULL ? -1 : eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (events->fd < 0) {
        free(events->memory);
        free(events);
        return NULL;
    }
    qos_ring_init(events->memory, CAPACITY);
    qos_ring_producer_open(&events->producer, events->memory, CAPACITY);
    qos_ring_consumer_open(&events->consumer, events->memory, CAPACITY);
    return events;
}

void qos_events_free(struct qos_events *events)
{
    close(events->fd);
    free(events->memory);
    free(events);
}

int qos_events_fd(const struct qos_events *events)
{
    return events->fd;
}

void qos_events_put(struct qos_events *events, const struct qos_event *event, bool urgent)
{
    uint64_t words[WORDS];
    memcpy(words, event, sizeof words);
    if (qos_ring_push(&events->producer, words, WORDS) != 0)
        qos_add_relaxed(&events->overflow, 1);
    if (!urgent && ++events->since < QOS_EVENTS_CAPACITY / 2)
        return;
    events->since = 0;
    uint64_t one = 1;
    if (write(events->fd, &one, sizeof one) < 0)
        return; /* 2^64 wake-ups that nobody took: it is readable */
}

uint32_t qos_events_take(struct qos_events *events, struct qos_event *out, uint32_t max)
{
    uint64_t woken;
    if (read(events->fd, &woken, sizeof woken) < 0 && errno != EAGAIN)
        return 0;
    uint32_t taken = 0;
    uint64_t words[WORDS];
    /* Whole events only: the producer publishes no others. */
    while (taken < max && qos_ring_pop(&events->consumer, words, WORDS) == (int64_t)WORDS)
        memcpy(&out[taken++], words, sizeof words);
    return taken;
}

uint64_t qos_events_overflow(const struct qos_events *events)
{
    return qos_load_relaxed(&events->overflow);
}
