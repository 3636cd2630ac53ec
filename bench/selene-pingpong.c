/* SPDX-License-Identifier: Apache-2.0 */
/* SELENE's round trips and floods, the counterpart of raw/udp-pingpong.c: client and server of a ping-pong, source and sink of a flood. */
#include <getopt.h>
#include <signal.h>
#include <stdbool.h>

#include "raw/raw.h"
#include "selene.h"

#define USAGE                                                                                                          \
    "selene-pingpong pingpong-server|pingpong-client|flood-source|flood-sink [--size BYTES] [--count N] [--warmup N]"  \
    " [--mode blocking|spin] [--burst N] [--relayed] [--reliable]"
#define PING 1
#define PONG 2
#define FLOOD 3
#define PEER_NS 10000000000u

static uint32_t size = 64, burst = 1;
static uint64_t messages = 10000, warmup = 100;
static const char *mode = "blocking";
static selene_options options;
static selene_session *session;
static selene_stream *stream;
static volatile sig_atomic_t ended;

static void end(int signal)
{
    (void)signal;
    ended = 1;
}

static void check(int64_t rc, const char *what)
{
    if (rc >= 0)
        return;
    fprintf(stderr, "%s: %s (%s)\n", what, selene_last_error(), strerror((int)-rc));
    exit(1);
}

/* A source reaches nobody until its sink is there. */
static void wait_for_sink(selene_source *source)
{
    selene_source_stats stats = {0};
    for (uint64_t start = raw_now_ns(); stats.local_sinks + stats.remote_sinks == 0; usleep(1000)) {
        selene_buffer buffer;
        check(selene_get_buffer(source, 8, 0, &buffer), "get_buffer");
        selene_cancel_buffer(source, &buffer);
        selene_source_get_stats(source, &stats);
        if (raw_now_ns() - start > PEER_NS || ended)
            exit((fprintf(stderr, "no sink within 10 s\n"), 1));
    }
}

static void serve(void)
{
    selene_source *pong;
    selene_sink *ping;
    selene_buffer in, out;
    check(selene_create_source(stream, PONG, &pong), "create_source");
    check(selene_create_sink(stream, PING, NULL, NULL, &ping), "create_sink");
    raw_print_ready();
    while (!ended) {
        int rc = selene_consume_timeout(ping, 100000000, &in);
        if (rc == -ETIMEDOUT)
            continue;
        check(rc, "consume");
        check(selene_get_buffer(pong, in.size, 0, &out), "get_buffer");
        check(selene_emit_data(pong, &out), "emit");
        check(selene_release_buffer(ping, &in), "release");
    }
}

static void measure(void)
{
    selene_source *ping;
    selene_sink *pong;
    selene_buffer out, in;
    uint64_t *rtt_ns = calloc(messages, sizeof(*rtt_ns)), cpu_start = 0, first = 0;
    check(selene_create_sink(stream, PONG, NULL, NULL, &pong), "create_sink");
    check(selene_create_source(stream, PING, &ping), "create_source");
    wait_for_sink(ping);
    memset(rtt_ns, 1, messages * sizeof(*rtt_ns)); /* pages in before the clock starts */
    for (uint64_t i = 0; i < warmup + messages; i++) {
        if (i == warmup)
            cpu_start = raw_cpu_ns();
        uint64_t start = raw_now_ns();
        check(selene_get_buffer(ping, size, 0, &out), "get_buffer");
        check(selene_emit_data(ping, &out), "emit");
        check(selene_consume_timeout(pong, PEER_NS, &in), "consume");
        check(selene_release_buffer(pong, &in), "release");
        uint64_t stop = raw_now_ns();
        if (i == 0)
            first = in.sequence;
        if (in.size != size ||
            in.sequence != first + i) /* the payload is not touched: locally it never leaves its cache */
            exit((fprintf(stderr, "round trip %" PRIu64 ": not the echo of what was sent\n", i), 1));
        if (i >= warmup)
            rtt_ns[i - warmup] = stop - start;
    }
    raw_print_summary(rtt_ns, messages, size, mode, (raw_cpu_ns() - cpu_start) / messages);
}

