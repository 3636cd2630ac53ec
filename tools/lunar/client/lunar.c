/* SPDX-License-Identifier: Apache-2.0
 *
 * A topic is a named channel of SELENE. Sources are opened by the first publication and kept in a small hash table, which
 * is read without a lock: topics are only ever added at the head of a chain, and stay until lunar_close.
 */
#include "lunar.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#define CHAINS 256u

struct topic {
    struct topic *next;
    selene_source *source;
    pthread_mutex_t lock; /* a source is used by one thread at a time; recursive, as a fill callback may publish too */
    char name[LUNAR_MAX_TOPIC + 1];
};

struct subscription {
    struct subscription *next;
    selene_sink *sink; /* NULL: being opened */
    atomic_bool ended; /* unsubscribed, perhaps while it is being opened */
    lunar_data_cb callback;
    void *arg;
    char topic[LUNAR_MAX_TOPIC + 1];
};

struct lunar {
    selene_session *session;
    selene_stream *stream;
    pthread_mutex_t lock; /* adding a topic; the subscriptions */
    struct subscription *subscriptions;
    _Atomic(struct topic *) topics[CHAINS];
};

static _Thread_local const char *reason; /* NULL: SELENE's */

static int failed(int error, const char *why)
{
    reason = why;
    return error;
}

const char *lunar_last_error(void)
{
    return reason ? reason : selene_last_error();
}

static int check_name(const char *name)
{
    size_t length = strnlen(name, LUNAR_MAX_TOPIC + 1);
    return length > 0 && length <= LUNAR_MAX_TOPIC ? 0 : failed(-EINVAL, "a topic has 1 to 255 bytes");
}

void lunar_defaults(lunar_options *options)
{
    selene_session_defaults(&options->session);
    selene_options_defaults(&options->stream);
}

int lunar_open(lunar **moon, const lunar_options *options)
{
    reason = NULL;
    lunar *m = calloc(1, sizeof *m);
    if (!m)
        return failed(-ENOMEM, "no memory for a session");
    pthread_mutex_init(&m->lock, NULL);
    int rc = selene_init_session(&m->session, options ? &options->session : NULL);
    if (rc == 0)
        rc = selene_create_stream(m->session, options ? &options->stream : NULL, &m->stream);
    if (rc < 0)
        lunar_close(m);
    else
        *moon = m;
    return rc;
}

/* ---- Publish ---- */

static struct topic *find(struct topic *topic, const char *name)
{
    while (topic && strcmp(topic->name, name) != 0)
        topic = topic->next;
    return topic;
}

/* The first publication on a topic. Under m->lock, so that two threads do not open it twice. */
static int add_topic(lunar *m, _Atomic(struct topic *) *chain, const char *name, struct topic **out)
{
    struct topic *head = atomic_load_explicit(chain, memory_order_relaxed), *topic = find(head, name);
    if (topic) {
        *out = topic;
        return 0;
    }
    int rc = check_name(name);
    if (rc < 0)
        return rc;
    topic = calloc(1, sizeof *topic);
    if (!topic)
        return failed(-ENOMEM, "no memory for a topic");
    rc = selene_create_named_source(m->stream, name, &topic->source);
    if (rc < 0) {
        free(topic);
        return rc;
    }
    pthread_mutexattr_t recursive;
    pthread_mutexattr_init(&recursive);
    pthread_mutexattr_settype(&recursive, PTHREAD_MUTEX_RECURSIVE);
    pthread_mutex_init(&topic->lock, &recursive);
    pthread_mutexattr_destroy(&recursive);
    strcpy(topic->name, name);
    topic->next = head;
    atomic_store_explicit(chain, topic, memory_order_release); /* pairs with the acquire of those who read the chain */
    *out = topic;
    return 0;
}

static int publish(selene_source *source, uint32_t size, lunar_fill_cb fill, void *arg)
{
    selene_buffer buffer;
    int rc = selene_get_buffer(source, size, 0, &buffer);
    if (rc < 0)
        return rc;
    int used = fill(buffer.data, size, arg);
    if (used >= 0 && (uint32_t)used <= size) {
        buffer.size = (uint32_t)used;
        int64_t token = selene_emit_data(source, &buffer);
        rc = token < 0 ? (int)token : 0;
    } else {
        rc = used < 0 ? used : failed(-EMSGSIZE, "the callback used more than the buffer has");
    }
    if (rc < 0 && buffer.data)
        selene_cancel_buffer(source, &buffer);
    return rc;
}

int lunar_publish(lunar *m, const char *name, uint32_t size, lunar_fill_cb fill, void *arg)
{
    reason = NULL;
    _Atomic(struct topic *) *chain = &m->topics[selene_channel_of(name) % CHAINS];
    /* acquire: pairs with the release in add_topic */
    struct topic *topic = find(atomic_load_explicit(chain, memory_order_acquire), name);
    int rc = 0;
    if (!topic) {
        pthread_mutex_lock(&m->lock);
        rc = add_topic(m, chain, name, &topic);
        pthread_mutex_unlock(&m->lock);
        if (rc < 0)
            return rc;
    }
    pthread_mutex_lock(&topic->lock);
    rc = publish(topic->source, size, fill, arg);
    pthread_mutex_unlock(&topic->lock);
    return rc;
}

