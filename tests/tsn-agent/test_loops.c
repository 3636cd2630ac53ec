/* SPDX-License-Identifier: Apache-2.0
 *
 * Both loops in threads of their own, over loopback, while a third thread reads counters and events and changes the stream: for the
 * sanitizers.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <pthread.h>
#include <sys/socket.h>
#include <time.h>

#include "check.h"
#include "clock.h"
#include "hist.h"
#include "listener.h"
#include "talker.h"

#define PERIOD_NS 100000
#define COUNT 2000

static void *talk(void *talker)
{
    return (void *)(intptr_t)qos_talker_run(talker);
}

static void *listen_to(void *listener)
{
    return (void *)(intptr_t)qos_listener_run(listener, 0);
}

static int bound(struct sockaddr_in *address)
{
    socklen_t size = sizeof *address;
    int fd = socket(AF_INET, SOCK_DGRAM, 0);
    *address = (struct sockaddr_in){.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    CHECK_EQ(bind(fd, (struct sockaddr *)address, sizeof *address), 0);
    CHECK_EQ(getsockname(fd, (struct sockaddr *)address, &size), 0);
    return fd;
}

struct pair {
    struct qos_events *said, *heard;
    struct qos_talker *talker;
    struct qos_listener *listener;
    struct qos_hist *lateness;
    int in, out;
    struct qos_talk talk;
    pthread_t talking, listening;
};

static void set_up(struct pair *pair)
{
    struct sockaddr_in address;
    struct qos_listen expected = {
        .stream = 9, .silence = 3, .period_ns = PERIOD_NS, .deadline_ns = PERIOD_NS, .base_ns = 0, .last = COUNT - 1};
    *pair = (struct pair){.said = qos_events_new(), .heard = qos_events_new(), .in = bound(&address)};
    pair->out = socket(AF_INET, SOCK_DGRAM, 0);
    pair->lateness = aligned_alloc(64, (qos_hist_size() + 63) / 64 * 64);
    qos_hist_init(pair->lateness);
    pair->talker = qos_talker_new(pair->said, 0);
    pair->listener = qos_listener_new(pair->heard);
    CHECK_EQ(qos_talker_add(pair->talker, pair->lateness), 0);
    CHECK_EQ(qos_listener_add_stream(pair->listener, &expected), 0);
    CHECK_EQ(qos_listener_add_socket(pair->listener, pair->in), 0);
    pair->talk = (struct qos_talk){.fd = pair->out,
                                   .stream = 9,
                                   .base_ns = qos_clock_tai_ns() + QOS_TALKER_AHEAD_NS,
                                   .period_ns = PERIOD_NS,
                                   .count = COUNT,
                                   .payload_bytes = 64,
                                   .address_bytes = sizeof address};
    memcpy(pair->talk.address, &address, sizeof address);
}

static void start(struct pair *pair)
{
    pthread_create(&pair->listening, NULL, listen_to, pair->listener);
    pthread_create(&pair->talking, NULL, talk, pair->talker);
}

static void tear_down(struct pair *pair)
{
    qos_talker_free(pair->talker);
    qos_listener_free(pair->listener);
    qos_events_free(pair->said);
    qos_events_free(pair->heard);
    free(pair->lateness);
    close(pair->in);
    close(pair->out);
}

static uint64_t take_all(struct qos_events *events, uint8_t kind)
{
    struct qos_event event;
    uint64_t count = 0;
    while (qos_events_take(events, &event, 1) == 1)
        count += event.kind == kind;
    return count;
}

static void test_everything_is_accounted_while_others_look_on(void)
{
    struct pair pair;
    struct qos_talk_counters sent = {0};
    struct qos_listen_counters received = {0};
    struct qos_listen_strangers strangers;
    uint64_t samples = 0;
    set_up(&pair);
    CHECK_EQ(qos_talker_start(pair.talker, 0, &pair.talk), 0);
    start(&pair);
    while (sent.sent + sent.skipped + sent.failed < COUNT || received.received < sent.sent) {
        qos_talker_counters(pair.talker, 0, &sent);
        qos_listener_counters(pair.listener, 0, &received);
        qos_listener_strangers(pair.listener, &strangers);
        samples += take_all(pair.heard, QOS_EVENT_SAMPLE);
        take_all(pair.said, QOS_EVENT_SKIPPED);
    }
    qos_listener_stop(pair.listener);
    pthread_join(pair.talking, NULL);
    pthread_join(pair.listening, NULL);
    samples += take_all(pair.heard, QOS_EVENT_SAMPLE);
    CHECK_EQ(sent.sent + sent.skipped, COUNT);
    CHECK_EQ(received.received, sent.sent);
    CHECK_EQ(samples, received.received);
    CHECK_EQ(received.received + received.lost, received.accounted);
    CHECK_EQ(qos_hist_count(pair.lateness), sent.sent);
    tear_down(&pair);
}

static void test_a_stream_pauses_and_goes_on_with_its_numbers(void)
{
    struct pair pair;
    struct qos_talk_counters before = {0}, sent = {0};
    set_up(&pair);
    pair.talk.count = 0;
    start(&pair);
    for (int i = 0; i < 5; i++) {
        pair.talk.base_ns = qos_clock_tai_ns() + QOS_TALKER_AHEAD_NS;
        CHECK_EQ(qos_talker_start(pair.talker, 0, &pair.talk), 0);
        for (uint64_t least = sent.sent + 10; sent.sent < least;)
            qos_talker_counters(pair.talker, 0, &sent);
        qos_talker_pause(pair.talker, 0);
        qos_talker_counters(pair.talker, 0, &before);
        qos_talker_counters(pair.talker, 0, &sent);
        CHECK_EQ(sent.sent, before.sent);
    }
    qos_talker_stop(pair.talker);
    qos_listener_stop(pair.listener);
    pthread_join(pair.talking, NULL);
    pthread_join(pair.listening, NULL);
    tear_down(&pair);
}

static void test_what_cannot_be_sent_is_refused(void)
{
    struct pair pair;
    set_up(&pair);
    struct qos_talk wrong = pair.talk;
    wrong.period_ns = 0;
    CHECK_EQ(qos_talker_start(pair.talker, 0, &wrong), -EINVAL);
    wrong = pair.talk;
    wrong.payload_bytes = QOS_PACKET_SIZE - 1;
    CHECK_EQ(qos_talker_start(pair.talker, 0, &wrong), -EINVAL);
    wrong.payload_bytes = QOS_TALKER_PAYLOAD_MAX + 1;
    CHECK_EQ(qos_talker_start(pair.talker, 0, &wrong), -EINVAL);
    for (int i = 1; i < QOS_TALKER_STREAMS_MAX; i++)
        CHECK_EQ(qos_talker_add(pair.talker, pair.lateness), i);
    CHECK_EQ(qos_talker_add(pair.talker, pair.lateness), -ENOSPC);
    tear_down(&pair);
}

int main(void)
{
    CHECK_RUN(test_everything_is_accounted_while_others_look_on);
    CHECK_RUN(test_a_stream_pauses_and_goes_on_with_its_numbers);
    CHECK_RUN(test_what_cannot_be_sent_is_refused);
    return check_done();
}
