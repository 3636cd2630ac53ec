/* SPDX-License-Identifier: Apache-2.0 */
/* 64-bit words one way through a bare SPSC ring between two processes: words per second, one or a burst per call. */
#include <getopt.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>

#include "ring.h"

#define USAGE "spsc-flood [--count N] [--burst N] [--mode spin|yield] [--cpu N] [--peer-cpu N]"
#define BURST_MAX 256u

static void produce(struct raw_ring *ring, uint64_t count, uint32_t burst, bool yielding)
{
    uint64_t words[BURST_MAX];
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    for (uint64_t next = 0; next < count;) {
        uint32_t wanted = count - next < burst ? (uint32_t)(count - next) : burst, pushed = 0;
        for (uint32_t i = 0; i < wanted; i++)
            words[i] = next + i;
        while (pushed < wanted) {
            uint32_t now = raw_ring_push(ring, words + pushed, wanted - pushed);
            if (now == 0)
                raw_relax(yielding);
            pushed += now;
        }
        next += wanted;
    }
    _exit(0);
}

int main(int argc, char **argv)
{
    static const struct option known[] = {
        {"count", required_argument, NULL, 'n'},    {"burst", required_argument, NULL, 'b'},
        {"mode", required_argument, NULL, 'm'},     {"cpu", required_argument, NULL, 'c'},
        {"peer-cpu", required_argument, NULL, 'p'}, {NULL, 0, NULL, 0}};
    uint64_t count = 10000000, words[BURST_MAX], first_ns = 0;
    uint32_t burst = 1;
    int cpu = -1, peer_cpu = -1;
    bool yielding = false;
    for (int c; (c = getopt_long(argc, argv, "", known, NULL)) != -1;) {
        switch (c) {
        case 'n':
            count = raw_parse(optarg, 2, 10000000000u);
            break;
        case 'b':
            burst = (uint32_t)raw_parse(optarg, 1, BURST_MAX);
            break;
        case 'm':
            yielding = strcmp(optarg, "yield") == 0;
            if (!yielding && strcmp(optarg, "spin") != 0)
                raw_usage(USAGE);
            break;
        case 'c':
            cpu = (int)raw_parse(optarg, 0, CPU_SETSIZE - 1);
            break;
        case 'p':
            peer_cpu = (int)raw_parse(optarg, 0, CPU_SETSIZE - 1);
            break;
        default:
            raw_usage(USAGE);
        }
    }
    if (optind != argc)
        raw_usage(USAGE);
    struct raw_ring *ring = raw_alloc_shared(sizeof(*ring));
    pid_t peer = fork();
    if (peer < 0)
        raw_die("fork");
    if (peer == 0) {
        raw_pin(peer_cpu);
        produce(ring, count, burst, yielding);
    }
    raw_pin(cpu);
    alarm(RAW_WATCHDOG_S);
    for (uint64_t expected = 0; expected < count;) {
        uint32_t got = raw_ring_pop(ring, words, BURST_MAX);
        if (got == 0)
            raw_relax(yielding);
        else if (first_ns == 0)
            first_ns = raw_now_ns();
        for (uint32_t i = 0; i < got; i++, expected++)
            if (words[i] != expected) {
                fprintf(stderr, "word %" PRIu64 " in place of %" PRIu64 "\n", words[i], expected);
                return 1;
            }
    }
    uint64_t elapsed_ns = raw_now_ns() - first_ns;
    int status;
    if (waitpid(peer, &status, 0) != peer || status != 0)
        raw_die("peer");
    printf("{\"kind\":\"flood\",\"burst\":%" PRIu32 ",\"size_bytes\":8,\"count\":%" PRIu64
           ",\"lost\":0,\"elapsed_ns\":%" PRIu64 ",\"ended_ns\":%" PRIu64 ",\"rate_per_s\":%.0f}\n",
           burst, count, elapsed_ns, first_ns + elapsed_ns, (double)count * 1e9 / (double)elapsed_ns);
    return 0;
}
