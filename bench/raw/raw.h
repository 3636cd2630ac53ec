/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What every raw baseline shares: the clock, pinning, CPU time, samples and the one summary line.
 * The baselines are to be as fast as the raw technology allows, so nothing here runs inside a measured loop
 * except raw_now_ns().
 */
#ifndef QOS_BENCH_RAW_H
#define QOS_BENCH_RAW_H

#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

/* A run that lost a datagram would wait for ever: SIGALRM ends it, and the harness sees the exit status. */
#define RAW_WATCHDOG_S 60
#define RAW_CACHE_LINE 64

static inline _Noreturn void raw_die(const char *what)
{
    fprintf(stderr, "%s: %s\n", what, strerror(errno));
    exit(1);
}

static inline _Noreturn void raw_usage(const char *text)
{
    fprintf(stderr, "usage: %s\n", text);
    exit(2);
}

static inline uint64_t raw_now_ns(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

static inline uint64_t raw_realtime_ns(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_REALTIME, &ts);
    return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

/* Sleeps until message `i` of so many per second is due; 0: at once. */
static inline void raw_pace(uint64_t start_ns, uint64_t i, uint64_t rate_per_s)
{
    if (rate_per_s == 0)
        return;
    uint64_t due = start_ns + i * 1000000000u / rate_per_s;
    const struct timespec at = {(time_t)(due / 1000000000u), (long)(due % 1000000000u)};
    clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &at, NULL);
}

/* User and system time of this process so far. */
static inline uint64_t raw_cpu_ns(void)
{
    struct rusage used;
    getrusage(RUSAGE_SELF, &used);
    return ((uint64_t)used.ru_utime.tv_sec + (uint64_t)used.ru_stime.tv_sec) * 1000000000u +
           ((uint64_t)used.ru_utime.tv_usec + (uint64_t)used.ru_stime.tv_usec) * 1000u;
}

/* A negative CPU leaves the placement to whoever started the program. */
static inline void raw_pin(int cpu)
{
    if (cpu < 0)
        return;
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET((size_t)cpu, &set);
    if (sched_setaffinity(0, sizeof(set), &set) != 0)
        raw_die("sched_setaffinity");
}

static inline void *raw_alloc_shared(size_t bytes)
{
    void *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    if (memory == MAP_FAILED)
        raw_die("mmap");
    return memory;
}

static inline uint64_t raw_parse(const char *text, uint64_t min, uint64_t max)
{
    char *end;
    errno = 0;
    unsigned long long value = strtoull(text, &end, 10);
    if (errno || end == text || *end != '\0' || *text == '-' || value < min || value > max) {
        fprintf(stderr, "%s: a number from %" PRIu64 " to %" PRIu64 " is wanted\n", text, min, max);
        exit(2);
    }
    return value;
}

/* A number on the command line, `--name value`. */
struct raw_option {
    const char *name;
    uint64_t *value, min, max;
};

/* Parses argv[first] and what follows; the table ends with a NULL name. */
static inline void raw_options(int argc, char **argv, int first, const struct raw_option *known, const char *usage)
{
    for (int i = first; i < argc; i += 2) {
        const struct raw_option *o = known;
        while (o->name && strcmp(argv[i], o->name) != 0)
            o++;
        if (!o->name || i + 1 == argc)
            raw_usage(usage);
        *o->value = raw_parse(argv[i + 1], o->min, o->max);
    }
}

static inline int raw_compare_u64(const void *left, const void *right)
{
    uint64_t a = *(const uint64_t *)left, b = *(const uint64_t *)right;
    return (a > b) - (a < b);
}

/* `samples` sorted; the smallest value that at least `share` of the samples do not exceed (nearest rank). */
static inline uint64_t raw_percentile(const uint64_t *samples, size_t count, double share)
{
    size_t rank = (size_t)ceil(share * (double)count);
    return samples[rank > 0 ? rank - 1 : 0];
}

/* Sorts `rtt_ns` and prints the summary line, right after the last round trip; `cpu_ns` is CPU time per round trip. */
static inline void raw_print_summary(uint64_t *rtt_ns, size_t count, size_t size_bytes, const char *mode,
                                     uint64_t cpu_ns)
{
    uint64_t ended_ns = raw_now_ns();
    double sum = 0, squares = 0;
    for (size_t i = 0; i < count; i++)
        sum += (double)rtt_ns[i];
    double mean = sum / (double)count;
    for (size_t i = 0; i < count; i++)
        squares += ((double)rtt_ns[i] - mean) * ((double)rtt_ns[i] - mean);
    qsort(rtt_ns, count, sizeof(*rtt_ns), raw_compare_u64);
    printf("{\"kind\":\"summary\",\"metric\":\"rtt\",\"mode\":\"%s\",\"size_bytes\":%zu,\"count\":%zu,\"lost\":0,"
           "\"late\":0,\"min_ns\":%" PRIu64 ",\"p50_ns\":%" PRIu64 ",\"p90_ns\":%" PRIu64 ",\"p99_ns\":%" PRIu64
           ",\"p999_ns\":%" PRIu64 ",\"max_ns\":%" PRIu64 ",\"mean_ns\":%.0f,\"stddev_ns\":%.0f,\"cpu_ns\":%" PRIu64
           ",\"ended_ns\":%" PRIu64 "}\n",
           mode, size_bytes, count, rtt_ns[0], raw_percentile(rtt_ns, count, 0.5), raw_percentile(rtt_ns, count, 0.9),
           raw_percentile(rtt_ns, count, 0.99), raw_percentile(rtt_ns, count, 0.999), rtt_ns[count - 1], mean,
           sqrt(squares / (double)count), cpu_ns, ended_ns);
    fflush(stdout);
}

/* What the harness waits for before it starts the other side. */
static inline void raw_print_ready(void)
{
    puts("{\"kind\":\"ready\"}");
    fflush(stdout);
}

#endif