int lunar_flush(lunar *m)
{
    reason = NULL;
    int rc = 0;
    for (uint32_t i = 0; i < CHAINS; i++) {
        /* acquire: pairs with the release in add_topic */
        for (struct topic *t = atomic_load_explicit(&m->topics[i], memory_order_acquire); t; t = t->next) {
            pthread_mutex_lock(&t->lock);
            int one = selene_flush(t->source);
            pthread_mutex_unlock(&t->lock);
            rc = rc < 0 ? rc : one;
        }
    }
    return rc;
}

/* A publisher is a source, and nothing else. */
int lunar_open_publisher(lunar *m, const char *name, lunar_publisher **publisher)
{
    reason = NULL;
    selene_source *source = NULL;
    int rc = check_name(name);
    if (rc == 0)
        rc = selene_create_named_source(m->stream, name, &source);
    *publisher = (lunar_publisher *)source;
    return rc;
}

int lunar_publish_by(lunar_publisher *publisher, uint32_t size, lunar_fill_cb fill, void *arg)
{
    reason = NULL;
    return publish((selene_source *)publisher, size, fill, arg);
}

int lunar_flush_publisher(lunar_publisher *publisher)
{
    reason = NULL;
    return selene_flush((selene_source *)publisher);
}

void lunar_close_publisher(lunar_publisher *publisher)
{
    selene_close_source((selene_source *)publisher);
}

/* ---- Subscribe ---- */

static void deliver(selene_sink *sink, const selene_buffer *buffer, void *arg)
{
    (void)sink;
    const struct subscription *s = arg;
    /* relaxed: for a callback that unsubscribes itself, the same thread */
    if (!atomic_load_explicit(&s->ended, memory_order_relaxed))
        s->callback(s->topic, buffer->data, buffer->size, selene_buffer_sent_ns(buffer), buffer->sequence, s->arg);
}

/* The link that points to the subscription of a topic; to NULL if there is none. Under m->lock. */
static struct subscription **link_of(lunar *m, const char *name)
{
    struct subscription **at = &m->subscriptions;
    while (*at && strcmp((*at)->topic, name) != 0)
        at = &(*at)->next;
    return at;
}

/* Take a subscription out of the list and end it. Never closes a sink under m->lock: that waits for the thread that runs
 * callbacks, which may be waiting for m->lock. */
static void end(lunar *m, struct subscription **at)
{
    struct subscription *s = *at;
    selene_sink *sink = s->sink;
    *at = s->next;
    atomic_store_explicit(&s->ended, true, memory_order_relaxed);
    pthread_mutex_unlock(&m->lock);
    if (sink) {
        selene_close_sink(sink);
        free(s);
    }
}

int lunar_subscribe(lunar *m, const char *name, lunar_data_cb callback, void *arg)
{
    reason = NULL;
    int rc = check_name(name);
    if (rc < 0)
        return rc;
    struct subscription *s = calloc(1, sizeof *s);
    if (!s)
        return failed(-ENOMEM, "no memory for a subscription");
    s->callback = callback;
    s->arg = arg;
    strcpy(s->topic, name);
    pthread_mutex_lock(&m->lock);
    if (*link_of(m, name)) {
        pthread_mutex_unlock(&m->lock);
        free(s);
        return failed(-EEXIST, "subscribed to that topic already");
    }
    s->next = m->subscriptions;
    m->subscriptions = s;
    pthread_mutex_unlock(&m->lock);
    selene_sink *sink = NULL;
    rc = selene_create_named_sink(m->stream, name, deliver, s, &sink);
    pthread_mutex_lock(&m->lock);
    bool ended = atomic_load_explicit(&s->ended, memory_order_relaxed);
    if (!ended)
        s->sink = sink;
    if (rc < 0 && !ended)
        *link_of(m, name) = s->next;
    pthread_mutex_unlock(&m->lock);
    if (rc < 0 || ended) {
        selene_close_sink(sink);
        free(s);
    }
    return rc;
}

int lunar_unsubscribe(lunar *m, const char *name)
{
    reason = NULL;
    pthread_mutex_lock(&m->lock);
    struct subscription **at = link_of(m, name);
    if (!*at) {
        pthread_mutex_unlock(&m->lock);
        return failed(-ENOENT, "not subscribed to that topic");
    }
    end(m, at);
    return 0;
}

void lunar_close(lunar *m)
{
    if (!m)
        return;
    pthread_mutex_lock(&m->lock);
    while (m->subscriptions) {
        end(m, &m->subscriptions);
        pthread_mutex_lock(&m->lock);
    }
    pthread_mutex_unlock(&m->lock);
    for (uint32_t i = 0; i < CHAINS; i++) {
        struct topic *next = atomic_load_explicit(&m->topics[i], memory_order_relaxed);
        for (struct topic *t = next; t; t = next) {
            next = t->next;
            selene_close_source(t->source);
            pthread_mutex_destroy(&t->lock);
            free(t);
        }
    }
    selene_close_stream(m->stream);
    if (m->session)
        selene_close_session(m->session);
    pthread_mutex_destroy(&m->lock);
    free(m);
}
