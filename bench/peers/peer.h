/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the programs of bench/lunar-mom share: command line, round trips, floods, output. Each library adds how it opens, sends, and
 * waits for messages (the functions below), calls received() for each message, and ends with PEER_MAIN.
 *
 *   server, subscriber   receive on the channel "to" and send on "back"; print ready, and end on SIGTERM or when all has come
 *   client, publisher    the other way round; print the result
 *
 * A message is the 64-bit sequence number and filler. Before a run the asking side repeats a HELLO until it is answered: no library
 * tells alike when its peer can hear it. A subscriber that has all says so with a HELLO, too.
 */
#ifndef QOS_BENCH_PEER_H
#define QOS_BENCH_PEER_H

#include <stdatomic.h>
#include <stdbool.h>

#include "../raw/raw.h"

#define PEER_USAGE                                                                                                     \
    "server|client|publisher|subscriber OWN-ADDRESS OTHER-ADDRESS [--size BYTES] [--count N] [--warmup N]"             \
    " [--spin 0|1] [--port N]"
#define PEER_HELLO UINT64_MAX
#define PEER_BYE (UINT64_MAX - 1)
#define PEER_LOOK_MS 20

static uint64_t peer_size = 64, peer_count = 10000, peer_warmup = 100, peer_spin, peer_port = 7600;
static const char *peer_own, *peer_other;
static bool peer_asks;     /* client, publisher */
static bool peer_reliable; /* publisher, subscriber: nothing may be lost */

/* ---- What a library adds ---- */

static void peer_open(void);
/* One message of peer_size bytes, one call; waits where that is how nothing is lost. */
static void peer_send(uint64_t sequence);
/* What was sent is on its way. */
static void peer_flush(void);
/* Waits for messages, or lets the library's thread do so, until peer_done() or PEER_LOOK_MS are over. */
static void peer_wait(void);
static void peer_close(void);

/* ---- Runs ---- */

static enum { PEER_SERVER, PEER_CLIENT, PEER_PUBLISHER, PEER_SUBSCRIBER } peer_role;
static atomic_bool peer_answered, peer_ended;
static uint64_t *peer_rtt_ns, peer_next, peer_lost, peer_start_ns, peer_stop_ns, peer_cpu_ns;

static inline bool peer_done(void)
{
    return atomic_load(&peer_ended);
}

static _Noreturn inline void peer_fail(const char *what, const char *why)
{
    fprintf(stderr, "%s: %s\n", what, why);
    exit(1);
}

static inline void peer_ask(void)
{
    if (peer_next == peer_warmup)
        peer_cpu_ns = raw_cpu_ns();
    peer_start_ns = raw_now_ns();
    peer_send(peer_next);
}

static inline void peer_answer(uint64_t sequence)
{
    uint64_t now = raw_now_ns();
    if (sequence != peer_next)
        peer_fail("round trip", "not the echo of what was sent");
    if (peer_next >= peer_warmup)
        peer_rtt_ns[peer_next - peer_warmup] = now - peer_start_ns;
    if (++peer_next < peer_warmup + peer_count)
        peer_ask();
    else
        atomic_store(&peer_ended, true);
}

static inline void peer_take(uint64_t sequence)
{
    if (peer_next == 0) {
        peer_start_ns = raw_now_ns();
        peer_cpu_ns = raw_cpu_ns();
    }
    peer_lost += sequence != peer_next;
    if (++peer_next == peer_count) {
        peer_stop_ns = raw_now_ns();
        peer_cpu_ns = raw_cpu_ns() - peer_cpu_ns;
        peer_send(PEER_BYE);
        peer_flush();
        atomic_store(&peer_ended, true);
    }
}

/* A message has come; its header was read. */
static inline void received(const void *data, size_t size)
{
    uint64_t sequence;
    if (size != peer_size)
        peer_fail("received", "a message of another size");
    memcpy(&sequence, data, sizeof(sequence));
    if (sequence == PEER_HELLO) {
        if (!peer_asks) {
            peer_send(PEER_HELLO);
            peer_flush();
        } else {
            atomic_store(&peer_answered, true);
        }
    } else if (sequence == PEER_BYE) {
        atomic_store(&peer_ended, true); /* perhaps before the last send has returned */
    } else if (peer_role == PEER_SERVER) {
        peer_send(sequence);
    } else if (peer_role == PEER_CLIENT) {
        peer_answer(sequence);
    } else if (peer_role == PEER_SUBSCRIBER) {
        peer_take(sequence);
    }
}

