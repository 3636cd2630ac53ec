/* SPDX-License-Identifier: Apache-2.0
 *
 * lunar.c on a client library made for this test (stand_in.h).
 */
#include <errno.h>
#include <pthread.h>

#include "check.h"
#include "lunar.h"
#include "stand_in.h"

#define NAMES 64
#define THREADS 4
#define PUBLICATIONS 2000

/* ---- What the tests publish and receive ---- */

struct received {
    unsigned count;
    char topic[LUNAR_MAX_TOPIC + 1], data[64];
    uint64_t sent_ns, sequence;
    lunar *moon;
    int result; /* of what the callback did */
};

static void keep(const char *topic, const void *data, uint32_t size, uint64_t sent_ns, uint64_t sequence, void *arg)
{
    struct received *r = arg;
    r->count++;
    strcpy(r->topic, topic);
    snprintf(r->data, sizeof r->data, "%.*s", (int)size, (const char *)data);
    r->sent_ns = sent_ns;
    r->sequence = sequence;
}

static int say(void *buffer, uint32_t size, void *arg)
{
    int length = (int)strlen(arg);
    if ((uint32_t)length <= size)
        memcpy(buffer, arg, (size_t)length);
    return length;
}

static int refuse(void *buffer, uint32_t size, void *arg)
{
    (void)buffer, (void)size;
    return *(int *)arg;
}

static lunar *opened(void)
{
    lunar *moon = NULL;
    CHECK_EQ(lunar_open(&moon, NULL), 0);
    return moon;
}

/* Everything that was opened has been closed. */
static void check_clean(void)
{
    CHECK_EQ(fake.sessions, 0);
    CHECK_EQ(fake.streams, 0);
    CHECK_EQ(fake.sources, 0);
    CHECK_EQ(fake.sinks, 0);
    memset(&fake, 0, sizeof fake);
}

/* ---- Tests ---- */

static void test_options_reach_the_client(void)
{
    lunar_options options;
    lunar_defaults(&options);
    CHECK_EQ(options.session.reconnect, 1);
    CHECK_EQ(options.stream.coalesce, 1);
    options.session.relayed = 1;
    options.stream.stream = 12;
    options.stream.delivery = 1;
    lunar *moon = NULL;
    CHECK_EQ(lunar_open(&moon, &options), 0);
    CHECK_EQ(fake.session_options.relayed, 1);
    CHECK_EQ(fake.options.stream, 12);
    CHECK_EQ(fake.options.delivery, 1);
    lunar_close(moon);
    lunar_close(NULL);
    check_clean();
}

static void test_open_fails(void)
{
    lunar *moon = NULL;
    fake.init = -ECONNREFUSED;
    CHECK_EQ(lunar_open(&moon, NULL), -ECONNREFUSED);
    CHECK(strcmp(lunar_last_error(), "selene says so") == 0);
    fake.stream = -EINVAL;
    CHECK_EQ(lunar_open(&moon, NULL), -EINVAL);
    CHECK(moon == NULL);
    check_clean();
}

static void test_message_arrives(void)
{
    struct received r = {0};
    lunar *moon = opened();
    CHECK_EQ(lunar_subscribe(moon, "plant/alarm", keep, &r), 0);
    CHECK_EQ(lunar_publish(moon, "plant/alarm", 16, say, "hot"), 0);
    CHECK_EQ(r.count, 1);
    CHECK(strcmp(r.topic, "plant/alarm") == 0);
    CHECK(strcmp(r.data, "hot") == 0);
    CHECK_EQ(r.sent_ns, 1700000000000000001);
    CHECK_EQ(r.sequence, 0);
    CHECK_EQ(lunar_publish(moon, "plant/alarm", 16, say, ""), 0);
    CHECK_EQ(r.sequence, 1);
    CHECK(strcmp(r.data, "") == 0);
    lunar_close(moon);
    check_clean();
}

static void test_a_source_is_opened_once(void)
{
    lunar *moon = opened();
    for (int i = 0; i < 3; i++)
        CHECK_EQ(lunar_publish(moon, "a", 16, say, "x"), 0);
    CHECK_EQ(fake.opened, 1);
    lunar_close(moon);
    check_clean();
}

