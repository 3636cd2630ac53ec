/* SPDX-License-Identifier: Apache-2.0
 *
 * Clients for test_kills.py.
 *
 *   storm steady SEND RECEIVE [relayed]   sends and receives until stdin ends. A line on stdin is answered by one on stdout: `p` sends no
 *                                         more and gives everything back, `n` looks again whether there is something to give back, `r`
 *                                         goes on, `s` tells its counters.
 *   storm victim SEED [relayed]           does what a client can do, in random order, until it is killed
 *   storm visitor CHANNEL TIMES           opens a sink on the channel and closes it, so many times, each after a message
 */
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <unistd.h>

#include "../draw.h"
#include "selene.h"

#define LIFE_S 7200
#define ENDS 4
#define HELD 64
#define CHANNELS 4
#define BURST 16
#define PART 20000

static selene_session *session;

static void check(int rc, const char *what)
{
    if (rc >= 0)
        return;
    fprintf(stderr, "storm: %s: %s (%s)\n", what, selene_last_error(), strerror(-rc));
    exit(1);
}

static void open_session(int relayed)
{
    selene_session_options options;
    selene_session_defaults(&options);
    options.relayed = relayed;
    options.program = "storm";
    check(selene_init_session(&session, &options), "session");
}

static selene_stream *open_stream(uint32_t delivery)
{
    selene_options options;
    selene_stream *stream;
    selene_options_defaults(&options);
    options.delivery = delivery;
    check(selene_create_stream(session, &options, &stream), "stream");
    return stream;
}

/* A size as messages have: mostly small. */
static uint32_t size(void)
{
    static const uint32_t limits[] = {64, 64, 64, 1024, 8000};
    return 8 + draw(limits[draw(5)]);
}

/* ---- steady ---- */

static void drain(selene_source *source, selene_sink *sink, uint64_t wait_ns)
{
    selene_buffer buffer;
    /* others may still send: a part, then we are asked again */
    for (int i = 0; i < PART && selene_consume_timeout(sink, wait_ns, &buffer) == 1; i++)
        check(selene_release_buffer(sink, &buffer), "release");
    selene_flush(source); /* the source's own thread takes back what dead sinks held */
}

static void tell(const selene_source *source, const selene_sink *sink)
{
    selene_source_stats out;
    selene_sink_stats in;
    selene_source_get_stats(source, &out);
    selene_sink_get_stats(sink, &in);
    printf("{\"connected\":%d,\"sent\":%llu,\"received\":%llu,\"lost\":%llu,\"duplicated\":%llu,\"reordered\":%llu,"
           "\"refused\":%llu,\"dropped\":%llu,\"failed\":%llu,\"unsent\":%llu,\"sources\":%u,\"sinks\":%u}\n",
           selene_connected(session), (unsigned long long)out.messages, (unsigned long long)in.messages,
           (unsigned long long)in.lost, (unsigned long long)in.duplicated, (unsigned long long)in.reordered,
           (unsigned long long)in.refused, (unsigned long long)in.dropped, (unsigned long long)out.failed,
           (unsigned long long)(out.dropped + out.dropped_slow), in.local_sources + in.remote_sources,
           out.local_sinks + out.remote_sinks);
}

static int send_some(selene_source *source)
{
    for (int i = 0; i < BURST; i++) {
        selene_buffer buffer;
        if (selene_get_buffer(source, size(), SELENE_DONTWAIT, &buffer) < 0)
            return i;
        memset(buffer.data, i, buffer.size);
        if (selene_emit(source, &buffer, SELENE_DONTWAIT) < 0) {
            if (buffer.data)
                selene_cancel_buffer(source, &buffer);
            return i;
        }
    }
    return BURST;
}

static int steady(uint64_t send, uint64_t receive)
{
    selene_stream *stream = open_stream(1);
    selene_source *source;
    selene_sink *sink;
    check(selene_create_source(stream, send, &source), "source");
    check(selene_create_sink(stream, receive, NULL, NULL, &sink), "sink");
    setvbuf(stdout, NULL, _IOLBF, 0);
    int paused = 0;
    for (;;) {
        struct pollfd in = {STDIN_FILENO, POLLIN, 0};
        char command[2];
        if (poll(&in, 1, paused ? -1 : 0) > 0) {
            if (read(STDIN_FILENO, command, sizeof command) != sizeof command)
                return 0;
            if (command[0] == 's') {
                tell(source, sink);
                continue;
            }
            paused = command[0] != 'r';
            if (paused)
                drain(source, sink, 1000000);
            puts("done");
        }
        if (paused)
            continue;
        int busy = send_some(source);
        selene_buffer buffers[BURST];
        int n = selene_consume_burst(sink, SELENE_DONTWAIT, buffers, BURST);
        if (n > 0)
            check(selene_release_burst(sink, buffers, (uint32_t)n), "release");
        if (n <= 0 && busy < BURST && selene_consume_timeout(sink, 200000, buffers) == 1)
            check(selene_release_buffer(sink, buffers), "release");
    }
}

