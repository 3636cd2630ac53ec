/* SPDX-License-Identifier: Apache-2.0 */
/* Raw UDP round trips over connected sockets. The server echoes until it is terminated; the client measures. */
#include <arpa/inet.h>
#include <getopt.h>
#include <netinet/in.h>
#include <stdbool.h>
#include <sys/socket.h>

#include "raw.h"

#define USAGE                                                                                                          \
    "udp-pingpong server|client ADDR PORT [--size BYTES] [--count N] [--warmup N] [--mode blocking|busy|yield]"        \
    " [--cpu N]"

enum mode { MODE_BLOCKING, MODE_BUSY, MODE_YIELD };
static const char *const mode_names[] = {"blocking", "busy", "yield"};

struct options {
    size_t size, count, warmup;
    enum mode mode;
    int cpu;
};

static enum mode parse_mode(const char *name)
{
    for (size_t i = 0; i < sizeof(mode_names) / sizeof(mode_names[0]); i++)
        if (strcmp(name, mode_names[i]) == 0)
            return (enum mode)i;
    raw_usage(USAGE);
}

static ssize_t receive(int fd, void *buffer, size_t size, enum mode mode)
{
    for (;;) {
        ssize_t got = recv(fd, buffer, size, mode == MODE_BLOCKING ? 0 : MSG_DONTWAIT);
        if (got >= 0)
            return got;
        if (errno != EAGAIN)
            raw_die("recv");
        if (mode == MODE_YIELD)
            sched_yield();
    }
}

static void serve(int fd, const struct sockaddr_in *address, const struct options *options)
{
    char *buffer = malloc(options->size);
    struct sockaddr_in peer;
    socklen_t length = sizeof(peer);
    if (!buffer || bind(fd, (const struct sockaddr *)address, sizeof(*address)) != 0)
        raw_die("bind");
    raw_print_ready();
    /* The first datagram stays queued: it only tells whom to connect to. */
    if (recvfrom(fd, buffer, options->size, MSG_PEEK, (struct sockaddr *)&peer, &length) < 0 ||
        connect(fd, (struct sockaddr *)&peer, length) != 0)
        raw_die("connect");
    for (;;) {
        ssize_t got = receive(fd, buffer, options->size, options->mode);
        if (send(fd, buffer, (size_t)got, 0) != got)
            raw_die("send");
    }
}

static void measure(int fd, const struct sockaddr_in *address, const struct options *options)
{
    char *out = calloc(1, options->size), *in = malloc(options->size);
    uint64_t *rtt_ns = calloc(options->count, sizeof(*rtt_ns)), cpu_start = 0;
    if (!out || !in || !rtt_ns || connect(fd, (const struct sockaddr *)address, sizeof(*address)) != 0)
        raw_die("connect");
    memset(rtt_ns, 1, options->count * sizeof(*rtt_ns)); /* pages in before the clock starts */
    alarm(RAW_WATCHDOG_S);
    for (uint64_t i = 0; i < options->warmup + options->count; i++) {
        if (i == options->warmup)
            cpu_start = raw_cpu_ns();
        memcpy(out, &i, sizeof(i));
        uint64_t start = raw_now_ns();
        if (send(fd, out, options->size, 0) != (ssize_t)options->size)
            raw_die("send");
        ssize_t got = receive(fd, in, options->size, options->mode);
        uint64_t end = raw_now_ns();
        if (got != (ssize_t)options->size || memcmp(in, &i, sizeof(i)) != 0) {
            fprintf(stderr, "round trip %" PRIu64 ": not the echo of what was sent\n", i);
            exit(1);
        }
        if (i >= options->warmup)
            rtt_ns[i - options->warmup] = end - start;
    }
    uint64_t cpu_ns = (raw_cpu_ns() - cpu_start) / options->count;
    raw_print_summary(rtt_ns, options->count, options->size, mode_names[options->mode], cpu_ns);
}

int main(int argc, char **argv)
{
    static const struct option known[] = {
        {"size", required_argument, NULL, 's'},   {"count", required_argument, NULL, 'n'},
        {"warmup", required_argument, NULL, 'w'}, {"mode", required_argument, NULL, 'm'},
        {"cpu", required_argument, NULL, 'c'},    {NULL, 0, NULL, 0}};
    struct options options = {.size = 64, .count = 10000, .warmup = 100, .mode = MODE_BLOCKING, .cpu = -1};
    for (int c; (c = getopt_long(argc, argv, "", known, NULL)) != -1;) {
        switch (c) {
        case 's':
            options.size = raw_parse(optarg, sizeof(uint64_t), 65507);
            break;
        case 'n':
            options.count = raw_parse(optarg, 1, 100000000);
            break;
        case 'w':
            options.warmup = raw_parse(optarg, 0, 100000000);
            break;
        case 'm':
            options.mode = parse_mode(optarg);
            break;
        case 'c':
            options.cpu = (int)raw_parse(optarg, 0, CPU_SETSIZE - 1);
            break;
        default:
            raw_usage(USAGE);
        }
    }
    if (argc - optind != 3)
        raw_usage(USAGE);
    struct sockaddr_in address = {.sin_family = AF_INET,
                                  .sin_port = htons((uint16_t)raw_parse(argv[optind + 2], 1, 65535))};
    if (inet_pton(AF_INET, argv[optind + 1], &address.sin_addr) != 1)
        raw_usage(USAGE);
    raw_pin(options.cpu);
    int fd = socket(AF_INET, SOCK_DGRAM, 0);
    if (fd < 0)
        raw_die("socket");
    if (strcmp(argv[optind], "server") == 0)
        serve(fd, &address, &options);
    else if (strcmp(argv[optind], "client") == 0)
        measure(fd, &address, &options);
    else
        raw_usage(USAGE);
    return 0;
}