static void test_equal_hashes_are_different_topics(void)
{
    struct received r[NAMES] = {{0}};
    char name[NAMES][16];
    lunar *moon = opened();
    for (int i = 0; i < NAMES; i++) {
        snprintf(name[i], sizeof name[i], "topic/%d", i);
        CHECK_EQ(lunar_subscribe(moon, name[i], keep, &r[i]), 0);
    }
    for (int round = 0; round < 2; round++)
        for (int i = 0; i < NAMES; i++)
            CHECK_EQ(lunar_publish(moon, name[i], 16, say, name[i]), 0);
    CHECK_EQ(fake.opened, NAMES);
    for (int i = 0; i < NAMES; i++) {
        CHECK_EQ(r[i].count, 2);
        CHECK(strcmp(r[i].data, name[i]) == 0);
    }
    lunar_close(moon);
    check_clean();
}

static void test_topic_names(void)
{
    char longest[LUNAR_MAX_TOPIC + 2];
    memset(longest, 't', sizeof longest);
    longest[LUNAR_MAX_TOPIC + 1] = 0;
    struct received r = {0};
    lunar *moon = opened();
    CHECK_EQ(lunar_publish(moon, longest, 16, say, "x"), -EINVAL);
    CHECK(strstr(lunar_last_error(), "1 to 255 bytes") != NULL);
    CHECK_EQ(lunar_publish(moon, "", 16, say, "x"), -EINVAL);
    CHECK_EQ(lunar_subscribe(moon, longest, keep, &r), -EINVAL);
    CHECK_EQ(lunar_subscribe(moon, "", keep, &r), -EINVAL);
    CHECK_EQ(fake.opened, 0);
    longest[LUNAR_MAX_TOPIC] = 0;
    CHECK_EQ(lunar_subscribe(moon, longest, keep, &r), 0);
    CHECK_EQ(lunar_publish(moon, longest, 16, say, "x"), 0);
    CHECK(strcmp(r.topic, longest) == 0);
    lunar_close(moon);
    check_clean();
}

static void test_publication_is_cancelled(void)
{
    int result = -ECANCELED;
    lunar *moon = opened();
    CHECK_EQ(lunar_publish(moon, "a", 16, refuse, &result), -ECANCELED);
    CHECK_EQ(fake.last->cancelled, 1);
    CHECK_EQ(fake.last->emitted, 0);
    result = 17;
    CHECK_EQ(lunar_publish(moon, "a", 16, refuse, &result), -EMSGSIZE);
    CHECK_EQ(fake.last->cancelled, 2);
    CHECK(strstr(lunar_last_error(), "more than the buffer") != NULL);
    result = 16;
    CHECK_EQ(lunar_publish(moon, "a", 16, refuse, &result), 0);
    CHECK_EQ(fake.last->emitted, 1);
    lunar_close(moon);
    check_clean();
}

static void test_publication_fails(void)
{
    lunar *moon = opened();
    fake.source = -ENOSPC;
    CHECK_EQ(lunar_publish(moon, "a", 16, say, "x"), -ENOSPC);
    CHECK_EQ(lunar_publish(moon, "a", 16, say, "x"), 0);
    fake.buffer = -EAGAIN;
    CHECK_EQ(lunar_publish(moon, "a", 16, say, "x"), -EAGAIN);
    CHECK(strcmp(lunar_last_error(), "selene says so") == 0);
    fake.emit = -EMSGSIZE;
    fake.buffer_kept = 1;
    CHECK_EQ(lunar_publish(moon, "a", 16, say, "x"), -EMSGSIZE);
    CHECK_EQ(fake.last->cancelled, 1);
    fake.emit = -ECONNRESET;
    fake.buffer_kept = 0;
    CHECK_EQ(lunar_publish(moon, "a", 16, say, "x"), -ECONNRESET);
    CHECK_EQ(fake.last->cancelled, 1);
    CHECK_EQ(fake.last->borrowed, 0);
    lunar_close(moon);
    check_clean();
}

static void test_flush(void)
{
    lunar *moon = opened();
    CHECK_EQ(lunar_flush(moon), 0);
    CHECK_EQ(lunar_publish(moon, "a", 16, say, "x"), 0);
    selene_source *a = fake.last;
    CHECK_EQ(lunar_publish(moon, "b", 16, say, "x"), 0);
    fake.flush = -EIO;
    CHECK_EQ(lunar_flush(moon), -EIO);
    CHECK_EQ(a->flushed, 1);
    CHECK_EQ(fake.last->flushed, 1);
    lunar_close(moon);
    check_clean();
}

