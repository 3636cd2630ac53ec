/* SPDX-License-Identifier: Apache-2.0
 *
 * A client library made for test_lunar.c: it keeps what was asked of it, hands every message to the sinks of the same name at once,
 * fails when told to, and gives every name the same hash. Included once: what it checks counts among the test's own.
 */
#ifndef TEST_STAND_IN_H
#define TEST_STAND_IN_H

#include <stdlib.h>
#include <string.h>

#include "check.h"
#include "lunar.h"

struct selene_source {
    char name[LUNAR_MAX_TOPIC + 1];
    unsigned borrowed, emitted, cancelled, flushed;
    uint8_t memory[128];
};

struct selene_sink {
    char name[LUNAR_MAX_TOPIC + 1];
    selene_data_cb callback;
    void *arg;
    selene_sink *next;
};

static struct {
    int init, stream, source, sink, buffer, emit, flush; /* result of the next calls */
    int sessions, streams, sources, sinks;               /* open now */
    int opened;                                          /* sources ever */
    int buffer_kept;                                     /* a failing emit leaves the buffer with the caller */
    selene_source *last;
    selene_sink *first;
    selene_session_options session_options;
    selene_options options;
    void (*while_opening)(selene_sink *sink);
} fake;

static int told(int *result)
{
    int rc = *result;
    *result = 0;
    return rc;
}

void selene_session_defaults(selene_session_options *options)
{
    *options = (selene_session_options){.reconnect = 1};
}

void selene_options_defaults(selene_options *options)
{
    *options = (selene_options){.coalesce = 1};
}

const char *selene_last_error(void)
{
    return "selene says so";
}

int selene_init_session(selene_session **session, const selene_session_options *options)
{
    int rc = told(&fake.init);
    if (rc == 0) {
        fake.sessions++;
        *session = (selene_session *)&fake;
        if (options)
            fake.session_options = *options;
    }
    return rc;
}

int selene_close_session(selene_session *session)
{
    (void)session;
    fake.sessions--;
    return 0;
}

int selene_create_stream(selene_session *session, const selene_options *options, selene_stream **stream)
{
    (void)session;
    int rc = told(&fake.stream);
    if (rc == 0) {
        fake.streams++;
        *stream = (selene_stream *)&fake;
        if (options)
            fake.options = *options;
    }
    return rc;
}

void selene_close_stream(selene_stream *stream)
{
    if (stream)
        fake.streams--;
}

uint64_t selene_channel_of(const char *name)
{
    (void)name;
    return 7;
}

int selene_create_named_source(selene_stream *stream, const char *name, selene_source **source)
{
    (void)stream;
    int rc = told(&fake.source);
    if (rc < 0)
        return rc;
    *source = fake.last = calloc(1, sizeof **source);
    strcpy((*source)->name, name);
    fake.sources++;
    fake.opened++;
    return 0;
}

void selene_close_source(selene_source *source)
{
    if (!source)
        return;
    CHECK_EQ(source->borrowed, 0);
    fake.sources--;
    free(source);
}

int selene_get_buffer(selene_source *source, uint32_t size, int flags, selene_buffer *buffer)
{
    (void)flags;
    int rc = told(&fake.buffer);
    if (rc < 0)
        return rc;
    source->borrowed++;
    *buffer = (selene_buffer){.data = source->memory, .size = size};
    return 0;
}

void selene_cancel_buffer(selene_source *source, selene_buffer *buffer)
{
    source->borrowed--;
    source->cancelled++;
    buffer->data = NULL;
}

int64_t selene_emit_data(selene_source *source, selene_buffer *buffer)
{
    int rc = told(&fake.emit);
    if (rc < 0) {
        if (!fake.buffer_kept) {
            source->borrowed--;
            buffer->data = NULL;
        }
        return rc;
    }
    source->borrowed--;
    buffer->sequence = source->emitted++;
    for (selene_sink *sink = fake.first, *next; sink; sink = next) {
        next = sink->next;
        if (strcmp(sink->name, source->name) == 0)
            sink->callback(sink, buffer, sink->arg);
    }
    buffer->data = NULL;
    return 100; /* a token, which is no error */
}

int selene_flush(selene_source *source)
{
    source->flushed++;
    return told(&fake.flush);
}

int selene_create_named_sink(selene_stream *stream, const char *name, selene_data_cb callback, void *arg,
                             selene_sink **sink)
{
    (void)stream;
    int rc = told(&fake.sink);
    if (rc < 0)
        return rc;
    selene_sink *made = calloc(1, sizeof *made);
    strcpy(made->name, name);
    made->callback = callback;
    made->arg = arg;
    made->next = fake.first;
    fake.first = made;
    fake.sinks++;
    if (fake.while_opening)
        fake.while_opening(made);
    *sink = made;
    return 0;
}

void selene_close_sink(selene_sink *sink)
{
    if (!sink)
        return;
    selene_sink **at = &fake.first;
    while (*at != sink)
        at = &(*at)->next;
    *at = sink->next;
    fake.sinks--;
    free(sink);
}

uint64_t selene_buffer_sent_ns(const selene_buffer *buffer)
{
    (void)buffer;
    return UINT64_C(1700000000000000001);
}

#endif
