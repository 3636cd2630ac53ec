/* SPDX-License-Identifier: Apache-2.0 */
#include "events.h"

#include <poll.h>

#include "check.h"

static int is_readable(const struct qos_events *events)
{
    struct pollfd fd = {.fd = qos_events_fd(events), .events = POLLIN};
    return poll(&fd, 1, 0);
}

static void test_events_come_in_order_and_whole(void)
{
    struct qos_events *events = qos_events_new();
    struct qos_event out[3];
    for (uint64_t n = 0; n < 5; n++) {
        struct qos_event event = {.kind = QOS_EVENT_SAMPLE, .stream = 7, .sequence = n, .jitter_ns = -(int64_t)n};
        qos_events_put(events, &event, false);
    }
    CHECK_EQ(qos_events_take(events, out, 3), 3);
    CHECK_EQ(out[2].sequence, 2);
    CHECK_EQ(out[2].jitter_ns, -2);
    CHECK_EQ(out[2].stream, 7);
    CHECK_EQ(qos_events_take(events, out, 3), 2);
    CHECK_EQ(out[1].sequence, 4);
    CHECK_EQ(qos_events_take(events, out, 3), 0);
    qos_events_free(events);
}

static void test_the_descriptor_says_what_is_urgent(void)
{
    struct qos_events *events = qos_events_new();
    struct qos_event event = {.kind = QOS_EVENT_SAMPLE}, out;
    qos_events_put(events, &event, false);
    CHECK_EQ(is_readable(events), 0);
    qos_events_put(events, &event, true);
    CHECK_EQ(is_readable(events), 1);
    CHECK_EQ(qos_events_take(events, &out, 1), 1);
    CHECK_EQ(is_readable(events), 0);
    CHECK_EQ(qos_events_take(events, &out, 1), 1);
    qos_events_free(events);
}

static void test_what_finds_no_room_is_counted_and_the_rest_stays(void)
{
    struct qos_events *events = qos_events_new();
    struct qos_event event = {0}, out;
    for (uint64_t n = 0; n < QOS_EVENTS_CAPACITY + 3; n++) {
        event.sequence = n;
        qos_events_put(events, &event, false);
    }
    CHECK_EQ(is_readable(events), 1);
    CHECK_EQ(qos_events_overflow(events), 3);
    for (uint64_t n = 0; n < QOS_EVENTS_CAPACITY; n++)
        if (!CHECK_EQ(qos_events_take(events, &out, 1), 1) || !CHECK_EQ(out.sequence, n))
            break;
    CHECK_EQ(qos_events_take(events, &out, 1), 0);
    qos_events_free(events);
}

int main(void)
{
    CHECK_RUN(test_events_come_in_order_and_whole);
    CHECK_RUN(test_the_descriptor_says_what_is_urgent);
    CHECK_RUN(test_what_finds_no_room_is_counted_and_the_rest_stays);
    return check_done();
}