static void test_publisher(void)
{
    struct received r = {0};
    lunar_publisher *publisher = NULL, *second = NULL;
    lunar *moon = opened();
    CHECK_EQ(lunar_subscribe(moon, "a", keep, &r), 0);
    CHECK_EQ(lunar_open_publisher(moon, "", &publisher), -EINVAL);
    CHECK(publisher == NULL && strstr(lunar_last_error(), "1 to 255") != NULL);
    fake.source = -ENOSPC;
    CHECK_EQ(lunar_open_publisher(moon, "a", &publisher), -ENOSPC);
    CHECK(publisher == NULL && strcmp(lunar_last_error(), "selene says so") == 0);
    lunar_close_publisher(publisher);
    CHECK_EQ(lunar_open_publisher(moon, "a", &publisher), 0);
    selene_source *source = fake.last;
    CHECK_EQ(lunar_publish_by(publisher, 16, say, "x"), 0);
    CHECK_EQ(lunar_publish_by(publisher, 16, say, "y"), 0);
    CHECK_EQ(r.count, 2);
    CHECK_EQ(r.sequence, 1);
    CHECK(strcmp(r.data, "y") == 0);
    /* it is one of several on the topic, and flushed by itself */
    CHECK_EQ(lunar_open_publisher(moon, "a", &second), 0);
    CHECK_EQ(lunar_publish(moon, "a", 16, say, "z"), 0);
    CHECK_EQ(fake.opened, 3);
    CHECK_EQ(lunar_flush(moon), 0);
    CHECK_EQ(source->flushed, 0);
    fake.flush = -EIO;
    CHECK_EQ(lunar_flush_publisher(publisher), -EIO);
    CHECK_EQ(source->flushed, 1);
    int result = 17;
    CHECK_EQ(lunar_publish_by(publisher, 16, refuse, &result), -EMSGSIZE);
    CHECK_EQ(source->cancelled, 1);
    CHECK_EQ(source->borrowed, 0);
    lunar_close_publisher(publisher);
    lunar_close_publisher(second);
    lunar_close(moon);
    check_clean();
}

static void test_subscriptions(void)
{
    struct received a = {0}, b = {0};
    lunar *moon = opened();
    CHECK_EQ(lunar_subscribe(moon, "a", keep, &a), 0);
    CHECK_EQ(lunar_subscribe(moon, "b", keep, &b), 0);
    CHECK_EQ(lunar_subscribe(moon, "a", keep, &b), -EEXIST);
    CHECK(strstr(lunar_last_error(), "already") != NULL);
    CHECK_EQ(lunar_unsubscribe(moon, "c"), -ENOENT);
    CHECK_EQ(lunar_unsubscribe(moon, "a"), 0);
    CHECK_EQ(lunar_unsubscribe(moon, "a"), -ENOENT);
    CHECK_EQ(lunar_publish(moon, "a", 16, say, "x"), 0);
    CHECK_EQ(lunar_publish(moon, "b", 16, say, "x"), 0);
    CHECK_EQ(a.count, 0);
    CHECK_EQ(b.count, 1);
    CHECK_EQ(lunar_subscribe(moon, "a", keep, &a), 0);
    fake.sink = -EUSERS;
    CHECK_EQ(lunar_subscribe(moon, "c", keep, &b), -EUSERS);
    CHECK_EQ(lunar_subscribe(moon, "c", keep, &b), 0);
    lunar_close(moon);
    check_clean();
}

static void leave(const char *topic, const void *data, uint32_t size, uint64_t sent_ns, uint64_t sequence, void *arg)
{
    struct received *r = arg;
    lunar *moon = r->moon;
    keep(topic, data, size, sent_ns, sequence, r);
    r->result = lunar_unsubscribe(moon, topic);
}

static void test_callback_unsubscribes_itself(void)
{
    lunar *moon = opened();
    struct received r = {.moon = moon, .result = 1};
    CHECK_EQ(lunar_subscribe(moon, "a", leave, &r), 0);
    CHECK_EQ(lunar_publish(moon, "a", 16, say, "x"), 0);
    CHECK_EQ(lunar_publish(moon, "a", 16, say, "x"), 0);
    CHECK_EQ(r.result, 0);
    CHECK_EQ(r.count, 1);
    CHECK_EQ(fake.sinks, 0);
    lunar_close(moon);
    check_clean();
}

