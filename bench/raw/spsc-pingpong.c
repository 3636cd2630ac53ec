/* SPDX-License-Identifier: Apache-2.0 */
/* One 64-bit word to and fro between two processes through a pair of bare SPSC rings, by spinning or yielding. */
#include <getopt.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>

#include "ring.h"

#define USAGE "spsc-pingpong [--count N] [--warmup N] [--mode spin|yield] [--cpu N] [--peer-cpu N]"

struct shared {
    struct raw_ring ping, pong;
    uint64_t peer_cpu_ns;
};

static void answer(struct shared *shared, size_t warmup, size_t count, bool yielding)
{
    uint64_t cpu_start = 0, word;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    for (size_t i = 0; i < warmup + count; i++) {
        if (i == warmup)
            cpu_start = raw_cpu_ns();
        while (raw_ring_pop(&shared->ping, &word, 1) == 0)
            raw_relax(yielding);
        raw_ring_push(&shared->pong, &word, 1);
    }
    shared->peer_cpu_ns = raw_cpu_ns() - cpu_start;
    _exit(0);
}

int main(int argc, char **argv)
{
    static const struct option known[] = {
        {"count", required_argument, NULL, 'n'},    {"warmup", required_argument, NULL, 'w'},
        {"mode", required_argument, NULL, 'm'},     {"cpu", required_argument, NULL, 'c'},
        {"peer-cpu", required_argument, NULL, 'p'}, {NULL, 0, NULL, 0}};
    size_t count = 100000, warmup = 1000;
    int cpu = -1, peer_cpu = -1;
    bool yielding = false;
    for (int c; (c = getopt_long(argc, argv, "", known, NULL)) != -1;) {
        switch (c) {
        case 'n':
            count = raw_parse(optarg, 1, 100000000);
            break;
        case 'w':
            warmup = raw_parse(optarg, 0, 100000000);
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
    struct shared *shared = raw_alloc_shared(sizeof(*shared));
    uint64_t *rtt_ns = raw_alloc_shared(count * sizeof(*rtt_ns));
    pid_t peer = fork();
    if (peer < 0)
        raw_die("fork");
    if (peer == 0) {
        raw_pin(peer_cpu);
        answer(shared, warmup, count, yielding);
    }
    raw_pin(cpu);
    alarm(RAW_WATCHDOG_S);
    uint64_t cpu_start = 0;
    for (uint64_t i = 0; i < warmup + count; i++) {
        uint64_t word;
        if (i == warmup)
            cpu_start = raw_cpu_ns();
        uint64_t start = raw_now_ns();
        raw_ring_push(&shared->ping, &i, 1);
        while (raw_ring_pop(&shared->pong, &word, 1) == 0)
            raw_relax(yielding);
        uint64_t end = raw_now_ns();
        if (word != i) {
            fprintf(stderr, "round trip %" PRIu64 ": got word %" PRIu64 "\n", i, word);
            return 1;
        }
        if (i >= warmup)
            rtt_ns[i - warmup] = end - start;
    }
    uint64_t cpu_ns = raw_cpu_ns() - cpu_start;
    int status;
    if (waitpid(peer, &status, 0) != peer || status != 0)
        raw_die("peer");
    raw_print_summary(rtt_ns, count, sizeof(uint64_t), yielding ? "yield" : "spin",
                      (cpu_ns + shared->peer_cpu_ns) / count);
    return 0;
}
