/* SPDX-License-Identifier: Apache-2.0 */
#include <fcntl.h>
#include <pthread.h>
#include <stdbool.h>
#include <string.h>
#include <unistd.h>

#include "clock.h"
#include "compiler.h"

#if defined(__x86_64__)

#include <x86intrin.h>

#define CLOCKSOURCE "/sys/devices/system/clocksource/clocksource0/current_clocksource"
#define RATE_SHIFT 32
#define MIN_SPAN_NS 5000000u   /* a rate measured over less is not worth having */
#define MAX_AGE_NS 2000000000u /* an anchor is good for this long: then a rate off by a millionth is 2 us */
#define READ_TRIES 5

/* An instant on both clocks and the rate between them. A sequence lock: odd while it is written. */
static struct {
    _Atomic uint32_t sequence;
    _Atomic uint64_t ticks, ns, rate, max_ticks;
} anchor;
__extension__ typedef unsigned __int128 wide;
static pthread_mutex_t calibrating = PTHREAD_MUTEX_INITIALIZER;

static bool counter_is_clock(void)
{
    char name[16] = "";
    int fd = open(CLOCKSOURCE, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return false;
    ssize_t n = read(fd, name, sizeof name - 1);
    close(fd);
    return n > 0 && strncmp(name, "tsc\n", 4) == 0;
}

/* Both clocks at one instant: the try with the shortest way round. */
static void read_both(uint64_t *ticks, uint64_t *ns)
{
    uint64_t best = UINT64_MAX;
    for (int i = 0; i < READ_TRIES; i++) {
        uint64_t before = __rdtsc(), now = qos_clock_realtime_ns(), after = __rdtsc();
        if (after - before < best) {
            best = after - before;
            *ticks = before + (after - before) / 2;
            *ns = now;
        }
    }
}

void qos_clock_stamp_calibrate(void)
{
    static bool asked, usable;
    static uint64_t last_ticks, last_ns;
    if (pthread_mutex_trylock(&calibrating) != 0)
        return;
    if (!asked) {
        usable = counter_is_clock();
        asked = true;
    }
    uint64_t ticks = 0, ns = 0;
    if (usable)
        read_both(&ticks, &ns);
    uint64_t span_ticks = ticks - last_ticks, span_ns = ns - last_ns;
    if (usable && (last_ns == 0 || span_ns >= MIN_SPAN_NS)) {
        /* a step of the clock, or a suspended machine: begin anew */
        bool continuous = last_ns != 0 && span_ns < MAX_AGE_NS * 4ull && span_ticks != 0;
        qos_store_relaxed(&anchor.sequence, qos_load_relaxed(&anchor.sequence) + 1);
        qos_fence_seq_cst(); /* pairs with the acquire fence in qos_clock_stamp_ns */
        qos_store_relaxed(&anchor.ticks, ticks);
        qos_store_relaxed(&anchor.ns, ns);
        uint64_t rate = continuous ? (uint64_t)(((wide)span_ns << RATE_SHIFT) / span_ticks) : 0;
        qos_store_relaxed(&anchor.rate, rate);
        qos_store_relaxed(&anchor.max_ticks, rate ? (uint64_t)(((wide)MAX_AGE_NS << RATE_SHIFT) / rate) : 0);
        qos_store_release(&anchor.sequence, qos_load_relaxed(&anchor.sequence) + 1);
        last_ticks = ticks;
        last_ns = ns;
    }
    pthread_mutex_unlock(&calibrating);
}

uint64_t qos_clock_stamp_ns(void)
{
    uint32_t before = qos_load_acquire(&anchor.sequence); /* pairs with the release in qos_clock_stamp_calibrate */
    uint64_t ticks = qos_load_relaxed(&anchor.ticks), ns = qos_load_relaxed(&anchor.ns),
             rate = qos_load_relaxed(&anchor.rate);
    uint64_t max = qos_load_relaxed(&anchor.max_ticks), age = __rdtsc() - ticks;
    qos_fence_acquire();
    if (QOS_UNLIKELY(before & 1 || age >= max || qos_load_relaxed(&anchor.sequence) != before))
        return qos_clock_realtime_ns();
    return ns + (uint64_t)(((wide)age * rate) >> RATE_SHIFT);
}

#else

void qos_clock_stamp_calibrate(void)
{
}

uint64_t qos_clock_stamp_ns(void)
{
    return qos_clock_realtime_ns();
}

#endif