static void two_messages(selene_sink *sink)
{
    selene_buffer buffer = {.data = sink->name, .size = 1};
    sink->callback(sink, &buffer, sink->arg);
    sink->callback(sink, &buffer, sink->arg);
}

static void test_unsubscribed_while_it_is_opened(void)
{
    lunar *moon = opened();
    struct received r = {.moon = moon, .result = 1};
    fake.while_opening = two_messages;
    CHECK_EQ(lunar_subscribe(moon, "a", leave, &r), 0);
    CHECK_EQ(r.result, 0);
    CHECK_EQ(r.count, 1);
    CHECK_EQ(fake.sinks, 0);
    CHECK_EQ(lunar_unsubscribe(moon, "a"), -ENOENT);
    lunar_close(moon);
    check_clean();
}

static void answer(const char *topic, const void *data, uint32_t size, uint64_t sent_ns, uint64_t sequence, void *arg)
{
    struct received *r = arg;
    lunar *moon = r->moon;
    keep(topic, data, size, sent_ns, sequence, r);
    r->result = lunar_publish(moon, "answer", 16, say, r->data);
}

static int say_and_note(void *buffer, uint32_t size, void *arg)
{
    CHECK_EQ(lunar_publish(arg, "a", 16, say, "note"), 0);
    return say(buffer, size, "text");
}

static void test_callbacks_publish(void)
{
    lunar *moon = opened();
    struct received question = {.moon = moon, .result = 1}, reply = {0};
    CHECK_EQ(lunar_subscribe(moon, "question", answer, &question), 0);
    CHECK_EQ(lunar_subscribe(moon, "answer", keep, &reply), 0);
    CHECK_EQ(lunar_publish(moon, "question", 16, say, "why"), 0);
    CHECK_EQ(question.result, 0);
    CHECK(strcmp(reply.data, "why") == 0);
    CHECK_EQ(lunar_publish(moon, "a", 16, say_and_note, moon), 0);
    CHECK_EQ(fake.last->emitted, 2);
    lunar_close(moon);
    check_clean();
}

static int count_up(void *buffer, uint32_t size, void *arg)
{
    (void)buffer, (void)size;
    ++*(unsigned *)arg; /* the topic's lock is held: a race would show here, and under ThreadSanitizer */
    return 0;
}

static lunar *shared_moon;
static unsigned shared_count;

static void *publish_many(void *arg)
{
    (void)arg;
    for (int i = 0; i < PUBLICATIONS; i++)
        if (lunar_publish(shared_moon, "shared", 16, count_up, &shared_count) != 0)
            return "failed";
    return NULL;
}

static void test_one_topic_from_several_threads(void)
{
    pthread_t threads[THREADS];
    shared_moon = opened();
    shared_count = 0;
    for (int i = 0; i < THREADS; i++)
        CHECK_EQ(pthread_create(&threads[i], NULL, publish_many, NULL), 0);
    for (int i = 0; i < THREADS; i++) {
        void *failure = NULL;
        CHECK_EQ(pthread_join(threads[i], &failure), 0);
        CHECK(failure == NULL);
    }
    CHECK_EQ(fake.opened, 1);
    CHECK_EQ(shared_count, THREADS * PUBLICATIONS);
    CHECK_EQ(fake.last->emitted, THREADS * PUBLICATIONS);
    lunar_close(shared_moon);
    check_clean();
}

int main(void)
{
    CHECK_RUN(test_options_reach_the_client);
    CHECK_RUN(test_open_fails);
    CHECK_RUN(test_message_arrives);
    CHECK_RUN(test_a_source_is_opened_once);
    CHECK_RUN(test_equal_hashes_are_different_topics);
    CHECK_RUN(test_topic_names);
    CHECK_RUN(test_publication_is_cancelled);
    CHECK_RUN(test_publication_fails);
    CHECK_RUN(test_flush);
    CHECK_RUN(test_publisher);
    CHECK_RUN(test_subscriptions);
    CHECK_RUN(test_callback_unsubscribes_itself);
    CHECK_RUN(test_unsubscribed_while_it_is_opened);
    CHECK_RUN(test_callbacks_publish);
    CHECK_RUN(test_one_topic_from_several_threads);
    return check_done();
}
