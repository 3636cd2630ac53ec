/* SPDX-License-Identifier: Apache-2.0 */
#include "wait.h"

#include <errno.h>
#include <limits.h>
#include <linux/futex.h>
#include <sched.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "clock.h"

uint32_t qos_wait_processors(void)
{
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) < 0)
        return 1;
    int n = CPU_COUNT(&set);
    return n > 0 ? (uint32_t)n : 1;
}

void qos_spin_yield(struct qos_spin *spin)
{
    uint64_t before = qos_clock_monotonic_ns();
    sched_yield();
    if (qos_clock_monotonic_ns() - before > QOS_YIELD_LONG_NS) {
        spin->shared = true;
        spin->quick = 0;
    } else if (spin->shared && ++spin->quick >= QOS_YIELD_SHORT_RUN) {
        spin->shared = false;
        spin->quick = 0;
    }
}

int qos_futex_wait(const _Atomic uint32_t *word, uint32_t value, uint64_t timeout_ns)
{
    struct timespec ts = {(time_t)(timeout_ns / 1000000000u), (long)(timeout_ns % 1000000000u)};
    long rc = syscall(SYS_futex, word, FUTEX_WAIT, value, timeout_ns == UINT64_MAX ? NULL : &ts, NULL, 0);
    return rc < 0 ? -errno : 0;
}

int qos_futex_wake(const _Atomic uint32_t *word, int count)
{
    long rc = syscall(SYS_futex, word, FUTEX_WAKE, count, NULL, NULL, 0);
    return rc < 0 ? -errno : (int)rc;
}
