/* SPDX-License-Identifier: Apache-2.0
 *
 * What anybody sends to tsn-listener: tools/tsn-agent/traffic/listener.c with all that is behind it, at a real socket. The input is how
 * the stream is expected, then datagrams: raw ones, and packets whose fields are the input's.
 */
#include <poll.h>
#include <signal.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "input.h"
#include "listener.h"
#include "packet.h"

#define ROUND 8 /* datagrams that fit into the socket */
#define STREAM 1
#define NOW_NS 1700000000000000000u

int __wrap_ppoll(struct pollfd *fds, nfds_t count, const struct timespec *timeout, const sigset_t *mask);

/* Nothing more will come, so there is no point in waiting for it. */
int __wrap_ppoll(struct pollfd *fds, nfds_t count, const struct timespec *timeout, const sigset_t *mask)
{
    (void)timeout;
    (void)mask;
    return poll(fds, count, 0);
}

static uint64_t number, launch_ns;

static size_t make(struct input *in, uint8_t *data)
{
    uint8_t what = (uint8_t)input_number(in, 1);
    if (what >= 240) {
        size_t size = input_number(in, 1) % 80;
        input_copy(in, data, size);
        return size;
    }
    number = what & 1 ? number + 1 : what & 2 ? number + (int8_t)input_number(in, 1) : input_number(in, 8);
    launch_ns = what & 4 ? launch_ns + 1000000 : what & 8 ? launch_ns + input_number(in, 4) : input_number(in, 8);
    struct qos_packet packet = {.flags = what >> 4 & 1,
                                .stream = what & 32 ? STREAM + 1 : STREAM,
                                .sequence = number,
                                .launch_ns = launch_ns,
                                .send_ns = launch_ns >> (what >> 6 & 1)};
    qos_packet_encode(data, &packet);
    return QOS_PACKET_SIZE;
}

static uint64_t samples_in(struct qos_events *events)
{
    struct qos_event event;
    uint64_t count = 0;
    while (qos_events_take(events, &event, 1) == 1)
        count += event.kind == QOS_EVENT_SAMPLE;
    return count;
}

static void check(struct qos_listener *listener, uint64_t sent, uint64_t samples)
{
    struct qos_listen_counters c;
    struct qos_listen_strangers s;
    uint64_t late = 0, stamped = 0;
    qos_listener_counters(listener, 0, &c);
    qos_listener_strangers(listener, &s);
    for (int i = 0; i < QOS_LISTENER_LATE_MAX; i++)
        late += c.late_by[i];
    for (int i = 0; i < 3; i++)
        stamped += c.stamped[i];
    HOLDS(c.received + c.lost == c.accounted);
    HOLDS(c.on_time + c.early + c.late == c.received && late == c.late && stamped == c.received);
    HOLDS(samples == c.received);
    HOLDS(c.received + c.duplicated + c.refused + s.too_short + s.foreign + s.version + s.stream == sent);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct input in = {data, size};
    int ends[2];
    if (socketpair(AF_UNIX, SOCK_DGRAM, 0, ends) != 0)
        return 0;
    static struct qos_events *events; /* once: its megabytes would be most of the time */
    if (events == NULL)
        events = qos_events_new();
    struct qos_listener *listener = qos_listener_new(events);
    struct qos_listen listen = {.stream = STREAM,
                                .silence = input_number(&in, 1) & 3,
                                .period_ns = 1 + input_number(&in, 4),
                                .deadline_ns = input_number(&in, 4),
                                .base_ns = in.left & 1 ? QOS_LISTENER_NO_BASE : input_number(&in, 8),
                                .last = UINT64_MAX};
    HOLDS(qos_listener_add_stream(listener, &listen) == 0 && qos_listener_add_socket(listener, ends[1]) == 0);
    uint64_t sent = 0, samples = 0;
    number = 0;
    launch_ns = NOW_NS;
    while (in.left > 0) {
        for (int i = 0; i < ROUND && in.left > 0; i++, sent++, steps_taken++) {
            uint8_t packet[80];
            size_t length = make(&in, packet);
            HOLDS(send(ends[0], packet, length, MSG_DONTWAIT) == (ssize_t)length);
        }
        (void)qos_listener_run(listener, 1); /* one round, which takes them all */
        samples += samples_in(events);
        check(listener, sent, samples);
    }
    qos_listener_free(listener);
    close(ends[0]);
    close(ends[1]);
    return 0;
}