static inline void peer_greet(void)
{
    while (!atomic_load(&peer_answered)) {
        peer_send(PEER_HELLO);
        peer_flush();
        peer_wait();
    }
    /* answers to what was asked too often */
    for (int i = 0; i < 3; i++)
        peer_wait();
}

static inline void peer_run_client(void)
{
    peer_rtt_ns = calloc(peer_count, sizeof(*peer_rtt_ns));
    memset(peer_rtt_ns, 1, peer_count * sizeof(*peer_rtt_ns)); /* pages in before the clock starts */
    peer_greet();
    peer_ask();
    while (!peer_done())
        peer_wait();
    raw_print_summary(peer_rtt_ns, peer_count, peer_size, peer_spin ? "spin" : "blocking",
                      (raw_cpu_ns() - peer_cpu_ns) / peer_count);
}

static inline void peer_run_publisher(void)
{
    peer_greet();
    uint64_t start = raw_now_ns(), cpu = raw_cpu_ns();
    for (uint64_t i = 0; i < peer_count; i++)
        peer_send(i);
    peer_flush();
    double elapsed = (double)(raw_now_ns() - start), cpu_ns = (double)(raw_cpu_ns() - cpu);
    while (!peer_done())
        peer_wait();
    printf("{\"kind\":\"flood\",\"count\":%" PRIu64 ",\"rate_per_s\":%.0f,\"cpu_ns\":%.1f}\n", peer_count,
           (double)peer_count * 1e9 / elapsed, cpu_ns / (double)peer_count);
}

static inline void peer_run_receiver(void)
{
    raw_print_ready();
    while (!peer_done())
        peer_wait();
    printf("{\"kind\":\"throughput\",\"count\":%" PRIu64 ",\"lost\":%" PRIu64 ",\"size_bytes\":%" PRIu64
           ",\"ended_ns\":%" PRIu64 ",\"rate_per_s\":%.0f,\"cpu_ns\":%.1f}\n",
           peer_next, peer_lost, peer_size, peer_stop_ns,
           (double)peer_next * 1e9 / (double)(peer_stop_ns - peer_start_ns), (double)peer_cpu_ns / (double)peer_next);
}

static inline int peer_main(int argc, char **argv)
{
    static const char *const roles[] = {"server", "client", "publisher", "subscriber"};
    const struct raw_option known[] = {{"--size", &peer_size, sizeof(uint64_t), 60000},
                                       {"--count", &peer_count, 1, 1000000000},
                                       {"--warmup", &peer_warmup, 0, 1000000000},
                                       {"--spin", &peer_spin, 0, 1},
                                       {"--port", &peer_port, 1024, 65000},
                                       {NULL, NULL, 0, 0}};
    unsigned role = 0;
    while (argc > 3 && role < 4 && strcmp(argv[1], roles[role]) != 0)
        role++;
    if (argc < 4 || role == 4)
        raw_usage(PEER_USAGE);
    raw_options(argc, argv, 4, known, PEER_USAGE);
    peer_role = role;
    peer_own = argv[2];
    peer_other = argv[3];
    peer_asks = peer_role == PEER_CLIENT || peer_role == PEER_PUBLISHER;
    peer_reliable = peer_role == PEER_PUBLISHER || peer_role == PEER_SUBSCRIBER;
    alarm(RAW_WATCHDOG_S);
    peer_open();
    if (peer_role == PEER_CLIENT)
        peer_run_client();
    else if (peer_role == PEER_PUBLISHER)
        peer_run_publisher();
    else
        peer_run_receiver();
    fflush(stdout);
    peer_close();
    return 0;
}

#define PEER_MAIN                                                                                                      \
    int main(int argc, char **argv)                                                                                    \
    {                                                                                                                  \
        return peer_main(argc, argv);                                                                                  \
    }

#endif
