/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Raw UDP one way: the sender batches as told, the receiver (GRO where the kernel has it) counts datagrams, as they
 * were before the kernel merged them. The sender paces nothing, so loss is expected; an end mark, one byte long and
 * repeated, ends the receiver. Each message has a buffer of its own and gets its number, as it would in use.
 */
#include <arpa/inet.h>
#include <getopt.h>
#include <netinet/in.h>
#include <netinet/udp.h>
#include <stdbool.h>
#include <sys/socket.h>

#include "raw.h"

#define USAGE                                                                                                          \
    "udp-flood receiver|sender ADDR PORT [--size BYTES] [--count N] [--mode sendto|sendmmsg|gso] [--batch N] [--cpu "  \
    "N]"
#define BATCH_MAX 64u /* also the kernel's limit of segments in one GSO send (UDP_MAX_SEGMENTS of older kernels) */
#define DATAGRAM_MAX 65507u
#define GRO_BUFFER 65536u
#define SOCKET_BUFFER (4 << 20)
#define END_MARKS 20

#ifndef UDP_SEGMENT
#define UDP_SEGMENT 103
#endif
#ifndef UDP_GRO
#define UDP_GRO 104
#endif

struct options {
    size_t size;
    uint64_t count;
    unsigned batch;
    const char *mode;
    int cpu;
};

/* A full device queue or socket buffer is back pressure, not an error. */
static void retry(void)
{
    if (errno != ENOBUFS && errno != EAGAIN)
        raw_die("send");
    sched_yield();
}

/* What an application has to write at least; shorter messages stay as they are. */
static void number(char *payload, uint64_t first, uint64_t n, size_t size)
{
    for (uint64_t i = 0; i < n && size >= sizeof(first); i++) {
        uint64_t sequence = first + i;
        memcpy(payload + i * size, &sequence, sizeof(sequence));
    }
}

static void send_one_by_one(int fd, const struct sockaddr_in *to, char *payload, const struct options *options)
{
    for (uint64_t sent = 0; sent < options->count; sent++) {
        number(payload, sent, 1, options->size);
        while (sendto(fd, payload, options->size, 0, (const struct sockaddr *)to, sizeof(*to)) < 0)
            retry();
    }
}

static void send_vector(int fd, const struct sockaddr_in *to, char *payload, const struct options *options)
{
    struct iovec vectors[BATCH_MAX];
    struct mmsghdr messages[BATCH_MAX];
    memset(messages, 0, sizeof(messages));
    for (unsigned i = 0; i < options->batch; i++) {
        vectors[i] = (struct iovec){payload + i * options->size, options->size};
        messages[i].msg_hdr.msg_name = (void *)(uintptr_t)to;
        messages[i].msg_hdr.msg_namelen = sizeof(*to);
        messages[i].msg_hdr.msg_iov = &vectors[i];
        messages[i].msg_hdr.msg_iovlen = 1;
    }
    for (uint64_t done = 0; done < options->count;) {
        uint64_t left = options->count - done, batch = left < options->batch ? left : options->batch;
        number(payload, done, batch, options->size);
        int sent = sendmmsg(fd, messages, (unsigned)batch, 0);
        if (sent < 0)
            retry();
        else
            done += (uint64_t)sent;
    }
}

static void send_segmented(int fd, const struct sockaddr_in *to, char *payload, const struct options *options)
{
    int segment = (int)options->size;
    size_t fitting = DATAGRAM_MAX / options->size;
    uint64_t batch = options->batch < fitting ? options->batch : fitting;
    if (setsockopt(fd, IPPROTO_UDP, UDP_SEGMENT, &segment, sizeof(segment)) != 0)
        raw_die("UDP_SEGMENT");
    for (uint64_t done = 0; done < options->count;) {
        uint64_t left = options->count - done, now = left < batch ? left : batch;
        number(payload, done, now, options->size);
        if (sendto(fd, payload, now * options->size, 0, (const struct sockaddr *)to, sizeof(*to)) < 0)
            retry();
        else
            done += now;
    }
    segment = 0;
    if (setsockopt(fd, IPPROTO_UDP, UDP_SEGMENT, &segment, sizeof(segment)) != 0)
        raw_die("UDP_SEGMENT");
}