/* ---- victim ---- */

static selene_source *sources[ENDS];
static selene_sink *sinks[ENDS];
static selene_buffer borrowed[ENDS][HELD], consumed[ENDS][HELD];
static uint32_t borrowed_count[ENDS], consumed_count[ENDS];

static void act_on_source(uint32_t i, selene_stream *stream)
{
    uint32_t *n = &borrowed_count[i];
    if (!sources[i]) {
        check(selene_create_source(stream, 1 + draw(CHANNELS), &sources[i]), "source");
        return;
    }
    switch (draw(16)) {
    case 0:
        if (draw(8) == 0) {
            /* also with buffers borrowed */
            selene_close_source(sources[i]);
            sources[i] = NULL;
            *n = 0;
        }
        break;
    case 1:
        selene_flush(sources[i]);
        break;
    case 2:
        if (*n > 0)
            selene_cancel_buffer(sources[i], &borrowed[i][--*n]);
        break;
    case 3:
    case 4:
    case 5:
        if (*n < HELD && selene_get_buffer(sources[i], size(), SELENE_DONTWAIT, &borrowed[i][*n]) == 0)
            ++*n;
        break;
    default:
        if (*n == 0)
            (void)selene_send(sources[i], "12345678", 8, SELENE_DONTWAIT);
        else if (selene_emit(sources[i], &borrowed[i][*n - 1], SELENE_DONTWAIT) >= 0 || !borrowed[i][*n - 1].data)
            --*n;
    }
}

static void act_on_sink(uint32_t i, selene_stream *stream)
{
    uint32_t *n = &consumed_count[i];
    if (!sinks[i]) {
        check(selene_create_sink(stream, 1 + draw(CHANNELS), NULL, NULL, &sinks[i]), "sink");
        return;
    }
    switch (draw(16)) {
    case 0:
        if (draw(8) == 0 && *n == 0) {
            selene_close_sink(sinks[i]);
            sinks[i] = NULL;
        }
        break;
    case 1:
        if (*n < HELD && selene_consume_timeout(sinks[i], draw(500000), &consumed[i][*n]) == 1)
            ++*n;
        break;
    default:
        if (*n < HELD && draw(2) && selene_consume_data(sinks[i], SELENE_DONTWAIT, &consumed[i][*n]) == 1)
            ++*n;
        else if (*n > 0 && selene_release_buffer(sinks[i], &consumed[i][*n - 1]) == 0)
            --*n;
    }
}

static int victim(uint64_t seed)
{
    selene_stream *streams[2] = {open_stream(0), open_stream(1)};
    state = seed * 2 + 1;
    for (;;) {
        uint32_t i = draw(ENDS);
        if (draw(2))
            act_on_source(i, streams[i % 2]);
        else
            act_on_sink(i, streams[i % 2]);
    }
}

/* ---- visitor ---- */

static int visitor(uint64_t channel, unsigned times)
{
    selene_stream *stream = open_stream(1);
    for (unsigned i = 0; i < times; i++) {
        selene_sink *sink;
        selene_buffer buffer;
        check(selene_create_sink(stream, channel, NULL, NULL, &sink), "sink");
        for (unsigned n = draw(64) + 1; n > 0; n--) {
            check(selene_consume_data(sink, 0, &buffer), "consume");
            check(selene_release_buffer(sink, &buffer), "release");
        }
        selene_close_sink(sink);
    }
    return 0;
}

int main(int argc, char **argv)
{
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    alarm(LIFE_S);
    if (argc >= 4 && strcmp(argv[1], "steady") == 0) {
        state = strtoull(argv[2], NULL, 10) * 2 + 1;
        open_session(argc > 4);
        return steady(strtoull(argv[2], NULL, 10), strtoull(argv[3], NULL, 10));
    }
    if (argc >= 3 && strcmp(argv[1], "victim") == 0) {
        open_session(argc > 3);
        return victim(strtoull(argv[2], NULL, 10));
    }
    if (argc >= 4 && strcmp(argv[1], "visitor") == 0) {
        state = 77;
        open_session(0);
        return visitor(strtoull(argv[2], NULL, 10), (unsigned)strtoul(argv[3], NULL, 10));
    }
    fputs("usage: storm steady SEND RECEIVE [relayed] | storm victim SEED [relayed] |"
          " storm visitor CHANNEL TIMES\n",
          stderr);
    return 2;
}
