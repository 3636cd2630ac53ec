/* SPDX-License-Identifier: Apache-2.0
 *
 * Waiting: spin, then yield, then sleep.
 *
 * A spinner with a processor of its own finds a message soonest if it only spins; one that shares its processor with whom it waits for
 * must give it away at every look, or both lose a whole time slice. Affinity does not tell which it is, so the spinner finds out: a
 * yield that took long has let somebody run, and many short ones in a row have not. What it has learned stays for the next wait.
 */
#ifndef QOS_WAIT_H
#define QOS_WAIT_H

#include <stdbool.h>
#include <stdint.h>

#include "compiler.h"

#define QOS_SPIN_GENTLE                                                                                                \
    8u /* first looks, with a pause: a producer in a flood is slowed down by each look at its index */
#define QOS_SPIN_EAGER 512u  /* then looks one right after the other: what a pause takes is a good part of a hop */
#define QOS_SPIN_LOOKS 4096u /* looks without success before a spinner that is alone yields to make sure that it is */
#define QOS_YIELD_LONG_NS 1500u
#define QOS_YIELD_SHORT_RUN 16u
#define QOS_COURTESY_MAX_NS 50000u
#define QOS_COURTESY_BACKOFF 8192u

/* Processors this thread may run on, at least 1. */
uint32_t qos_wait_processors(void);

struct qos_spin {
    uint32_t looks;
    uint32_t quick; /* short yields in a row */
    bool shared;    /* somebody else runs when we yield */
};

/* For a thread that may be alone on its processor (it may run on several) or not. */
static inline struct qos_spin qos_spin_new(uint32_t processors)
{
    return (struct qos_spin){.shared = processors == 1};
}

/* A new wait. */
static inline void qos_spin_start(struct qos_spin *spin)
{
    spin->looks = 0;
}

/* Yield, and learn from how long it took. */
void qos_spin_yield(struct qos_spin *spin);

/* After a look in vain. */
static inline void qos_spin_step(struct qos_spin *spin)
{
    if (spin->shared || ++spin->looks % QOS_SPIN_LOOKS == 0)
        qos_spin_yield(spin);
    else if (spin->looks < QOS_SPIN_GENTLE || spin->looks >= QOS_SPIN_EAGER)
        qos_cpu_relax();
}

/* Whether whoever is waited for runs when we yield. Two that share a processor and answer each other then need neither sleep nor wake.
 * A yield that brought nothing, or that let somebody else run for long, is tried again only after a growing number of waits. */
struct qos_courtesy {
    uint32_t skip, backoff;
};

static inline bool qos_courtesy_due(struct qos_courtesy *c)
{
    if (QOS_LIKELY(c->skip > 0)) {
        c->skip--;
        return false;
    }
    return true;
}

/* What came of a yield that took `took_ns`. */
static inline void qos_courtesy_learn(struct qos_courtesy *c, bool paid, uint64_t took_ns)
{
    if (paid && took_ns < QOS_COURTESY_MAX_NS)
        c->backoff = 0;
    else if (c->backoff < QOS_COURTESY_BACKOFF)
        c->backoff = c->backoff * 2 + 1;
    c->skip = c->backoff;
}

/* Futexes shared between processes. wait: 0 woken, -EAGAIN (the word is not `value`), -ETIMEDOUT, -EINTR. The word may be mapped
 * read-only; a time-out of UINT64_MAX is none. wake: how many were woken. */
int qos_futex_wait(const _Atomic uint32_t *word, uint32_t value, uint64_t timeout_ns);
int qos_futex_wake(const _Atomic uint32_t *word, int count);

#endif
