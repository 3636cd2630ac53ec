/* SPDX-License-Identifier: Apache-2.0 */
/* Lunar over SELENE: publish and subscribe, best-effort for round trips, reliable (which waits for credit) for floods. */
#include <semaphore.h>

#include "lunar.h"
#include "peer.h"

static lunar *moon;
static lunar_publisher *out;
static sem_t ended;

static void must(int rc, const char *what)
{
    if (rc < 0)
        peer_fail(what, lunar_last_error());
}

static void on_message(const char *topic, const void *data, uint32_t size, uint64_t sent_ns, uint64_t sequence,
                       void *arg)
{
    (void)topic;
    (void)sent_ns;
    (void)sequence;
    (void)arg;
    received(data, size);
    if (peer_done())
        sem_post(&ended);
}

static void peer_open(void)
{
    lunar_options options;
    lunar_defaults(&options);
    options.stream.delivery = peer_reliable;
    options.stream.wait = peer_spin ? SELENE_WAIT_SPIN : SELENE_WAIT_SLEEP;
    sem_init(&ended, 0, 0);
    must(lunar_open(&moon, &options), "lunar_open");
    must(lunar_open_publisher(moon, peer_asks ? "bench/to" : "bench/back", &out), "lunar_open_publisher");
    must(lunar_subscribe(moon, peer_asks ? "bench/back" : "bench/to", on_message, NULL), "lunar_subscribe");
}

static int fill(void *buffer, uint32_t size, void *arg)
{
    memcpy(buffer, arg, sizeof(uint64_t));
    return (int)size;
}

static void peer_send(uint64_t sequence)
{
    must(lunar_publish_by(out, (uint32_t)peer_size, fill, &sequence), "lunar_publish_by");
}

static void peer_flush(void)
{
    must(lunar_flush_publisher(out), "lunar_flush_publisher");
}

static void peer_wait(void)
{
    uint64_t at = raw_realtime_ns() + PEER_LOOK_MS * 1000000u;
    struct timespec limit = {(time_t)(at / 1000000000u), (long)(at % 1000000000u)};
    while (sem_timedwait(&ended, &limit) != 0 && errno == EINTR)
        ;
}

static void peer_close(void)
{
    lunar_close_publisher(out);
    lunar_close(moon);
}

PEER_MAIN