static void flood(int fd, const struct sockaddr_in *to, const struct options *options)
{
    char *payload = calloc(BATCH_MAX, options->size);
    if (!payload)
        raw_die("calloc");
    memset(payload, 1, BATCH_MAX * options->size); /* else all of it may be one page of zeros */
    uint64_t start_ns = raw_now_ns(), cpu_start = raw_cpu_ns();
    if (strcmp(options->mode, "sendto") == 0)
        send_one_by_one(fd, to, payload, options);
    else if (strcmp(options->mode, "sendmmsg") == 0)
        send_vector(fd, to, payload, options);
    else if (strcmp(options->mode, "gso") == 0)
        send_segmented(fd, to, payload, options);
    else
        raw_usage(USAGE);
    uint64_t elapsed_ns = raw_now_ns() - start_ns, cpu_ns = raw_cpu_ns() - cpu_start;
    const struct timespec pause = {.tv_nsec = 5000000};
    for (int i = 0; i < END_MARKS; i++) {
        nanosleep(&pause, NULL);
        while (sendto(fd, payload, 1, 0, (const struct sockaddr *)to, sizeof(*to)) < 0)
            retry();
    }
    printf("{\"kind\":\"flood\",\"role\":\"sender\",\"mode\":\"%s\",\"size_bytes\":%zu,\"count\":%" PRIu64
           ",\"elapsed_ns\":%" PRIu64 ",\"rate_per_s\":%.0f,\"cpu_ns\":%.1f}\n",
           options->mode, options->size, options->count, elapsed_ns, (double)options->count * 1e9 / (double)elapsed_ns,
           (double)cpu_ns / (double)options->count);
}

/* Bytes received; `segment` is the size of each datagram the kernel merged into them. */
static size_t receive(int fd, char *buffer, size_t *segment)
{
    union {
        struct cmsghdr header;
        char bytes[CMSG_SPACE(sizeof(int))];
    } control;
    struct iovec vector = {.iov_base = buffer, .iov_len = GRO_BUFFER};
    struct msghdr message = {
        .msg_iov = &vector, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof(control)};
    ssize_t got = recvmsg(fd, &message, 0);
    if (got < 0)
        raw_die("recvmsg");
    *segment = (size_t)got;
    for (struct cmsghdr *c = CMSG_FIRSTHDR(&message); c; c = CMSG_NXTHDR(&message, c))
        if (c->cmsg_level == IPPROTO_UDP && c->cmsg_type == UDP_GRO) {
            int size;
            memcpy(&size, CMSG_DATA(c), sizeof(size));
            *segment = (size_t)size;
        }
    return (size_t)got;
}

static void count_datagrams(int fd, const struct sockaddr_in *address, const struct options *options)
{
    char *buffer = malloc(GRO_BUFFER);
    int on = 1, room = SOCKET_BUFFER;
    if (!buffer || bind(fd, (const struct sockaddr *)address, sizeof(*address)) != 0)
        raw_die("bind");
    bool gro = setsockopt(fd, IPPROTO_UDP, UDP_GRO, &on, sizeof(on)) == 0;
    if (setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &room, sizeof(room)) != 0)
        setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &room, sizeof(room));
    raw_print_ready();
    uint64_t count = 0, first_ns = 0, last_ns = 0, cpu_start = 0, cpu_ns = 0;
    for (;;) {
        size_t segment, got = receive(fd, buffer, &segment);
        if (got == 1)
            break;
        last_ns = raw_now_ns();
        if (count == 0) {
            first_ns = last_ns;
            cpu_start = raw_cpu_ns();
        }
        count += (got + segment - 1) / segment;
    }
    cpu_ns = raw_cpu_ns() - cpu_start;
    double elapsed_ns = last_ns > first_ns ? (double)(last_ns - first_ns) : 1;
    printf("{\"kind\":\"flood\",\"role\":\"receiver\",\"gro\":%s,\"size_bytes\":%zu,\"count\":%" PRIu64
           ",\"lost\":%" PRIu64 ",\"elapsed_ns\":%.0f,\"ended_ns\":%" PRIu64 ",\"rate_per_s\":%.0f,\"cpu_ns\":%.1f}\n",
           gro ? "true" : "false", options->size, count, options->count > count ? options->count - count : 0,
           elapsed_ns, last_ns, (double)count * 1e9 / elapsed_ns, count > 0 ? (double)cpu_ns / (double)count : 0.0);
}

int main(int argc, char **argv)
{
    static const struct option known[] = {
        {"size", required_argument, NULL, 's'}, {"count", required_argument, NULL, 'n'},
        {"mode", required_argument, NULL, 'm'}, {"batch", required_argument, NULL, 'b'},
        {"cpu", required_argument, NULL, 'c'},  {NULL, 0, NULL, 0}};
    struct options options = {.size = 64, .count = 1000000, .batch = BATCH_MAX, .mode = "sendto", .cpu = -1};
    for (int c; (c = getopt_long(argc, argv, "", known, NULL)) != -1;) {
        switch (c) {
        case 's':
            options.size = raw_parse(optarg, 2, DATAGRAM_MAX);
            break;
        case 'n':
            options.count = raw_parse(optarg, 1, 10000000000u);
            break;
        case 'm':
            options.mode = optarg;
            break;
        case 'b':
            options.batch = (unsigned)raw_parse(optarg, 1, BATCH_MAX);
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
    alarm(RAW_WATCHDOG_S);
    int fd = socket(AF_INET, SOCK_DGRAM, 0);
    if (fd < 0)
        raw_die("socket");
    if (strcmp(argv[optind], "receiver") == 0)
        count_datagrams(fd, &address, &options);
    else if (strcmp(argv[optind], "sender") == 0)
        flood(fd, &address, &options);
    else
        raw_usage(USAGE);
    return 0;
}