static void flood(void)
{
    selene_source *source;
    selene_buffer *buffers = calloc(burst, sizeof(*buffers));
    check(selene_create_source(stream, FLOOD, &source), "create_source");
    wait_for_sink(source);
    for (uint64_t sent = 0; sent < messages && !ended;) {
        uint32_t want = messages - sent < burst ? (uint32_t)(messages - sent) : burst;
        int got =
            burst == 1 ? selene_get_buffer(source, size, 0, buffers) : selene_get_burst(source, size, 0, buffers, want);
        check(got, "get_buffer");
        uint32_t n = burst == 1 ? 1 : (uint32_t)got, done = 0;
        for (uint32_t i = 0; i < n; i++)
            *(uint64_t *)buffers[i].data = sent + i;
        while (done < n) {
            int64_t rc =
                burst == 1 ? selene_emit_data(source, buffers) : selene_emit_burst(source, buffers + done, n - done, 0);
            check(rc, "emit");
            done += burst == 1 ? 1 : (uint32_t)rc;
        }
        sent += n;
    }
    selene_source_stats s;
    selene_source_get_stats(source, &s);
    printf("{\"kind\":\"flood\",\"count\":%" PRIu64 ",\"dropped\":%" PRIu64 "}\n", s.messages,
           s.dropped + s.dropped_slow);
    selene_close_source(source);
    sleep(1); /* the sinks still read this process' buffers */
}

static void drain(void)
{
    selene_sink *sink;
    selene_buffer buffers[256];
    uint64_t got = 0, start = 0;
    check(selene_create_sink(stream, FLOOD, NULL, NULL, &sink), "create_sink");
    raw_print_ready();
    while (got < messages && !ended) {
        int n = selene_consume_burst(sink, 0, buffers, 256);
        check(n, "consume");
        if (got == 0)
            start = raw_now_ns();
        got += (uint64_t)n;
        check(selene_release_burst(sink, buffers, (uint32_t)n), "release");
    }
    double seconds = (double)(raw_now_ns() - start) / 1e9;
    selene_sink_stats s;
    selene_sink_get_stats(sink, &s);
    printf("{\"kind\":\"throughput\",\"count\":%" PRIu64 ",\"lost\":%" PRIu64 ",\"duplicated\":%" PRIu64
           ",\"reordered\":%" PRIu64 ",\"size_bytes\":%u,\"rate_per_s\":%.0f,\"goodput_bits_per_s\":%.0f}\n",
           got, s.lost + s.dropped, s.duplicated, s.reordered, size, (double)got / seconds,
           (double)got * size * 8 / seconds);
}

int main(int argc, char **argv)
{
    static const struct option known[] = {
        {"size", 1, NULL, 's'},  {"count", 1, NULL, 'n'},   {"warmup", 1, NULL, 'w'},   {"mode", 1, NULL, 'm'},
        {"burst", 1, NULL, 'b'}, {"relayed", 0, NULL, 'r'}, {"reliable", 0, NULL, 'R'}, {NULL, 0, NULL, 0}};
    static const struct {
        const char *name;
        void (*run)(void);
    } roles[] = {
        {"pingpong-server", serve}, {"pingpong-client", measure}, {"flood-source", flood}, {"flood-sink", drain}};
    selene_session_options so;
    selene_session_defaults(&so);
    selene_options_defaults(&options);
    bool reliable = false;
    for (int c; (c = getopt_long(argc, argv, "", known, NULL)) != -1;) {
        switch (c) {
        case 's':
            size = (uint32_t)raw_parse(optarg, sizeof(uint64_t), SELENE_MAX_MESSAGE);
            break;
        case 'n':
            messages = raw_parse(optarg, 1, 1000000000);
            break;
        case 'w':
            warmup = raw_parse(optarg, 0, 100000000);
            break;
        case 'm':
            mode = optarg;
            break;
        case 'b':
            burst = (uint32_t)raw_parse(optarg, 1, 1024);
            break;
        case 'r':
            so.relayed = 1;
            break;
        case 'R':
            reliable = true;
            break;
        default:
            raw_usage(USAGE);
        }
    }
    struct sigaction action = {.sa_handler = end};
    sigaction(SIGTERM, &action, NULL);
    options.wait = strcmp(mode, "spin") == 0 ? SELENE_WAIT_SPIN : SELENE_WAIT_SLEEP;
    options.delivery = reliable || (optind < argc && strncmp(argv[optind], "flood", 5) == 0);
    for (size_t i = 0; optind < argc && i < sizeof(roles) / sizeof(*roles); i++) {
        if (strcmp(argv[optind], roles[i].name) != 0)
            continue;
        check(selene_init_session(&session, &so), "init_session");
        check(selene_create_stream(session, &options, &stream), "create_stream");
        roles[i].run();
        return selene_close_session(session) < 0;
    }
    raw_usage(USAGE);
}
