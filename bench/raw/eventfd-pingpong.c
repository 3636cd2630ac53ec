/* SPDX-License-Identifier: Apache-2.0 */
/* Two processes wake each other through a pair of blocking eventfds: the least a sleeping round trip can cost. */
#include <getopt.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/prctl.h>
#include <sys/wait.h>

#include "raw.h"

#define USAGE "eventfd-pingpong [--count N] [--warmup N] [--cpu N] [--peer-cpu N]"

static void wake(int fd)
{
    uint64_t one = 1;
    if (write(fd, &one, sizeof(one)) != sizeof(one))
        raw_die("write");
}

static void await(int fd)
{
    uint64_t count;
    if (read(fd, &count, sizeof(count)) != sizeof(count))
        raw_die("read");
}

static void answer(int ping, int pong, size_t warmup, size_t count, uint64_t *cpu_ns)
{
    uint64_t cpu_start = 0;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    for (size_t i = 0; i < warmup + count; i++) {
        if (i == warmup)
            cpu_start = raw_cpu_ns();
        await(ping);
        wake(pong);
    }
    *cpu_ns = raw_cpu_ns() - cpu_start;
    _exit(0);
}

int main(int argc, char **argv)
{
    static const struct option known[] = {{"count", required_argument, NULL, 'n'},
                                          {"warmup", required_argument, NULL, 'w'},
                                          {"cpu", required_argument, NULL, 'c'},
                                          {"peer-cpu", required_argument, NULL, 'p'},
                                          {NULL, 0, NULL, 0}};
    size_t count = 10000, warmup = 100;
    int cpu = -1, peer_cpu = -1;
    for (int c; (c = getopt_long(argc, argv, "", known, NULL)) != -1;) {
        switch (c) {
        case 'n':
            count = raw_parse(optarg, 1, 100000000);
            break;
        case 'w':
            warmup = raw_parse(optarg, 0, 100000000);
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
    int ping = eventfd(0, 0), pong = eventfd(0, 0);
    uint64_t *rtt_ns = raw_alloc_shared(count * sizeof(*rtt_ns)), *peer_cpu_ns = raw_alloc_shared(sizeof(*peer_cpu_ns));
    if (ping < 0 || pong < 0)
        raw_die("eventfd");
    pid_t peer = fork();
    if (peer < 0)
        raw_die("fork");
    if (peer == 0) {
        raw_pin(peer_cpu);
        answer(ping, pong, warmup, count, peer_cpu_ns);
    }
    raw_pin(cpu);
    alarm(RAW_WATCHDOG_S);
    uint64_t cpu_start = 0;
    for (size_t i = 0; i < warmup + count; i++) {
        if (i == warmup)
            cpu_start = raw_cpu_ns();
        uint64_t start = raw_now_ns();
        wake(ping);
        await(pong);
        uint64_t end = raw_now_ns();
        if (i >= warmup)
            rtt_ns[i - warmup] = end - start;
    }
    uint64_t cpu_ns = raw_cpu_ns() - cpu_start;
    int status;
    if (waitpid(peer, &status, 0) != peer || status != 0)
        raw_die("peer");
    raw_print_summary(rtt_ns, count, sizeof(uint64_t), "blocking", (cpu_ns + *peer_cpu_ns) / count);
    return 0;
}
