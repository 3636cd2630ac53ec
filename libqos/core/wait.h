/* SPDX-License-Identifier: Apache-2.0
 *
 * Waiting: spin, then yield, then sleep.
 *
 * A spinner with a processor of its own finds a message soonest if it only spins; one that shares its processor with whom it waits for
 * must give it away, or both lose a whole time slice. So a spinner spins for a while, then yields at every look; with a single
 * processor it yields from the first look.
 */
#ifndef QOS_WAIT_H
#define QOS_WAIT_H

#include <sched.h>
#include <stdint.h>

#include "compiler.h"

#define QOS_SPIN_LOOKS 4096u /* looks without success before a spinner begins to yield */

/* Processors this thread may run on, at least 1. */
uint32_t qos_wait_processors(void);

struct qos_spin {
    uint32_t looks;
    uint32_t limit;
};

static inline struct qos_spin qos_spin_start(uint32_t processors)
{
    return (struct qos_spin){0, processors > 1 ? QOS_SPIN_LOOKS : 0};
}

/* After a look in vain. */
static inline void qos_spin_step(struct qos_spin *spin)
{
    if (spin->looks < spin->limit) {
        spin->looks++;
        qos_cpu_relax();
    } else {
        sched_yield();
    }
}

/* Futexes shared between processes. wait: 0 woken, -EAGAIN (the word is not `value`), -ETIMEDOUT, -EINTR. The word may be mapped
 * read-only. wake: how many were woken. */
int qos_futex_wait(const _Atomic uint32_t *word, uint32_t value, uint64_t timeout_ns);
int qos_futex_wake(const _Atomic uint32_t *word, int count);

#endif
