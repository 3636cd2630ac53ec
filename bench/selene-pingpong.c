/* SPDX-License-Identifier: Apache-2.0 */
/* SELENE's round trips and floods, the counterpart of raw/udp-pingpong.c: client and server of a ping-pong, source and sink of a flood. */
#include <signal.h>

#include "raw/raw.h"
#include "selene.h"

#define USAGE                                                                                                          \
    "selene-pingpong pingpong-server|pingpong-client|flood-source|flood-sink [--size BYTES] [--count N] [--warmup N]"  \
    " [--burst N] [--rate PER_S] [--sinks N] [--spin 0|1] [--relayed 0|1] [--best-effort 0|1] [--coalesce 0|1]"
#define PING 1
#define PONG 2
#define FLOOD 3
#define BURST_MAX 256
#define PEER_NS 10000000000u
#define LOOK_NS 100000000u /* how often a waiting program looks whether it is to end */

static uint64_t size = 64, messages = 10000, warmup = 100, burst = 1, rate, sinks = 1;
static uint64_t spin, relayed, best_effort, coalesce = 1;
static selene_source *source;
static selene_sink *sink;
static selene_buffer in[BURST_MAX], out[BURST_MAX];
static volatile sig_atomic_t ended;

static void end(int signal)
{
    (void)signal;
    ended = 1;
}

static int64_t check(int64_t rc, const char *what)
{
    if (rc >= 0)
        return rc;
    fprintf(stderr, "%s: %s (%s)\n", what, selene_last_error(), strerror((int)-rc));
    exit(1);
}

/* Waits for a message. 0: the program is to end. */
static int receive(void)
{
    int rc;
    do
        rc = selene_consume_timeout(sink, LOOK_NS, in);
    while (rc == -ETIMEDOUT && !ended);
    return rc == -ETIMEDOUT ? 0 : (int)check(rc, "consume");
}

/* A source reaches only the sinks that are there. */
static void wait_for_sinks(void)
{
    selene_source_stats stats = {0};
    for (uint64_t start = raw_now_ns(); stats.local_sinks + stats.remote_sinks < sinks; usleep(1000)) {
        check(selene_get_buffer(source, 8, 0, out), "get_buffer");
        selene_cancel_buffer(source, out);
        selene_source_get_stats(source, &stats);
        if (raw_now_ns() - start > PEER_NS || ended)
            exit((fprintf(stderr, "fewer than %" PRIu64 " sinks within 10 s\n", sinks), 1));
    }
}

static void serve(void)
{
    raw_print_ready();
    while (receive()) {
        check(selene_get_buffer(source, in->size, 0, out), "get_buffer");
        check(selene_emit_data(source, out), "emit");
        check(selene_release_buffer(sink, in), "release");
    }
}

static void measure(void)
{
    uint64_t *rtt_ns = calloc(messages, sizeof(*rtt_ns)), cpu_start = 0, first = 0;
    wait_for_sinks();
    memset(rtt_ns, 1, messages * sizeof(*rtt_ns)); /* pages in before the clock starts */
    for (uint64_t i = 0, begin = raw_now_ns(); i < warmup + messages; i++) {
        if (i == warmup)
            cpu_start = raw_cpu_ns();
        raw_pace(begin, i, rate);
        uint64_t start = raw_now_ns();
        check(selene_get_buffer(source, (uint32_t)size, 0, out), "get_buffer");
        check(selene_emit_data(source, out), "emit");
        int got = receive();
        uint64_t stop = raw_now_ns();
        if (i == 0)
            first = in->sequence;
        /* the payload is not touched: locally it never leaves its cache */
        if (!got || in->size != size || in->sequence != first + i)
            exit((fprintf(stderr, "round trip %" PRIu64 ": not the echo of what was sent\n", i), 1));
        check(selene_release_buffer(sink, in), "release");
        if (i >= warmup)
            rtt_ns[i - warmup] = stop - start;
    }
    raw_print_summary(rtt_ns, messages, size, spin ? "spin" : "blocking", (raw_cpu_ns() - cpu_start) / messages);
}

static void flood(void)
{
    wait_for_sinks();
    uint64_t start = raw_now_ns(), cpu = raw_cpu_ns(), sent = 0, unmeasured = 0;
    while (sent < messages && !ended) {
        raw_pace(start, sent, rate);
        if (sent <= warmup) /* memory that is touched for the first time costs once */
            cpu = raw_cpu_ns(), unmeasured = sent;
        uint64_t n = messages - sent < burst ? messages - sent : burst;
        int64_t rc = n == 1 ? selene_get_buffer(source, (uint32_t)size, 0, out)
                            : selene_get_burst(source, (uint32_t)size, 0, out, (uint32_t)n);
        if (rc == -EAGAIN) /* best-effort, and slow sinks hold the whole pool */
            continue;
        n = (uint64_t)check(n == 1 ? rc + 1 : rc, "get_buffer");
        for (uint64_t i = 0; i < n; i++)
            *(uint64_t *)out[i].data = sent + i;
        for (uint64_t i = 0; i < n; i += (uint64_t)check(rc, "emit"))
            rc = burst == 1 ? selene_emit_data(source, out) >= 0
                            : selene_emit_burst(source, out + i, (uint32_t)(n - i), 0);
        sent += n;
    }
    double elapsed = (double)(raw_now_ns() - start), cpu_ns = (double)(raw_cpu_ns() - cpu);
    selene_source_stats s;
    selene_flush(source);
    selene_source_get_stats(source, &s);
    printf("{\"kind\":\"flood\",\"count\":%" PRIu64 ",\"dropped\":%" PRIu64 ",\"rate_per_s\":%.0f,\"cpu_ns\":%.1f}\n",
           sent, s.dropped + s.dropped_slow + s.failed, (double)sent * 1e9 / elapsed,
           cpu_ns / (double)(sent - unmeasured));
    selene_close_source(source); /* waits until the sinks have what was sent */
}

