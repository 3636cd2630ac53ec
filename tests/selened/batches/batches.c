/* SPDX-License-Identifier: Apache-2.0
 *
 * Clients for test_batches.py. Each message says which one it is, and is filled with bytes that follow from that.
 *
 *   batches source COUNT SEED   emits so many, fast, in every order in which buffers can be borrowed, emitted and cancelled
 *   batches sink COUNT          until it has so many: each has to come once, whole
 *   batches guest               takes what comes, until it is ended
 *   batches answer              answers each message in a callback, until it is ended
 *   batches ask COUNT           asks so often, each time in the callback of the answer before
 *
 * Source, sink and ask end with a JSON object of what they have counted.
 */
#include <errno.h>
#include <semaphore.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <time.h>
#include <unistd.h>

#include "../draw.h"
#include "selene.h"

#define LIFE_S 120
#define CHANNEL 7
#define SIZE_MAX_BYTES 300
#define HELD 8

static uint64_t next_id, total;
static selene_source *source;
static selene_sink *sink;

static void check(int64_t rc, const char *what)
{
    if (rc >= 0)
        return;
    fprintf(stderr, "batches: %s: %s (%s)\n", what, selene_last_error(), strerror((int)-rc));
    exit(1);
}

/* ---- Messages ---- */

static uint8_t byte_of(uint64_t id, uint32_t at)
{
    return (uint8_t)(id * 31 + at * 7 + (id >> 8));
}

static void fill(const selene_buffer *b, uint64_t id)
{
    uint8_t *data = b->data;
    memcpy(data, &id, sizeof id);
    for (uint32_t i = sizeof id; i < b->size; i++)
        data[i] = byte_of(id, i);
}

/* The message's number, or total: it is not whole. */
static uint64_t read_back(const selene_buffer *b)
{
    const uint8_t *data = b->data;
    uint64_t id;
    memcpy(&id, data, sizeof id);
    for (uint32_t i = sizeof id; i < b->size; i++)
        if (data[i] != byte_of(id, i))
            return total;
    return id < total ? id : total;
}

/* ---- Source ---- */

static selene_buffer held[HELD];
static uint32_t held_count;

static void borrow(selene_buffer *b)
{
    check(selene_get_buffer(source, draw(64) ? 64 : 8 + draw(SIZE_MAX_BYTES - 8), 0, b), "get_buffer");
    fill(b, next_id++);
}

static void emit(selene_buffer *b)
{
    if (draw(16) == 0) /* shorter than it was borrowed for, still whole */
        b->size = 8 + draw(b->size - 7);
    check(selene_emit_data(source, b), "emit");
}

static void hold(void)
{
    if (held_count < HELD && next_id < total)
        borrow(&held[held_count++]);
}

static void let_go(void)
{
    if (held_count == 0)
        return;
    uint32_t i = draw(held_count);
    emit(&held[i]);
    held[i] = held[--held_count];
}

static void change_mind(void)
{
    selene_buffer b;
    check(selene_get_buffer(source, 64, 0, &b), "get_buffer");
    memset(b.data, 0xee, b.size); /* must not be seen */
    selene_cancel_buffer(source, &b);
}

static void ask_too_much(void)
{
    static const uint32_t sizes[] = {SELENE_MAX_MESSAGE + 1, UINT32_MAX - 64, UINT32_MAX};
    selene_buffer b;
    if (selene_get_buffer(source, sizes[draw(3)], 0, &b) != -EMSGSIZE) {
        fputs("batches: get_buffer: lends more than there is\n", stderr);
        exit(1);
    }
}

static void run_source(void)
{
    while (next_id < total) {
        selene_buffer b;
        switch (draw(400)) {
        case 0:
            hold();
            break;
        case 1:
            let_go();
            break;
        case 2:
            change_mind();
            break;
        case 3:
            check(selene_flush(source), "flush");
            break;
        case 4:
            ask_too_much();
            break;
        default:
            borrow(&b);
            emit(&b);
        }
    }
    while (held_count > 0)
        let_go();
    selene_source_stats s;
    check(selene_flush(source), "flush");
    selene_source_get_stats(source, &s);
    printf("{\"messages\":%llu,\"datagrams\":%llu,\"failed\":%llu}\n", (unsigned long long)s.messages,
           (unsigned long long)s.datagrams, (unsigned long long)(s.failed + s.dropped));
    selene_close_source(source);
}

/* ---- Sink ---- */

/* Messages are kept for a while and given back in any order: several of one datagram, or of many. */
static void give_back_one(void)
{
    uint32_t i = draw(held_count);
    check(selene_release_buffer(sink, &held[i]), "release");
    held[i] = held[--held_count];
}

static uint64_t now_ns(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_REALTIME, &ts);
    return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

static void run_sink(void)
{
    uint8_t *seen = calloc(total, 1);
    uint64_t broken = 0, twice = 0, untimely = 0, got = 0, last_ns = 0;
    puts("ready");
    fflush(stdout);
    for (; got < total; got++) {
        selene_buffer *b = &held[held_count];
        if (selene_consume_timeout(sink, 10000000000u, b) != 1)
            break;
        held_count++;
        uint64_t id = read_back(b), sent_ns = selene_buffer_sent_ns(b);
        broken += id == total;
        twice += id < total && seen[id]++;
        /* emitted one after the other, and before it came; the two read the clock in different ways */
        untimely += sent_ns < last_ns || sent_ns > now_ns() + 1000000;
        last_ns = sent_ns;
        while (held_count == HELD || (held_count > 0 && draw(2)))
            give_back_one();
    }
    while (held_count > 0)
        give_back_one();
    selene_sink_stats s;
    selene_sink_get_stats(sink, &s);
    printf("{\"messages\":%llu,\"broken\":%llu,\"twice\":%llu,\"untimely\":%llu,\"lost\":%llu,\"duplicated\":%llu,"
           "\"reordered\":%llu}\n",
           (unsigned long long)got, (unsigned long long)broken, (unsigned long long)twice, (unsigned long long)untimely,
           (unsigned long long)s.lost, (unsigned long long)s.duplicated, (unsigned long long)s.reordered);
}

static void run_guest(void)
{
    selene_buffer b;
    puts("ready");
    fflush(stdout);
    for (;;)
        if (selene_consume_timeout(sink, 1000000, &b) == 1)
            check(selene_release_buffer(sink, &b), "release");
}

/* ---- Questions and answers ---- */

static sem_t done;

static void send_one(void)
{
    check(selene_send(source, &next_id, sizeof next_id, 0), "send");
}

static void answer(selene_sink *from, const selene_buffer *b, void *arg)
{
    (void)from, (void)arg;
    memcpy(&next_id, b->data, sizeof next_id);
    send_one();
}

static void ask_again(selene_sink *from, const selene_buffer *b, void *arg)
{
    (void)from, (void)arg;
    uint64_t id;
    memcpy(&id, b->data, sizeof id);
    if (id == next_id && ++next_id < total)
        send_one();
    else
        sem_post(&done);
}

static void run_ask(void)
{
    sem_init(&done, 0, 0);
    send_one();
    while (sem_wait(&done) < 0)
        continue;
    printf("{\"answers\":%llu}\n", (unsigned long long)next_id);
}

static void open_both(selene_stream *stream, bool asks)
{
    check(selene_create_source(stream, CHANNEL + !asks, &source), "source");
    check(selene_create_sink(stream, CHANNEL + asks, asks ? ask_again : answer, NULL, &sink), "sink");
    selene_source_stats s = {0};
    if (!asks) {
        puts("ready");
        fflush(stdout);
    }
    while (s.remote_sinks == 0) {
        selene_buffer b;
        usleep(1000);
        check(selene_get_buffer(source, 8, 0, &b), "get_buffer");
        selene_cancel_buffer(source, &b);
        selene_source_get_stats(source, &s);
    }
    if (asks)
        run_ask();
    else
        for (;;)
            pause();
}

int main(int argc, char **argv)
{
    selene_session *session;
    selene_stream *stream;
    selene_options options;
    if (argc < 2 || (strcmp(argv[1], "guest") != 0 && strcmp(argv[1], "answer") != 0 && argc < 3)) {
        fputs("usage: batches source COUNT SEED | sink COUNT | guest | answer | ask COUNT\n", stderr);
        return 2;
    }
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    alarm(LIFE_S);
    total = argc > 2 ? strtoull(argv[2], NULL, 10) : 0;
    state = (argc > 3 ? strtoull(argv[3], NULL, 10) : 0) * 2 + 1;
    selene_options_defaults(&options);
    options.delivery = 1;
    check(selene_init_session(&session, NULL), "session");
    check(selene_create_stream(session, &options, &stream), "stream");
    if (strcmp(argv[1], "source") == 0) {
        check(selene_create_source(stream, CHANNEL, &source), "source");
        run_source();
    } else if (strcmp(argv[1], "ask") == 0 || strcmp(argv[1], "answer") == 0) {
        open_both(stream, strcmp(argv[1], "ask") == 0);
    } else {
        check(selene_create_sink(stream, CHANNEL, NULL, NULL, &sink), "sink");
        strcmp(argv[1], "sink") == 0 ? run_sink() : run_guest();
    }
    return selene_close_session(session) < 0;
}