static void drain(void)
{
    uint64_t got = 0, start = 0, stop = 1, cpu = 0, *latency_ns = calloc(messages, sizeof(*latency_ns));
    raw_print_ready();
    while (got < messages && receive()) {
        int more = selene_consume_burst(sink, SELENE_DONTWAIT, in + 1, BURST_MAX - 1);
        uint32_t n = more > 0 ? 1 + (uint32_t)more : 1;
        if (got == 0)
            start = raw_now_ns(), cpu = raw_cpu_ns();
        for (uint32_t i = 0; rate && i < n && got + i < messages; i++)
            latency_ns[got + i] = raw_realtime_ns() - selene_buffer_sent_ns(&in[i]);
        got += n;
        if (rate || best_effort || got >= messages) /* reading the clock waits for the loads before it */
            stop = raw_now_ns();
        check(selene_release_burst(sink, in, n), "release");
    }
    double seconds = (double)(stop - start) / 1e9, cpu_ns = (double)(raw_cpu_ns() - cpu);
    selene_sink_stats s;
    selene_sink_get_stats(sink, &s);
    qsort(latency_ns, rate ? got : 0, sizeof(*latency_ns), raw_compare_u64);
    printf("{\"kind\":\"throughput\",\"count\":%" PRIu64 ",\"lost\":%" PRIu64 ",\"duplicated\":%" PRIu64
           ",\"reordered\":%" PRIu64 ",\"size_bytes\":%" PRIu64 ",\"rate_per_s\":%.0f,\"goodput_bits_per_s\":%.0f"
           ",\"latency_p50_ns\":%" PRIu64 ",\"cpu_ns\":%.1f,\"ended_ns\":%" PRIu64 "}\n",
           got, s.lost + s.dropped, s.duplicated, s.reordered, size, (double)got / seconds,
           (double)(got * size * 8) / seconds, got ? raw_percentile(latency_ns, got, 0.5) : 0, cpu_ns / (double)got,
           stop);
}

int main(int argc, char **argv)
{
    const struct raw_option known[] = {{"--size", &size, sizeof(uint64_t), SELENE_MAX_MESSAGE},
                                       {"--count", &messages, 1, 1000000000},
                                       {"--warmup", &warmup, 0, 1000000000},
                                       {"--burst", &burst, 1, BURST_MAX},
                                       {"--rate", &rate, 1, 1000000000},
                                       {"--sinks", &sinks, 1, 64},
                                       {"--spin", &spin, 0, 1},
                                       {"--relayed", &relayed, 0, 1},
                                       {"--best-effort", &best_effort, 0, 1},
                                       {"--coalesce", &coalesce, 0, 1},
                                       {NULL, NULL, 0, 0}};
    const struct {
        const char *name;
        uint64_t to, from;
        void (*run)(void);
    } roles[] = {{"pingpong-server", PONG, PING, serve},
                 {"pingpong-client", PING, PONG, measure},
                 {"flood-source", FLOOD, 0, flood},
                 {"flood-sink", 0, FLOOD, drain},
                 {NULL, 0, 0, NULL}},
      *role = roles;
    while (argc > 1 && role->name && strcmp(argv[1], role->name) != 0)
        role++;
    if (argc < 2 || !role->name)
        raw_usage(USAGE);
    raw_options(argc, argv, 2, known, USAGE);
    const struct sigaction action = {.sa_handler = end};
    sigaction(SIGTERM, &action, NULL);
    selene_session *session;
    selene_stream *stream;
    selene_session_options own;
    selene_options options;
    selene_session_defaults(&own);
    selene_options_defaults(&options);
    own.relayed = (int)relayed;
    options.wait = spin ? SELENE_WAIT_SPIN : SELENE_WAIT_SLEEP;
    options.coalesce = (uint32_t)coalesce;
    options.delivery = !best_effort && (role->to == FLOOD || role->from == FLOOD);
    check(selene_init_session(&session, &own), "init_session");
    check(selene_create_stream(session, &options, &stream), "create_stream");
    if (role->from)
        check(selene_create_sink(stream, role->from, NULL, NULL, &sink), "create_sink");
    if (role->to)
        check(selene_create_source(stream, role->to, &source), "create_source");
    role->run();
    return selene_close_session(session) < 0;
}
